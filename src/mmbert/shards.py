"""Rows by number, from the MDS shards of many streams. A shard is checked whole before its first row is used.

Mosaic's Streaming writes the shards, and every stream folder can be read by its `StreamingDataset` too. We do not, for
that keeps shared memory and lock files that a killed run leaves behind, never looks at a checksum of data that are
already local, and takes longer over a row than all the rest of our loader (docs/architecture.md).
"""
import os
import struct
import weakref
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from mmbert.command import NO_RIGHT
from mmbert.manifest import REMEDY, Manifest, ShardRecord, check_shard
from mmbert.mds_samples import decode
from mmbert.packing import Rows
from mmbert.processes import open_files_allowed
from mmbert.remote_rows import THREADS, Prefetcher, RemoteRows

PLACE, PAIR = 4, struct.Struct("<II")  # bytes of a place in a shard; two of them
Wanted = ArrayLike  # (B, 2) of each row: its stream, and its number in the stream
Places = list[tuple[int, int]]  # of each row: its shard, and its number in the shard


class OpenShard(NamedTuple):
    """A shard's descriptor, and the places in it where each sample begins and the last ends, uint32: 4 bytes a row."""

    file: int
    places: bytes


class LanguageShards:
    """The rows of several streams.

    A process checks a shard once, when it first needs a row of it; forked copies keep what was checked before. Of the
    shards that it reads `most_open()` stay open, for opening a file costs as much as all else that is done for a row;
    of more, the one opened first is closed.

    Args:
        remote: where the shards come from, if the folders hold some of an object store's; any may go away again.

    Raises:
        ValueError: the streams are not of one tokenizer and row length.
    """

    def __init__(
        self, folders: Sequence[Path], manifests: Sequence[Manifest], remote: RemoteRows | None = None
    ) -> None:
        kinds = {(m.row_length, m.vocab_size, m.bos_token_id, m.eos_token_id) for m in manifests}
        if len(kinds) > 1:
            raise ValueError(f"streams of several row lengths or tokenizers: {sorted(kinds)}; train on one kind")
        self.folders, self.manifests, self.remote = folders, manifests, remote
        self.ahead = Prefetcher(remote) if remote else None
        # Shards, and rows, are numbered through all streams.
        self.shards = [(stream, name) for stream, m in enumerate(manifests) for name in m.shards]
        self.ends = np.cumsum([shard.rows for m in manifests for shard in m.shards.values()])
        self.begins = np.append(0, self.ends[:-1])
        self.stream_rows = np.array([m.rows for m in manifests])
        self.stream_begins = np.cumsum(self.stream_rows) - self.stream_rows
        self.paths: dict[int, str] = {}  # of the shards that were checked
        self.files: dict[int, OpenShard] = {}  # in the order in which they were opened
        self.most_open = most_open()
        weakref.finalize(self, close, self.files)

    def rows(self, wanted: Wanted) -> Rows:
        """These rows, laid end to end.

        Raises:
            OSError, ValueError: a shard is missing, cannot be read or is not what was written; names the file.
        """
        places = self._places(wanted)
        samples = self._read(places)
        try:
            return decode(samples, self.manifests[0])  # all at once, for that costs hardly more than one
        except ValueError:
            for (shard, row), sample in zip(places, samples, strict=True):
                try:
                    decode([sample], self.manifests[0])
                except ValueError as error:
                    raise ValueError(f"{self.paths[shard]} row {row}: {error}; {REMEDY}") from None
            raise

    def check(self, shard: int) -> str:
        """Read a whole shard and compare it with its manifest; its path. Raises as `rows` does."""
        folder, name, record = self._file(shard)
        path = str(folder / name)
        try:
            if self.remote:
                self._keep(shard, self.remote.open(folder, name, record))
            else:
                check_shard(folder, name, record)
        except OSError as error:
            raise unreadable(path, error) from None
        self.paths[shard] = path
        return path

    def fetch(self, wanted: Wanted, later: Wanted = ()) -> None:
        """Have the shards of some rows here, all at a time, and begin to fetch those of later ones.

        Local shards are here.

        Raises:
            OSError, ValueError: one cannot be had, or is not what was written; names its URL.
        """
        if self.remote is None or self.ahead is None:
            return
        for shard in [shard for shard, opened in self.files.items() if os.fstat(opened.file).st_nlink == 0]:
            os.close(self.files.pop(shard).file)  # it was evicted, and takes space as long as it is open
        missing = [shard for shard in self._shards_of(wanted) if not self._is_here(shard)]
        with ThreadPoolExecutor(THREADS) as pool:
            opened = pool.map(self.remote.open, *zip(*map(self._file, missing), strict=True))
            for shard, file in zip(missing, opened, strict=True):
                folder, name, _ = self._file(shard)
                self.paths[shard] = str(folder / name)
                self._keep(shard, file)
        self.ahead.ask(map(self._file, self._shards_of(later)))

    def _read(self, places: Places) -> list[bytes]:
        """The samples of rows, each by its shard and its number in it. The loop that every row passes is kept short."""
        samples = []
        for shard, row in places:
            opened = self.files.get(shard) or self._open(shard)
            try:
                begin, end = PAIR.unpack_from(opened.places, PLACE * row)
                samples.append(os.pread(opened.file, end - begin if end > begin else 0, begin))
            except OSError as error:
                raise unreadable(self.paths[shard], error) from None
            except Exception as error:  # garbage may raise anything
                raise ValueError(f"{self.paths[shard]} row {row}: cannot be decoded ({error}); {REMEDY}") from None
        return samples

    def _open(self, shard: int) -> OpenShard:
        """Open a shard that is not open, checked if it was not yet."""
        path = self.paths.get(shard) or self.check(shard)
        try:
            if shard not in self.files:  # a remote one is open once it is checked
                self._keep(shard, os.open(path, os.O_RDONLY))
        except OSError as error:
            if self.remote is None or not isinstance(error, FileNotFoundError):
                raise unreadable(path, error) from None
            self.check(shard)  # it was evicted; now it is open
        return self.files[shard]

    def _keep(self, shard: int, file: int) -> None:
        """Have a shard open under this descriptor, which is closed where it cannot be read."""
        folder, name, record = self._file(shard)
        try:
            places = read_places(file, record.rows)
        except OSError as error:
            os.close(file)
            raise unreadable(str(folder / name), error) from None
        if shard in self.files:
            os.close(self.files.pop(shard).file)
        while len(self.files) >= self.most_open:
            os.close(self.files.pop(next(iter(self.files))).file)
        self.files[shard] = OpenShard(file, places)

    def _file(self, shard: int) -> tuple[Path, str, ShardRecord]:
        """Folder, name and record of a shard."""
        stream, name = self.shards[shard]
        return self.folders[stream], name, self.manifests[stream].shards[name]

    def _places(self, wanted: Wanted) -> Places:
        """Shard of each row, and the row's number in it."""
        streams, numbers = np.asarray(wanted, np.int64).reshape(-1, 2).T
        assert ((numbers >= 0) & (numbers < self.stream_rows[streams])).all(), "a row that its stream does not have"
        rows = self.stream_begins[streams] + numbers
        shards = np.searchsorted(self.ends, rows, "right")
        return list(zip(shards.tolist(), (rows - self.begins[shards]).tolist(), strict=True))

    def _shards_of(self, wanted: Wanted) -> list[int]:
        """The shards of some rows, each once, in the order of the rows."""
        return list(dict.fromkeys(shard for shard, _ in self._places(wanted)))

    def _is_here(self, shard: int) -> bool:
        """Whether this process has checked it, and it was not evicted since."""
        path = self.paths.get(shard)
        return path is not None and (shard in self.files or os.path.exists(path))


def most_open() -> int:
    """Shards that may be open at a time: a quarter of the files that this process may open (`ulimit -Hn`)."""
    return min(4096, open_files_allowed() // 4)


def close(files: dict[int, OpenShard]) -> None:
    """Close all of them."""
    for shard in files.values():
        os.close(shard.file)


def unreadable(path: str, error: OSError) -> OSError:
    """What the system says of a file, with the file's name and the remedy; an error of our own says that already."""
    if error.errno is None:
        return error
    remedy = NO_RIGHT if isinstance(error, PermissionError) else "look at the disk, and run the same command again"
    return OSError(f"{path} cannot be read: {error.strerror}; {remedy}")


def read_places(file: int, rows: int) -> bytes:
    """Where the samples of an MDS shard begin: behind their number, as many uint32, and one for the end of the last."""
    return os.pread(file, PLACE * (rows + 1), PLACE)
