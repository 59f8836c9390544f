"""The three stages of `prepare` as blocks of datatrove. A task is a share of the units of its stage."""
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any

from datatrove.pipeline.base import PipelineStep

from data_prep.codec import Codec, Ids, Text
from data_prep.fast_tokenizer import Backend, encoder
from data_prep.partition import write_run
from data_prep.publish import make_large_bucket, make_small_stream, publish_large_stream
from data_prep.work import BUCKET_BYTES, StreamPlan, Work, read_plan
from mmbert.run_lock import sole_writer
from mmbert.tokenizer import Tokenizer

Unit = tuple[int, Callable[[], None]]  # how much there is to do, in bytes; and doing it


class Stage(PipelineStep):
    """What a stage's tasks share: each reads the plan, and does the units that fall to it.

    Args:
        plan: the folder of the plan.
    """

    type = "mmBERT"
    name = "stage"

    def __init__(self, plan: Path) -> None:
        super().__init__()
        self.plan = plan

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> None:
        """Do the share of one task, which no two processes may do at a time."""
        work = read_plan(self.plan)
        with sole_writer(self.plan / "tasks" / f"{self.name}-{rank:05d}"):
            for unit in shares(list(self.units(work)), world_size)[rank]:
                unit()
                self.stat_update("units")

    def units(self, work: Work) -> Iterator[Unit]:
        """What the whole stage has to do: of the plan alone, so that all tasks divide the same."""
        raise NotImplementedError


class Partition(Stage):
    """Read every file of the large streams into its run."""

    name = "partition"

    def units(self, work: Work) -> Iterator[Unit]:
        for stream in large_streams(work):
            for volume, plan in enumerate(stream.volumes):
                for number, file in enumerate(plan.files):
                    yield file.size, partial(write_run, work, stream, volume, number)


class MakeRows(Stage):
    """Make the rows of every bucket; publish the small streams."""

    name = "rows"

    def units(self, work: Work) -> Iterator[Unit]:
        codec = codec_of(work)
        for stream in work.streams:
            if stream.is_small:
                yield stream.bytes, partial(make_small_stream, work, stream, codec)
                continue
            for bucket in range(stream.num_buckets):
                yield BUCKET_BYTES, partial(make_large_bucket, work, stream, bucket, codec)


def codec_of(work: Work) -> Codec:
    """How the documents of a plan become ids."""
    return text_codec(work.tokenizer, work.settings.backend) if work.settings.reading else Ids(work.tokenizer)


@cache
def text_codec(tokenizer: Tokenizer, backend: Backend) -> Text:
    """Made once in a process, for that takes seconds."""
    encode = encoder(tokenizer, backend)
    print(f"encoded by {encode.description}")
    return Text(encode)


class Publish(Stage):
    """Publish the large streams."""

    name = "publish"

    def units(self, work: Work) -> Iterator[Unit]:
        for stream in large_streams(work):
            yield stream.bytes, partial(publish_large_stream, work, stream)


STAGES: tuple[type[Stage], ...] = (Partition, MakeRows, Publish)


def large_streams(work: Work) -> Iterator[StreamPlan]:
    """Those of several buckets."""
    return (stream for stream in work.streams if not stream.is_small)


def shares(units: list[Unit], num_tasks: int) -> list[list[Callable[[], None]]]:
    """The units of each task: the largest first, each to the task that has least to do."""
    tasks: list[list[Callable[[], None]]] = [[] for _ in range(num_tasks)]
    loads = [0] * num_tasks
    for size, unit in sorted(units, key=lambda pair: -pair[0]):
        task = loads.index(min(loads))
        tasks[task].append(unit)
        loads[task] += size
    return tasks
