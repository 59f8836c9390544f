"""Rows 17 and 18: processes, locks, shared memory and temporary files that a kill leaves, and runs beside it."""
import os
import shlex
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest

from mmbert.checkpoint import newest_checkpoint, read_state
from mmbert.ledger import read_ledger
from mmbert.manifest import read_manifest
from tests.conftest import Corpus, Finished
from tests.faults.injected import at_row, be_seen_to_hang
from tests.faults.neighbours import pause_at_step, shared_memory_of, start, stream_rows
from tests.faults.oracle import check_same_end, check_tidy, left_in_scratch, processes_of, processes_with
from tests.guards import without_parent_signal
from tests.training_runs import Change, Run, prepare, train, train_ranks
from tests.waiting import wait_until

WORKERS = "data.num_workers=2"
ROOT = Path(__file__).parents[2]


def pause(folder: Path, step: int = 6) -> Change:
    """The run waits in this step, having made `folder`/here, until there is `folder`/go."""
    return partial(pause_at_step, step, str(folder / "here"), str(folder / "go"))


# ----------------------------------------------------------------------------------------------------------- the holder


@pytest.mark.fault(17)
def test_a_second_start_is_refused_and_the_first_goes_on_undisturbed(
    corpus: Corpus, finished: Finished, tmp_path: Path, started: list[Run]
) -> None:
    yaml, run_folder = prepare(tmp_path / "it", corpus), tmp_path / "it" / "runs" / "phase1"
    first = Run([yaml, WORKERS], tmp_path / "first.jsonl", changes=[pause(tmp_path)])
    started.append(first)
    wait_until((tmp_path / "here").exists)
    before = {path: path.read_bytes() for path in run_folder.rglob("*") if path.is_file()}
    for arguments in ([yaml], [yaml, "checkpoint.keep=1"]):
        second = train(arguments, tmp_path / "second.jsonl")
        assert second.exit_code == 1
        assert f"is being written by process {first.process.pid} on host {os.uname().nodename} since" in second.output
        assert len(second.output.splitlines()) == 1
        assert not second.steps
    assert {path: path.read_bytes() for path in run_folder.rglob("*") if path.is_file()} == before
    (tmp_path / "go").touch()
    outcome = first.wait()
    assert outcome.exit_code == 0, outcome.output
    assert read_ledger(run_folder).attempts == [1]
    check_same_end(run_folder, finished[0] / "runs" / "phase1")
    check_tidy(run_folder)


@pytest.mark.fault(17)
def test_a_killed_run_is_free_at_once_also_while_its_loader_workers_live(
    corpus: Corpus, finished: Finished, tmp_path: Path, started: list[Run]
) -> None:
    """Workers that hang in a read and are told nothing hold neither the lock nor anything else."""
    yaml, run_folder = prepare(tmp_path / "it", corpus), tmp_path / "it" / "runs" / "phase1"
    hang = partial(at_row, 60, partial(be_seen_to_hang, str(tmp_path / "hangs")))
    killed = Run([yaml, WORKERS], tmp_path / "x.jsonl", changes=[without_parent_signal, hang, pause(tmp_path, step=14)])
    started.append(killed)
    wait_until(lambda: (tmp_path / "here").exists() and (tmp_path / "hangs").exists())
    killed.process.kill()
    assert killed.wait().exit_code == -signal.SIGKILL
    outcome = train([yaml], tmp_path / "y.jsonl")
    assert outcome.exit_code == 0, outcome.output
    assert processes_of(killed)
    check_same_end(run_folder, finished[0] / "runs" / "phase1")


# --------------------------------------------------------------------------------------------------------- the launcher

PROGRAM = """
import os, sys
import main
from tests.faults.neighbours import count_steps, pause_at_step
from tests.guards import without_parent_signal
count_steps()
pause_at_step(6, {here!r} + os.environ["RANK"], {go!r})
{more}
main.main(sys.argv[1:])
"""


def launch(launcher: str, folder: Path, yaml: Path, log: Path, more: str = "") -> subprocess.Popen[bytes]:
    """Start two ranks as a user does; in step 6 each waits for `folder`/go."""
    program = folder / "program.py"
    program.write_text(PROGRAM.format(here=str(folder / "here"), go=str(folder / "go"), more=more))
    variables = {"PYTHONPATH": str(ROOT), "TMPDIR": str(folder), "OMP_NUM_THREADS": "1"}
    command = [*shlex.split(launcher), str(program), str(yaml)]
    with log.open("ab") as file:
        return subprocess.Popen(
            command, cwd=ROOT, env={**os.environ, **variables}, stdout=file, stderr=file, start_new_session=True
        )


def wait_for_ranks(folder: Path, launcher: subprocess.Popen[bytes]) -> None:
    """Until both have come to the step in which they wait."""
    here = [folder / "here0", folder / "here1"]
    wait_until(lambda: all(path.exists() for path in here) or launcher.poll() is not None, 180)  # imports take time
    assert launcher.poll() is None


