"""The schedules against their closed forms."""
from math import cos, pi, sqrt

import pytest

from mmbert.schedules import BatchSizes, Schedule, one_minus_sqrt, warmup_stable_decay


def test_warmup_stable_decay_is_linear_flat_linear() -> None:
    def rate(tokens: int) -> float:
        return warmup_stable_decay(tokens, duration=1000, warmup=100, decay=200, floor=0.02)

    assert rate(0) == 0.0
    assert rate(25) == 0.25
    assert rate(100) == rate(799) == 1.0
    assert rate(900) == pytest.approx(1.0 - 0.98 * 0.5)
    assert rate(1000) == pytest.approx(0.02)
    assert rate(1500) == pytest.approx(0.02)


def test_without_decay_the_rate_stays_at_its_peak_past_the_end() -> None:
    assert warmup_stable_decay(2000, duration=1000, warmup=0, decay=0, floor=0.0) == 1.0


@pytest.mark.parametrize("tokens", [0, 1, 250, 999, 1000])
def test_one_minus_sqrt_is_its_formula(tokens: int) -> None:
    assert one_minus_sqrt(tokens, 1000, 0.02) == pytest.approx(0.02 + 0.98 * (1 - sqrt(tokens / 1000)))


def test_one_minus_sqrt_holds_its_floor_when_the_last_step_overshoots() -> None:
    assert one_minus_sqrt(1004, 1000, 0.02) == pytest.approx(0.02)


@pytest.mark.parametrize("tokens", [0, 300, 500, 1000])
def test_schedule_kinds_are_their_formulas(tokens: int) -> None:
    x = tokens / 1000
    assert Schedule(0.3).value(tokens, 1000) == 0.3
    assert Schedule(0.3, "linear", 0.1).value(tokens, 1000) == pytest.approx(0.3 - 0.2 * x)
    assert Schedule(0.3, "cosine", 0.1).value(tokens, 1000) == pytest.approx(0.2 + 0.1 * cos(pi * x))
    assert Schedule(0.3, "step", 0.1, at=500).value(tokens, 1000) == (0.3 if tokens < 500 else 0.1)


def test_a_schedule_keeps_its_last_value_past_the_end() -> None:
    assert Schedule(0.3, "linear", 0.1).value(2000, 1000) == pytest.approx(0.1)
    assert Schedule(0.3, "cosine", 0.1).value(2000, 1000) == pytest.approx(0.1)


@pytest.mark.parametrize("arguments", [{"kind": "linear"}, {"end": 0.1}, {"kind": "step", "end": 0.1}, {"at": 3}])
def test_half_given_schedules_are_refused(arguments: dict) -> None:
    with pytest.raises(ValueError, match="schedule"):
        Schedule(0.3, **arguments)


def test_batch_size_grows_with_equal_steps_at_each_size_and_ends_on_time() -> None:
    sizes = BatchSizes.build(final=4608, start=384, warmup_rows=58_593_750)  # mmBERT-base: 60B tokens of 1,024
    assert list(sizes.sizes) == list(range(384, 4609, 384))
    steps = {
        (end - start) / size
        for start, end, size in zip(sizes.starts, sizes.starts[1:], sizes.sizes, strict=False)
    }
    assert len(steps) == 1
    # recipe-facts: 384 until 0.91B tokens, 768 until 2.73B, 4,224 until 60B
    assert [round(start * 1024 / 1e9, 2) for start in (sizes.starts[1], sizes.starts[2])] == [0.91, 2.73]
    assert sizes.starts[-1] * 1024 == pytest.approx(60e9, rel=1e-3)
    assert sizes.at(0) == 384
    assert sizes.at(sizes.starts[1] - 1) == 384
    assert sizes.at(sizes.starts[1]) == 768
    assert sizes.at(10**9) == 4608
