"""Files and folders that appear whole or not at all, also when the machine stops half-way."""
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_file(path: Path, content: bytes) -> None:
    """Write `content` to `path`; a reader sees the old file or the new one, never a part."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_bytes(content)
    _fsync(partial)
    partial.replace(path)
    _fsync(path.parent)


@contextmanager
def partial_folder(target: Path, suffix: str = "partial") -> Iterator[Path]:
    """Give an empty folder next to `target`, and remove what is left of it at the end.

    Its name starts with a dot, so that no reader takes it for a finished one; what a killed run left of it goes.
    """
    partial = target.with_name(f".{target.name}.{suffix}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def publish_folder(partial: Path, target: Path) -> None:
    """Move a finished folder into place, on disk for good when this returns.

    An older `target` is moved aside first and deleted last: a kill in between leaves no target, never a mixture.
    """
    for path in [*partial.iterdir(), partial]:
        _fsync(path)
    with partial_folder(target, suffix="old") as old:
        if target.exists():
            target.replace(old / target.name)
        partial.replace(target)
        _fsync(target.parent)


def publish_files(target: Path, files: dict[str, bytes]) -> None:
    """Make the folder `target` with these files, whole or not at all; the same content again is a no-op.

    Raises:
        FileExistsError: `target` exists with other content. Nothing is overwritten.
    """
    if target.exists():
        if target.is_dir() and {path.name: path.read_bytes() for path in target.iterdir()} == files:
            return
        raise FileExistsError(f"{target} exists with other content: remove it, or choose another output folder")
    with partial_folder(target) as partial:
        for name, content in files.items():
            (partial / name).write_bytes(content)
        publish_folder(partial, target)
