"""The ranks of a run, and what they tell each other between steps.

Over the CPU (gloo), beside the GPUs' own group: nothing here waits for a kernel.
"""
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import numpy as np
import torch
from composer.utils import dist
from numpy.typing import NDArray
from torch import distributed, nn

from mmbert.command import with_remedy
from mmbert.watchdog import Watchdog

T = TypeVar("T")
TEXT_BYTES = 4096  # of a message between ranks: an error in one line, or the path of a checkpoint
SECONDS_TO_LEAVE = 0.2
"""In which gloo's threads free the tensors of the last message. That takes Python's lock, and who frees a group waits
for them, with the lock: for ever, in 8 of 40 trials of three ranks that left right after a message (torch 2.7.0)."""


@dataclass(frozen=True)
class Ranks:
    """This process among those that train together.

    Every method must be called by all ranks, in the same order.
    """

    rank: int
    world_size: int
    group: distributed.ProcessGroup | None

    @classmethod
    def connect(cls, device: str, hang_minutes: float) -> "Ranks":
        """Meet the other ranks; the launcher has told Composer where.

        Args:
            hang_minutes: of the watchdog, which shows what a rank hangs in; no rank gives up waiting before that.

        Raises:
            OSError: they do not come, or cannot be reached.
        """
        timeout = timedelta(minutes=2 * hang_minutes)
        rank, world_size = dist.get_global_rank(), dist.get_world_size()
        where = f"{os.environ.get('MASTER_ADDR')} port {os.environ.get('MASTER_PORT')}"
        watchdog = Watchdog(1.5 * timeout.total_seconds())  # torch waits for ever where another program listens
        watchdog.start()
        watchdog.beat(f"rank {rank}, meeting the others at {where}")
        try:
            dist.initialize_dist(device, timeout.total_seconds())
            group = distributed.new_group(backend="gloo", timeout=timeout) if world_size > 1 else None
        except RuntimeError as error:  # of any kind that torch has
            raise OSError(
                f"rank {rank} of {world_size} does not meet the others at {where}: {first_line(error)}; look at what "
                "each launcher says, and whether all were started, with the same address and port"
            ) from None
        finally:
            watchdog.stop()
        return cls(rank, world_size, group)

    def leave(self) -> None:
        """Part, when there is no more to be told; NCCL warns of leaks where nobody does."""
        if distributed.is_initialized():
            time.sleep(SECONDS_TO_LEAVE)
            distributed.destroy_process_group()

    @property
    def is_first(self) -> bool:
        """Whether this rank writes files."""
        return self.rank == 0

    def sum(self, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        """Elementwise sum over the ranks, modulo 2^64."""
        if self.group is None:
            return numbers
        total = torch.from_numpy(numbers.copy())
        distributed.all_reduce(total, group=self.group)
        return total.numpy()

    def any(self, flag: bool) -> bool:
        """Whether it is true on any rank."""
        return bool(self.sum(np.array([int(flag)])).any())

    def texts(self, text: str) -> list[str]:
        """The text of every rank, in the order of the ranks; more than 4,096 bytes are cut off."""
        if self.group is None:
            return [text]
        content = text.encode()[:TEXT_BYTES]
        own = torch.frombuffer(bytearray(content.ljust(TEXT_BYTES, b"\0")), dtype=torch.uint8)
        all_texts = [torch.empty_like(own) for _ in range(self.world_size)]
        distributed.all_gather(all_texts, own, group=self.group)
        return [bytes(found.numpy()).rstrip(b"\0").decode(errors="ignore") for found in all_texts]

    def of_first(self, text: str) -> str:
        """Rank 0's text, of any length, on all ranks."""
        if self.group is None:
            return text
        content = torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)
        size = int(self.sum(np.array([len(content) if self.is_first else 0]))[0])
        if not self.is_first:
            content = torch.empty(size, dtype=torch.uint8)
        distributed.broadcast(content, 0, group=self.group)
        return content.numpy().tobytes().decode()

    def raise_together(self, error: Exception | None) -> None:
        """Raise an error of one rank on all of them; the run ends with it.

        Raises:
            ValueError: names the rank and what it says.
        """
        for rank, message in enumerate(self.texts(with_remedy(error) if error else "")):
            if message:
                if self.group is None:  # else others may still read what this one has sent
                    self.leave()
                raise ValueError(f"rank {rank}: {message}" if self.world_size > 1 else message) from error

    def together(self, action: Callable[[], T]) -> T:
        """What `action` returns on this rank; it runs on all.

        Raises:
            ValueError: on all ranks, where `action` raises ValueError or OSError on any.
        """
        error: Exception | None = None
        try:
            result = action()
        except (ValueError, OSError) as caught:
            error = caught
        self.raise_together(error)
        return result

    def by_first(self, action: Callable[[], object]) -> str:
        """What `action` returns on rank 0, as text, or "" for None; it runs there alone.

        Raises:
            ValueError: on all ranks, where `action` raises ValueError or OSError.
        """
        result = self.together(lambda: action() if self.is_first else None)
        return self.texts(str(result or ""))[0]


@contextmanager
def loss_in_one_line() -> Iterator[None]:
    """Around what ranks do together: one that loses another says so in a line, for that one's own error is the cause.

    Raises:
        OSError: in place of gloo's error.
    """
    try:
        yield
    except RuntimeError as error:
        text = str(error)  # gloo's errors have no class of their own, but a place in its sources
        if "/gloo/transport/" not in text or "enforce" in text:  # of which those of its own checks are bugs
            raise
        raise OSError(
            f"rank {dist.get_global_rank()} lost another rank ({first_line(error)}); that one, or its launcher, tells "
            "why; the same command goes on"
        ) from None


def first_line(error: Exception) -> str:
    """Of an error whose other lines are stacks."""
    return str(error).strip().partition("\n")[0]


def weights_digest(model: nn.Module) -> str:
    """A sum over the bits of all weights: one flipped bit changes it. Ranks that train together have the same."""
    total = torch.zeros((), dtype=torch.int64)
    for parameter in model.parameters():
        total = 31 * total.to(parameter.device) + parameter.detach().view(torch.int32).sum(dtype=torch.int64)
    return str(int(total))
