"""Masks: rates, what is never touched, and independence of everything but the row."""
import hashlib

import numpy as np
import pytest

from mmbert.masking import LANES, Vocabulary, mask_batch, mask_tokens, token_hashes

VOCABULARY = Vocabulary(size=1000, mask=4, special=(0, 1, 2, 3, 4))
Masked = tuple[np.ndarray, np.ndarray, np.ndarray]


def masked(ids: np.ndarray, rate: float, seed: int = 7) -> Masked:
    """Mask rows of 100 tokens."""
    rows = len(ids) // 100
    return mask_tokens(ids, np.arange(rows), [100] * rows, seed, rate, VOCABULARY)


def mask_row(ids: np.ndarray, position: int, seed: int = 7) -> Masked:
    return mask_tokens(ids, np.array([position]), [len(ids)], seed, 0.3, VOCABULARY)


@pytest.fixture(scope="module")
def ids() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 1000, size=1_000_000, dtype=np.int32)


@pytest.mark.parametrize("rate", [0.05, 0.15, 0.3, 1.0])
def test_maskable_tokens_are_chosen_at_the_rate(ids: np.ndarray, rate: float) -> None:
    _, places, _ = masked(ids, rate)
    maskable = (ids > 4).sum()
    assert len(places) / maskable == pytest.approx(rate, abs=4 * np.sqrt(rate * (1 - rate) / maskable))


def test_special_tokens_are_neither_chosen_nor_changed(ids: np.ndarray) -> None:
    corrupted, places, _ = masked(ids, 0.5)
    special = ids <= 4
    assert not special[places].any()
    assert (corrupted[special] == ids[special]).all()


def test_only_chosen_tokens_change_and_targets_are_the_original_ids(ids: np.ndarray) -> None:
    before = ids.copy()
    corrupted, places, targets = masked(ids, 0.3)
    assert (ids == before).all()
    assert (np.diff(places) > 0).all()
    assert (targets == ids[places]).all()
    assert (corrupted.dtype, places.dtype, targets.dtype) == (np.int32, np.int64, np.int64)
    corrupted[places] = targets
    assert (corrupted == ids).all()


def test_eighty_percent_are_masks_ten_random_ten_kept(ids: np.ndarray) -> None:
    corrupted, places, targets = masked(ids, 0.3)
    assert (corrupted[places] == 4).mean() == pytest.approx(0.8, abs=0.003)
    assert (corrupted[places] == targets).mean() == pytest.approx(0.1 + 0.1 / 995, abs=0.003)


def test_random_ids_are_uniform_over_the_vocabulary_without_the_special_ones(ids: np.ndarray) -> None:
    corrupted, _, _ = masked(ids, 0.5)
    replaced = corrupted[(corrupted != 4) & (corrupted != ids)]
    counts = np.bincount(replaced, minlength=1000)
    assert counts[:5].sum() == 0
    expected = len(replaced) / 995
    chi_square = ((counts[5:] - expected) ** 2 / expected).sum()
    assert abs(chi_square - 994) < 5 * np.sqrt(2 * 994)


def test_masks_of_a_row_do_not_depend_on_its_batch() -> None:
    """Rows of lengths that no number of lanes divides, each alone and behind longer and shorter ones."""
    ids = np.random.default_rng(1).integers(5, 1000, size=603, dtype=np.int32)
    lengths, positions = [101, 299, 200, 3], np.array([11, 12, 13, 14])
    whole, places, targets = mask_tokens(ids, positions, lengths, 7, 0.3, VOCABULARY)
    start, alone = 0, []
    for length, position in zip(lengths, positions, strict=True):
        corrupted, own_places, own_targets = mask_row(ids[start : start + length], position)
        assert (corrupted == whole[start : start + length]).all()
        alone.append((own_places + start, own_targets))
        start += length
    assert np.concatenate([own for own, _ in alone]).tolist() == places.tolist()
    assert np.concatenate([own for _, own in alone]).tolist() == targets.tolist()


