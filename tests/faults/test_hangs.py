"""Rows 5, 15, 16 and 17: processes that die or hang, those that they leave behind, and two that want the same run."""
import signal
import socket
import time
from functools import partial
from pathlib import Path

import pytest

from mmbert.checkpoint import newest_checkpoint
from mmbert.launch import Layout, free_port
from tests.conftest import Corpus, Finished
from tests.faults.injected import (
    at_row,
    be_killed,
    exit_at_step,
    fail_as_a_decoder_may,
    hang_at_step,
    raise_at_step,
    sleep_for_ever,
)  # fmt: skip
from tests.faults.oracle import check_same_end, processes_of
from tests.guards import (
    with_filler_thread,
    without_liveness,
    without_lock,
    without_parent_signal,
    without_worker_messages,
)
from tests.training_runs import Run, prepare, start_ranks, train, train_ranks
from tests.waiting import wait_until

HUNG = 86
SECONDS = 4.5
LIMIT = [f"hang_minutes={SECONDS / 60}", "checkpoint.give_up_minutes=0.01"]


# ------------------------------------------------------------------------------------------------------- loader workers


@pytest.mark.fault(5)
@pytest.mark.parametrize("workers", [pytest.param(1, marks=pytest.mark.long), 2])
def test_a_loader_worker_that_is_killed_ends_the_run_in_one_line(
    corpus: Corpus, finished: Finished, tmp_path: Path, workers: int
) -> None:
    yaml, run_folder = prepare(tmp_path / "it", corpus), tmp_path / "it" / "runs" / "phase1"
    run = Run([yaml, f"data.num_workers={workers}"], tmp_path / "x.jsonl", changes=[partial(at_row, 40, be_killed)])
    outcome = run.wait(60)
    assert outcome.exit_code == 1
    assert "a loader worker died" in outcome.output
    assert "Traceback" not in outcome.output
    assert not processes_of(run)
    assert train([yaml], tmp_path / "x.jsonl").exit_code == 0
    check_same_end(run_folder, finished[0] / "runs" / "phase1")


@pytest.mark.fault(5)
@pytest.mark.parametrize("workers", [pytest.param(0, marks=pytest.mark.long), 2])
def test_an_error_that_nobody_expects_in_a_loader_ends_the_run(corpus: Corpus, tmp_path: Path, workers: int) -> None:
    """It is a bug, so it keeps its traceback; but it ends the run."""
    arguments = [prepare(tmp_path / "it", corpus), f"data.num_workers={workers}"]
    outcome = Run(arguments, tmp_path / "x.jsonl", changes=[partial(at_row, 40, fail_as_a_decoder_may)]).wait(60)
    assert outcome.exit_code == 1
    assert "a column that a test took away" in outcome.output


@pytest.mark.fault(5, control=True)
@pytest.mark.long
def test_without_the_message_a_killed_worker_is_a_page_of_traceback(corpus: Corpus, tmp_path: Path) -> None:
    """A page of traceback from torch in place of a line with the remedy."""
    changes = [without_worker_messages, partial(at_row, 40, be_killed)]
    outcome = train([prepare(tmp_path / "it", corpus), "data.num_workers=2"], tmp_path / "x.jsonl", changes=changes)
    assert "Traceback" in outcome.output


@pytest.mark.fault(5, 16, control=True)
@pytest.mark.long
def test_a_loader_thread_that_dies_unseen_leaves_the_run_waiting_for_ever(
    corpus: Corpus, tmp_path: Path, started: list[Run]
) -> None:
    """ModernBERT's loader thread dies of an error, and the run waits for it for ever."""
    changes = [without_liveness, with_filler_thread, partial(at_row, 40, fail_as_a_decoder_may)]
    run = Run([prepare(tmp_path / "it", corpus), "data.num_workers=1"], tmp_path / "x.jsonl", changes=changes)
    started.append(run)
    wait_until(lambda: "Exception in thread" in run.output())
    time.sleep(1.5 * SECONDS)
    assert run.is_running


# ---------------------------------------------------------------------------------------------------------------- hangs