@pytest.mark.fault(17)
@pytest.mark.long
def test_ranks_whose_launcher_is_killed_save_their_step_and_end(
    corpus: Corpus, two_ranks: Path, tmp_path: Path, log: Path
) -> None:
    yaml, run_folder = prepare(tmp_path / "it", corpus), tmp_path / "it" / "runs" / "phase1"
    launcher = launch(f"{shlex.quote(sys.executable)} -m mmbert.launch --nproc 2", tmp_path, yaml, log)
    wait_for_ranks(tmp_path, launcher)
    launcher.kill()
    launcher.wait()
    (tmp_path / "go").touch()
    wait_until(lambda: not processes_with(log), 30)
    assert "phase1 was asked to stop and is saved" in log.read_text()
    assert read_state(newest_checkpoint(run_folder))["step"] in (6, 7)
    assert [outcome.exit_code for outcome in train_ranks([yaml], tmp_path / "x.jsonl")] == [0, 0]
    check_same_end(run_folder, two_ranks)
    check_tidy(run_folder)


@pytest.mark.fault(17, control=True)
@pytest.mark.long
def test_ranks_that_are_not_told_train_on_after_their_launcher_was_killed(
    corpus: Corpus, tmp_path: Path, log: Path
) -> None:
    """Composer's launcher is killed, and its ranks train on to the end with nobody to stop them."""
    yaml, run_folder = prepare(tmp_path / "it", corpus), tmp_path / "it" / "runs" / "phase1"
    composer = f"{shlex.quote(sys.executable)} -m composer.cli.launcher -n 2"
    launcher = launch(composer, tmp_path, yaml, log, more="without_parent_signal()")
    wait_for_ranks(tmp_path, launcher)
    launcher.kill()
    launcher.wait()
    (tmp_path / "go").touch()
    wait_until(lambda: not processes_with(log), 60)
    assert read_state(newest_checkpoint(run_folder))["finished"]


# ---------------------------------------------------------------------------------------------- shared memory and files


@pytest.mark.fault(18)
def test_kills_leave_no_process_no_shared_memory_and_no_file_and_runs_beside_it_go_on(
    corpus: Corpus, finished: Finished, tmp_path: Path, started: list[Run], figures: dict[str, float]
) -> None:
    """Beside a run with loader workers and a reader of plain Streaming, both begun before and ended after the kills."""
    neighbour_yaml = prepare(tmp_path / "neighbour", corpus)
    neighbour = Run([neighbour_yaml, WORKERS], tmp_path / "neighbour.jsonl", changes=[pause(tmp_path)])
    started.append(neighbour)
    folder = corpus.shards[64] / "train" / "invented" / "laa"
    streaming = start(stream_rows, str(folder), str(tmp_path))
    wait_until(lambda: (tmp_path / "here").exists() and (tmp_path / "begun").exists())
    assert streaming.pid is not None
    objects = shared_memory_of(streaming.pid)
    assert objects

    yaml = prepare(tmp_path / "it", corpus)
    for kill_at in (3, 8, 13, None):
        here = tmp_path / f"from-{kill_at}"
        here.mkdir()
        step = kill_at or 18
        run = Run([yaml, WORKERS], tmp_path / "x.jsonl", kill_at=kill_at, changes=[pause(here, step)])
        started.append(run)
        wait_until((here / "here").exists)
        assert len(processes_of(run)) == 3  # itself and two workers
        assert [shared_memory_of(process) for process in processes_of(run)] == [set()] * 3
        (here / "go").touch()
        assert run.wait().exit_code == (-9 if kill_at else 0)
        wait_until(lambda run=run: not processes_of(run), 5.0)  # type: ignore[misc]
        assert not left_in_scratch(run)
        figures["kills"] = figures.get("kills", 0) + bool(kill_at)
    figures["recoveries"] = figures["kills"]
    check_same_end(tmp_path / "it" / "runs" / "phase1", finished[0] / "runs" / "phase1")

    assert shared_memory_of(streaming.pid) == objects
    assert all(Path(name).exists() for name in objects)
    (tmp_path / "go").touch()
    assert neighbour.wait().exit_code == 0
    streaming.join(60)
    assert int((tmp_path / "rows").read_text()) == read_manifest(folder).rows
    for name in objects:  # what a plain Streaming that ended well leaves to its resource tracker is not ours to judge
        Path(name).unlink(missing_ok=True)
    check_same_end(tmp_path / "neighbour" / "runs" / "phase1", finished[0] / "runs" / "phase1")


@pytest.mark.fault(18, control=True)
def test_plain_streaming_leaves_shared_memory_and_lock_files_at_every_kill(
    corpus: Corpus, tmp_path: Path, figures: dict[str, float]
) -> None:
    """Each StreamingDataset that is killed as a job is, with its group, leaves shared memory and lock files."""
    folder = corpus.shards[64] / "train" / "invented" / "laa"
    left: list[set[str]] = []
    try:
        for number in range(2):
            here = tmp_path / str(number)
            here.mkdir()
            streaming = start(stream_rows, str(folder), str(here))
            wait_until((here / "begun").exists)
            assert streaming.pid is not None
            objects = shared_memory_of(streaming.pid)
            os.killpg(streaming.pid, signal.SIGKILL)
            streaming.join()
            time.sleep(0.5)
            left.append({name for name in objects if Path(name).exists()})
        assert left[0]
        assert left[1] - left[0]
        figures["objects in shared memory left by two kills of plain Streaming"] = len(left[0] | left[1])
        assert list(tmp_path.glob("*/*filelock"))
    finally:
        for name in set().union(*left):
            Path(name).unlink()
