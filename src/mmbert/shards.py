"""Rows by number, from the MDS shards of many streams. A shard is checked whole before its first row is used.

Mosaic's Streaming writes the shards, and every stream folder can be read by its `StreamingDataset` too. We do not, for
that keeps shared memory and lock files that a killed run leaves behind, never looks at a checksum of data that are
already local, and takes longer over a row than all the rest of our loader (docs/architecture.md, docs/benchmarks.md).
"""
import os
import struct
from bisect import bisect_right
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mmbert.manifest import REMEDY, Manifest, check_shard
from mmbert.packing import WRAPPER_TOKENS, Row


class LanguageShards:
    """The rows of several streams.

    A process checks a shard once, when it first needs a row of it; forked copies keep what was checked before. No file
    stays open: thousands of streams would need thousands of them.

    Raises:
        ValueError: the streams are not of one tokenizer and row length.
    """

    def __init__(self, folders: Sequence[Path], manifests: Sequence[Manifest]) -> None:
        kinds = {(m.row_length, m.vocab_size, m.bos_token_id, m.eos_token_id) for m in manifests}
        if len(kinds) > 1:
            raise ValueError(f"streams of several row lengths or tokenizers: {sorted(kinds)}; train on one kind")
        self.folders, self.manifests = folders, manifests
        self.ends = [np.cumsum([shard.rows for shard in m.shards.values()]).tolist() for m in manifests]
        self.paths: dict[tuple[int, int], str] = {}  # of the shards that were checked

    def row(self, stream: int, number: int) -> Row:
        """Row `number` of a stream; see `rows`."""
        return self.rows([(stream, number)])[0]

    def rows(self, wanted: Sequence[tuple[int, int]]) -> list[Row]:
        """Rows by (stream, number in the stream).

        Raises:
            OSError, ValueError: a shard is missing, cannot be read or is not what was written; names the file.
        """
        rows = [self._read(stream, number) for stream, number in wanted]
        if find_fault(rows, self.manifests[0]):  # all at once, for that costs hardly more than one
            for (stream, number), row in zip(wanted, rows, strict=True):
                if fault := find_fault([row], self.manifests[stream]):
                    path, within = self._place(stream, number)
                    raise ValueError(f"{path} row {within}: {fault}; {REMEDY}")
        return rows

    def _read(self, stream: int, number: int) -> Row:
        path, within = self._place(stream, number)
        try:
            return decode_row(read_sample(path, within))
        except OSError as error:
            raise unreadable(path, error) from None
        except (ValueError, struct.error) as error:
            raise ValueError(f"{path} row {within}: cannot be decoded ({error}); {REMEDY}") from None

    def _place(self, stream: int, number: int) -> tuple[str, int]:
        """Path of the checked shard that holds a row, and the row's number in it."""
        ends = self.ends[stream]
        shard = bisect_right(ends, number)
        path = self.paths.get((stream, shard)) or self._check(stream, shard)
        return path, number - (ends[shard - 1] if shard else 0)

    def _check(self, stream: int, shard: int) -> str:
        """Read a whole shard and compare it with its manifest."""
        folder, records = self.folders[stream], self.manifests[stream].shards
        name = list(records)[shard]
        path = str(folder / name)
        try:
            check_shard(folder, name, records[name])
        except OSError as error:
            raise unreadable(path, error) if error.errno else error from None
        self.paths[stream, shard] = path
        return path


def unreadable(path: str, error: OSError) -> OSError:
    """What the system says of a file, with the file's name and the remedy."""
    return OSError(f"{path} cannot be read: {error.strerror}; look at the disk, and run the same command again")


def read_sample(path: str, number: int) -> bytes:
    """The bytes of one sample of an MDS shard.

    A shard begins with its number of samples and the places where each begins and the last ends, all uint32.
    """
    file = os.open(path, os.O_RDONLY)
    try:
        begin, end = struct.unpack("<II", os.pread(file, 8, 4 * (1 + number)))
        return os.pread(file, max(0, end - begin), begin)
    finally:
        os.close(file)


def decode_row(sample: bytes) -> Row:
    """Decode an MDS sample with the columns `manifest.COLUMNS`: first the bytes of each, as uint32, then their values.

    Raises:
        ValueError, struct.error: the bytes are no such sample.
    """
    first, second = struct.unpack_from("<II", sample)
    if len(sample) != 8 + first + second:
        raise ValueError(f"{len(sample)} bytes, {8 + first + second} expected")
    return Row(_decode_vector(sample, 8, first, np.uint32), _decode_vector(sample, 8 + first, second, np.uint16))


def _decode_vector(sample: bytes, begin: int, size: int, dtype: type[np.unsignedinteger]) -> np.ndarray:
    """An encoded ndarray of one dimension: a byte with the width of its length, the length, and the values."""
    code = sample[begin]
    width = 1 << (code & 3)  # bytes
    header, itemsize = 1 + width, np.dtype(dtype).itemsize
    count = int.from_bytes(sample[begin + 1 : begin + header], "little")
    if code >> 2 != 1 or header + count * itemsize != size:
        raise ValueError(f"a column of {size} bytes holds no vector of {count} {np.dtype(dtype)}")
    return np.frombuffer(sample, dtype, count, begin + header)


def find_fault(rows: Sequence[Row], manifest: Manifest) -> str:
    """What is wrong with rows of one tokenizer and row length, in the words for a single one, or the empty string."""
    input_ids = np.concatenate([row.input_ids for row in rows])
    lengths = np.concatenate([row.lengths for row in rows]).astype(np.int64)
    num_ids = np.array([len(row.input_ids) for row in rows])
    num_documents = [len(row.lengths) for row in rows]
    sums = np.zeros(len(rows), dtype=np.int64)
    np.add.at(sums, np.repeat(np.arange(len(rows)), num_documents), lengths)
    if (sums != num_ids).any() or not 0 < num_ids.min() <= num_ids.max() <= manifest.row_length:
        return f"{num_ids[0]} ids, lengths sum to {sums[0]}, row_length is {manifest.row_length}"
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