@pytest.mark.fault(16)
def test_a_run_that_hangs_shows_where_and_ends_with_86(corpus: Corpus, finished: Finished, tmp_path: Path) -> None:
    yaml = prepare(tmp_path / "it", corpus)
    outcome = Run([yaml, *LIMIT], tmp_path / "x.jsonl", changes=[partial(hang_at_step, 6)]).wait(60)
    assert outcome.exit_code == HUNG
    assert f"hangs: {SECONDS:g} s without progress in: rank 0, computing step 6" in outcome.output
    assert "in sleep_through" in outcome.output
    assert train([yaml], tmp_path / "x.jsonl").exit_code == 0
    check_same_end(tmp_path / "it" / "runs" / "phase1", finished[0] / "runs" / "phase1")


@pytest.mark.fault(16)
@pytest.mark.parametrize("rank", [pytest.param(0, marks=pytest.mark.long), 1])
def test_one_rank_that_hangs_ends_both_and_shows_its_line(corpus: Corpus, tmp_path: Path, rank: int) -> None:
    changes = [partial(hang_at_step, 6, rank)]
    outcomes = train_ranks([prepare(tmp_path / "it", corpus), *LIMIT], tmp_path / "x.jsonl", changes=changes)
    assert outcomes[rank].exit_code == HUNG
    assert "in sleep_through" in outcomes[rank].output
    # The other one waits in a collective: its own watchdog ends it, or gloo when it loses the first.
    assert outcomes[1 - rank].exit_code in (1, HUNG)


@pytest.mark.fault(5, 16)
def test_a_loader_worker_that_hangs_is_shown_and_ends_the_run(corpus: Corpus, tmp_path: Path) -> None:
    yaml = prepare(tmp_path / "it", corpus)
    changes = [partial(at_row, 40, sleep_for_ever)]
    run = Run([yaml, *LIMIT, "data.num_workers=2"], tmp_path / "x.jsonl", changes=changes)
    outcome = run.wait(60)
    assert outcome.exit_code == HUNG
    assert "waiting for the batch after step" in outcome.output
    assert "in sleep_for_ever" in outcome.output
    wait_until(lambda: not processes_of(run), 5)


@pytest.mark.fault(16, control=True)
@pytest.mark.long
def test_without_the_watchdog_a_run_hangs_for_ever(corpus: Corpus, tmp_path: Path, started: list[Run]) -> None:
    """The run sits there for ever, without a word."""
    yaml = prepare(tmp_path / "it", corpus)
    run = Run([yaml, *LIMIT], tmp_path / "x.jsonl", changes=[without_liveness, partial(hang_at_step, 6)])
    started.append(run)
    wait_until(lambda: len(run.steps()) == 5)
    time.sleep(1.5 * SECONDS)
    assert run.is_running
    assert "sleep_through" not in run.output()


