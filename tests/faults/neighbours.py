"""Processes beside a run, and what a process holds that outlives it: shared memory, files, children."""
import os
import tempfile
import time
from collections.abc import Callable
from multiprocessing import get_context, resource_tracker
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from tests.faults.injected import before_step, now

SHARED_MEMORY = "/dev/shm/"


def pause_at_step(step: int, here: str, go: str) -> None:
    """Change of a run: in this step it makes the file `here`, and waits until there is a file `go`."""

    def pause() -> None:
        if now.step == step:
            Path(here).touch()
            while not Path(go).exists():
                time.sleep(0.02)

    before_step(pause)


def count_steps() -> None:
    """Change of a program that nothing else tells which step it is in."""

    def count() -> None:
        now.step += 1

    before_step(count)


def shared_memory_of(process: int) -> set[str]:
    """Objects of shared memory that a process has mapped or open, and that have a name, which outlives it."""
    found = set()
    with open(f"/proc/{process}/maps") as maps:
        found |= {line.split(maxsplit=5)[-1].strip() for line in maps if SHARED_MEMORY in line}
    for descriptor in os.listdir(f"/proc/{process}/fd"):
        try:
            found.add(os.readlink(f"/proc/{process}/fd/{descriptor}"))
        except FileNotFoundError:
            continue  # closed meanwhile
    return {name for name in found if name.startswith(SHARED_MEMORY) and not name.endswith("(deleted)")}


def be_a_program(temporary: Path) -> None:
    """Lead a process group with a resource tracker of its own in it, as a program that was started by itself does.

    What it prints goes to the file `log`.
    """
    os.setsid()
    descriptor = os.open(temporary / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    tempfile.tempdir = str(temporary)
    resource_tracker._resource_tracker._fd = None  # type: ignore[attr-defined]


def stream_rows(folder: str, here: str) -> None:
    """What a run of plain Streaming does: read all rows; at each it makes `here`/begun and waits for `here`/go.

    Their number is the content of `here`/rows in the end.
    """
    be_a_program(Path(here))
    from streaming import StreamingDataset

    rows = 0
    for _ in StreamingDataset(local=folder, batch_size=1):
        rows += 1
        (Path(here) / "begun").touch()
        while not (Path(here) / "go").exists():
            time.sleep(0.02)
    (Path(here) / "rows").write_text(str(rows))


def count_rows(here: str, options: dict[str, Any]) -> None:
    """Read all that plain Streaming gives; how many rows, and "?" until it has come to its end."""
    be_a_program(Path(here))
    (Path(here) / "rows").write_text("?")
    from streaming import StreamingDataset

    rows = sum(1 for _ in StreamingDataset(**options, batch_size=1))
    (Path(here) / "rows").write_text(str(rows))


def count_with_streaming(here: Path, options: dict[str, Any], limit: float = 30.0) -> str:
    """How many rows a StreamingDataset with these options gives until it ends; "?" if it does not, or raises."""
    process = start(count_rows, str(here), options)
    process.join(limit)
    process.kill()
    process.join()
    return (here / "rows").read_text()


def start(target: Callable[..., Any], *values: Any) -> BaseProcess:
    """A process that has imported everything already."""
    process = get_context("forkserver").Process(target=target, args=values)
    process.start()
    return process
