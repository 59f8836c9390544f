"""Ranks that meet before there is a process group: who they are, a board to write on, and a sum over all of them."""
import json
import os
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path

import torch
from torch import distributed

from mmbert.preflight.report import Report, judge


@dataclass(frozen=True)
class Place:
    """This process among the ranks, as launchers say it in the environment; alone without one."""

    rank: int
    world_size: int
    local_rank: int
    local_world_size: int
    address: str
    port: int

    @classmethod
    def from_environment(cls) -> "Place":
        """Read what torchrun, Composer's launcher and ours set."""
        def number(name: str, default: int) -> int:
            return int(os.environ.get(name, default))

        return cls(
            number("RANK", 0), number("WORLD_SIZE", 1), number("LOCAL_RANK", 0), number("LOCAL_WORLD_SIZE", 1),
            os.environ.get("MASTER_ADDR", "127.0.0.1"), number("MASTER_PORT", 0),
        )  # fmt: skip


def node_name() -> str:
    """Slurm's name of this machine, or its own."""
    return os.environ.get("SLURMD_NODENAME", os.uname().nodename)


class Meeting:
    """A board on rank 0 that all ranks read and write."""

    def __init__(self, place: Place, seconds: float) -> None:
        """Meet.

        Raises:
            OSError: the first rank, or its board, cannot be reached.
        """
        self.place, self.seconds = place, seconds
        try:
            self.store = distributed.TCPStore(
                place.address, place.port, place.world_size, place.rank == 0, timedelta(seconds=seconds),
                wait_for_workers=False,
            )  # fmt: skip
        except (RuntimeError, ValueError) as error:  # torch's own errors are RuntimeErrors
            raise OSError(
                f"{node_name()}: rank {place.rank} cannot reach rank 0 at {place.address} port {place.port}: "
                f"{str(error).splitlines()[0]}; is it the right address, and does a firewall let it through?"
            ) from None

    def read(self, key: str, whose: str) -> str:
        """What somebody writes under this key.

        Raises:
            OSError: nobody does in time; names whom we waited for.
        """
        try:
            return self.store.get(key).decode()
        except RuntimeError:
            raise OSError(f"{whose} said nothing within {self.seconds:g} s: its log and its node's tell why") from None

    def gather(self, name: str, own: str) -> list[str]:
        """What every rank says; rank 0 waits for all, others get nothing."""
        self.store.set(f"{name}/{self.place.rank}", own)
        ranks = range(self.place.world_size) if self.place.rank == 0 else ()
        return [self.read(f"{name}/{rank}", f"rank {rank}") for rank in ranks]

    def agree(self, verdict: str) -> str:
        """Rank 0's verdict, on all ranks."""
        if self.place.rank == 0:
            self.store.set("verdict", verdict)
        return self.read("verdict", "rank 0")

    def close(self) -> None:
        """Rank 0 leaves last, for the board goes with it."""
        self.gather("left", "yes")


def exchange(meeting: Meeting, report: Report, run_root: Path) -> list[str]:
    """All faults of all ranks, on all ranks; together they see whether `run_root` is one folder for all."""
    place, store = meeting.place, meeting.store
    with tempfile.TemporaryDirectory(prefix=".preflight-", dir=run_root if place.rank == 0 else None) as folder:
        if place.rank == 0:
            store.set("folder", folder)
        found = meeting.read("folder", "rank 0")
        shared = [] if await_folder(Path(found)) else [f"{run_root} is not the folder that rank 0 sees: share it"]
        store.set(f"seen/{place.rank}", "yes")
        own = asdict(report) | {"faults": [*report.faults, *shared]}
        texts = meeting.gather("report", json.dumps(own))
    if place.rank == 0:
        store.set("now", "")
    meeting.read("now", "rank 0")
    clocks = meeting.gather("clock", repr(time.time()))
    reports = [Report(**json.loads(text) | {"clock": float(clock)}) for text, clock in zip(texts, clocks, strict=True)]
    faults = judge(reports) if reports else []
    tell(faults)  # before the others know, and end: a launcher then ends this rank as well
    return meeting.agree("\n".join(faults)).splitlines()


def tell(lines: Sequence[str]) -> None:
    """Lines to stderr, in one piece."""
    os.write(2, "".join(f"preflight: {line}\n" for line in lines).encode())


def await_folder(folder: Path, seconds: float = 10.0) -> bool:
    """Whether it is there; network file systems may need a moment."""
    end = time.monotonic() + seconds
    while not (there := folder.is_dir()) and time.monotonic() < end:
        time.sleep(0.1)
    return there


def add_up(place: Place, meeting: Meeting, backend: str) -> None:
    """Have all ranks add their numbers.

    Raises:
        OSError: it does not work, or the sum is another.
    """
    device = f"cuda:{place.local_rank}" if backend == "nccl" else "cpu"
    try:
        distributed.init_process_group(
            backend, store=distributed.PrefixStore(backend, meeting.store), rank=place.rank,
            world_size=place.world_size, timeout=timedelta(seconds=meeting.seconds),
        )  # fmt: skip
        total = torch.tensor([place.rank + 1], device=device)
        distributed.all_reduce(total)
        expected, found = place.world_size * (place.world_size + 1) // 2, int(total.item())
        distributed.destroy_process_group()
    except RuntimeError as error:
        raise OSError(
            f"{node_name()}: rank {place.rank}: {backend} cannot add up: {str(error).splitlines()[0]}; name the nodes' "
            "network in NCCL_SOCKET_IFNAME and GLOO_SOCKET_IFNAME (INTERFACE in slurm/cluster.env)"
        ) from None
    if found != expected:
        raise OSError(f"{node_name()}: {backend} adds up 1 to {place.world_size} to {found}, not {expected}")
