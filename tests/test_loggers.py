"""wandb and TensorBoard get the metrics, change nothing, and end no run."""
import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from composer.loggers import WandBLogger

from mmbert import loggers
from mmbert.loggers import TensorBoard, WandB, wandb_id
from mmbert.processes import STOPPED
from tests.conftest import Corpus, Finished
from tests.guards import replace
from tests.training_runs import Outcome, prepare, train

WANDB = ["logging.wandb_project=mine", "logging.interval_batches=1"]
OFFLINE = {"WANDB_MODE": "offline", "WANDB_SILENT": "true"}


def losses(outcome: Outcome) -> dict[int, str]:
    """Step -> bits of its loss."""
    return {step["step"]: step["loss"] for step in outcome.steps}


def wandb_runs(run_folder: Path) -> list[tuple[str, dict[int, dict[str, float]]]]:
    """Id and metrics by step of every folder that wandb wrote offline, in the order of time."""
    from wandb.proto import wandb_internal_pb2
    from wandb.sdk.internal.datastore import DataStore

    runs = []
    for file in sorted(run_folder.glob("wandb/offline-run-*/run-*.wandb"), key=lambda path: path.stat().st_mtime):
        store, metrics = DataStore(), dict[int, dict[str, float]]()
        store.open_for_scan(str(file))
        while (data := store.scan_data()) is not None:
            record = wandb_internal_pb2.Record()
            record.ParseFromString(data)
            if record.WhichOneof("record_type") == "history":
                items = record.history.item
                found = {item.key or item.nested_key[0]: json.loads(item.value_json) for item in items}
                metrics[int(found["_step"])] = found
        runs.append((file.stem.removeprefix("run-"), metrics))
    return runs


def test_wandb_offline_gets_the_metrics_under_one_id_across_a_restart(
    corpus: Corpus, finished: Finished, tmp_path: Path
) -> None:
    yaml = prepare(tmp_path / "it", corpus)
    stopped = train([yaml, *WANDB], tmp_path / "steps.jsonl", 12, signal.SIGTERM, environment=OFFLINE)
    assert stopped.exit_code == STOPPED, stopped.output
    outcome = train([yaml, *WANDB], tmp_path / "again.jsonl", environment=OFFLINE)
    assert outcome.exit_code == 0, outcome.output
    whole = losses(finished[1]["phase1"])
    assert losses(stopped) | losses(outcome) == whole

    run_folder = tmp_path / "it" / "runs" / "phase1"
    (first, before), (second, after) = wandb_runs(run_folder)
    assert first == second == (run_folder / "wandb-id").read_text().strip()
    metrics = before | after
    found = {step: values["loss/train/total"] for step, values in metrics.items() if "loss/train/total" in values}
    assert found == {step - 1: float.fromhex(loss) for step, loss in whole.items()}  # Composer counts from 0
    assert metrics[12]["tau/large"] == 0.7


