"""Which row stands at which position of a phase: a pure function of (seed, plan, position).

Ranks and loader workers only slice this one order, so their number changes nothing, and resuming is a seek.
"""
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from mmbert.masking import GOLDEN, UInt64, mix
from mmbert.mixture import Integers, Period, Plan
from mmbert.schedules import BatchSizes

Places = Integers  # (B, 3) of each row: position in the phase, stream, number in the stream

# Keys that keep the generators below apart.
SHARD_ORDER, ROWS_IN_SHARD, PERIOD_ORDER = 1, 2, 3


def name_key(name: str) -> int:
    """A stream's random key comes from its name, so that adding a language leaves the others' order alone."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")


def walk(seed: int, key: int, shard_rows: Integers, first: int, last: int) -> Integers:
    """Rows [first, last) of a stream's endless walk: pass after pass over its rows, each row once a pass.

    A pass goes shard by shard, both in an order of its own, so a short stretch touches few shards. Inside the
    result the order is arbitrary: the caller shuffles it.

    Args:
        shard_rows: (shards,) rows of each shard, all positive.

    Returns:
        (last - first,) row numbers in the stream.
    """
    total = int(shard_rows.sum())
    starts = np.cumsum(shard_rows) - shard_rows
    parts: list[Integers] = []
    for number in range(first // total, -(-last // total)):
        low, high = max(first - number * total, 0), min(last - number * total, total)
        if (low, high) == (0, total):
            parts.append(np.arange(total))  # a whole pass has every row once, whatever the order
            continue
        order = np.zeros(1, dtype=np.int64)
        if len(shard_rows) > 1:  # else there is one order, and making a generator is what takes time
            order = np.random.default_rng([seed, SHARD_ORDER, key, number]).permutation(len(shard_rows))
        ends = np.cumsum(shard_rows[order])
        begins = ends - shard_rows[order]
        for place in range(np.searchsorted(ends, low, "right"), np.searchsorted(begins, high, "left")):
            shard = int(order[place])
            within = np.random.default_rng([seed, ROWS_IN_SHARD, key, number, shard]).permutation(shard_rows[shard])
            parts.append(starts[shard] + within[max(low - begins[place], 0) : high - begins[place]])
    return np.concatenate(parts) if parts else np.empty(0, dtype=np.int64)


def row_hashes(positions: Integers, streams: Integers, rows: Integers) -> UInt64:
    """(B,) one hash for each row and the place where it stood. Their sum modulo 2^64 names a set of rows in any order.

    Args:
        positions: (B,) position of each row in the phase.
        streams, rows: (B,) its stream, and its number in the stream.
    """
    with np.errstate(over="ignore"):  # arithmetic modulo 2^64 is the point
        state = mix(positions.astype(np.uint64) + GOLDEN)
        for numbers in (streams, rows):
            state = mix(state + numbers.astype(np.uint64) * GOLDEN + GOLDEN)
    return state


@dataclass(frozen=True)
class RowOrder:
    """The order of a whole phase.

    Attributes:
        plan: rows of every stream in every period.
        names: name of each stream.
        shard_rows: rows of each shard of each stream.
        seed: the run's.
    """

    plan: Plan
    names: Sequence[str]
    shard_rows: Sequence[Integers]
    seed: int

    def rows_of(self, period: Period) -> tuple[NDArray[np.int32], Integers]:
        """Stream and row-in-stream of each of the period's rows, (period_rows,) each, shuffled."""
        streams = np.flatnonzero(period.last > period.first)
        rows = [
            walk(self.seed, name_key(self.names[s]), self.shard_rows[s], int(period.first[s]), int(period.last[s]))
            for s in streams
        ]
        order = np.random.default_rng([self.seed, PERIOD_ORDER, period.index]).permutation(self.plan.period_rows)
        of_stream = np.repeat(streams, [len(part) for part in rows]).astype(np.int32)
        return of_stream[order], np.concatenate(rows)[order]

    def periods_from(self, position: int) -> Iterator[Places]:
        """All places from a position on, up to the end of each period, without end."""
        skipped, offset = divmod(position, self.plan.period_rows)
        for period in islice(self.plan.periods(), skipped, None):
            positions = np.arange(self.plan.period_rows) + period.index * self.plan.period_rows
            yield np.stack([positions, *self.rows_of(period)], axis=1)[offset:]
            offset = 0

    def batches(self, position: int, sizes: BatchSizes, rank: int, world_size: int) -> Iterator[Places]:
        """This rank's part of every global batch from a position on: contiguous, no two parts unlike by two rows.

        Raises:
            ValueError: a global batch has fewer rows than there are ranks.
        """
        if (smallest := sizes.at(position)) < world_size:  # they only grow
            raise ValueError(
                f"a global batch of {smallest} rows is too small for {world_size} ranks: train on fewer, or raise "
                "global_train_batch_size and batch_size_warmup.start"
            )
        periods = self.periods_from(position)
        coming = next(periods)
        while True:
            size = sizes.at(position)
            while len(coming) < size:
                coming = np.concatenate([coming, next(periods)])
            yield coming[rank * size // world_size : (rank + 1) * size // world_size]
            coming = coming[size:]
            position += size
