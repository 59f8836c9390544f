"""Masks: rates, what is never touched, and independence of everything but the row."""
import numpy as np
import pytest

from mmbert.masking import IGNORE, Vocabulary, mask_tokens, token_hashes

VOCABULARY = Vocabulary(size=1000, mask=4, special=(0, 1, 2, 3, 4))


def masked(ids: np.ndarray, rate: float, seed: int = 7) -> tuple[np.ndarray, np.ndarray]:
    """Mask rows of 100 tokens."""
    rows = len(ids) // 100
    return mask_tokens(ids, token_hashes(seed, np.arange(rows), [100] * rows), rate, VOCABULARY)


@pytest.fixture(scope="module")
def ids() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 1000, size=1_000_000)


@pytest.mark.parametrize("rate", [0.05, 0.15, 0.3])
def test_maskable_tokens_are_chosen_at_the_rate(ids: np.ndarray, rate: float) -> None:
    _, labels = masked(ids, rate)
    maskable = (ids > 4).sum()
    assert (labels != IGNORE).sum() / maskable == pytest.approx(rate, abs=4 * np.sqrt(rate / maskable))


def test_special_tokens_are_neither_chosen_nor_changed(ids: np.ndarray) -> None:
    corrupted, labels = masked(ids, 0.5)
    special = ids <= 4
    assert (labels[special] == IGNORE).all()
    assert (corrupted[special] == ids[special]).all()


def test_tokens_without_a_label_are_unchanged_and_labels_are_the_original_ids(ids: np.ndarray) -> None:
    corrupted, labels = masked(ids, 0.3)
    chosen = labels != IGNORE
    assert (corrupted[~chosen] == ids[~chosen]).all()
    assert (labels[chosen] == ids[chosen]).all()


def test_eighty_percent_are_masks_ten_random_ten_kept(ids: np.ndarray) -> None:
    corrupted, labels = masked(ids, 0.3)
    chosen = labels != IGNORE
    masks = (corrupted[chosen] == 4).mean()
    kept = (corrupted[chosen] == ids[chosen]).mean()
    assert masks == pytest.approx(0.8, abs=0.003)
    assert kept == pytest.approx(0.1 + 0.1 / 995, abs=0.003)


def test_random_ids_are_uniform_over_the_vocabulary_without_the_special_ones(ids: np.ndarray) -> None:
    corrupted, labels = masked(ids, 0.5)
    replaced = corrupted[(labels != IGNORE) & (corrupted != 4) & (corrupted != ids)]
    counts = np.bincount(replaced, minlength=1000)
    assert counts[:5].sum() == 0
    expected = len(replaced) / 995
    chi_square = ((counts[5:] - expected) ** 2 / expected).sum()
    assert abs(chi_square - 994) < 5 * np.sqrt(2 * 994)


def test_masks_of_a_row_do_not_depend_on_its_batch() -> None:
    ids = np.random.default_rng(1).integers(5, 1000, size=600)
    lengths, positions = [100, 300, 200], np.array([11, 12, 13])
    whole, labels = mask_tokens(ids, token_hashes(7, positions, lengths), 0.3, VOCABULARY)
    start = 0
    for length, position in zip(lengths, positions, strict=True):
        row = ids[start : start + length]
        alone = mask_tokens(row, token_hashes(7, np.array([position]), [length]), 0.3, VOCABULARY)
        assert (alone[0] == whole[start : start + length]).all()
        assert (alone[1] == labels[start : start + length]).all()
        start += length


def test_a_row_seen_again_at_another_position_or_seed_is_masked_anew() -> None:
    ids = np.arange(5, 905)
    labels = [
        mask_tokens(ids, token_hashes(seed, np.array([position]), [900]), 0.3, VOCABULARY)[1] != IGNORE
        for seed, position in ((7, 0), (7, 1), (8, 0))
    ]
    for one, other in ((0, 1), (0, 2), (1, 2)):
        overlap = (labels[one] & labels[other]).mean()
        assert overlap == pytest.approx(0.09, abs=0.04)  # independent: 0.3 * 0.3


def test_hashes_pass_as_uniform_and_neighbours_as_independent() -> None:
    hashes = token_hashes(0, np.arange(2000), [500] * 2000) / 2.0**64
    assert hashes.mean() == pytest.approx(0.5, abs=0.002)
    assert abs(np.corrcoef(hashes[:-1], hashes[1:])[0, 1]) < 0.004
    rows = hashes.reshape(2000, 500)
    assert abs(np.corrcoef(rows[:-1].ravel(), rows[1:].ravel())[0, 1]) < 0.004


def test_an_id_outside_the_vocabulary_is_refused() -> None:
    with pytest.raises(ValueError, match="exceed the vocabulary of 1000"):
        masked(np.full(100, 1000), 0.3)