@pytest.mark.fault(16)
def test_a_rank_that_meets_another_program_shows_where_and_ends_with_86(corpus: Corpus, tmp_path: Path) -> None:
    """One that takes the connection, and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as mute:
        place = Layout(2, 1, 0, "127.0.0.1", mute.getsockname()[1])
        arguments = [prepare(tmp_path / "it", corpus), "hang_minutes=0.02", "checkpoint.give_up_minutes=0.01"]
        outcome = Run(arguments, tmp_path / "x.jsonl", environment=place.environment(1)).wait(60)
    assert outcome.exit_code == HUNG
    assert f"rank 1, meeting the others at 127.0.0.1 port {place.master_port}\n" in outcome.output


# -------------------------------------------------------------------------------------------------------------- crashes


@pytest.mark.fault(15)
@pytest.mark.parametrize(
    "crash",
    [partial(raise_at_step, 6), pytest.param(partial(exit_at_step, 6, 0), marks=pytest.mark.long)],
    ids=["raises", "exits early with status 0"],
)
def test_a_rank_that_crashes_takes_the_other_down_within_seconds(
    corpus: Corpus, tmp_path: Path, crash: partial[None]
) -> None:
    began = time.monotonic()
    runs = start_ranks([prepare(tmp_path / "it", corpus)], tmp_path / "x.jsonl", changes=[partial(crash, rank=1)])
    outcomes = [run.wait(60) for run in runs]
    assert outcomes[0].exit_code == 1
    assert time.monotonic() - began < 60
    assert "Traceback" not in outcomes[0].output  # of 64 ranks it would bury the one that tells why
    assert outcomes[0].output.splitlines()[-1].startswith("error: rank 0 lost another rank (")


@pytest.mark.fault(16)
def test_what_one_rank_lacks_is_told_by_all_before_they_begin(corpus: Corpus, tmp_path: Path) -> None:
    yaml = prepare(tmp_path / "it", corpus)
    outcomes = train_ranks([yaml, *LIMIT], tmp_path / "x.jsonl", more={1: [f"data.root={tmp_path / 'nothing'}"]})
    for outcome in outcomes:
        assert outcome.exit_code == 1
        assert outcome.output.startswith(f"error: rank 1: {tmp_path / 'nothing'}/"), outcome.output
        assert outcome.output.count("\n") == 1


@pytest.mark.fault(16)
def test_a_rank_that_nobody_meets_says_so(corpus: Corpus, tmp_path: Path) -> None:
    alone = Layout(2, 1, 0, "127.0.0.1", free_port())
    arguments = [prepare(tmp_path / "it", corpus), "hang_minutes=0.02", "checkpoint.give_up_minutes=0.01"]
    outcome = train(arguments, tmp_path / "x.jsonl", environment=alone.environment(0))
    assert outcome.exit_code == 1
    words = f"error: rank 0 of 2 does not meet the others at 127.0.0.1 port {alone.master_port}: "
    assert outcome.output.splitlines()[-1].startswith(words), outcome.output
    assert "Traceback" not in outcome.output


# --------------------------------------------------------------------------------------------- orphans and two writers


@pytest.mark.fault(17)
@pytest.mark.long
def test_a_second_start_of_a_run_that_is_going_on_is_refused(
    corpus: Corpus, finished: Finished, tmp_path: Path, started: list[Run]
) -> None:
    yaml = prepare(tmp_path / "it", corpus)
    first = Run([yaml, "data.num_workers=2"], tmp_path / "first.jsonl", changes=[partial(hang_at_step, 6)])
    started.append(first)
    wait_until(lambda: len(first.steps()) == 5)
    second = train([yaml], tmp_path / "second.jsonl")
    assert second.exit_code == 1
    assert f"is being written by process {first.process.pid} on host" in second.output
    assert not second.steps
    first.process.kill()  # with loader workers, which hold no lock
    assert train([yaml], tmp_path / "first.jsonl").exit_code == 0
    check_same_end(tmp_path / "it" / "runs" / "phase1", finished[0] / "runs" / "phase1")


@pytest.mark.fault(17, control=True)
@pytest.mark.long
def test_without_the_lock_two_processes_write_one_run(corpus: Corpus, tmp_path: Path, started: list[Run]) -> None:
    """A second process trains in the folder of the first, which is still alive."""
    yaml = prepare(tmp_path / "it", corpus)
    first = Run([yaml], tmp_path / "first.jsonl", changes=[without_lock, partial(hang_at_step, 6)])
    started.append(first)
    wait_until(lambda: len(first.steps()) == 5)
    assert train([yaml], tmp_path / "second.jsonl", changes=[without_lock]).exit_code == 0
    assert newest_checkpoint(tmp_path / "it" / "runs" / "phase1").name > "step-0000000005"
    assert first.is_running


@pytest.mark.fault(17)
def test_loader_workers_end_at_once_with_a_run_that_is_killed(
    corpus: Corpus, tmp_path: Path, started: list[Run]
) -> None:
    run = Run([prepare(tmp_path / "it", corpus), "data.num_workers=2"], tmp_path / "x.jsonl", kill_at=6)
    started.append(run)
    assert run.wait().exit_code == -signal.SIGKILL
    wait_until(lambda: not processes_of(run), 2.0)


@pytest.mark.fault(17, control=True)
@pytest.mark.long
def test_without_the_parents_signal_a_loader_worker_outlives_its_run(
    corpus: Corpus, tmp_path: Path, started: list[Run]
) -> None:
    """A loader worker that is busy goes on after its run was killed."""
    changes = [without_parent_signal, partial(at_row, 60, sleep_for_ever)]
    arguments = [prepare(tmp_path / "it", corpus), "data.num_workers=2"]
    run = Run(arguments, tmp_path / "x.jsonl", kill_at=14, changes=changes)
    started.append(run)
    assert run.wait().exit_code == -signal.SIGKILL
    time.sleep(3.0)
    assert processes_of(run)
