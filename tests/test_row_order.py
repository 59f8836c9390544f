"""The order of rows: every row once a pass, the same for every number of ranks, and O(1) to enter."""
from itertools import islice, pairwise

import numpy as np
import pytest

from mmbert.masking import token_hashes
from mmbert.mixture import Group, Period, Plan
from mmbert.row_order import Places, RowOrder, row_hashes, walk
from mmbert.schedules import BatchSizes, Schedule

SHARDS = np.array([5, 1, 7, 4])


def order(seed: int = 3, period_rows: int = 60) -> RowOrder:
    """Three streams of 17, 4 and 1 rows."""
    shard_rows = [SHARDS, np.array([4]), np.array([1])]
    rows = np.array([17, 4, 1])
    group = Group("all", 1.0, Schedule(0.5, "linear", 0.1), None, np.arange(3))
    return RowOrder(Plan([group], rows, rows * 100, 100_000, period_rows), ["a", "b", "c"], shard_rows, seed)


def first_places(rows: RowOrder, position: int, number: int) -> Places:
    """So many places from a position on, as one batch."""
    return next(rows.batches(position, BatchSizes([0], [number]), 0, 1))


def test_a_walk_gives_every_row_once_a_pass_however_it_is_cut() -> None:
    for cuts in ([0, 17, 34], [0, 5, 17, 20, 34], [0, 3, 29, 34]):
        parts = [walk(1, 2, SHARDS, first, last) for first, last in pairwise(cuts)]
        assert np.bincount(np.concatenate(parts), minlength=17).tolist() == [2] * 17


def test_a_short_stretch_of_a_walk_touches_few_shards() -> None:
    shard_rows = np.full(1000, 100)
    rows = walk(1, 2, shard_rows, 250, 550)
    assert len(set(rows // 100)) <= 4
    assert len(set(rows)) == 300


def test_the_order_is_the_same_from_wherever_it_is_entered() -> None:
    whole = first_places(order(), 0, 200)
    assert whole[:, 0].tolist() == list(range(200))
    for start in (1, 59, 60, 61, 133):
        assert np.array_equal(first_places(order(), start, 20), whole[start : start + 20])


def test_the_order_is_that_which_runs_before_were_trained_in() -> None:
    """A run that goes on with another version of this code, or of NumPy, must not read other rows."""
    assert walk(7, 9, np.array([3, 2]), 1, 9).tolist() == [4, 2, 0, 1, 4, 3, 0, 1]
    found = first_places(order(), 54, 12)[:, 1:]  # the end of one period and the begin of the next
    assert found.tolist() == [
        [0, 11], [1, 3], [0, 12], [1, 3], [0, 7], [0, 7], [2, 0], [0, 10], [1, 2], [1, 1], [0, 0], [2, 0],
    ]  # fmt: skip


def test_another_seed_gives_another_order_of_the_same_rows() -> None:
    one, other = (first_places(order(seed), 0, 60) for seed in (3, 4))
    assert not np.array_equal(one, other)
    assert np.bincount(one[:, 1]).tolist() == np.bincount(other[:, 1]).tolist()


@pytest.mark.fault(22)
@pytest.mark.parametrize("world_size", range(1, 65))
def test_global_batches_and_their_masks_do_not_depend_on_the_number_of_ranks(world_size: int) -> None:
    """Also where it does not divide the batch: no two ranks' parts differ by more than one row."""
    sizes = BatchSizes.build(final=192, start=64, warmup_rows=300)
    alone = list(islice(order(period_rows=480).batches(0, sizes, 0, 1), 8))
    assert {len(batch) for batch in alone} == {64, 128, 192}
    orders = [order(period_rows=480).batches(0, sizes, rank, world_size) for rank in range(world_size)]
    ranks = [list(islice(batches, 8)) for batches in orders]
    for batch, parts in zip(alone, zip(*ranks, strict=True), strict=True):
        assert np.array_equal(np.concatenate(parts), batch)
        assert max(map(len, parts)) - min(map(len, parts)) <= 1
        masks = [token_hashes(3, part[:, 0], 2) for part in parts]
        whole = token_hashes(3, batch[:, 0], 2)
        assert np.array_equal(np.concatenate(masks), whole)


def test_a_resumed_run_goes_on_with_the_same_batches() -> None:
    sizes = BatchSizes.build(final=36, start=12, warmup_rows=100)
    batches = list(islice(order().batches(0, sizes, 0, 1), 12))
    consumed = sum(len(batch) for batch in batches[:5])
    for again, batch in zip(order().batches(consumed, sizes, 0, 1), batches[5:], strict=False):
        assert np.array_equal(again, batch)


def test_more_ranks_than_rows_are_refused() -> None:
    with pytest.raises(ValueError, match="12 rows is too small for 13 ranks"):
        next(order().batches(0, BatchSizes([0], [12]), 0, 13))


def test_a_run_past_its_warm_up_goes_on_with_more_ranks_than_its_first_batches_had_rows() -> None:
    sizes = BatchSizes.build(final=36, start=12, warmup_rows=100)
    with pytest.raises(ValueError, match="24 rows is too small for 30 ranks"):
        next(order().batches(sizes.starts[2] - 1, sizes, 0, 30))
    assert len(next(order().batches(sizes.starts[2], sizes, 0, 30))) == 1


def test_the_sum_of_row_hashes_names_a_set_of_rows_in_any_order() -> None:
    places = np.array([[position, position % 7, position * 3] for position in range(1000)])
    shuffled = places[np.random.default_rng(0).permutation(1000)]
    assert row_hashes(*places.T).sum() == row_hashes(*shuffled.T).sum()
    for column in range(3):  # another position, stream or row is another set
        other = places.copy()
        other[500, column] += 1
        assert row_hashes(*places.T).sum() != row_hashes(*other.T).sum()
    swapped = places.copy()
    swapped[[3, 4], 0] = swapped[[4, 3], 0]  # two rows that change places are another set, too
    assert row_hashes(*places.T).sum() != row_hashes(*swapped.T).sum()


def test_the_walk_of_a_language_depends_on_its_name_and_not_on_its_place_among_the_others() -> None:
    def rows_by_name(names: list[str]) -> dict[str, list[int]]:
        """Rows of streams that all have the same shards, each giving its first five."""
        some = order(period_rows=15)
        again = RowOrder(some.plan, names, [SHARDS] * 3, some.seed)
        first = np.zeros(3, dtype=np.int64)
        of_stream, rows = again.rows_of(Period(0, 0, (0.5,), np.full(3, 1 / 3), first, first + 5))
        return {name: sorted(rows[of_stream == i].tolist()) for i, name in enumerate(names)}

    one, other = rows_by_name(["a", "b", "c"]), rows_by_name(["c", "a", "b"])
    assert one == other
    assert one["a"] != one["b"]
