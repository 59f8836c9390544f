"""Shares and row counts of languages against closed forms and invariants."""
from dataclasses import replace
from itertools import islice

import numpy as np
import pytest

from mmbert.mixture import Group, Plan, bounded_shares, diffuse, group_shares, smallest, temperature_shares
from mmbert.schedules import Schedule


def power_law(streams: int) -> np.ndarray:
    """Tokens of `streams` languages, from 200 to 20 million, as skewed as in life."""
    return np.round(2e7 * np.arange(1, streams + 1) ** -1.5).astype(np.int64) + 200


def plan_of(tokens: np.ndarray, tau: Schedule, period_rows: int, duration: int, row_tokens: int = 1024) -> Plan:
    rows = -(-tokens // row_tokens)
    group = Group("all", 1.0, tau, None, np.arange(len(tokens)))
    return Plan([group], rows, tokens, duration, period_rows)


@pytest.mark.parametrize("tau", [0.0, 0.3, 0.5, 0.7, 1.0])
def test_temperature_shares_are_their_formula(tau: float) -> None:
    sizes = np.array([1e3, 1e6, 2.5e11])
    assert temperature_shares(sizes, tau) == pytest.approx(sizes**tau / (sizes**tau).sum())


def test_capped_shares_never_exceed_their_caps_and_keep_the_others_ratios() -> None:
    shares = bounded_shares(np.array([0.5, 0.3, 0.15, 0.05]), np.zeros(4), np.array([0.2, 1.0, 1.0, 0.06]))
    assert shares.sum() == pytest.approx(1.0)
    assert shares[0] == pytest.approx(0.2)
    assert shares[3] == pytest.approx(0.06)  # the first cap's excess pushes the last over its own
    assert shares[1] / shares[2] == pytest.approx(2.0)


def test_raised_shares_never_fall_below_their_floors_and_keep_the_others_ratios() -> None:
    shares = bounded_shares(np.array([0.6, 0.28, 0.1, 0.02]), np.array([0.0, 0.0, 0.1, 0.1]), np.ones(4))
    assert shares == pytest.approx([0.8 * 60 / 88, 0.8 * 28 / 88, 0.1, 0.1])  # the last pulls the third to its floor


@pytest.mark.parametrize("floor, cap, expected", [
    (0.1, 0.5, [0.5, 0.25, 0.15, 0.1]),  # the cap cuts 0.1 off and the floor needs 0.05: x rises to 1.25
    (0.2, 0.55, [0.4, 0.2, 0.2, 0.2]),  # the cap cuts 0.05 off and the floor needs 0.31: x falls, and nobody is capped
    (0.25, 0.25, [0.25] * 4),
])  # fmt: skip
def test_floor_and_cap_together_have_their_closed_form(floor: float, cap: float, expected: list[float]) -> None:
    shares = bounded_shares(np.array([0.6, 0.2, 0.12, 0.08]), np.full(4, floor), np.full(4, cap))
    assert shares == pytest.approx(expected)


def test_bounded_shares_are_the_scaled_shares_clipped_with_the_one_scale_that_sums_to_1() -> None:
    rng = np.random.default_rng(0)
    for _ in range(300):
        size = int(rng.integers(2, 60))
        shares = rng.dirichlet(np.full(size, 0.3)) + 1e-9
        shares /= shares.sum()
        floors = rng.uniform(0, 1, size) * rng.uniform(0, 1) / size
        caps = floors + rng.exponential(2.0 / size, size)
        caps *= max(1.0, 1.01 / caps.sum())
        low, high = 0.0, 1e12
        for _ in range(200):  # a bisection of x
            middle = (low + high) / 2
            low, high = (middle, high) if np.clip(middle * shares, floors, caps).sum() < 1.0 else (low, middle)
        assert bounded_shares(shares, floors, caps) == pytest.approx(np.clip(low * shares, floors, caps), abs=1e-9)


def unimax(sizes: list[int], budget: float, most_epochs: float) -> list[float]:
    """Tokens of each language by the algorithm of Chung et al. 2023, arXiv:2304.09151, as its authors state it.

    From the smallest language to the largest: an even part of the budget that is left, or `most_epochs` of it.
    """
    given, left = [0.0] * len(sizes), budget
    for done, language in enumerate(sorted(range(len(sizes)), key=sizes.__getitem__)):
        given[language] = min(left / (len(sizes) - done), most_epochs * sizes[language])
        left -= given[language]
    return given


@pytest.mark.parametrize("most_epochs", [1.0, 5.0, 1e6])
def test_tau_0_with_max_repeats_is_unimax(most_epochs: float) -> None:
    tokens, duration = power_law(300), 10**8
    shares = group_shares(Group("all", 0.25, Schedule(0.0), most_epochs, np.arange(300)), tokens, 0.0, duration)
    given = unimax(tokens.tolist(), 0.25 * duration, most_epochs)
    assert shares * 0.25 * duration == pytest.approx(given)
    assert (most_epochs == 1e6) == (max(given) == pytest.approx(min(given)))


@pytest.mark.parametrize("wanted", [[0.4, 0.4, 0.2], [-0.9, 1.5, 3.4], [2.0, 2.0, 0.0], [-0.5, -0.4, 1.9]])
def test_rounding_keeps_the_sum_and_no_number_falls_below_zero(wanted: list[float]) -> None:
    total = round(sum(wanted))
    rounded = diffuse(np.array(wanted), np.ones(len(wanted)), total)
    assert rounded.sum() == total
    assert rounded.min() >= 0


@pytest.mark.parametrize("wanted, expected", [([-0.9, -0.8, 2.7], [0, 0, 1]), ([-1.5, 1.2, 1.3], [0, 0, 1])])
def test_what_negative_numbers_owe_is_taken_from_the_smallest_remainders(
    wanted: list[float], expected: list[int]
) -> None:
    assert diffuse(np.array(wanted), np.ones(3), 1).tolist() == expected


@pytest.mark.parametrize("wanted, rates, expected", [
    ([1.9, 2.1], [1.0, 1.0], [2, 2]),
    ([1.2, 1.5, 0.3], [8.0, 1.0, 0.1], [2, 1, 0]),  # not the largest remainder: in a tenth of a period it is owed
])  # fmt: skip
def test_what_is_left_goes_to_whoever_would_be_a_row_behind_soonest(
    wanted: list[float], rates: list[float], expected: list[int]
) -> None:
    assert diffuse(np.array(wanted), np.array(rates), sum(expected)).tolist() == expected


def test_the_smallest_are_those_of_a_stable_sort() -> None:
    values = np.random.default_rng(0).integers(0, 20, 200).astype(np.float64)
    values[::7] = np.inf
    for number in (0, 1, 30, 171, 200):
        assert sorted(smallest(values, number)) == sorted(np.argsort(values, kind="stable")[:number])


@pytest.mark.fault(21)
@pytest.mark.parametrize("tau", [0.7, 0.5, 0.3])
@pytest.mark.parametrize("streams", [532, 1833])
def test_rows_of_every_language_stay_within_one_of_the_plan_for_ever(tau: float, streams: int) -> None:
    tokens = power_law(streams)
    plan = plan_of(tokens, Schedule(tau), period_rows=19_200, duration=10**12)
    row_shares = plan.token_shares([tau]) / (plan.tokens / plan.rows)
    row_shares /= row_shares.sum()
    worst = 0.0
    for period in islice(plan.periods(), 40):
        assert (period.last - period.first).sum() == 19_200
        realised = period.last - (period.index + 1) * 19_200 * row_shares
        worst = max(worst, float(np.abs(realised).max()))
    assert worst <= 1.0


def test_tokens_follow_tau_although_rows_of_small_languages_are_half_empty() -> None:
    tokens = np.array([1024 * 1000, 500], dtype=np.int64)  # the second has one row, half full
    plan = plan_of(tokens, Schedule(0.5), period_rows=10_000, duration=10**9)
    *_, period = islice(plan.periods(), 20)
    got = period.last * (plan.tokens / plan.rows)
    assert got[1] / got.sum() == pytest.approx(temperature_shares(tokens.astype(float), 0.5)[1], rel=1e-3)


def test_tau_follows_its_schedule_from_period_to_period() -> None:
    tokens = np.full(4, 1024 * 100, dtype=np.int64)
    plan = plan_of(tokens, Schedule(0.7, "linear", 0.3), period_rows=100, duration=1024 * 400)
    taus = [period.taus[0] for period in islice(plan.periods(), 6)]
    assert taus == pytest.approx([0.7, 0.6, 0.5, 0.4, 0.3, 0.3])


@pytest.mark.fault(21)
def test_no_language_is_repeated_more_often_than_allowed() -> None:
    tokens = power_law(500)
    rows = -(-tokens // 1024)
    duration = 200_000_000
    group = Group("all", 1.0, Schedule(0.3), 4.0, np.arange(500))
    plan = Plan([group], rows, tokens, duration, 2_000)
    for period in plan.periods():
        if period.start_tokens >= duration:
            break
        assert (period.first <= 4 * rows + 1).all()


@pytest.mark.fault(21)
def test_a_cap_that_the_languages_cannot_fill_is_refused_with_the_arithmetic() -> None:
    group = Group("small", 0.25, Schedule(0.3), 2.0, np.arange(2))
    plan = Plan([group], np.array([1, 1]), np.array([100, 100]), 10_000, 10)
    with pytest.raises(ValueError, match=r"small: share 0\.25 of 10,000 tokens is 2,500.*have 200.*at least 12\.50"):
        plan.token_shares([0.3])


def test_of_a_duration_that_the_text_does_not_fill_the_longest_that_it_does_is_named_first() -> None:
    """A duration that was copied is the usual mistake, and a max_repeats of 20 would hide it."""
    group = Group("small", 0.25, Schedule(0.3), 2.0, np.arange(2))
    tokens = np.array([100, 101])
    with pytest.raises(ValueError, match=r"; shorten duration to at most 1,608, .*, or raise max_repeats to at least"):
        group_shares(group, tokens, 0.3, 10_000)
    assert group_shares(group, tokens, 0.3, 1_608).sum() == pytest.approx(1.0)


@pytest.mark.parametrize("seed", range(20))
def test_a_phase_may_read_all_that_its_languages_have_exactly_once(seed: int) -> None:
    """In floating point the caps of many languages sum to a last bit below 1 or above."""
    tokens = np.random.default_rng(seed).integers(1, 10**9, 300)
    shares = group_shares(Group("all", 1.0, Schedule(0.3), 1.0, np.arange(300)), tokens, 0.3, int(tokens.sum()))
    assert shares == pytest.approx(tokens / tokens.sum(), rel=1e-9)


def test_no_language_gets_less_than_the_floor_of_its_group() -> None:
    tokens = power_law(500)
    group = Group("all", 0.5, Schedule(1.0), 50.0, np.arange(500), floor=1e-4)
    rest = Group("rest", 0.5, Schedule(1.0), None, np.array([500]))
    plan = Plan([group, rest], np.full(501, 1000), np.append(tokens, 10**6), 10**8, 10_000)
    shares = plan.token_shares([1.0, 1.0])
    assert shares.sum() == pytest.approx(1.0)
    assert shares[:500].min() == pytest.approx(0.5e-4)
    free = shares[:500] > 0.5e-4 * (1 + 1e-9)
    assert 0 < free.sum() < 500
    assert shares[:500][free] / tokens[free] == pytest.approx(np.full(free.sum(), shares[0] / tokens[0]))


@pytest.mark.parametrize("floor, max_repeats, words", [
    (0.3, None, r"many: floor 0\.3 for each of 4 languages is 1\.20 of the group, and there is 1; .* at most 0\.25$"),
    (0.3, 2.0, r"many: floor 0\.3 for each of 4 languages is 1\.20"),
    (0.1, 2.0, r"floor 0\.1 is more than max_repeats 2 allows to 2 of 4 languages, xho first: 0\.0267 of the group; "
               r"lower the floor to at most 0\.0266, raise max_repeats, or leave them out$"),
])  # fmt: skip
def test_a_floor_that_cannot_be_met_is_refused_with_the_arithmetic(
    floor: float, max_repeats: float | None, words: str
) -> None:
    tokens = np.array([90_000, 300, 100, 50_000])
    group = Group("many", 0.75, Schedule(0.3), max_repeats, np.arange(4), floor, ["rus", "sin", "xho", "deu"])
    with pytest.raises(ValueError, match=words):
        group_shares(group, tokens, 0.3, 10_000)
    assert group_shares(replace(group, floor=0.0266), tokens, 0.3, 10_000).min() >= 0.0266 * (1 - 1e-9)


def test_groups_get_their_shares_whatever_their_languages_have() -> None:
    tokens = np.array([10**9, 10**3, 10**3], dtype=np.int64)
    groups = [
        Group("large", 0.75, Schedule(0.3), None, np.array([0])),
        Group("small", 0.25, Schedule(0.3), None, np.array([1, 2])),
    ]
    shares = Plan(groups, np.array([10**6, 1, 1]), tokens, 10**9, 1000).token_shares([0.3, 0.3])
    assert shares == pytest.approx([0.75, 0.125, 0.125])


@pytest.mark.parametrize("tau", [Schedule(0.7), Schedule(0.7, "linear", end=0.3)])
def test_planned_tokens_are_those_of_the_periods_so_far(tau: Schedule) -> None:
    plan = plan_of(power_law(40), tau, period_rows=100, duration=10**6)
    first, second, third = islice(plan.mixtures(), 3)
    halfway = third.start_tokens + third.tokens / 2
    expected = first.tokens * first.token_shares + second.tokens * second.token_shares
    expected += third.tokens / 2 * third.token_shares
    assert plan.walk(int(halfway)).stream_tokens == pytest.approx(expected, rel=1e-4)
    assert plan.walk(12_345).stream_tokens.sum() == pytest.approx(12_345)
    assert not plan.walk(0).stream_tokens.any()
