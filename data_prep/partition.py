"""The documents of a bucket: straight from the files of a small stream, or from the runs of a large one.

A large stream is read once. What a file holds is collected up to `RUN_BYTES`, sorted by bucket, and appended to the
file's run; so a bucket lies in one slice for each of these, and is read again slice by slice. A list of the slices, in
the order of their buckets, lies beside the run: a bucket's are found without reading those of the others, which are
millions in a file of 50 GB.
"""
import hashlib
import json
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import zstandard

from data_prep.batches import batches
from data_prep.documents import is_undivided, text_documents
from data_prep.formats import BrokenInputError
from data_prep.from_mds import read_token_documents
from data_prep.inputs import InputFile
from data_prep.work import PROGRAM, Settings, StreamPlan, Volume, Work, load
from mmbert.atomic import fsync, make_folder, write_file
from mmbert.json_files import read_json

RUN_BYTES = 256 * 2**20  # in memory at a time
LENGTH_BYTES = 4
LARGEST_DOCUMENT = 2 ** (8 * LENGTH_BYTES) - 1  # bytes


@dataclass
class Read:
    """What reading some files came to.

    Attributes:
        documents: read, of whole files.
        empty: those of them without text.
        duplicates: those of them that were dropped at once, as copies of one close by in the same file.
        quarantined: why, for each file of which nothing was taken.
        undivided: paths of large .txt files that were one document, for want of a blank line.
    """

    documents: int = 0
    empty: int = 0
    duplicates: int = 0
    quarantined: list[str] = field(default_factory=list)
    undivided: list[str] = field(default_factory=list)

    def __add__(self, other: "Read") -> "Read":
        """What reading both came to."""
        return Read(
            self.documents + other.documents,
            self.empty + other.empty,
            self.duplicates + other.duplicates,
            self.quarantined + other.quarantined,
            self.undivided + other.undivided,
        )


def payloads(file: InputFile, settings: Settings) -> Iterator[bytes]:
    """The documents of a file as bytes: texts, normalised, as UTF-8, or ids as uint32.

    Raises:
        BrokenInputError: it cannot be read to its end, or holds none, or one that is too large.
        OSError: it cannot be opened or read.
    """
    if settings.reading:
        found = (document.encode() for document in text_documents(file, settings.reading))
    else:
        found = (ids.tobytes() for ids in read_token_documents(file.path, load(settings.tokenizer)))
    number = 0
    for number, payload in enumerate(found, 1):
        if len(payload) > LARGEST_DOCUMENT:
            raise BrokenInputError(
                f"{file.path}: document {number} has {len(payload):,} bytes, and may have {LARGEST_DOCUMENT:,} at "
                "most: cut it, or take it out"
            )
        yield payload
    if not number:
        raise BrokenInputError(f"{file.path} holds no document: fill it, or remove it")


def undivided(file: InputFile, num_documents: int, settings: Settings) -> list[str]:
    """The path of a file that is taken for undivided, in a list; else nothing."""
    return [file.path] if settings.reading and is_undivided(file, num_documents, settings.reading) else []


def bucket_of(payload: bytes, num_buckets: int) -> int:
    """By other bits of the hash than those that decide what is held out."""
    return int.from_bytes(hashlib.sha256(payload).digest()[8:16]) % num_buckets


def read_files(files: list[InputFile], settings: Settings) -> tuple[list[bytes], Read]:
    """The documents of files that fit in memory together; of a broken file none."""
    documents: list[bytes] = []
    read = Read()
    for file in files:
        try:
            found = list(payloads(file, settings))
        except BrokenInputError as error:
            read.quarantined.append(str(error))
            continue
        documents += filter(None, found)
        read += Read(len(found), found.count(b""), undivided=undivided(file, len(found), settings))
    return documents, read


def run_path(work: Work, stream: StreamPlan, volume: int, file: int) -> Path:
    """Where the run of a file lies; beside it its slices, with the suffix .npy, and what was read, with .json."""
    return work.staging(stream) / "files" / f"{volume:05d}-{file:06d}.run"


