"""Rates of a stretch of training, by hand."""
import pytest

from callbacks.progress import Stretch


def test_rates_are_per_second_and_per_device() -> None:
    stretch = Stretch(seconds=4.0, tokens=800, flops=2_000, seconds_waited=0.1)
    rates = stretch.rates(world_size=2, peak=1_000.0)
    assert rates == {
        "throughput/tokens_per_second": 200.0,
        "throughput/tokens_per_second_per_device": 100.0,
        "throughput/flops_per_second_per_device": 500.0,
        "throughput/data_wait_share": 0.025,
        "throughput/mfu": 0.5,
    }


def test_a_device_without_a_known_peak_has_no_mfu() -> None:
    rates = Stretch(seconds=1.0, tokens=1, flops=1).rates(1, None)
    assert "throughput/mfu" not in rates
    assert rates["throughput/data_wait_share"] == pytest.approx(0.0)
