"""Rows 3, 24 and 25: what a run costs, however long it has lasted and however little it is given."""
import os
import shutil
import signal
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from mmbert.checkpoint import step_folders
from mmbert.watchdog import HUNG
from tests.conftest import Corpus, Finished
from tests.faults.injected import count_rows, leak, limit_open_files
from tests.faults.oracle import check_same_end
from tests.faults.resources import (
    Sample,
    follow,
    growth,
    may_mount,
    open_with_streaming,
    small_shared_memory,
    with_tensors_from_workers,
)  # fmt: skip
from tests.guards import replace, without_seek
from tests.training_runs import Change, Run, prepare, train

# --------------------------------------------------------------------------------------------------- 3: resume is flat


@dataclass(frozen=True)
class Begun:
    """What a start did before its first step: rows read from shards, and seconds since the program began."""

    step: int
    rows: int
    seconds: float


def resume(arguments: list[str | Path], record: Path, changes: list[Change]) -> Begun:
    """Go on with a run for one step."""
    report = record.with_suffix(".rows")
    run = Run(arguments, record, changes=[*changes, partial(count_rows, str(report)), stop_after_one_step])
    outcome = run.wait()
    assert outcome.exit_code == -signal.SIGKILL, outcome.output
    rows, seconds = report.read_text().split()
    return Begun(outcome.steps[-1]["step"], int(rows), float(seconds))


def stop_after_one_step() -> None:
    """The process dies when its first step is done."""
    from callbacks.progress import Progress

    replace(Progress, "batch_end", lambda *_: os.kill(os.getpid(), signal.SIGKILL))


