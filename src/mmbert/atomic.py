"""Files and folders that appear whole or not at all, also when the machine stops half-way."""
import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def fsync(path: Path) -> None:
    """Wait until a file, or a folder's list of names, is on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_folder(path: Path) -> None:
    """Make a folder and its parents, on disk for good: a power cut does not take away the name of a full folder."""
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for folder in missing:
        fsync(folder.parent)


def remove(path: Path) -> None:
    """Remove a folder with all it holds, a file, or a link without what it points to; nothing there is fine."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def write_file(path: Path, content: bytes) -> None:
    """Write `content` to `path`; a reader sees the old file or the new one, never a part.

    Raises:
        OSError: the old file is as it was.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        with naming(path):
            partial.write_bytes(content)
            fsync(partial)
            partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    fsync(path.parent)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Around what writes `path`: of a full disk Python's own error says no name."""
    try:
        yield
    except OSError as error:
        if error.errno in FULL and error.filename is None:
            error.filename = str(path)
        raise


@contextmanager
def partial_folder(target: Path) -> Iterator[Path]:
    """Give an empty folder next to `target`, and remove what is left of it at the end.

    Its name starts with a dot, so that no reader takes it for a finished one; what a killed run left of it goes.
    """
    partial = target.with_name(f".{target.name}.partial")
    make_folder(target.parent)
    remove(partial)
    partial.mkdir()
    try:
        with naming(target):
            yield partial
    finally:
        shutil.rmtree(partial, ignore_errors=True)  # what cannot be removed must not hide why it came to this


def publish_folder(partial: Path, target: Path) -> None:
    """Move a finished folder into place, on disk for good when this returns.

    An older `target` is moved aside first and deleted last: a kill in between leaves no target, never a mixture, and
    `restore_folders` brings the older one back.

    Raises:
        OSError: the older `target` is back in its place.
    """
    for path in [*partial.rglob("*"), partial]:
        fsync(path)
    old = target.with_name(f".{target.name}.old")
    if os.path.lexists(target):
        remove(old)
        target.replace(old)
    try:
        partial.replace(target)
    except OSError:
        if os.path.lexists(old):
            old.replace(target)
        raise
    fsync(target.parent)
    with suppress(OSError):  # the new one is in its place: to fail now would be a lie
        remove(old)


def restore_folders(parent: Path, pattern: str) -> None:
    """Move back the folders that were moved aside for others which never took their place."""
    for old in parent.glob(f".{pattern}.old"):
        target = parent / old.name.removeprefix(".").removesuffix(".old")
        if not os.path.lexists(target):
            old.replace(target)
            fsync(parent)


def remove_leftovers(parent: Path, pattern: str) -> None:
    """Remove the hidden folders that kills left beside those that `pattern` names."""
    for suffix in ("partial", "old"):
        for path in parent.glob(f".{pattern}.{suffix}"):
            remove(path)


def publish_files(target: Path, files: dict[str, bytes]) -> None:
    """Make the folder `target` with these files, whole or not at all; the same content again is a no-op.

    Raises:
        FileExistsError: `target` exists with other content. Nothing is overwritten.
    """
    if target.exists():
        if target.is_dir() and {path.name: path.is_file() and path.read_bytes() for path in target.iterdir()} == files:
            return
        raise FileExistsError(f"{target} exists with other content: remove it, or choose another output folder")
    with partial_folder(target) as partial:
        for name, content in files.items():
            (partial / name).write_bytes(content)
        publish_folder(partial, target)
