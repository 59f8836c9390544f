"""Row 2 and what hangs on it: SIGKILL at any moment of a phase, and the same command goes on to the same bits."""
import random
import shutil
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from mmbert.checkpoint import step_folders
from tests.conftest import PHASES, Corpus, Finished
from tests.faults import kill_points
from tests.faults.oracle import (
    check_same_end,
    check_same_steps,
    check_tidy,
    left_in_scratch,
    processes_of,
    shared_memory_of,
)  # fmt: skip
from tests.guards import without_atomic_saves, without_checkpoint_check
from tests.training_runs import Run, prepare, train

SEED = 20


@dataclass(frozen=True)
class Kill:
    """One run and when it is killed; the restart is killed at `again`, if that is not None.

    Attributes:
        number, again: the operation on files before which it dies.
        seconds: the run dies after this time instead.
    """

    phase: str
    number: int
    again: int | None
    seconds: float | None
    workers: int


@dataclass(frozen=True)
class Whole:
    """An uninterrupted run of a phase: how long it took, and what it did to its files."""

    seconds: float
    operations: Counter[str]


@pytest.fixture(scope="module")
def whole(corpus: Corpus, finished: Finished, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Whole]:
    """Every phase, counted."""
    runs = {}
    for phase in PHASES:
        folder = tmp_path_factory.mktemp("counted")
        yaml = prepare(folder, corpus, phase, parent_of(phase, finished))
        report = folder / "operations.txt"
        change = partial(kill_points.report_operations, str(folder / "runs"), str(report))
        began = time.monotonic()
        assert train([yaml], folder / "steps.jsonl", changes=[change]).exit_code == 0
        seconds = time.monotonic() - began
        pairs = [line.split() for line in report.read_text().splitlines()]
        runs[phase] = Whole(seconds, Counter({kind: int(number) for kind, number in pairs}))
    return runs


def parent_of(phase: str, finished: Finished) -> dict[str, Path]:
    """The finished run that a phase continues, by name."""
    before = PHASES[: PHASES.index(phase)][-1:]
    return {name: finished[0] / "runs" / name for name in before}


def draw_kills(number: int, whole: dict[str, Whole]) -> Iterator[Kill]:
    """Kills at random: three of four at an operation on files, spread over all of them, the others at random times."""
    rng = random.Random(SEED)
    totals = {phase: run.operations.total() for phase, run in whole.items()}
    for index in range(number):
        phase = rng.choices(list(totals), weights=list(totals.values()))[0]
        total = totals[phase]
        again = rng.randint(1, total) if index % 3 == 0 else None
        seconds = rng.uniform(0.0, whole[phase].seconds) if index % 4 == 3 else None
        yield Kill(phase, rng.randint(1, total), again, seconds, workers=2 * (index % 2))


def kill_once(kill: Kill, number: int, arguments: list[str], record: Path) -> Run:
    """Start a run and see it die, or end before its time has come."""
    if kill.seconds is None:
        change = partial(kill_points.kill_at_operation, str(record.parent / "runs"), number)
        run = Run(arguments, record, changes=[change])
    else:
        run = Run(arguments, record)
        run.process.join(kill.seconds)
        run.process.kill()
    # 255 is the fork server's word for a process that it lost sight of: the kill came while it was forked
    assert run.wait().exit_code in (-9, 0, 255), run.output()
    return run


def survive(kill: Kill, folder: Path, corpus: Corpus, finished: Finished) -> int:
    """Kill a run, once or twice, run the same command to its end, and check all of it; the number of kills."""
    yaml = prepare(folder, corpus, kill.phase, parent_of(kill.phase, finished))
    arguments = [str(yaml), f"data.num_workers={kill.workers}"]
    record, run_folder = folder / "steps.jsonl", folder / "runs" / kill.phase
    runs = [kill_once(kill, number, arguments, record) for number in (kill.number, kill.again) if number is not None]
    last = Run(arguments, record)
    outcome = last.wait()
    assert outcome.exit_code == 0, outcome.output
    check_same_steps(outcome, finished[1][kill.phase])
    check_same_end(run_folder, finished[0] / "runs" / kill.phase)
    check_tidy(run_folder)
    for run in (*runs, last):
        assert not left_in_scratch(run)
        assert not processes_of(run)
        assert not shared_memory_of(run)
    shutil.rmtree(folder)
    return sum(run.process.exitcode == -9 for run in runs)


@pytest.mark.fault(2, 7, 14, 18, 20)
def test_runs_killed_at_any_moment_end_with_the_same_bits(
    corpus: Corpus,
    finished: Finished,
    whole: dict[str, Whole],
    tmp_path: Path,
    figures: dict[str, float],
    pytestconfig: pytest.Config,
) -> None:
    """At random operations on files, in the middle of writes, and at random times; a third are killed twice."""
    kills = list(draw_kills(pytestconfig.option.kills, whole))
    began = time.monotonic()
    failures, killed = [], 0
    with ThreadPoolExecutor(2) as pool:
        futures = {
            kill: pool.submit(survive, kill, tmp_path / str(number), corpus, finished)
            for number, kill in enumerate(kills)
        }
        for kill, future in futures.items():
            try:
                killed += future.result()
            except (AssertionError, TimeoutError, ValueError, OSError) as error:
                failures.append(f"{kill}: {error}")
    figures["kills"], figures["recoveries"] = killed, len(kills) - len(failures)
    figures["s in which runs were killed"] = round(time.monotonic() - began)
    assert not failures, "\n\n".join(failures)


@pytest.mark.fault(2)
def test_kills_are_drawn_from_every_kind_of_operation(whole: dict[str, Whole], figures: dict[str, float]) -> None:
    for phase, run in whole.items():
        assert {"open", "fsync", "rename", "mkdir", "remove", "rmdir", "write", "save"} <= run.operations.keys()
        figures[f"places to kill {phase}"] = run.operations.total()


@pytest.mark.fault(2, control=True)
def test_a_kill_in_the_middle_of_an_unguarded_save_is_loaded_or_stops_every_restart(
    corpus: Corpus, tmp_path: Path
) -> None:
    """A checkpoint written straight under its final name and not checked: every restart fails at the torn file."""
    yaml = prepare(tmp_path, corpus)
    run_folder, record = tmp_path / "runs" / "phase1", tmp_path / "steps.jsonl"
    taken_out = [without_atomic_saves, without_checkpoint_check]
    kill = partial(kill_points.kill_in_save, str(run_folder), 3)
    assert train([yaml], record, changes=[*taken_out, kill]).exit_code == -9
    torn = step_folders(run_folder)[0]
    assert not (torn / "manifest.json").exists()
    for _ in range(2):
        outcome = train([yaml], record, changes=taken_out)
        assert outcome.exit_code == 1
        assert str(torn) in outcome.output
