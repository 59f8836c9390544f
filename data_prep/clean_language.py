"""Cleaning one language: each part of its files through the filters, then near duplicates among all that was kept.

The result of a part is a folder, and so is that of a language; each appears whole or not at all. Which documents are
kept depends on the files, their sizes and the settings alone.
"""
import contextlib
import io
import json
import shutil
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
import orjson
import zstandard
from datatrove.data import Document, DocumentsPipeline
from datatrove.pipeline.dedup import MinhashDedupCluster, MinhashDedupFilter, MinhashDedupSignature
from datatrove.pipeline.dedup.minhash import MinhashConfig, MinhashDedupBuckets
from datatrove.utils.logging import logger

from data_prep.clean_filters import Cleaning, make_filters
from data_prep.documents import is_undivided, text_documents
from data_prep.formats import read_texts
from data_prep.inputs import InputFile
from data_prep.words import words_of
from mmbert.atomic import fsync, make_folder, partial_folder, publish_folder, remove
from mmbert.json_files import read_json, write_json

KEPT, DROPPED, COUNTS = "kept.jsonl.zst", "dropped.jsonl.zst", "counts.json"
RECORD = {"digest", "files", "read", "dropped", "kept", "undivided"}  # keys that one of a finished language has
WORK = ".clean"  # in the output folder: what is half done, and the records of what is finished
PROGRAM = "python -m data_prep.clean"
MINHASH = "minhash"
CONFIG = MinhashConfig(n_grams=5, num_buckets=14, hashes_per_bucket=8, seed=1)  # FineWeb2's
SHINGLES = 2**14  # hashed at a time: each gives 112 hashes of 8 bytes, in three arrays

logger.disable("datatrove")  # it tells of every file that it opens


@dataclass(frozen=True)
class Job:
    """One language of a run.

    Attributes:
        output: the run's folder.
        parts: the language's files, in the groups that are read at a time.
        digest: of all that decides the result.
    """

    output: str
    language: str
    cleaning: Cleaning
    parts: tuple[tuple[InputFile, ...], ...]
    digest: str

    @property
    def work(self) -> Path:
        """Folder of what is half done."""
        return Path(self.output) / WORK / "languages" / self.language / self.digest[:16]

    @property
    def text(self) -> Path:
        return Path(self.output) / "text" / self.language

    @property
    def dropped(self) -> Path:
        return Path(self.output) / "dropped" / self.language

    @property
    def record(self) -> Path:
        """The file that says how the finished language was made."""
        return Path(self.output) / WORK / "finished" / f"{self.language}.json"

    def part(self, number: int) -> Path:
        return self.work / f"part-{number:05d}"


@dataclass
class Tally:
    """Counts the documents that come by a place, and writes them there if it has a file.

    With a `step` it stands where datatrove's filters want a writer of what they drop.
    """

    file: BinaryIO | None = None
    step: str = ""
    documents: int = 0
    bytes: int = 0
    reasons: Counter[str] = field(default_factory=Counter)

    def __enter__(self) -> "Tally":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def write(self, document: Document, _rank: int = 0) -> None:
        """Take one document."""
        self.documents += 1
        self.bytes += len(document.text.encode())
        why = {}
        if self.step:
            reason = document.metadata.pop("filter_reason", self.step)
            self.reasons[reason] += 1
            why = {"step": self.step, "reason": reason, **document.metadata}
        if self.file is not None:
            self.file.write(orjson.dumps({"text": document.text, **why}) + b"\n")

    def through(self, documents: Iterable[Document]) -> Iterator[Document]:
        """Take all documents, and hand them on."""
        for document in documents:
            self.write(document)
            yield document

    def counts(self) -> dict[str, Any]:
        """In JSON's types."""
        counts: dict[str, Any] = {"documents": self.documents, "bytes": self.bytes}
        return {**counts, "reasons": dict(sorted(self.reasons.items()))} if self.step else counts


@contextmanager
def zstd_file(path: Path) -> Iterator[BinaryIO]:
    """A new compressed file."""
    with path.open("wb") as raw, zstandard.ZstdCompressor(level=3).stream_writer(raw) as file:
        yield cast(BinaryIO, file)


