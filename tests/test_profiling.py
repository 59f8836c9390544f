"""The profile's table, and a profile of a real phase."""
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from torch.profiler import ProfilerActivity

from callbacks.profiling import ROWS, WARMUP_STEPS, Profiling, main, table
from tests.conftest import Corpus
from tests.training_runs import write_yamls


def test_the_longest_operations_stand_first_and_the_rest_in_one_line() -> None:
    rows = [(f"op{number}", 0.01 * (ROWS + 2 - number), 6) for number in range(ROWS + 2)]
    lines = table(rows, steps=2).splitlines()
    assert lines[2] == "| op0 | 110.00 | 8.7% | 3 |"  # 22 of 253 parts
    assert len(lines) == 2 + ROWS + 1
    assert lines[-1] == "| 2 others | 15.00 | 1.2% | |"


def test_a_gpu_that_the_profiler_may_not_look_at_is_told() -> None:
    with pytest.raises(ValueError, match=r"saw the GPU do nothing: .*root alone"):
        table([("aten::mm", 0.0, 6)], steps=2)


def test_a_phase_is_profiled_and_its_run_left_alone(corpus: Corpus, tmp_path: Path) -> None:
    """In a process of its own, because Composer leaves torch.distributed initialised."""
    write_yamls(tmp_path, corpus)
    command = [sys.executable, "-m", "callbacks.profiling", str(tmp_path / "phase1.yaml")]
    options = ["--steps", "2", "--output", str(tmp_path / "profile")]
    done = subprocess.run([*command, *options], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n| ") == ROWS + 2  # with a rule of columns and a line of the others
    assert "| aten::_scaled_dot_product_flash_attention" in done.stdout
    assert "waiting for rows: " in done.stdout
    (trace,) = (tmp_path / "profile").iterdir()  # the run in it is gone
    assert trace.name == "trace.json"
    assert trace.stat().st_size > 1000
    assert not (tmp_path / "runs").exists()


def test_the_steps_behind_the_warm_up_are_recorded_and_no_others() -> None:
    phase: Any = SimpleNamespace(config=SimpleNamespace(device="cpu"))
    profiling, recorded, state = Profiling(phase, steps=2), [], SimpleNamespace(stopped=False)
    profiling.profiler = SimpleNamespace(start=lambda: recorded.append("start"), stop=lambda: recorded.append("stop"))
    state.stop_training = lambda: setattr(state, "stopped", True)
    for step in range(WARMUP_STEPS + 10):
        state.timestamp, state.batch = SimpleNamespace(batch=step), {"seconds_waited": 1.0}
        profiling.before_dataloader(state, None)
        recorded.append(step)
        state.timestamp = SimpleNamespace(batch=step + 1)
        profiling.batch_end(state, None)
        if state.stopped:
            break
    assert recorded == [*range(WARMUP_STEPS), "start", WARMUP_STEPS, WARMUP_STEPS + 1, "stop"]
    assert profiling.seconds_waited == 2.0


def test_more_steps_than_a_phase_has_are_refused(corpus: Corpus, tmp_path: Path) -> None:
    write_yamls(tmp_path, corpus)
    command = [sys.executable, "-m", "callbacks.profiling", str(tmp_path / "phase1.yaml")]
    options = ["--steps", "1000", "--output", str(tmp_path / "profile")]
    done = subprocess.run([*command, *options], capture_output=True, text=True, timeout=300)
    assert done.returncode == 1
    assert "error: --steps 1000 and 3 before them: phase1 has only " in done.stderr
    assert "Traceback" not in done.stderr
    assert not list((tmp_path / "profile").iterdir())


def test_a_phase_on_the_cpu_is_profiled_there_beside_a_gpu_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    phase: Any = SimpleNamespace(config=SimpleNamespace(device="cpu"))
    profiling = Profiling(phase, steps=1)
    assert profiling.sort_by == "self_cpu_time_total"
    assert list(profiling.profiler.activities) == [ProfilerActivity.CPU]


def test_no_step_is_no_profile() -> None:
    with pytest.raises(SystemExit, match="--steps 0 must be at least 1"):
        main(["any.yaml", "--steps", "0"])
