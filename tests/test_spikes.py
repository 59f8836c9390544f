"""Spikes: what counts as high, and for how long."""
import pytest

from mmbert.spikes import count_high

CALM = [1.0, 5.0] * 8  # mean 3, standard deviation 2


@pytest.mark.parametrize("loss, expected", [(15.0, False), (15.01, True), (float("inf"), True), (0.0, False)])
def test_high_is_six_standard_deviations_above_the_mean(loss: float, expected: bool) -> None:
    _, num_high = count_high(loss, CALM, 0, sigma=6.0, window=16)
    assert num_high == expected


@pytest.mark.fault(13)
def test_a_high_step_is_counted_and_kept_out_of_the_calm_ones() -> None:
    assert count_high(20.0, CALM, 2, sigma=6.0, window=16) == (CALM, 3)


def test_a_calm_step_ends_the_count_and_moves_the_window() -> None:
    assert count_high(5.0, CALM, 2, sigma=6.0, window=16) == ([*CALM[1:], 5.0], 0)


def test_nothing_is_high_before_the_window_is_full() -> None:
    calm, num_high = count_high(100.0, CALM[:-1], 0, sigma=6.0, window=16)
    assert (calm[-1], num_high) == (100.0, 0)
