"""Rows 1 and 15 with real launchers: a rank that is killed is named, and a stop reaches every rank."""
import multiprocessing
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mmbert.checkpoint import newest_checkpoint, read_state
from mmbert.ledger import read_ledger
from mmbert.stop_request import ASKED_BY
from tests.conftest import Corpus
from tests.faults.oracle import processes_with, takers_of
from tests.training_runs import PRELOADED, prepare

ROOT = Path(__file__).parents[2]
OURS = f"{shlex.quote(sys.executable)} -m mmbert.launch --nproc 2 main.py"
COMPOSERS = f"{shlex.quote(str(Path(sys.executable).with_name('composer')))} -n 2 main.py"
LONG = ["duration=1M", "logging.interval_batches=1", "device_train_microbatch_size=1"]
STOPPED = 85


def launch(launcher: str, yaml: Path, log: Path) -> subprocess.Popen[bytes]:
    """Start a run that would take minutes."""
    with log.open("ab") as file:
        command = [*shlex.split(launcher), str(yaml), *LONG]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=file, stderr=file)


def await_step(run_folder: Path, step: int, launcher: subprocess.Popen[bytes]) -> None:
    """Come back when the ledger has this step."""
    for _ in range(1200):
        assert launcher.poll() is None, f"it ended with {launcher.returncode}"
        if (run_folder / "ledger.jsonl").exists() and [s for s in read_ledger(run_folder).steps if s.step >= step]:
            return
        time.sleep(0.1)
    raise AssertionError(f"step {step} was never done")


def process_of_rank(rank: int, log: Path) -> int:
    """The process that has this rank in its environment."""
    variable = f"RANK={rank}\0".encode()
    for process in processes_with(log):
        content = Path(f"/proc/{process}/environ").read_bytes()
        if content.startswith(variable) or b"\0" + variable in content:
            return process
    raise AssertionError(f"there is no rank {rank}")


def check_saved_last_step(run_folder: Path) -> None:
    """The newest checkpoint is of the last step that the ledger has: nothing was lost."""
    assert read_state(newest_checkpoint(run_folder))["step"] == read_ledger(run_folder).steps[-1].step


@pytest.mark.fault(1, 15)
@pytest.mark.long
def test_our_launcher_names_a_killed_rank_and_a_restart_stops_when_asked(
    corpus: Corpus, tmp_path: Path, log: Path, figures: dict[str, float]
) -> None:
    yaml, run_folder = prepare(tmp_path / "it", corpus), tmp_path / "it" / "runs" / "phase1"
    launcher = launch(OURS, yaml, log)
    await_step(run_folder, 8, launcher)
    killed = time.monotonic()
    os.kill(process_of_rank(1, log), signal.SIGKILL)
    assert launcher.wait(60) == 128 + signal.SIGKILL
    figures["most s from a rank's death to the end of all"] = time.monotonic() - killed
    assert "rank 1 was killed by signal 9 (SIGKILL: often out of memory)" in log.read_text()
    assert not processes_with(log)
    done = read_ledger(run_folder).steps[-1].step
    launcher = launch(OURS, yaml, log)
    await_step(run_folder, done + 3, launcher)
    asked = time.monotonic()
    launcher.send_signal(signal.SIGUSR1)
    assert launcher.wait(60) == STOPPED
    figures["most s from a signal to the end of all"] = time.monotonic() - asked
    assert not processes_with(log)
    check_saved_last_step(run_folder)


@pytest.mark.fault(1)
@pytest.mark.long
def test_a_run_under_composers_launcher_stops_when_asked(corpus: Corpus, tmp_path: Path, log: Path) -> None:
    yaml, run_folder = prepare(tmp_path / "it", corpus), tmp_path / "it" / "runs" / "phase1"
    launcher = launch(COMPOSERS, yaml, log)
    await_step(run_folder, 6, launcher)
    rank = process_of_rank(0, log)
    assert not any(takers_of(number, rank) for number in ASKED_BY)
    launcher.send_signal(signal.SIGTERM)
    launcher.wait(60)
    assert not processes_with(log)
    check_saved_last_step(run_folder)


STUB = """
import os, signal, time
if os.environ["RANK"] == "1":
    os.kill(os.getpid(), signal.SIGKILL)
time.sleep(60)
"""


def composers_launcher(program: str, output: str) -> None:
    """`composer -n 2 program` in this process."""
    from composer.cli import launcher

    file = os.open(output, os.O_WRONLY | os.O_CREAT)
    os.dup2(file, 1)
    os.dup2(file, 2)
    sys.argv = ["composer", "-n", "2", program]
    launcher.main()


@pytest.mark.fault(15, control=True)
@pytest.mark.long
def test_composers_launcher_does_not_tell_that_a_rank_was_killed(tmp_path: Path) -> None:
    """Composer's launcher returns the status of a rank that it ended itself: out of memory looks like a stop."""
    program, output = tmp_path / "rank.py", tmp_path / "output.txt"
    program.write_text(STUB)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    process = context.Process(target=composers_launcher, args=(str(program), str(output)))
    process.start()
    process.join(60)
    assert process.exitcode is not None
    assert process.exitcode % 256 not in (128 + signal.SIGKILL, 256 - signal.SIGKILL)
    assert not re.search(r"rank 1 was killed", output.read_text())