@pytest.fixture(scope="module")
def every_step(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run folder of a phase 1 with a checkpoint after every step, killed in its 21st."""
    folder = tmp_path_factory.mktemp("every-step")
    arguments = [prepare(folder / "it", corpus), "duration=1M", "checkpoint={interval: 1, keep: 100}"]
    assert train(arguments, folder / "steps.jsonl", kill_at=21).exit_code == -signal.SIGKILL
    return folder / "it" / "runs" / "phase1"


def resume_at(step: int, every_step: Path, corpus: Corpus, folder: Path, changes: list[Change]) -> Begun:
    """Go on from the checkpoint after this step."""
    yaml = prepare(folder, corpus, copied={"phase1": every_step})
    for newer in step_folders(folder / "runs" / "phase1"):
        if int(newer.name.removeprefix("step-")) > step:
            shutil.rmtree(newer)
    begun = resume([yaml, "duration=1M"], folder / "steps.jsonl", changes)
    assert begun.step == step + 1
    return begun


@pytest.mark.fault(3)
def test_a_resume_reads_the_rows_of_its_first_step_and_no_others(
    corpus: Corpus, every_step: Path, tmp_path: Path
) -> None:
    begun = [resume_at(step, every_step, corpus, tmp_path / str(step), []) for step in (2, 20)]
    assert [start.rows for start in begun] == [4, 4]


@pytest.mark.fault(3, control=True)
def test_a_resume_as_composers_reads_every_row_up_to_its_step(corpus: Corpus, every_step: Path, tmp_path: Path) -> None:
    """Composer's way: a resume passes over all batches up to its step, and reads their rows again."""
    begun = [resume_at(step, every_step, corpus, tmp_path / str(step), [without_seek]) for step in (2, 20)]
    assert [start.rows for start in begun] == [4 * 2 + 4, 4 * 20 + 4]


# -------------------------------------------------------------------------------------------- 24: memory and open files

TINY = ["model={num_hidden_layers: 1, hidden_size: 8, intermediate_size: 8}", "global_train_batch_size=2"]
WITHOUT_END = ["duration=100M", "checkpoint={interval: 20K, keep: 2}", "device_train_microbatch_size=2"]
LONG, WARMUP = 2100, 500  # steps
LIMIT = 2.0  # MiB for every 1,000 steps


@dataclass(frozen=True)
class LongRun:
    """A run of thousands of steps, stopped: its arguments, its record, and what its processes used."""

    arguments: list[str | Path]
    record: Path
    used: Mapping[str, list[Sample]]


@pytest.fixture(scope="module")
def long_run(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> LongRun:
    """A tiny model in thousands of steps, with two loader workers and a save every 160."""
    folder = tmp_path_factory.mktemp("long")
    arguments: list[str | Path] = [prepare(folder / "it", corpus), *TINY, *WITHOUT_END]
    record = folder / "steps.jsonl"
    run = Run([*arguments, "data.num_workers=2"], record, kill_at=LONG, number=signal.SIGUSR1)
    used = follow(run)
    assert run.wait().exit_code == 85, run.output()
    return LongRun(arguments, record, used)


@pytest.mark.fault(24)
@pytest.mark.long
def test_memory_and_open_files_stay_flat_over_thousands_of_steps(long_run: LongRun, figures: dict[str, float]) -> None:
    assert set(long_run.used) == {"main", "worker 1", "worker 2"}
    for name, samples in long_run.used.items():
        memory, files = growth(samples, WARMUP)
        figures[f"most MiB more in {name} every 1,000 steps"] = round(memory, 2)
        assert memory < LIMIT, name
        assert abs(files) < 0.5, name
    figures["steps watched"] = long_run.used["main"][-1].step


@pytest.mark.fault(24, control=True)
@pytest.mark.long
def test_the_same_measurement_sees_a_leak(corpus: Corpus, tmp_path: Path) -> None:
    """Some kilobytes and one open file that a step does not give back are seen within hundreds of steps."""
    arguments = [prepare(tmp_path / "it", corpus), *TINY, *WITHOUT_END]
    changes = [partial(limit_open_files, 4096), partial(leak, 1, 16 << 10)]
    run = Run(arguments, tmp_path / "steps.jsonl", kill_at=300, changes=changes)
    memory, files = growth(follow(run, seconds=0.1)["main"], 100)
    assert run.process.exitcode == -signal.SIGKILL, run.output()
    assert memory > LIMIT
    assert files == pytest.approx(1000, rel=0.05)


@pytest.mark.fault(3)
@pytest.mark.long
def test_a_resume_after_thousands_of_steps_reads_no_more_rows_than_one_after_ten(
    corpus: Corpus, long_run: LongRun, tmp_path: Path, figures: dict[str, float]
) -> None:
    early = [prepare(tmp_path / "it", corpus), *TINY, *WITHOUT_END]
    stopped = train(early, tmp_path / "x.jsonl", kill_at=10, number=signal.SIGUSR1)
    assert stopped.exit_code == 85, stopped.output
    begun = [
        resume([*arguments, "data.num_workers=0"], tmp_path / f"{name}.jsonl", [])
        for name, arguments in (("early", early), ("late", long_run.arguments))
    ]
    assert begun[0].step <= 12
    assert begun[1].step > LONG
    assert [start.rows for start in begun] == [2, 2]
    for name, start in zip(("early", "late"), begun, strict=True):
        figures[f"most s to the first step of a{'n' * (name == 'early')} {name} resume"] = round(start.seconds, 2)
    figures["most steps done before a resume"] = begun[1].step - 1


# ------------------------------------------------------------------------------------------------ 25: small limits

SMALL = 64 << 10  # bytes of /dev/shm
in_small_memory = pytest.mark.skipif(not may_mount(), reason="this user may not mount a /dev/shm of its own")


@pytest.mark.fault(25)
@in_small_memory
def test_a_run_with_workers_needs_no_shared_memory(corpus: Corpus, finished: Finished, tmp_path: Path) -> None:
    yaml = prepare(tmp_path / "it", corpus)
    outcome = train([yaml, "data.num_workers=2"], tmp_path / "x.jsonl", changes=[partial(small_shared_memory, SMALL)])
    assert outcome.exit_code == 0, outcome.output
    check_same_end(tmp_path / "it" / "runs" / "phase1", finished[0] / "runs" / "phase1")


@pytest.mark.fault(25, control=True)
@pytest.mark.long
@in_small_memory
def test_tensors_from_workers_need_shared_memory(corpus: Corpus, tmp_path: Path) -> None:
    """Workers that hand on tensors die where /dev/shm is small, or lose a batch, and their rank waits for it."""
    limit = ["hang_minutes=0.25", "checkpoint.give_up_minutes=0.01"]
    arguments = ["data.num_workers=2", "global_train_batch_size=32", *limit]
    cases: list[tuple[str, list[Change], tuple[int, ...]]] = [
        ("small", [partial(small_shared_memory, SMALL), with_tensors_from_workers], (1, HUNG)),
        ("usual", [with_tensors_from_workers], (0,)),
    ]
    for name, changes, statuses in cases:
        outcome = train([prepare(tmp_path / name, corpus), *arguments], tmp_path / f"{name}.jsonl", changes=changes)
        assert outcome.exit_code in statuses, outcome.output


@pytest.mark.fault(25, control=True)
@in_small_memory
def test_streaming_needs_shared_memory(corpus: Corpus, tmp_path: Path) -> None:
    """Streaming's own dataset dies where /dev/shm is small: of an error, or of a bus error."""
    opened = partial(open_with_streaming, str(corpus.shards[64] / "train" / "invented" / "laa"))
    small = train([], tmp_path / "x.jsonl", changes=[partial(small_shared_memory, SMALL), opened])
    assert small.exit_code in (1, -signal.SIGBUS), small.output
    assert train([], tmp_path / "y.jsonl", changes=[opened]).exit_code == 0


NEEDED = 48  # open files, with two workers


@pytest.mark.fault(25)
def test_a_run_ends_as_usual_with_as_few_open_files_as_it_asks_for(
    corpus: Corpus, finished: Finished, tmp_path: Path
) -> None:
    arguments = [prepare(tmp_path / "it", corpus), "data.num_workers=2"]
    outcome = train(arguments, tmp_path / "x.jsonl", changes=[partial(limit_open_files, NEEDED)])
    assert outcome.exit_code == 0, outcome.output
    check_same_end(tmp_path / "it" / "runs" / "phase1", finished[0] / "runs" / "phase1")


@pytest.mark.fault(25)
@pytest.mark.parametrize("number", [12, 24, NEEDED - 1])
def test_too_few_open_files_are_refused_in_one_line(corpus: Corpus, tmp_path: Path, number: int) -> None:
    yaml = prepare(tmp_path / "it", corpus)
    outcome = train([yaml, "data.num_workers=2"], tmp_path / "x.jsonl", changes=[partial(limit_open_files, number)])
    assert outcome.exit_code == 1
    assert not outcome.steps
    words = f"error: this process may open {number} files, and needs {NEEDED}: raise it with `ulimit -n {NEEDED}`"
    assert outcome.output.strip() == words