# ------------------------------------------------------------------------------------------------------------- filters
def filter_part(job: Job, number: int) -> None:
    """Read the files of one part; write what its filters keep, and the MinHash signatures of that.

    Raises:
        BrokenInputError: a file is damaged; names it and the place.
    """
    folder = job.part(number)
    if folder.is_dir():
        return
    with partial_folder(folder) as partial:
        with ExitStack() as stack:
            kept = Tally(stack.enter_context(zstd_file(partial / KEPT)))
            file = stack.enter_context(zstd_file(partial / DROPPED)) if job.cleaning.keep_dropped else None
            drops = {"empty": Tally(step="empty")}
            filters, skipped = make_filters(
                job.cleaning, job.language, lambda step: drops.setdefault(step, Tally(file, step))
            )
            read, undivided = Tally(), list[str]()
            documents = with_text(read.through(documents_of(job, number, undivided)), drops["empty"])
            for each in filters.values():
                documents = each(documents, number, len(job.parts))
            documents = kept.through(documents)
            if job.cleaning.minhash:
                write_signatures(job, number, documents)
            else:
                deque(documents, maxlen=0)
        dropped = {step: tally.counts() for step, tally in drops.items() if step not in skipped}
        counts = {
            "read": read.counts(), "dropped": dropped, "kept": kept.counts(), "skipped": skipped,
            "undivided": undivided,
        }  # fmt: skip
        (partial / COUNTS).write_text(json.dumps(counts))
        publish_folder(partial, folder)


def documents_of(job: Job, number: int, undivided: list[str]) -> Iterator[Document]:
    """All documents of a part's files, in their order; files that are taken for undivided are added to the list."""
    for file in job.parts[number]:
        found = 0
        for text in text_documents(file, job.cleaning.reading):
            found += 1
            yield Document(text, id="")
        if is_undivided(file, found, job.cleaning.reading):
            undivided.append(file.path)


def with_text(documents: Iterable[Document], drops: Tally) -> DocumentsPipeline:
    """Documents of more than white space: filters divide by the number of words."""
    for document in documents:
        if document.text.strip():
            yield document
        else:
            drops.write(document)


# ------------------------------------------------------------------------------------------------------------- MinHash
class Signature(MinhashDedupSignature):
    """datatrove's, but the memory that a signature takes does not grow with the document."""

    def get_signature(self, shingles: np.ndarray) -> list[list[int]]:
        """The least of each hash over the shingles (N, 1), as (num_buckets, hashes_per_bucket)."""
        least = None
        for start in range(0, len(shingles), SHINGLES):
            some = np.array(super().get_signature(shingles[start : start + SHINGLES]), dtype=np.uint64)
            least = some if least is None else np.minimum(least, some)
        assert least is not None
        return cast(list[list[int]], least.tolist())


def write_signatures(job: Job, number: int, documents: Iterable[Document]) -> None:
    """Take all documents, and write the signatures of one part; one written before is overwritten.

    They lie beside the parts' folders, because datatrove reads those of all parts from one.
    """
    folder = job.work / "signatures"
    make_folder(folder)
    words = words_of(job.language, job.cleaning.words)
    Signature(str(folder), CONFIG, words)(documents, number, len(job.parts))
    for path in folder.glob(f"*/{number:05d}.minhash.sig"):
        fsync(path)


def find_duplicates(job: Job) -> Path:
    """A folder with a file for each part that has duplicates: the numbers of the documents to drop."""
    pairs, duplicates = job.work / "pairs", job.work / "duplicates"
    make_folder(duplicates)  # datatrove makes none where it finds no duplicate
    for bucket in range(CONFIG.num_buckets):
        block = MinhashDedupBuckets(str(job.work / "signatures"), str(pairs), config=CONFIG, lines_to_buffer=1000)
        block(None, bucket, CONFIG.num_buckets)
    with contextlib.redirect_stderr(io.StringIO()):  # it draws a progress bar
        MinhashDedupCluster(str(pairs), str(duplicates), CONFIG, lines_to_buffer=1000)(None, 0, 1)
    return duplicates


