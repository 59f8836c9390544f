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


def stream_rows(folder: str, begun: str, go: str, report: str, environment: dict[str, str]) -> None:
    """What a run of plain Streaming does: read all rows; it makes the file `begun` at the first and waits for `go`.

    It leads a process group, and has a resource tracker of its own in it, as a program that was started by itself.
    """
    os.setsid()
    os.environ.update(environment)
    tempfile.tempdir = None
    resource_tracker._resource_tracker._fd = None  # type: ignore[attr-defined]
    from streaming import StreamingDataset

    rows = 0
    for _ in StreamingDataset(local=folder, batch_size=1):
        rows += 1
        Path(begun).touch()
        while not Path(go).exists():
            time.sleep(0.02)
    Path(report).write_text(str(rows))


def start(target: Callable[..., Any], *values: Any) -> BaseProcess:
    """A process that has imported everything already."""
    process = get_context("forkserver").Process(target=target, args=values)
    process.start()
    return process
