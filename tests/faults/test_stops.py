"""Row 1: a run that is asked to stop saves the step that it is in, on all ranks, and says so by its exit status."""
import os
import signal
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest

from callbacks import checkpointing
from callbacks.planned_stop import PlannedStop
from mmbert.checkpoint import checkpoint_bytes, newest_checkpoint, read_state, step_folders
from mmbert.mlm import MaskedLM
from mmbert.model import MmBertForMaskedLM
from mmbert.stop_request import StopRequest
from tests.conftest import Corpus, Finished
from tests.faults.injected import send_self
from tests.faults.oracle import check_same_end, check_tidy
from tests.guards import replace, without_planned_stop
from tests.tiny_runs import ENCODER
from tests.training_runs import prepare, train, train_ranks

pytestmark = pytest.mark.fault(1)
STOPPED = 85


def last_step(run_folder: Path) -> int:
    return read_state(newest_checkpoint(run_folder))["step"]


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGUSR1, marks=pytest.mark.long)], ids=str)
def test_a_signal_to_one_rank_stops_all_after_the_same_step(
    corpus: Corpus, two_ranks: Path, tmp_path: Path, number: signal.Signals
) -> None:
    yaml = prepare(tmp_path / "it", corpus)
    record, run_folder = tmp_path / "steps.jsonl", tmp_path / "it" / "runs" / "phase1"
    stopped = train_ranks([yaml], record, kill_at={1: 6}, number=number)
    assert [outcome.exit_code for outcome in stopped] == [STOPPED] * 2
    assert [outcome.steps[-1]["step"] for outcome in stopped] == [last_step(run_folder)] * 2
    assert last_step(run_folder) in (6, 7)
    assert [outcome.exit_code for outcome in train_ranks([yaml], record)] == [0, 0]
    check_same_end(run_folder, two_ranks)
    check_tidy(run_folder)


WARMUP = ["batch_size_warmup={start: 1, tokens: 640}", "learning_rate.warmup=2000"]


def test_a_stop_while_learning_rate_and_batch_size_warm_up_changes_nothing(corpus: Corpus, tmp_path: Path) -> None:
    record = tmp_path / "steps.jsonl"
    whole = train([prepare(tmp_path / "whole", corpus), *WARMUP], tmp_path / "whole.jsonl")
    assert whole.exit_code == 0, whole.output
    assert len(whole.steps[0]["rows"]) < len(whole.steps[-1]["rows"])
    yaml = prepare(tmp_path / "it", corpus)
    assert train([yaml, *WARMUP], record, kill_at=3, number=signal.SIGUSR1).exit_code == STOPPED
    outcome = train([yaml, *WARMUP], record)
    assert outcome.exit_code == 0, outcome.output
    assert outcome.steps == whole.steps
    check_same_end(tmp_path / "it" / "runs" / "phase1", tmp_path / "whole" / "runs" / "phase1")


def limits() -> dict[str, tuple[list[str], dict[str, str], int]]:
    """A time limit -> arguments, environment, exit status."""
    now = time.time()
    return {
        "max_minutes": (["max_minutes=0.0001"], {}, STOPPED),
        "Slurm's end is near": ([], {"SLURM_JOB_END_TIME": str(now + 20)}, STOPPED),
        "Slurm's end is far": ([], {"SLURM_JOB_END_TIME": str(now + 7200)}, 0),
    }


@pytest.mark.parametrize(
    "case", ["max_minutes", "Slurm's end is near", pytest.param("Slurm's end is far", marks=pytest.mark.long)]
)
def test_a_time_limit_stops_a_run_without_a_signal(
    corpus: Corpus, finished: Finished, tmp_path: Path, case: str
) -> None:
    arguments, environment, status = limits()[case]
    yaml = prepare(tmp_path / "it", corpus)
    record, run_folder = tmp_path / "steps.jsonl", tmp_path / "it" / "runs" / "phase1"
    outcome = train([yaml, *arguments], record, environment=environment)
    assert outcome.exit_code == status, outcome.output
    if status == STOPPED:
        assert last_step(run_folder) == outcome.steps[-1]["step"] == 1
        assert train([yaml], record).exit_code == 0
    check_same_end(run_folder, finished[0] / "runs" / "phase1")


