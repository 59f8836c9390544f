"""What one run of `prepare` has to do, as a plan on disk that all its processes read.

A stream's files are cut into volumes, and a volume into buckets: a document belongs to the bucket that its hash names.
So a bucket is a random sample of its volume, fits in memory, holds all copies of a document, and becomes one shard. All
that is decided by the sizes of the files, before they are read; so the result does not depend on who does what when.
"""
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache, cached_property
from operator import attrgetter
from pathlib import Path
from typing import Any

from data_prep.batches import batches
from data_prep.documents import Reading
from data_prep.fast_tokenizer import Backend
from data_prep.inputs import InputFile, Inputs, text_bytes
from data_prep.split import DEFAULT_HELDOUT_RATE
from mmbert.atomic import fsync, make_folder, remove, write_file
from mmbert.json_files import read_json
from mmbert.manifest import OWN_FILES, SPLITS, check_stream, stream_folder
from mmbert.tokenizer import Tokenizer, load_tokenizer
from mmbert.typed import build

FOLDER = ".prepare"  # in the output folder: plans and their logs, what is half done, what is finished
BUCKET_BYTES = 32 * 2**20  # of text; with its ids and rows it takes about ten times that in memory
VOLUME_BYTES = 32 * 2**30
LAYOUT = 2  # of what is half done; another one's is begun anew
PROGRAM = "python -m data_prep.prepare"
RECORD = {"digest", "splits", "documents", "empty", "duplicates", "quarantined", "undivided"}  # keys of a stream's


@dataclass(frozen=True)
class Settings:
    """What all streams of one run share.

    Attributes:
        output: shards folder.
        tokenizer: tokenizer folder.
        row_length: most tokens of a row.
        heldout_rate: share of the documents that is held out.
        seed: of the order of rows.
        backend: what tokenises; all give the same ids.
        reading: how texts are read; None where the files are folders of MDS shards, with the ids of others.
        distinct: whether a document is taken once only.
    """

    output: str
    tokenizer: str
    row_length: int
    heldout_rate: float = DEFAULT_HELDOUT_RATE
    seed: int = 0
    backend: Backend = "auto"
    reading: Reading | None = field(default_factory=Reading)
    distinct: bool = True


@dataclass(frozen=True)
class Volume:
    """Files that are shuffled together, in buckets `first_bucket` and those after it."""

    files: list[InputFile]
    num_buckets: int
    first_bucket: int


@dataclass(frozen=True)
class StreamPlan:
    """The volumes of a stream."""

    source: str
    language: str
    volumes: list[Volume]

    @property
    def num_buckets(self) -> int:
        return sum(volume.num_buckets for volume in self.volumes)

    @property
    def is_small(self) -> bool:
        """One bucket holds it: it is read straight from its files."""
        return self.num_buckets == 1

    @cached_property
    def digest(self) -> str:
        """sha256, in hex, of all of it: of thousands of files it takes long, and every bucket asks for it."""
        return hashlib.sha256(json.dumps(asdict(self)).encode()).hexdigest()

    @property
    def bytes(self) -> int:
        """Of its files, as stored."""
        return sum(file.size for volume in self.volumes for file in volume.files)


