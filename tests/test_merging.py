"""Merging, against closed forms: means, TIES by hand, exact counts, and whatever must not matter."""
from itertools import permutations

import pytest
import torch
from torch import Tensor

from mmbert import merging
from mmbert.merging import exponential_weights, largest, sign_agreement, ties, weighted_mean


def random(*shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def three_runs() -> tuple[Tensor, list[Tensor]]:
    base = random(30, 7)
    return base, [base + random(30, 7, seed=seed, scale=0.1) for seed in (1, 2, 3)]


# --------------------------------------------------------------------------------------------------------------- means
def test_exponential_weights_are_a_geometric_series_that_sums_to_1_and_the_newest_is_the_largest() -> None:
    assert exponential_weights(3, 0.5) == pytest.approx([1 / 7, 2 / 7, 4 / 7])
    assert exponential_weights(1, 0.3) == [1.0]
    for n in (2, 5, 10):
        weights = exponential_weights(n, 0.9)
        assert sum(weights) == pytest.approx(1.0)
        assert weights == sorted(weights)


def test_the_weighted_mean_is_that_of_the_numbers_and_only_proportions_count() -> None:
    tensors = [torch.tensor([[1.0, -2.0]]), torch.tensor([[3.0, 6.0]])]
    assert torch.equal(weighted_mean(tensors, [3.0, 1.0]), torch.tensor([[1.5, 0.0]]))
    assert torch.equal(weighted_mean(tensors, [0.75, 0.25]), torch.tensor([[1.5, 0.0]]))


def test_a_mean_is_summed_in_float64() -> None:
    """1 + 2^-24 is 1 in float32: a thousand of them would be lost one by one."""
    tensors = [torch.tensor([1.0])] + [torch.tensor([2.0**-24])] * 1023
    mean = weighted_mean(tensors, [1.0] * 1024)
    assert mean.dtype == torch.float32
    assert mean.item() == torch.tensor((1 + 1023 * 2.0**-24) / 1024).item() != 1 / 1024


@pytest.mark.parametrize("weight", [0.1, 1.0, 3.0])
def test_the_mean_of_one_model_is_that_model_bit_for_bit(weight: float) -> None:
    tensor = random(100, 3)
    assert torch.equal(weighted_mean([tensor], [weight]), tensor)


# ---------------------------------------------------------------------------------------------------------------- TIES
def test_ties_by_hand() -> None:
    """Five entries, two of each run stay at density 0.4: of what was changed, however large the base is."""
    base = torch.tensor([-4.0, 3.0, 16.0, 16.0, 4.0])
    vectors = torch.tensor([
        [4.0, -3.0, 0.5, 1.0, 0.0],  # keeps 4 and -3
        [2.0, 5.0, -1.0, 0.5, 0.0],  # keeps 2 and 5
        [-3.0, 0.5, 0.5, 0.5, -4.0],  # keeps -3 and -4
    ])  # fmt: skip
    merged = ties(base, list(base + vectors), [1.0, 1.0, 1.0], density=0.4, scale=2.0)
    # entry 0: 4 + 2 - 3 > 0, mean of 4 and 2; 1: -3 + 5 > 0, 5 alone; 2 and 3: all trimmed; 4: -4 alone
    assert merged.tolist() == [-4 + 2 * 3.0, 3 + 2 * 5.0, 16.0, 16.0, 4 - 2 * 4.0]


def test_weights_decide_the_sign_and_the_mean() -> None:
    base, runs = torch.zeros(2), [torch.tensor([1.0, 1.0]), torch.tensor([-2.0, 3.0])]
    assert ties(base, runs, [1.0, 1.0], 1.0, 1.0).tolist() == [-2.0, 2.0]
    assert ties(base, runs, [3.0, 1.0], 1.0, 1.0).tolist() == [1.0, 1.5]
    assert ties(base, runs, [30.0, 10.0], 1.0, 1.0).tolist() == [1.0, 1.5]


def test_where_the_runs_cancel_out_the_base_stays() -> None:
    base, change = torch.tensor([5.0]), torch.tensor([2.0])
    assert ties(base, [base + change, base - change], [1.0, 1.0], 1.0, 1.0).item() == 5.0


def test_ties_of_opposite_runs_is_the_opposite() -> None:
    _, runs = three_runs()
    zero = torch.zeros(30, 7)
    merged = ties(zero, runs, [1.0, 2.0, 0.5], 0.3, 1.0)
    assert torch.equal(ties(zero, [-run for run in runs], [1.0, 2.0, 0.5], 0.3, 1.0), -merged)


def test_all_of_one_run_is_that_run_bit_for_bit() -> None:
    base, runs = three_runs()
    assert torch.equal(ties(base, runs[:1], [0.7], density=1.0, scale=1.0), runs[0])


def test_runs_that_changed_nothing_leave_the_base() -> None:
    base, _ = three_runs()
    assert torch.equal(ties(base, [base, base], [1.0, 1.0], 0.5, 1.0), base)


@pytest.mark.parametrize("weights", [(1.0, 1.0, 1.0), (0.2, 0.3, 0.5)])
def test_the_order_of_the_runs_does_not_matter(weights: tuple[float, ...]) -> None:
    base, runs = three_runs()
    expected, mean = ties(base, runs, weights, 0.3, 0.8), weighted_mean(runs, weights)
    for order in permutations(range(3)):
        mixed, sorted_weights = [runs[i] for i in order], [weights[i] for i in order]
        assert torch.equal(ties(base, mixed, sorted_weights, 0.3, 0.8), expected)
        assert torch.equal(weighted_mean(mixed, sorted_weights), mean)


@pytest.mark.parametrize("part", [1, 64, 209, 210])
def test_the_size_of_a_part_does_not_matter(part: int, monkeypatch: pytest.MonkeyPatch) -> None:
    base, runs = three_runs()
    whole = ties(base, runs, [1.0] * 3, 0.3, 1.0), weighted_mean(runs, [1.0] * 3), sign_agreement(base, runs)
    monkeypatch.setattr(merging, "PART", part)
    assert torch.equal(ties(base, runs, [1.0] * 3, 0.3, 1.0), whole[0])
    assert torch.equal(weighted_mean(runs, [1.0] * 3), whole[1])
    parted = sign_agreement(base, runs)
    assert (parted.num_changed, parted.num_same_sign) == (whole[2].num_changed, whole[2].num_same_sign)
    torch.testing.assert_close(parted.products, whole[2].products)


@pytest.mark.parametrize("density", [0.001, 0.1, 0.2, 0.5, 0.999, 1.0])
@pytest.mark.parametrize("size", [1, 2, 7, 1000])
def test_exactly_so_many_of_the_largest_stay(size: int, density: float) -> None:
    magnitudes = random(size).abs()
    mask = largest(magnitudes, density)
    assert int(mask.sum()) == max(1, int(density * size))
    if not mask.all():
        assert magnitudes[mask].min() > magnitudes[~mask].max()


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_of_equal_entries_the_first_stay(value: float) -> None:
    magnitudes = torch.tensor([value, value, 2.0, value, value])
    assert largest(magnitudes, 0.6).tolist() == [True, True, True, False, False]


# ----------------------------------------------------------------------------------------------------------- agreement
def test_agreement_by_hand() -> None:
    base = torch.ones(4)
    vectors = torch.tensor([[1.0, 2.0, 0.0, 0.0], [3.0, -2.0, 0.0, 1.0]])
    found = sign_agreement(base, list(base + vectors))
    assert (found.num_changed, found.num_same_sign) == (3, 1)
    assert found.same_sign == pytest.approx(1 / 3)
    assert found.products.tolist() == [[5.0, -1.0], [-1.0, 14.0]]
    assert found.cosine(0, 1) == pytest.approx(-1 / 70**0.5)
    assert found.cosine(0, 0) == pytest.approx(1.0)


def test_agreement_of_two_tensors_is_that_of_both_together() -> None:
    base, runs = three_runs()
    first, second = (sign_agreement(base[rows], [run[rows] for run in runs]) for rows in (slice(10), slice(10, None)))
    both, whole = first + second, sign_agreement(base, runs)
    assert (both.num_changed, both.num_same_sign) == (whole.num_changed, whole.num_same_sign)
    torch.testing.assert_close(both.products, whole.products)


def test_three_independent_runs_agree_by_chance_in_a_quarter() -> None:
    found = sign_agreement(torch.zeros(100_000), [random(100_000, seed=seed) for seed in (1, 2, 3)])
    assert found.same_sign == pytest.approx(0.25, abs=0.01)
    assert found.cosine(0, 2) == pytest.approx(0.0, abs=0.02)


def test_runs_that_changed_nothing_have_no_agreement() -> None:
    found = sign_agreement(torch.ones(3), [torch.ones(3)] * 2)
    assert found.same_sign is None
    assert found.cosine(0, 1) is None