def test_before_the_first_save_a_slow_disk_is_assumed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A job whose only save is cut off would get nowhere."""
    encoder = MmBertForMaskedLM(ENCODER)
    monkeypatch.setattr(checkpointing, "SLOW_DISK", checkpoint_bytes(encoder) / 100.0)
    phase: Any = SimpleNamespace(config=SimpleNamespace(parent=None, max_minutes=None), ranks=None)
    monkeypatch.setenv("SLURM_JOB_END_TIME", str(time.time() + 200))
    saving = checkpointing.Checkpointing(phase, *[Mock()] * 3)
    stop = PlannedStop(phase, StopRequest(), saving)
    assert not stop.is_wanted()
    state: Any = SimpleNamespace(model=MaskedLM(encoder, "fp32"))
    saving.fit_start(state, Mock())
    assert saving.seconds == 100.0
    assert stop.is_wanted()


@pytest.mark.parametrize(
    "number",
    [signal.SIGTERM, *(pytest.param(number, marks=pytest.mark.long) for number in (signal.SIGINT, signal.SIGUSR1))],
    ids=str,
)
def test_a_stop_before_the_first_step_ends_at_once_and_saves_nothing(
    corpus: Corpus, tmp_path: Path, number: signal.Signals
) -> None:
    yaml = prepare(tmp_path / "it", corpus)
    outcome = train([yaml], tmp_path / "steps.jsonl", changes=[partial(send_self, "build_data", number)])
    assert outcome.exit_code == STOPPED
    assert "asked to stop before the first step" in outcome.output
    assert not outcome.steps
    assert not step_folders(tmp_path / "it" / "runs" / "phase1")
    assert train([yaml], tmp_path / "steps.jsonl", kill_at=1).exit_code == -9  # it can begin


def ask_during_the_save() -> None:
    """A second request comes while the first is being fulfilled, as a scheduler's SIGTERM after its SIGUSR1 does."""
    import callbacks.checkpointing

    save = callbacks.checkpointing.save_checkpoint

    def asked_again(*arguments: Any) -> Path:
        os.kill(os.getpid(), signal.SIGTERM)
        return save(*arguments)

    replace(callbacks.checkpointing, "save_checkpoint", asked_again)


@pytest.mark.long
def test_a_second_request_during_the_save_changes_nothing(corpus: Corpus, finished: Finished, tmp_path: Path) -> None:
    yaml = prepare(tmp_path / "it", corpus)
    record, run_folder = tmp_path / "steps.jsonl", tmp_path / "it" / "runs" / "phase1"
    stopped = train([yaml], record, kill_at=7, number=signal.SIGUSR1, changes=[ask_during_the_save])
    # The first checkpoint, at step 4, already brings a request.
    assert stopped.exit_code == STOPPED
    assert last_step(run_folder) == stopped.steps[-1]["step"]
    assert train([yaml], record).exit_code == 0
    check_same_end(run_folder, finished[0] / "runs" / "phase1")


@pytest.mark.fault(1, control=True)
def test_without_planned_stops_a_signal_loses_the_steps_since_the_last_checkpoint(
    corpus: Corpus, tmp_path: Path
) -> None:
    """SIGTERM ends the run as Composer does, and the steps since the last checkpoint are lost."""
    yaml = prepare(tmp_path / "it", corpus)
    record = tmp_path / "steps.jsonl"
    outcome = train([yaml], record, kill_at=7, number=signal.SIGTERM, changes=[without_planned_stop])
    assert outcome.exit_code == 128 + signal.SIGTERM
    assert last_step(tmp_path / "it" / "runs" / "phase1") < outcome.steps[-1]["step"] == 7
