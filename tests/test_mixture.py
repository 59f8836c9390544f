"""Shares and row counts of languages against closed forms and invariants."""
from itertools import islice

import numpy as np
import pytest

from mmbert.mixture import Group, Plan, cap_shares, diffuse, temperature_shares
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
    shares = cap_shares(np.array([0.5, 0.3, 0.15, 0.05]), np.array([0.2, 1.0, 1.0, 0.06]))
    assert shares.sum() == pytest.approx(1.0)
    assert shares[0] == pytest.approx(0.2)
    assert shares[3] == pytest.approx(0.06)  # the first cap's excess pushes the last over its own
    assert shares[1] / shares[2] == pytest.approx(2.0)


def test_caps_that_cannot_be_met_are_refused() -> None:
    with pytest.raises(ValueError, match=r"90\.0%"):
        cap_shares(np.array([0.5, 0.5]), np.array([0.4, 0.5]))


@pytest.mark.parametrize("wanted", [[0.4, 0.4, 0.2], [-0.9, 1.5, 3.4], [2.0, 2.0, 0.0], [-0.5, -0.4, 1.9]])
def test_rounding_keeps_the_sum_and_no_number_falls_below_zero(wanted: list[float]) -> None:
    total = round(sum(wanted))
    rounded = diffuse(np.array(wanted), np.ones(len(wanted)), total)
    assert rounded.sum() == total
    assert rounded.min() >= 0


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
    assert plan.planned_tokens(int(halfway)) == pytest.approx(expected, rel=1e-4)
    assert plan.planned_tokens(12_345).sum() == pytest.approx(12_345)
    assert not plan.planned_tokens(0).any()
