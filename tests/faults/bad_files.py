"""Files that are wrong or hostile, with the hashes that vouch for them, and what sees whether they do harm."""
import errno
import hashlib
import io
import json
import os
import pickle
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace as with_changes
from pathlib import Path
from typing import Any

import numpy as np
import torch
from streaming import MDSWriter

import mmbert.shards
from mmbert.checkpoint import FILES
from mmbert.file_contents import sha256_of
from mmbert.manifest import COLUMNS, Manifest, ShardRecord, read_manifest, write_manifest
from mmbert.shards import LanguageShards
from tests.faults.injected import before_step, is_rank, now
from tests.guards import replace

RowLists = tuple[list[int], list[int]]  # input_ids and lengths


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
    report_events(report, lambda event, arguments: event == "pickle.find_class")


def report_opens(folder: str, report: str) -> None:
    """Change of a run: each file below the folder that is opened, however it is called, is a line of `report`."""

    def is_below(event: str, arguments: tuple[Any, ...]) -> bool:
        return event == "open" and isinstance(arguments[0], str) and os.path.realpath(arguments[0]).startswith(folder)

    report_events(report, is_below)


def report_events(report: str, is_wanted: Callable[[str, tuple[Any, ...]], bool]) -> None:
    """Append the audit events that are wanted to a file."""
    descriptor = os.open(report, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if is_wanted(event, arguments):
            os.write(descriptor, f"{event} {arguments}\n".encode())

    sys.addaudithook(hook)


# -------------------------------------------------------------------------------------------------------------- streams


def edit_index(stream: Path, edit: Callable[[dict[str, Any]], object]) -> Manifest:
    """Change index.json, and let the manifest vouch for it."""
    index = json.loads((stream / "index.json").read_bytes())
    edit(index)
    content = json.dumps(index).encode()
    (stream / "index.json").write_bytes(content)
    return sign(stream, index_sha256=hashlib.sha256(content).hexdigest())


def sign(stream: Path, **changes: Any) -> Manifest:
    """Change a manifest, and give it a digest that fits."""
    manifest = with_changes(read_manifest(stream), **changes)
    write_manifest(stream, manifest)
    return manifest


def sign_anything(stream: Path, changes: dict[str, Any]) -> None:
    """Change a manifest's JSON in a way that no `Manifest` can, and give it a digest that fits."""
    path = stream / "manifest.json"
    values = json.loads(path.read_bytes()) | changes
    del values["digest"]
    canonical = json.dumps(values, sort_keys=True, separators=(",", ":")).encode()
    path.write_text(json.dumps(values | {"digest": hashlib.sha256(canonical).hexdigest()}))


def record_of(path: Path, rows: int) -> ShardRecord:
    """What a manifest says of a shard."""
    return ShardRecord(sha256_of(path), path.stat().st_size, rows)


def rename_shard(stream: Path, name: str) -> None:
    """Call the stream's only shard `name` in index and manifest; the file itself stays where it is."""
    (record,) = read_manifest(stream).shards.values()
    edit_index(stream, lambda index: index["shards"][0]["raw_data"].update(basename=name))
    sign(stream, shards={name: record})


def rows_of(stream: Path) -> list[RowLists]:
    """All rows of a stream."""
    shards = LanguageShards([stream], [manifest := read_manifest(stream)])
    rows = [shards.rows([(0, number)]) for number in range(manifest.rows)]
    return [(row.input_ids.tolist(), row.lengths.tolist()) for row in rows]


def rewrite(stream: Path, rows: Sequence[RowLists], **columns: str) -> None:
    """Put these rows into a stream's only shard, with an index and a manifest that vouch for them.

    Args:
        columns: dtypes of the shard where they are not those that the index goes on to name.
    """
    written = {**COLUMNS, **columns}
    with MDSWriter(out=str(stream / "new"), columns=written) as writer:
        for row in rows:
            values = zip(written.items(), row, strict=True)
            writer.write({name: np.array(part, kind.partition(":")[2]) for (name, kind), part in values})
    os.replace(stream / "new" / "shard.00000.mds", stream / "shard.00000.mds")
    shutil.rmtree(stream / "new")
    vouch_for_shard(stream, len(rows))


def vouch_for_shard(stream: Path, rows: int) -> None:
    """Let index and manifest fit the stream's only shard as it is now, whatever it holds."""
    record = record_of(stream / "shard.00000.mds", rows)

    def edit(index: dict[str, Any]) -> None:
        index["shards"][0]["samples"] = rows
        index["shards"][0]["raw_data"]["bytes"] = record.bytes

    edit_index(stream, edit)
    sign(stream, shards={"shard.00000.mds": record}, rows=rows)


# -------------------------------------------------------------------------------------------------------------- storage


def on_read(folder: str, action: Callable[[str], None]) -> None:
    """Call `action` in this process, and those that it forks, whenever a part of a shard below the folder is read."""
    read = os.pread

    def hooked(file: int, size: int, place: int) -> bytes:
        path = os.readlink(f"/proc/self/fd/{file}")
        if path.startswith(folder) and path.endswith(".mds"):
            action(path)
        return read(file, size, place)

    replace(os, "pread", hooked)


def fail_reads(folder: str, first: int, last: int, rank: int | None = None) -> None:
    """Reading from a shard fails with EIO from the `first` time to the `last`; each process counts for itself."""
    reads = 0

    def fail(path: str) -> None:
        nonlocal reads
        reads += 1
        if first <= reads <= last and is_rank(rank):
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    on_read(folder, fail)


def slow_reads(folder: str, seconds: float) -> None:
    """Reading from a shard takes its time."""
    on_read(folder, lambda path: time.sleep(seconds))


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
    """The folder is gone from this step on, as when a disk is unmounted; few shards are open at that moment."""
    replace(mmbert.shards, "most_open", lambda: 1)

    def vanish() -> None:
        if now.step == step:
            os.rename(folder, folder + ".gone")

    before_step(vanish)