def write_run(work: Work, stream: StreamPlan, volume: int, number: int) -> None:
    """Read file `number` of a volume into its run, unless that was done before. Of a broken file the run is empty."""
    path = run_path(work, stream, volume, number)
    if path.with_suffix(".json").exists():
        return
    make_folder(path.parent)
    plan = stream.volumes[volume]
    read, slices = Read(), []
    with path.open("wb") as run:
        try:
            for bucket, documents in slices_of(plan.files[number], plan.num_buckets, work.settings, read):
                content = zstandard.compress(pack(documents), 1)
                slices.append((bucket, run.tell(), len(content)))
                run.write(content)
            read.undivided = undivided(plan.files[number], read.documents, work.settings)
        except BrokenInputError as error:
            read, slices = Read(quarantined=[str(error)]), []
            run.truncate(0)
    np.save(path.with_suffix(".npy"), np.array(sorted(slices), dtype=np.int64).reshape(-1, 3).T)
    for written in (path, path.with_suffix(".npy")):
        fsync(written)
    write_file(path.with_suffix(".json"), json.dumps(asdict(read)).encode())  # last, for it says that all is there


def slices_of(file: InputFile, num_buckets: int, settings: Settings, read: Read) -> Iterator[tuple[int, list[bytes]]]:
    """Bucket and documents, sorted by bucket, for each `RUN_BYTES` of a file; counts what is read.

    Copies are dropped here already, for all of a document meet in one bucket: millions, and it would not fit in memory.
    """
    for batch in batches(payloads(file, settings), sys.getsizeof, RUN_BYTES):
        found = list(filter(None, batch))
        kept = list(dict.fromkeys(found)) if settings.distinct else found
        read.documents += len(batch)
        read.empty += len(batch) - len(found)
        read.duplicates += len(found) - len(kept)
        buckets: dict[int, list[bytes]] = {}
        for payload in kept:
            buckets.setdefault(bucket_of(payload, num_buckets), []).append(payload)
        yield from sorted(buckets.items())


def read_of_runs(work: Work, stream: StreamPlan) -> Read:
    """What reading all files of a stream came to."""
    read = Read()
    for volume, plan in enumerate(stream.volumes):
        for number in range(len(plan.files)):
            path = run_path(work, stream, volume, number).with_suffix(".json")
            read += Read(**read_json(path, PROGRAM))
    return read


def read_bucket(work: Work, stream: StreamPlan, volume: int, bucket: int) -> list[bytes]:
    """The documents of one bucket, counted from the first of its volume."""
    documents: list[bytes] = []
    for number in range(len(stream.volumes[volume].files)):
        path = run_path(work, stream, volume, number)
        buckets, begins, lengths = np.load(path.with_suffix(".npy"), mmap_mode="r")
        mine = slice(*np.searchsorted(buckets, [bucket, bucket + 1]))
        with path.open("rb") as run:
            for begin, length in zip(begins[mine].tolist(), lengths[mine].tolist(), strict=True):
                run.seek(begin)
                documents += unpack(zstandard.decompress(run.read(length)))
    return documents


def volume_of(stream: StreamPlan, bucket: int) -> tuple[int, Volume]:
    """The volume that a bucket of a stream belongs to, and its number."""
    return next(
        (number, volume)
        for number, volume in enumerate(stream.volumes)
        if bucket < volume.first_bucket + volume.num_buckets
    )


def pack(documents: list[bytes]) -> bytes:
    """Documents laid end to end, each behind its length."""
    return b"".join(part for text in documents for part in (len(text).to_bytes(LENGTH_BYTES, "little"), text))


def unpack(content: bytes) -> Iterator[bytes]:
    """What `pack` was given."""
    place = 0
    while place < len(content):
        begin = place + LENGTH_BYTES
        place = begin + int.from_bytes(content[place:begin], "little")
        yield content[begin:place]
