"""Row 21: over random mixtures, every language gets the rows that its share gives it, and no more than its cap."""
from collections import Counter
from dataclasses import dataclass
from itertools import islice

import numpy as np
import pytest
from streaming.base.stream import Stream

from mmbert.mixture import Floats, Group, Integers, Period, Plan, temperature_shares
from mmbert.schedules import Schedule

pytestmark = pytest.mark.fault(21)
MIXTURES, MOST_PERIODS = 500, 200
LONG_MIXTURES = 10_000


def draw_schedule(rng: np.random.Generator) -> Schedule:
    """A tau in [0, 1], constant or falling or rising."""
    start, end = rng.uniform(0, 1, 2)
    return Schedule(start) if rng.random() < 0.5 else Schedule(start, "linear", end)


def draw_plan(rng: np.random.Generator) -> Plan:
    """A phase of 1 to 40 languages in up to three groups; tiny and huge ones, with caps and without."""
    languages, row_length = int(rng.integers(1, 41)), int(rng.choice([64, 256, 1024]))
    largest = 10.0 ** rng.integers(3, 10)
    tokens = np.exp(rng.uniform(np.log(4), np.log(largest), languages)).astype(np.int64)
    rows = np.ceil(tokens / (row_length * rng.uniform(0.5, 1.0, languages))).astype(np.int64)
    num_groups = min(languages, int(rng.integers(1, 4)))
    cuts = np.sort(rng.permutation(np.arange(1, languages))[: num_groups - 1])
    parts = np.split(rng.permutation(languages), cuts)
    groups = [
        Group(
            name=f"group{number}",
            share=float(share),
            tau=draw_schedule(rng),
            max_repeats=None if rng.random() < 0.6 else float(np.exp(rng.uniform(np.log(0.5), np.log(1000.0)))),
            members=members,
        )
        for number, (members, share) in enumerate(zip(parts, rng.dirichlet(np.full(num_groups, 2.0)), strict=True))
    ]
    period_rows, periods = int(np.exp(rng.uniform(0.0, np.log(3000.0)))), rng.integers(1, 13)
    duration = max(1, int(periods * period_rows * tokens.sum() / rows.sum()))
    return Plan(groups, rows, tokens, duration, period_rows)


def refusal_of(plan: Plan) -> str | None:
    """What must stand in the refusal of a plan: the group that cannot fill its share within its cap, and a cap."""
    for group in plan.groups:
        wanted, there = group.share * plan.duration, int(plan.tokens[group.members].sum())
        if group.max_repeats is not None and there * group.max_repeats < wanted:
            return f"{group.name}: share {group.share:g} of {plan.duration:,} tokens is {wanted:,.0f}"
    return None


def planned_rows(plan: Plan, shares: Floats) -> Floats:
    """(S,) rows of one period, not rounded: shares are of tokens, and a row of a small language holds fewer."""
    rows = shares * plan.rows / plan.tokens
    return plan.period_rows * rows / rows.sum()


def check_shares(plan: Plan, period: Period) -> None:
    """The shares are their formula; with a cap, the languages below it keep each other's ratios."""
    for group, tau in zip(plan.groups, period.taus, strict=True):
        own, tokens = period.token_shares[group.members], plan.tokens[group.members]
        assert own.sum() == pytest.approx(group.share)
        right = group.share * temperature_shares(tokens.astype(float), tau)
        caps = np.inf if group.max_repeats is None else tokens * group.max_repeats / plan.duration
        assert (own <= caps * (1 + 1e-9)).all()
        free = own < caps * (1 - 1e-9)
        ratios = own[free] / right[free]
        assert ratios.size == 0 or ratios.max() == pytest.approx(ratios.min())
        assert ratios.size == 0 or ratios.min() >= 1 - 1e-9  # what the capped leave goes to them


@dataclass
class Phase:
    """What a plan gave up to the end of its phase: rows planned and rows given (S,), and the largest difference."""

    planned: Floats
    given: Integers
    off: float
    periods: int


def follow(plan: Plan, most_periods: int = MOST_PERIODS) -> Phase:
    """Walk through a phase and check each period.

    Raises:
        ValueError: a cap cannot be kept.
    """
    languages = len(plan.rows)
    phase = Phase(np.zeros(languages), np.zeros(languages, dtype=np.int64), 0.0, 0)
    for period in islice(plan.periods(), most_periods):
        if period.start_tokens >= plan.duration:
            break
        for group in plan.groups:
            if group.max_repeats is not None:  # rounding may add one row
                allowed = group.max_repeats * plan.rows * (period.start_tokens + 1) / plan.duration + 1
                assert (phase.given[group.members] <= allowed[group.members] + 1e-6).all()
        if period.index % 10 == 0:
            check_shares(plan, period)
        taken = period.last - period.first
        assert taken.sum() == plan.period_rows
        assert taken.min() >= 0
        assert np.array_equal(period.first, phase.given)
        phase.planned += planned_rows(plan, period.token_shares)
        phase.given, phase.periods = period.last, period.index + 1
        phase.off = max(phase.off, float(np.abs(phase.given - phase.planned).max()))
    return phase


