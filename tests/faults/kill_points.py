"""Kills a process at its k-th operation on the files of a run: between any two, and in the middle of a write."""
import os
import signal
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.guards import replace

EVENTS = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.scandir", "os.chmod", "os.link"}


class Operations:
    """Counts what this process, and none that it forks, does to files below a folder."""

    def __init__(self, folder: str, kill_at: int | None) -> None:
        self.folder, self.kill_at = os.path.realpath(folder), kill_at
        self.process, self.kinds = os.getpid(), Counter[str]()
        self.number = 0
        self.is_busy = False  # inside the hook itself

    def is_watched(self, path: Any) -> bool:
        """Whether a path lies below the folder; relative ones are names within a folder that is being removed."""
        if isinstance(path, int):
            path = os.readlink(f"/proc/self/fd/{path}")
        if not isinstance(path, str | bytes | os.PathLike):
            return False
        name = os.fsdecode(path)
        return name.startswith(self.folder) or not name.startswith("/")

    def happens(self, kind: str, path: Any, half: Callable[[], object] | None = None) -> None:
        """Count an operation that is about to be done, and die of it if it is the k-th; first do a `half` of it."""
        if self.is_busy or os.getpid() != self.process:
            return
        self.is_busy = True
        try:
            if self.is_watched(path):
                self.number += 1
                self.kinds[kind] += 1
                if self.number == self.kill_at:
                    if half:
                        half()
                    os.kill(os.getpid(), signal.SIGKILL)
        finally:
            self.is_busy = False


def watch(folder: str, kill_at: int | None = None) -> Operations:
    """Count from here on, and kill this process at operation number `kill_at`, from 1 on."""
    import mmbert.checkpoint

    operations = Operations(folder, kill_at)
    fsync, write, save = os.fsync, os.write, mmbert.checkpoint.write_tensors

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event in EVENTS:
            operations.happens(event.removeprefix("os."), arguments[0])

    def counted_fsync(descriptor: int) -> None:
        operations.happens("fsync", descriptor)
        fsync(descriptor)

    def counted_write(descriptor: int, content: Any) -> int:
        operations.happens("write", descriptor, lambda: write(descriptor, bytes(content)[: len(content) // 2]))
        return write(descriptor, content)

    def counted_save(path: Path, tensors: Any) -> None:
        def half() -> None:
            save(path, tensors)
            os.truncate(path, path.stat().st_size // 2)

        operations.happens("save", path, half)
        save(path, tensors)

    sys.addaudithook(hook)
    replace(os, "fsync", counted_fsync)
    replace(os, "write", counted_write)
    replace(mmbert.checkpoint, "write_tensors", counted_save)
    return operations


def kill_at_operation(folder: str, number: int) -> None:
    """Change of a run: it dies at its operation `number` on files below `folder`."""
    watch(folder, number)


def kill_in_save(folder: str, number: int) -> None:
    """Change of a run: it dies in the middle of writing safetensors file `number`; a checkpoint has two."""
    operations = watch(folder)
    happens = operations.happens

    def happens_or_dies(kind: str, path: Any, half: Callable[[], object] | None = None) -> None:
        happens(kind, path, half)
        if kind == "save" and operations.kinds["save"] == number and half:
            operations.is_busy = True
            half()
            os.kill(os.getpid(), signal.SIGKILL)

    operations.happens = happens_or_dies  # type: ignore[method-assign]


def report_operations(folder: str, report: str) -> None:
    """Change of a run: at its end it writes how many operations of each kind it did."""
    import main

    operations = watch(folder)
    program = main.main

    def reporting(arguments: list[str]) -> None:
        try:
            program(arguments)
        finally:
            operations.is_busy = True
            Path(report).write_text("".join(f"{kind} {number}\n" for kind, number in sorted(operations.kinds.items())))

    replace(main, "main", reporting)
