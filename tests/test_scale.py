"""The whole of mmBERT at once, three times over: 1,833 languages in each of three sources, 3T tokens."""
import tracemalloc

import numpy as np
import pytest

from mmbert.mixture import Group, Period, Plan
from mmbert.row_order import RowOrder
from mmbert.schedules import BatchSizes, Schedule

LANGUAGES, SOURCES, DURATION, PERIOD_ROWS = 1833, 3, 3 * 10**12, 200_000  # yamls/common.yaml's rows of a period
ROW_TOKENS, SHARD_ROWS = 1024, 16_384  # rows of a shard of 64 MB
MOST_MEGABYTES = 100


def sizes() -> np.ndarray:
    """(S,) tokens: in each source from hundreds of billions down to a few hundred."""
    skewed = np.arange(1, LANGUAGES + 1) ** -1.5
    return np.concatenate([np.round(largest * skewed).astype(np.int64) + 216 for largest in (8e11, 2e11, 5e10)])


def build_order() -> RowOrder:
    """A group for each source: with repeats bounded, with a floor, and plain."""
    tokens = sizes()
    rows = -(-tokens // ROW_TOKENS)
    members = np.arange(LANGUAGES * SOURCES).reshape(SOURCES, LANGUAGES)
    groups = [
        Group("web", 0.6, Schedule(0.3), 5.0, members[0]),
        Group("wiki", 0.3, Schedule(0.7), None, members[1], floor=1e-5),
        Group("books", 0.1, Schedule(0.5), None, members[2]),
    ]
    shard_rows = [np.append(np.full((n - 1) // SHARD_ROWS, SHARD_ROWS), (n - 1) % SHARD_ROWS + 1) for n in rows]
    names = [f"{group.name}/{language}" for group in groups for language in range(LANGUAGES)]
    return RowOrder(Plan(groups, rows, tokens, DURATION, PERIOD_ROWS), names, shard_rows, seed=21)


@pytest.fixture(scope="module")
def order() -> RowOrder:
    return build_order()


@pytest.fixture(scope="module")
def last(order: RowOrder) -> Period:
    """The period in which the phase ends."""
    until = DURATION - PERIOD_ROWS * ROW_TOKENS
    return next(period for period in order.plan.periods() if period.start_tokens >= until)


def test_the_plan_and_the_sampler_of_three_times_1833_languages_take_megabytes() -> None:
    """To the first rows, which need the whole first period."""
    tracemalloc.start()
    try:
        first = next(build_order().batches(0, BatchSizes([0], [4608]), 0, 1))
        assert first[:, 0].tolist() == list(range(4608))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < MOST_MEGABYTES * 1e6


def test_every_language_is_within_a_row_of_its_plan_at_the_end_of_3t_tokens(
    order: RowOrder, last: Period
) -> None:
    rate = next(order.plan.mixtures()).rows
    assert last.index > 14_000
    assert last.last.sum() == (last.index + 1) * PERIOD_ROWS
    assert np.abs(last.last - (last.index + 1) * rate).max() <= 1.0 + 1e-6
    assert (last.last[:LANGUAGES] <= 5.0 * order.plan.rows[:LANGUAGES] * 1.001 + 1).all()  # the last period overshoots


def test_the_rows_of_the_last_period_are_the_planned_ones(order: RowOrder, last: Period) -> None:
    streams, rows = order.rows_of(last)
    assert np.array_equal(np.bincount(streams, minlength=len(order.names)), last.last - last.first)
    assert (rows < order.plan.rows[streams]).all()
    big = rows[streams == 0]  # far more rows than a period takes: none twice
    assert len(set(big.tolist())) == len(big) > 1000