def test_a_row_without_a_chosen_token_gets_one_whatever_its_batch(ids: np.ndarray) -> None:
    """Else a batch of short rows may have nothing to predict, and its mean loss would be 0 / 0, at every restart."""
    rows = [ids[:20], ids[20:25], np.array([2, 1], np.int32), ids[25:2025]]
    sizes = [len(row) for row in rows]
    corrupted, places, targets = mask_tokens(np.concatenate(rows), np.arange(4), sizes, 7, 0.004, VOCABULARY)
    ends = np.cumsum(sizes)
    assert np.diff(np.searchsorted(places, ends), prepend=0).tolist()[:3] == [1, 1, 0]  # the third is all special
    assert (corrupted[places[:2]] == VOCABULARY.mask).all()
    assert (np.concatenate(rows)[places] == targets).all()
    assert VOCABULARY.maskable[targets].all()
    for number, end in enumerate(ends):
        alone = mask_tokens(rows[number], np.array([number]), sizes[number : number + 1], 7, 0.004, VOCABULARY)
        assert (alone[0] == corrupted[end - sizes[number] : end]).all()


def test_a_masked_batch_is_a_new_one_with_its_targets(ids: np.ndarray) -> None:
    batch = {"input_ids": ids[:300], "row_positions": np.arange(3), "row_tokens": [100] * 3, "lengths": [300]}
    given = dict(batch)
    made = mask_batch(batch, 7, 0.3, VOCABULARY)
    for key, expected in zip(("input_ids", "masked", "targets"), masked(ids[:300], 0.3), strict=True):
        assert (made.pop(key) == expected).all()
    assert made.pop("num_labels") == len(expected) > 0
    assert made.keys() == given.keys() - {"input_ids"}
    assert batch == given


def test_a_row_seen_again_at_another_position_or_seed_is_masked_anew() -> None:
    ids = np.arange(5, 905, dtype=np.int32)
    chosen = [np.isin(np.arange(900), mask_row(ids, position, seed)[1]) for seed, position in ((7, 0), (7, 1), (8, 0))]
    for one, other in ((0, 1), (0, 2), (1, 2)):
        overlap = (chosen[one] & chosen[other]).mean()
        assert overlap == pytest.approx(0.09, abs=0.04)  # independent: 0.3 * 0.3


def test_what_is_chosen_and_what_becomes_of_it_are_independent(ids: np.ndarray) -> None:
    """Of neighbours that share a hash too: both are chosen, and both become masks, as often as by chance."""
    corrupted, places, _ = masked(ids, 0.5)
    chosen = np.zeros(len(ids), dtype=bool)
    chosen[places] = True
    is_mask = corrupted == 4
    groups, masks = chosen.reshape(-1, 100)[:, :100].reshape(-1, LANES), is_mask.reshape(-1, LANES)
    for first in range(LANES):
        for second in range(first):
            maskable = (ids.reshape(-1, LANES)[:, [first, second]] > 4).all(axis=1)
            pair = groups[maskable][:, [first, second]].all(axis=1)
            assert pair.mean() == pytest.approx(0.25, abs=0.005)
            both = masks[maskable][pair][:, [first, second]].all(axis=1)
            assert both.mean() == pytest.approx(0.64, abs=0.008)


def test_random_ids_of_neighbours_that_share_a_hash_are_independent(ids: np.ndarray) -> None:
    corrupted, _, _ = masked(ids, 1.0)
    groups = np.where((corrupted != 4) & (corrupted != ids), corrupted, 0).reshape(-1, LANES)  # 100 is 25 LANES
    for first in range(LANES):
        for second in range(first):
            pairs = groups[(groups[:, [first, second]] > 0).all(axis=1)]
            assert len(pairs) > 2000
            assert (pairs[:, first] == pairs[:, second]).mean() < 0.01  # by chance 1 / 995


def test_hashes_pass_as_uniform_and_neighbours_as_independent() -> None:
    lanes = token_hashes(0, np.arange(2000), 500).view("<u2").ravel() / 2.0**16
    assert lanes.mean() == pytest.approx(0.5, abs=0.002)
    for distance in (1, 2, 3, LANES, 500):
        assert abs(np.corrcoef(lanes[:-distance], lanes[distance:])[0, 1]) < 0.004


def test_masks_are_those_that_runs_before_were_trained_with() -> None:
    """A run goes on to the same bits with a later version: the digest was taken before masking was made faster."""
    vocabulary = Vocabulary(size=1000, mask=4, special=(0, 1, 2, 3, 4, 999))
    ids = np.random.default_rng(0).integers(0, 1000, size=100_003, dtype=np.int32)
    digest = hashlib.sha256()
    for rate in (0.05, 0.3, 1.0):
        for array in mask_tokens(ids, np.arange(301), [*[333] * 300, 103], 7, rate, vocabulary):
            digest.update(array.astype("<i8").tobytes())
    assert digest.hexdigest().startswith("06c90cf7e8be64ba")