@dataclass(frozen=True)
class Work:
    """The plan of a run: settings, the tokenizer's digest, and the streams that are to be made."""

    settings: Settings
    tokenizer_digest: str
    streams: list[StreamPlan] = field(default_factory=list)

    @property
    def output(self) -> Path:
        return Path(self.settings.output)

    @property
    def folder(self) -> Path:
        return self.output / FOLDER

    @property
    def plans(self) -> Path:
        """Folder of the plans of all runs into this output that may not have ended."""
        return self.folder / "plans"

    @cached_property
    def plan_folder(self) -> Path:
        """Folder of this plan, its logs, and the locks of its tasks."""
        return self.plans / hashlib.sha256(plan_bytes(self)).hexdigest()[:16]

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The one that was planned with; ValueError if its folder was changed since."""
        tokenizer = load(self.settings.tokenizer)
        if tokenizer.digest != self.tokenizer_digest:
            raise ValueError(f"{tokenizer.folder} was changed while rows were made with it: run the same command again")
        return tokenizer

    def digest(self, stream: StreamPlan) -> str:
        """sha256, in hex, of all that decides what the rows of a stream are, but for the bytes of its files."""
        settings = asdict(self.settings) | {"output": "", "backend": "", "tokenizer": self.tokenizer_digest}
        return hashlib.sha256(json.dumps([settings, stream.digest]).encode()).hexdigest()

    def staging(self, stream: StreamPlan) -> Path:
        """Folder of what is half done of a stream, made from these inputs with these settings, laid out as now."""
        return self.folder / "streams" / stream.source / stream.language / f"{self.digest(stream)[:16]}-{LAYOUT}"

    def record_path(self, stream: StreamPlan) -> Path:
        """The file that says how a finished stream was made."""
        return self.folder / "finished" / stream.source / f"{stream.language}.json"

    def read_record(self, stream: StreamPlan) -> dict[str, Any] | None:
        """What was written of a stream, if it is finished with these inputs and settings and its files are there."""
        try:
            record = read_json(self.record_path(stream), PROGRAM)
            if not record.keys() >= RECORD or record["digest"] != self.digest(stream):
                return None
            for split in SPLITS:
                folder = stream_folder(self.output, split, stream.source, stream.language)
                if split in record["splits"]:
                    check_stream(folder, self.settings.row_length, self.tokenizer_digest, self.tokenizer.vocab_size)
        except (ValueError, FileNotFoundError):
            return None
        return record

    def remove_record(self, stream: StreamPlan) -> None:
        """Before its splits are replaced, one by one.

        After a kill between two of them a record of other settings would vouch for one split of these and one of those.
        """
        if (path := self.record_path(stream)).exists():
            path.unlink()
            fsync(path.parent)

    def write_record(self, stream: StreamPlan, record: dict[str, Any]) -> None:
        """Say that a stream is finished. A power cut may lose that: then it is made again."""
        path = self.record_path(stream)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps(record))
        partial.replace(path)


@cache
def load(folder: str) -> Tokenizer:
    """A tokenizer, loaded once in a process."""
    return load_tokenizer(Path(folder))


def plan(settings: Settings, inputs: Inputs) -> Work:
    """Decide volumes and buckets of all streams."""
    measure = text_bytes if settings.reading else attrgetter("size")
    streams = [
        StreamPlan(source, language, list(volumes_of(files, measure)))
        for (source, language), files in sorted(inputs.items())
    ]
    return Work(settings, load(settings.tokenizer).digest, streams)


def volumes_of(files: Sequence[InputFile], measure: Callable[[InputFile], int]) -> Iterator[Volume]:
    """Cut the files of a stream, in their order, into volumes; `measure` says about how much a file holds, in bytes."""
    first = 0
    for members in batches(files, measure, VOLUME_BYTES):
        volume = Volume(members, max(1, -(-sum(map(measure, members)) // BUCKET_BYTES)), first)
        yield volume
        first += volume.num_buckets


def check_output(output: Path) -> list[Path]:
    """The streams in an output folder, which must hold nothing else but hidden files: those are the system's.

    Raises:
        FileExistsError: it does; nothing was touched.
    """
    for path in output.glob("[!.]*"):
        if path.name not in SPLITS:
            raise FileExistsError(f"{path} is not of data_prep.prepare: choose another --output")
    streams = [folder for split in SPLITS for folder in sorted(output.glob(f"{split}/*/[!.]*"))]
    for folder in streams:
        strangers = sorted(path.name for path in folder.glob("[!.]*") if not OWN_FILES.fullmatch(path.name))
        if strangers:
            raise FileExistsError(f"{folder / strangers[0]} is not of data_prep.prepare: choose another --output")
    return streams


def bucketfuls(sizes: Mapping[int, int]) -> list[list[int]]:
    """Keys of neighbours whose text, of these bytes each, makes about a bucket together."""
    return list(batches(sizes, sizes.__getitem__, BUCKET_BYTES))


def write_plan(work: Work) -> None:
    """Write the plan where `read_plan` finds it, and remove what was half done with other inputs or settings."""
    for stream in work.streams:
        staging = work.staging(stream)
        for folder in staging.parent.glob("*"):
            if folder != staging:
                remove(folder)
    make_folder(work.plan_folder)
    write_file(work.plan_folder / "plan.json", plan_bytes(work))


def plan_bytes(work: Work) -> bytes:
    """What a plan's file holds."""
    return json.dumps(asdict(work)).encode()


def read_plan(folder: Path) -> Work:
    """The plan in a plan's folder."""
    return build(Work, read_json(folder / "plan.json", PROGRAM))