def test_tensorboard_gets_the_metrics(corpus: Corpus, finished: Finished, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    outcome = train([prepare(tmp_path / "it", corpus), "logging.tensorboard=true"], tmp_path / "steps.jsonl")
    assert outcome.exit_code == 0, outcome.output
    whole = losses(finished[1]["phase1"])
    assert losses(outcome) == whole
    events = EventAccumulator(str(tmp_path / "it" / "runs" / "phase1" / "tensorboard" / "phase1"))
    events.Reload()
    found = {point.step: point.value for point in events.Scalars("loss/train/total")}
    assert found == {step - 1: pytest.approx(float.fromhex(loss)) for step, loss in whole.items()}


def wandb_does_not_begin() -> None:
    """As if the server could not be reached."""

    def refuse(**options: Any) -> None:
        if options.get("mode") != "disabled":
            raise OSError("no way")

    import wandb

    replace(wandb, "init", refuse)
    replace(wandb, "run", None)


def loggers_fail() -> None:
    """As if both failed at every metric."""

    def fail(*_: object) -> None:
        raise BrokenPipeError("gone")

    from composer.loggers import TensorboardLogger

    for logger in (WandBLogger, TensorboardLogger):
        replace(logger, "log_metrics", fail)


@pytest.mark.parametrize(
    "change, told",
    [
        (wandb_does_not_begin, "wandb cannot begin, this attempt trains without it: no way"),
        (loggers_fail, "WandB fails, training goes on without it: gone"),
    ],
)
def test_no_logger_ends_a_run(corpus: Corpus, finished: Finished, tmp_path: Path, change: Any, told: str) -> None:
    arguments = [prepare(tmp_path / "it", corpus), *WANDB, "logging.tensorboard=true"]
    outcome = train(arguments, tmp_path / "steps.jsonl", changes=[change], environment=OFFLINE)
    assert outcome.exit_code == 0, outcome.output
    assert outcome.output.count(told) == 1
    assert losses(outcome) == losses(finished[1]["phase1"])


def wandb_never_ends() -> None:
    """As if its server were gone: it tries again and again."""
    import wandb

    replace(wandb, "finish", lambda *_: time.sleep(1000))
    replace(loggers, "FINISH_SECONDS", 1.0)


def test_a_wandb_that_does_not_end_hinders_no_run_from_ending(corpus: Corpus, tmp_path: Path) -> None:
    arguments, changes = [prepare(tmp_path / "it", corpus), *WANDB], [wandb_never_ends]
    stopped = train(arguments, tmp_path / "steps.jsonl", 12, signal.SIGTERM, changes, OFFLINE)
    assert stopped.exit_code == STOPPED, stopped.output
    [told] = [line for line in stopped.output.splitlines() if "wandb does not end" in line]
    [folder] = (tmp_path / "it" / "runs" / "phase1" / "wandb").glob("offline-run-*")
    assert told == f"wandb does not end; what it lacks is sent with: wandb sync --append {folder}"


def test_of_a_wandb_that_does_not_end_nothing_is_left_that_python_waits_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loggers, "FINISH_SECONDS", 0.1)
    monkeypatch.setattr(WandBLogger, "post_close", lambda self: time.sleep(1000))
    core = shutil.copy(str(shutil.which("sleep")), tmp_path / "wandb-core")
    children = [subprocess.Popen([program, "1000"]) for program in (core, "sleep")]
    try:
        logger = WandB.__new__(WandB)
        logger.run_dir = str(tmp_path / "files")
        logger.post_close()
        assert children[0].wait(10) == -signal.SIGKILL
        assert children[1].poll() is None
    finally:
        for child in children:
            child.kill()
            child.wait()


ENDS_WITH_AN_ERROR = """
import atexit, subprocess, sys
from composer.loggers import WandBLogger
from mmbert import loggers

loggers.FINISH_SECONDS = 0.5
WandBLogger.init = lambda *_: atexit.register(subprocess.Popen([sys.argv[1], "1000"]).wait)
logger = loggers.WandB.__new__(loggers.WandB)
logger.run_dir = "runs/it/wandb/run-1/files"
logger.init(None, None)
sys.exit(3)
"""


def test_a_wandb_that_does_not_end_hinders_no_run_from_ending_with_an_error(tmp_path: Path) -> None:
    core = shutil.copy(str(shutil.which("sleep")), tmp_path / "wandb-core")
    command = [sys.executable, "-c", ENDS_WITH_AN_ERROR, str(core)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60)
    told = "wandb does not end; what it lacks is sent with: wandb sync --append runs/it/wandb/run-1"
    assert (result.returncode, result.stderr.splitlines()[-1:]) == (3, [told])


def test_the_id_stays_with_the_folder(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    own = wandb_id(tmp_path / "a")
    assert own == wandb_id(tmp_path / "a") != wandb_id(tmp_path / "b")


def test_what_fails_first_is_ours_to_catch() -> None:
    """`Tolerant` stands before Composer's class in both, or its methods would not be called."""
    for logger in (WandB, TensorBoard):
        assert logger.mro()[1].__name__ == "Tolerant"
        assert logger.log_metrics.__qualname__ == logger.run_event.__qualname__.replace("run_event", "log_metrics")
