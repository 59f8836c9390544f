"""Rows by number, from the MDS shards of many streams. A shard is checked whole before its first row is used.

Mosaic's Streaming wrote the shards and decodes them; every stream folder can be read by its `StreamingDataset` too. We
do not, for that keeps shared memory and lock files that a killed run leaves behind, and never looks at a checksum of
data that are already local (docs/architecture.md).
"""
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from streaming.base.format import reader_from_json
from streaming.base.format.base.reader import Reader

from mmbert.manifest import REMEDY, Manifest, check_shard
from mmbert.packing import WRAPPER_TOKENS, Row


class LanguageShards:
    """The rows of several streams.

    A process checks a shard once, when it first needs a row of it; forked copies keep what was checked before.
    """

    def __init__(self, folders: Sequence[Path], manifests: Sequence[Manifest]) -> None:
        self.folders, self.manifests = folders, manifests
        self.ends = [np.cumsum([shard.rows for shard in manifest.shards.values()]) for manifest in manifests]
        self.indexes: dict[int, list[dict[str, Any]]] = {}  # of the streams that were opened: parsing takes time
        self.readers: dict[tuple[int, int], Reader] = {}

    def row(self, stream: int, number: int) -> Row:
        """Row `number` of a stream.

        Raises:
            OSError, ValueError: the shard is missing, cannot be read or is not what was written; names the file.
        """
        ends = self.ends[stream]
        shard = int(np.searchsorted(ends, number, "right"))
        reader = self.readers.get((stream, shard)) or self._open(stream, shard)
        within = number - (int(ends[shard - 1]) if shard else 0)
        path = self.folders[stream] / reader.raw_data.basename  # type: ignore[attr-defined]
        try:
            row = Row(**reader[within])
            fault = find_fault(row, self.manifests[stream])
        except OSError as error:
            raise unreadable(path, error) from None
        except Exception as error:  # a decoder fed with garbage may raise anything
            fault = f"cannot be decoded ({error})"
        if fault:
            raise ValueError(f"{path} row {within}: {fault}; {REMEDY}")
        return row

    def _open(self, stream: int, shard: int) -> Reader:
        """Check a shard and open it."""
        folder, records = self.folders[stream], self.manifests[stream].shards
        name = list(records)[shard]
        try:
            check_shard(folder, name, records[name])
        except OSError as error:
            raise unreadable(folder / name, error) if error.errno else error from None
        if stream not in self.indexes:
            self.indexes[stream] = json.loads((folder / "index.json").read_bytes())["shards"]
        reader = self.readers[stream, shard] = reader_from_json(str(folder), "", self.indexes[stream][shard])
        return reader


def unreadable(path: Path, error: OSError) -> OSError:
    """What the system says of a file, with the file's name and the remedy."""
    return OSError(f"{path} cannot be read: {error.strerror}; look at the disk, and run the same command again")


def find_fault(row: Row, manifest: Manifest) -> str:
    """What is wrong with a row, or the empty string."""
    input_ids, lengths = row.input_ids, row.lengths.astype(np.int64)
    if lengths.sum() != len(input_ids) or not 0 < len(input_ids) <= manifest.row_length:
        return f"{len(input_ids)} ids, lengths sum to {lengths.sum()}, row_length is {manifest.row_length}"
    if lengths.min() <= WRAPPER_TOKENS:
        return f"a document of {lengths.min()} tokens has no text"
    if input_ids.max() >= manifest.vocab_size:
        return f"id {input_ids.max()} is outside the vocabulary of {manifest.vocab_size}"
    ends = lengths.cumsum()
    for name, id_, places in (
        ("bos", manifest.bos_token_id, ends - lengths),
        ("eos", manifest.eos_token_id, ends - 1),
    ):
        if not np.array_equal(np.flatnonzero(input_ids == id_), places):
            return f"{name} (id {id_}) does not stand at the {len(lengths)} places where it must, and only there"
    return ""
