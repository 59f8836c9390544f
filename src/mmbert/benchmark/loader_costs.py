"""Where our loader's time goes: parts of the path one by one, in this process, and the start of a run."""
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import closing, contextmanager
from itertools import islice
from multiprocessing.reduction import ForkingPickler

import numpy as np

from mmbert.batch_memory import BatchMemory
from mmbert.benchmark.loader_ours import Ours
from mmbert.clock import batch_sizes
from mmbert.data import Microbatches, PhaseData, lay_end_to_end
from mmbert.mds_samples import find_fault
from mmbert.mixture import Group, Plan
from mmbert.row_order import RowOrder
from mmbert.schedules import Schedule
from mmbert.shards import LanguageShards
from mmbert.tokenizer import load_tokenizer

PERIOD_ROWS, SHARD_ROWS, SHARDS = 200_000, 16_000, 4  # a period of the recipe; rows of a full shard; shards a stream


class Parts:
    """Processor seconds of this process by part."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        began = time.process_time()
        yield
        self.seconds[name] += time.process_time() - began


def costs_by_part(ours: Ours, batches: int) -> dict[str, float]:
    """Processor seconds per token of each part of one pass, all in this process.

    Returns:
        `order`: which rows a batch holds, over a full period. `check`: sha256 and the rest, once for each shard;
        every worker does it for the shards that it meets. `read`: rows by number. `fault`: the part of `read` that
        looks for what cannot be. `lay`: the batch. `pickle`, `unpickle`: what goes through the pipe, without the pipe
        itself. `share`: the ids, into the memory that both processes see and out of it. `mask`, `cut`.
    """
    data, parts = PhaseData.open(ours.config, ours.tokenizer), Parts()
    sizes = batch_sizes(ours.config)
    places = list(islice(data.row_order(ours.config).batches(0, sizes, 0, 1), batches))
    shards = LanguageShards(data.folders, data.manifests)
    with parts.part("check"):
        for shard in range(len(shards.shards)):
            shards.check(shard)
    cut, tokens = Microbatches(), 0
    memory = BatchMemory(ours.config.global_train_batch_size * ours.config.max_seq_len, workers=1, prefetched=0)
    for batch_places in places:
        with parts.part("read"):
            rows = shards.rows(batch_places[:, 1:])
        with parts.part("fault"):
            find_fault(rows, data.manifests[0])
        with parts.part("lay"):
            batch = lay_end_to_end(batch_places, rows)
        with parts.part("share"):
            stored = memory.store(batch, worker=0)
        with parts.part("pickle"):
            content = bytes(ForkingPickler.dumps(stored))
        with parts.part("unpickle"):
            stored = ForkingPickler.loads(content)
        with parts.part("share"):
            taken = memory.take(stored)
            assert isinstance(taken, dict)
            batch = taken
        with parts.part("mask"):
            masked = ours.mask(batch)
        with parts.part("cut"):
            cut(masked, ours.config.device_train_microbatch_size)
        tokens += sum(batch["row_tokens"])
    in_period = ours.with_period(PERIOD_ROWS).config
    with parts.part("order"):
        for _ in islice(data.row_order(in_period).batches(0, sizes, 0, 1), in_period.data.period_rows // sizes.at(0)):
            pass
    parts.seconds["order"] *= ours.config.data.period_rows / in_period.data.period_rows
    return {name: seconds / tokens for name, seconds in parts.seconds.items()}


def start_up(ours: Ours) -> dict[str, float]:
    """Wall seconds from the folder's names to the first masked batch; `without_tokenizer` is the rest.

    The files are in the page cache. `first_batch` contains the start of the workers and the order of the first period.
    """
    times = [time.perf_counter()]
    load_tokenizer(ours.tokenizer.folder)
    times.append(time.perf_counter())
    PhaseData.open(ours.config, ours.tokenizer)
    times.append(time.perf_counter())
    with closing(ours.batches()) as loaded:
        next(loaded)
        times.append(time.perf_counter())
    tokenizer, opening, both = np.diff(times).tolist()
    return {"tokenizer": tokenizer, "open": opening, "first_batch": both - opening, "without_tokenizer": both}


def row_order_seconds(streams: int, row_length: int) -> float:
    """Wall seconds until the order of a first period of 200,000 rows is known, at full shards, which this run lacks."""
    rows = np.full(streams, SHARDS * SHARD_ROWS)
    names = [f"stream{index}" for index in range(streams)]
    group = Group("all", 1.0, Schedule(1.0), None, np.arange(streams))
    plan = Plan([group], rows, rows * row_length, int(rows.sum()) * row_length, PERIOD_ROWS)
    order = RowOrder(plan, names, [np.full(SHARDS, SHARD_ROWS)] * streams, seed=0)
    began = time.perf_counter()
    next(order.periods_from(0))
    return time.perf_counter() - began