def check_mixtures(number: int, seed: int) -> Counter[str]:
    """Draw mixtures and check each; counts of what was seen."""
    rng, seen = np.random.default_rng(seed), Counter[str]()
    for _ in range(number):
        plan = draw_plan(rng)
        if (words := refusal_of(plan)) is not None:
            with pytest.raises(ValueError, match="raise max_repeats to at least") as refusal:
                follow(plan)
            assert words in str(refusal.value)
            seen["refused"] += 1
            continue
        phase = follow(plan)
        assert phase.off <= 1.0
        assert not ((phase.planned >= 1.0) & (phase.given == 0)).any()
        seen["periods"] += phase.periods
        seen["languages"] += len(plan.rows)
        seen["languages planned for less than a row"] += int((phase.planned < 1.0).sum())
    return seen


def test_random_mixtures_give_each_language_its_rows_within_one(
    figures: dict[str, float], pytestconfig: pytest.Config
) -> None:
    """Also: every period's rows sum exactly, caps are kept, and those that cannot be met are refused with a remedy."""
    number = LONG_MIXTURES if pytestconfig.option.long else MIXTURES
    seen = check_mixtures(number, seed=0)
    assert min(seen["refused"], number - seen["refused"], seen["languages planned for less than a row"]) > 0
    figures["mixtures"], figures["mixtures refused for their cap"] = number, seen["refused"]
    figures["periods"] = seen["periods"]


@pytest.mark.parametrize("tau", [0.3, 1.0])
def test_a_plan_stays_within_one_row_over_thousands_of_periods(tau: float, figures: dict[str, float]) -> None:
    tokens = np.round(2e7 * np.arange(1, 201) ** -1.5).astype(np.int64) + 200
    group = Group("all", 1.0, Schedule(tau), None, np.arange(200))
    phase = follow(Plan([group], -(-tokens // 1024), tokens, 10**15, 777), most_periods=5_000)
    assert phase.off <= 1.0
    figures["most periods of a plan"] = phase.periods


# Of 3,500 seeds, those with which rounding by the largest remainder falls more than a row behind, up to 1.15.
HARD_SEEDS = [11, 843, 1178, 1989, 2129, 2347, 2743, 2834, 3120]


@pytest.mark.parametrize("seed", HARD_SEEDS)
def test_periods_of_fewer_rows_than_languages_keep_each_within_one_row(seed: int) -> None:
    rng = np.random.default_rng(seed)
    languages, period_rows = int(rng.integers(15, 33)), int(rng.integers(1, 4))
    rows = np.exp(rng.uniform(0.0, np.log(1e4), languages)).astype(np.int64)
    parts = np.split(rng.permutation(languages), [int(rng.integers(4, languages - 4))])
    shares, taus = rng.dirichlet([2, 2]), [rng.uniform(0.0, 0.15), rng.uniform(0.3, 0.9)]
    groups = [
        Group(str(number), float(share), Schedule(tau), None, members)
        for number, (share, tau, members) in enumerate(zip(shares, taus, parts, strict=True))
    ]
    assert follow(Plan(groups, rows, rows * 64, 64 * period_rows * 200, period_rows)).off <= 1.0


LANGUAGES, EPOCHS, EPOCH_ROWS = 1833, 20, 20_000


def power_law() -> tuple[Integers, Integers, Floats]:
    """Tokens, rows and share at tau = 1 of many languages, most of them small."""
    tokens = np.round(2e9 * np.arange(1, LANGUAGES + 1) ** -1.5).astype(np.int64) + 200
    return tokens, -(-tokens // 1024), temperature_shares(tokens.astype(float), 1.0)


def test_no_small_language_is_left_out_of_the_largest_mixture() -> None:
    """The mixture of the control below."""
    tokens, rows, _ = power_law()
    group = Group("all", 1.0, Schedule(1.0), None, np.arange(LANGUAGES))
    phase = follow(Plan([group], rows, tokens, 10**15, EPOCH_ROWS), most_periods=EPOCHS)
    assert (phase.planned >= 1.0).sum() > (phase.planned >= EPOCHS).sum()
    assert phase.given[phase.planned >= 1.0].min() >= 1


@pytest.mark.fault(21, control=True)
def test_rounding_each_epoch_for_itself_leaves_languages_without_a_row(figures: dict[str, float]) -> None:
    """Streaming rounds every epoch for itself, and languages that are due whole rows never get one."""
    _, rows, shares = power_law()
    due, given = EPOCHS * EPOCH_ROWS * shares, np.zeros(LANGUAGES)
    for _ in range(EPOCHS):
        streams = [Stream(local="nowhere", proportion=float(share)) for share in shares]
        Stream.apply_weights(streams, rows, EPOCH_ROWS, seed=9176)  # its default seed, of every epoch
        given += [stream.choose for stream in streams]
    assert given.sum() == EPOCHS * EPOCH_ROWS
    left_out = int(((due >= 1.0) & (given == 0)).sum())
    assert left_out > 0
    figures["languages that Streaming leaves out"] = left_out
    assert np.abs(given - due).max() > 5