# ---------------------------------------------------------------------------------------------------------- the result
def finish_language(job: Job) -> None:
    """Drop near duplicates among all parts, put the language in its place, and write its record."""
    counts = [read_json(job.part(number) / COUNTS, PROGRAM) for number in range(len(job.parts))]
    duplicates = find_duplicates(job) if job.cleaning.minhash else None
    kept, near = Tally(), Tally(step=MINHASH)
    with partial_folder(job.text) as text, partial_folder(job.dropped) as dropped:
        for number in range(len(job.parts)):
            finish_part(job, number, duplicates, (kept, text), (near, dropped))
        for partial, target in ((text, job.text), (dropped, job.dropped)):
            if any(partial.iterdir()):
                publish_folder(partial, target)
            else:
                remove(target)
    record = add_counts(counts, kept, near if job.cleaning.minhash else None)
    write_json(job.record, {"digest": job.digest, **record, "files": sizes(job.text)})
    remove(job.work.parent)


def finish_part(
    job: Job, number: int, duplicates: Path | None, kept: tuple[Tally, Path], near: tuple[Tally, Path]
) -> None:
    """Write the texts of one part that are no near duplicates; a file that would be empty is left out."""
    (kept_tally, text), (near_tally, dropped) = kept, near
    before = kept_tally.documents, near_tally.documents
    source, name = job.part(number) / KEPT, f"{number:05d}.jsonl.zst"
    texts = read_texts(InputFile(str(source), source.stat().st_size, ""))
    documents: DocumentsPipeline = (Document(text, id="") for text in texts)
    with ExitStack() as stack:
        kept_tally.file = stack.enter_context(zstd_file(text / name))
        if duplicates is not None:
            if job.cleaning.keep_dropped:
                near_tally.file = stack.enter_context(zstd_file(dropped / f"minhash-{name}"))
            documents = MinhashDedupFilter(str(duplicates), near_tally, lines_to_buffer=1000)(documents, number)
        deque(kept_tally.through(documents), maxlen=0)
    if kept_tally.documents == before[0]:
        (text / name).unlink()
    if job.cleaning.keep_dropped and near_tally.documents == before[1]:
        (dropped / f"minhash-{name}").unlink(missing_ok=True)
    if (path := job.part(number) / DROPPED).is_file():
        shutil.copyfile(path, dropped / f"filters-{name}")


def add_counts(counts: list[dict[str, Any]], kept: Tally, near: Tally | None) -> dict[str, Any]:
    """What became of a language's documents, from what each part says; `near` were dropped after that."""
    assert sum(part["kept"]["documents"] for part in counts) == kept.documents + (near.documents if near else 0)
    dropped = {}
    for step in counts[0]["dropped"]:
        several = [part["dropped"][step] for part in counts]
        reasons = sum((Counter(one["reasons"]) for one in several), Counter())
        dropped[step] = {**sums(several), "reasons": dict(sorted(reasons.items()))}
    if near:
        dropped[MINHASH] = near.counts()
    read = sums([part["read"] for part in counts])
    return {
        "read": read, "dropped": dropped, "kept": kept.counts(), "skipped": counts[0]["skipped"],
        "undivided": [path for part in counts for path in part["undivided"]],
    }  # fmt: skip


def sums(counts: list[dict[str, Any]]) -> dict[str, int]:
    """Documents and bytes of all together."""
    return {key: sum(one[key] for one in counts) for key in ("documents", "bytes")}


def sizes(folder: Path) -> dict[str, int]:
    """Name -> bytes of the files of a folder, which need not be there."""
    return {path.name: path.stat().st_size for path in sorted(folder.glob("*"))}


def finished(job: Job) -> dict[str, Any] | None:
    """The record of a language that is finished with these files and settings, and whose text is in its place."""
    if not job.record.is_file():
        return None
    record = read_json(job.record, PROGRAM)
    is_whole = record.keys() >= RECORD
    return record if is_whole and record["digest"] == job.digest and record["files"] == sizes(job.text) else None
