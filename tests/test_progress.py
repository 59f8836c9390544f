"""Rates of a stretch of training, by hand, and what becomes a stretch."""
from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from callbacks import progress
from callbacks.progress import Progress, Stretch
from mmbert.config import LoggingConfig, load_config
from mmbert.flops import training_flops
from mmbert.schedules import Schedule


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


def test_a_report_is_of_the_steps_since_the_last_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two steps to a report, on one of two devices: 30,000 tokens a step, 5 s a report, 0.25 s of them in wait."""
    config = replace(load_config("yamls/demo/phase1.yaml"), logging=LoggingConfig(interval_batches=2), duration=600_000)
    config = replace(config, mask_rate=Schedule(0.3, "step", end=0.1, at=60_000))
    times: Iterator[float] = iter([0.0, 10.0, *np.repeat([15.0, 20.0, 25.0], 2)])
    monkeypatch.setattr(progress, "monotonic", lambda: next(times))
    phase: Any = SimpleNamespace(config=config, ranks=SimpleNamespace(world_size=2, is_first=True))
    callback = Progress(phase)
    callback.peak = 1e6
    reports: list[dict[str, float]] = []
    logger: Any = SimpleNamespace(log_metrics=reports.append)
    lengths = np.array([100, 50])
    batch = {"stream_tokens": np.array([20_000, 10_000]), "lengths": lengths, "num_labels": 40, "seconds_waited": 0.125}
    state: Any = SimpleNamespace(
        batch=batch, total_loss_dict={"loss/train/total": 1.5}, optimizers=[SimpleNamespace(param_groups=[{"lr": 0.1}])]
    )
    callback.fit_start(state, logger)
    for step in range(1, 5):
        state.timestamp = SimpleNamespace(batch=step, token=30_000 * step)
        state.previous_timestamp = SimpleNamespace(batch=step - 1, token=30_000 * (step - 1))
        callback.batch_end(state, logger)
    flops = 2 * training_flops(config.model, lengths, 40) / 5.0
    for number, report in enumerate(reports, start=1):
        assert report == pytest.approx({
            "throughput/tokens_per_second": 12_000.0,
            "throughput/tokens_per_second_per_device": 6_000.0,
            "throughput/flops_per_second_per_device": flops,
            "throughput/data_wait_share": 0.05,
            "throughput/mfu": flops / 1e6,
            "throughput/seconds_left": (600_000 - 60_000 * number) / 12_000.0,
        })
    assert len(reports) == 2
    first, second = capsys.readouterr().out.splitlines()
    assert "10%  60,000 of 600,000 tokens  loss 1.500" in first
    assert "mask 30%" in first  # its own; the next step's is 10%
    assert "mask 10%" in second
    assert "waiting 5.0%  0:00:40 left" in second
