"""Our loader as a run uses it, over synthetic rows: opened, read, masked, cut; and the gate that it must pass."""
import multiprocessing
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np
from composer.core import DataSpec

from mmbert.benchmark.result import Gate
from mmbert.benchmark.synthetic_rows import Shape, make_config
from mmbert.benchmark.timing import cpu_seconds
from mmbert.clock import batch_sizes
from mmbert.config import RunConfig
from mmbert.data import Batch, Microbatches, PhaseData, build_data
from mmbert.masking import Vocabulary, mask_batch
from mmbert.packing import Row
from mmbert.ranks import Ranks
from mmbert.shards import LanguageShards
from mmbert.tokenizer import Tokenizer

MaskedBatch = tuple[Batch, Sequence[Batch]]  # a batch, and its microbatches


def processor_seconds() -> float:
    """Processor time of this process, of its children that ended, and of those that live."""
    living = [child.pid for child in multiprocessing.active_children()]
    # Linux's clock of another process, include/linux/posix-timers.h: the inverted pid, and 2 for CPUCLOCK_SCHED
    return cpu_seconds() + sum(time.clock_gettime((~pid << 3) | 2) for pid in living if pid is not None)


@dataclass(frozen=True)
class Ours:
    """Our loader over the rows of one folder."""

    config: RunConfig
    tokenizer: Tokenizer
    vocabulary: Vocabulary

    @classmethod
    def over(cls, root: Path, streams: int, shape: Shape, tokenizer: Tokenizer, workers: int) -> "Ours":
        vocabulary = Vocabulary(tokenizer.vocab_size, tokenizer.mask_token_id, tokenizer.special_token_ids)
        return cls(make_config(root, streams, shape, tokenizer, workers), tokenizer, vocabulary)

    def with_period(self, rows: int) -> "Ours":
        """With at least so many rows to a period, in whole passes."""
        passes = -(-rows // self.config.data.period_rows)
        period_rows = passes * self.config.data.period_rows
        return replace(self, config=replace(self.config, data=replace(self.config.data, period_rows=period_rows)))

    def open(self) -> DataSpec:
        """All that a run does with its streams before it trains."""
        data = PhaseData.open(self.config, self.tokenizer)
        return build_data(self.config, data, 0, Ranks(0, 1, None), Microbatches())

    def mask(self, batch: Batch) -> Batch:
        """What callbacks/mask_ratio.py does."""
        return mask_batch(batch, self.config.phase_seed, self.config.mask_rate.start, self.vocabulary)

    def batches(self, checked: bool = False) -> Generator[MaskedBatch]:
        """Masked batches and their microbatches, without end; closing it ends the workers.

        Args:
            checked: check every shard here, before the workers are forked, who then need not do it.
        """
        spec = self.open()
        if checked:
            shards: LanguageShards = spec.dataloader.loader.dataset.shards  # type: ignore[union-attr]
            shards.rows([
                (stream, begin - shards.stream_begins[stream])
                for (stream, _), begin in zip(shards.shards, shards.begins, strict=True)
            ])
        assert spec.split_batch is not None
        for batch in spec.dataloader:  # when this frame goes, the loader's iterator goes, and waits for its workers
            masked = self.mask(batch)
            yield masked, spec.split_batch(masked, self.config.device_train_microbatch_size)

    def whole_pass(self, batches: int) -> None:
        """One pass on fresh workers, which check every shard."""
        with closing(self.batches()) as loaded:
            run_through(loaded, batches)


def run_through(loaded: Iterator[object], batches: int) -> None:
    for _ in islice(loaded, batches):
        pass


def gates_of_ours(ours: Ours, streams: int, rows: Sequence[Row], batches: int) -> list[Gate]:
    """One pass gives every row once, masked at the rate; with the targets put back it is what was written."""
    seen, differing, chosen, maskable = np.zeros(len(rows), dtype=np.int64), 0, 0, 0
    with closing(ours.batches()) as loaded:
        order = PhaseData.open(ours.config, ours.tokenizer).row_order(ours.config)
        expected = order.batches(0, batch_sizes(ours.config), 0, 1)
        for (batch, _), places in zip(islice(loaded, batches), expected, strict=False):
            input_ids = batch["input_ids"].copy()
            input_ids[batch["masked"]] = batch["targets"]
            chosen += len(batch["masked"])
            ends = np.cumsum(batch["row_tokens"])
            for end, (_, stream, number) in zip(ends, places, strict=True):
                row = number * streams + stream
                seen[row] += 1
                size = len(rows[row].input_ids)
                maskable += int(ours.vocabulary.maskable[rows[row].input_ids].sum())
                differing += not np.array_equal(input_ids[end - size : end], rows[row].input_ids)
    rate = ours.config.mask_rate.start
    error = abs(chosen / maskable - rate) / np.sqrt(rate * (1 - rate) / maskable)
    prefix = f"ours, {streams} streams: "
    return [
        Gate(prefix + "rows not read exactly once", float((seen != 1).sum()), 0.0),
        Gate(prefix + "rows with other ids than were written", float(differing), 0.0),
        Gate(prefix + "mask rate, standard errors off", float(error), 4.0),
    ]
