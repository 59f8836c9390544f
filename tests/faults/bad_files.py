"""Files that are wrong or hostile, with the hashes that vouch for them, and what sees whether they do harm."""
import errno
import hashlib
import io
import json
import os
import pickle
import sys
import time
from collections.abc import Callable
from dataclasses import replace as with_changes
from pathlib import Path
from typing import Any

import torch

from mmbert.checkpoint import FILES, sha256_of
from mmbert.manifest import Manifest, ShardRecord, read_manifest, write_manifest
from tests.faults.injected import before_step, is_rank, now


class Evil:
    """Makes a folder when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return os.mkdir, (str(self.marker),)


def evil_pickle(marker: Path) -> bytes:
    """A pickle that makes the folder `marker`, and has the size of no honest file."""
    return pickle.dumps(Evil(marker))


def evil_torch_file(marker: Path) -> bytes:
    """What torch.save writes, with the same."""
    buffer = io.BytesIO()
    torch.save({"encoder.weight": Evil(marker)}, buffer)
    return buffer.getvalue()


def vouch_for(checkpoint: Path) -> None:
    """Let a checkpoint's manifest fit its files."""
    entries = {name: {"sha256": sha256_of(checkpoint / name), "bytes": (checkpoint / name).stat().st_size}
               for name in FILES}  # fmt: skip
    (checkpoint / "manifest.json").write_text(json.dumps(entries))


def report_pickles(report: str) -> None:
    """Change of a run: each class or function that a pickle names is a line of the file `report`."""
    Path(report).touch()

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "pickle.find_class":
            descriptor = os.open(report, os.O_WRONLY | os.O_APPEND)
            os.write(descriptor, f"{arguments}\n".encode())
            os.close(descriptor)

    sys.addaudithook(hook)


# -------------------------------------------------------------------------------------------------------------- streams


def edit_index(stream: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    """Change index.json, and let the manifest vouch for it."""
    index = json.loads((stream / "index.json").read_bytes())
    edit(index)
    content = json.dumps(index).encode()
    (stream / "index.json").write_bytes(content)
    sign(stream, index_sha256=hashlib.sha256(content).hexdigest())


def sign(stream: Path, **changes: Any) -> Manifest:
    """Change a manifest, and give it a digest that fits."""
    manifest = with_changes(read_manifest(stream), **changes)
    write_manifest(stream, manifest)
    return manifest


def record_of(path: Path, rows: int) -> ShardRecord:
    """What a manifest says of a shard."""
    return ShardRecord(sha256_of(path), path.stat().st_size, rows)


def rename_shard(stream: Path, name: str) -> None:
    """Call the stream's only shard `name` in index and manifest; the file itself stays where it is."""
    (record,) = read_manifest(stream).shards.values()
    edit_index(stream, lambda index: index["shards"][0]["raw_data"].update(basename=name))
    sign(stream, shards={name: record})


# -------------------------------------------------------------------------------------------------------------- storage


def on_open(folder: str, action: Callable[[str], None]) -> None:
    """Call `action` in this process, and those that it forks, whenever a shard below the folder is opened."""

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open" and str(arguments[0]).startswith(folder) and str(arguments[0]).endswith(".mds"):
            action(str(arguments[0]))

    sys.addaudithook(hook)


def fail_reads(folder: str, first: int, last: int, rank: int | None = None) -> None:
    """Opening a shard fails with EIO from the `first` time to the `last`; each process counts for itself."""
    opened = 0

    def fail(path: str) -> None:
        nonlocal opened
        opened += 1
        if first <= opened <= last and is_rank(rank):
            raise OSError(errno.EIO, os.strerror(errno.EIO), path)

    on_open(folder, fail)


def slow_reads(folder: str, seconds: float) -> None:
    """Opening a shard takes its time."""
    on_open(folder, lambda path: time.sleep(seconds))


def fail_in_the_middle(number: int) -> None:
    """Reading a shard whole, to hash it, fails with EIO at this one; as read(2) does it, without a file's name."""
    digest, hashed = hashlib.file_digest, 0

    def failing(file: Any, *arguments: Any) -> Any:
        nonlocal hashed
        hashed += str(file.name).endswith(".mds")
        if hashed == number:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return digest(file, *arguments)

    hashlib.file_digest = failing  # type: ignore[assignment]


def vanish_at_step(step: int, folder: str) -> None:
    """The folder is gone from this step on, as when a disk is unmounted."""

    def vanish() -> None:
        if now.step == step:
            os.rename(folder, folder + ".gone")

    before_step(vanish)
