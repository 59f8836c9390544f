"""Rows 7, 8, 10: which checkpoints stay through kills and restarts, and what a run does when some get lost or rot."""
import random
import shutil
from functools import partial
from pathlib import Path

import pytest

from mmbert.checkpoint import FILES, newest_checkpoint, step_folders, tidy
from tests.conftest import Corpus, Finished
from tests.faults import kill_points
from tests.faults.oracle import check_same_end, check_tidy, names_in
from tests.faults.test_checkpoints import flip
from tests.faults.test_kills import parent_of
from tests.training_runs import Outcome, prepare, train

INTERVAL = 300  # tokens: a save every second step
OFTEN = f"checkpoint.interval={INTERVAL}"


# ------------------------------------------------------------------------------------------------------------ retention


def steps_saved(uninterrupted: Outcome) -> dict[int, int]:
    """Steps that are saved every INTERVAL tokens -> the tokens by then."""
    clock = [0, *(step["tokens"] for step in uninterrupted.steps)]
    last = len(clock) - 1
    return {step: clock[step] for step in range(1, last + 1)
            if step == last or clock[step] // INTERVAL > clock[step - 1] // INTERVAL}  # fmt: skip


def steps_to_keep(saved: dict[int, int], keep: int, keep_every: int | None, pinned: set[int]) -> set[int]:
    """The newest `keep`, the first at or after every multiple of `keep_every` tokens, and the pinned ones."""
    milestones = range(keep_every, max(saved.values()) + 1, keep_every) if keep_every else ()
    firsts = {min(step for step, tokens in saved.items() if tokens >= milestone) for milestone in milestones}
    return set(sorted(saved)[-keep:]) | firsts | pinned


def leave_debris(run_folder: Path) -> None:
    """What a kill leaves in the middle of a save, of a replacement and of a removal."""
    newest = step_folders(run_folder)[0]
    for folder in (run_folder / ".step-0000000999.partial", run_folder / f".{newest.name}.old"):
        folder.mkdir(exist_ok=True)
        (folder / "model.safetensors").write_bytes(b"torn")
    removed_by_half = run_folder / "step-0000000001"  # no multiple of the interval: never saved
    removed_by_half.mkdir(exist_ok=True)
    (removed_by_half / "state.json").write_text("{}")


@pytest.mark.fault(7)
@pytest.mark.parametrize(
    "keep, keep_every, pins",
    [
        (1, 1500, True),
        pytest.param(2, None, True, marks=pytest.mark.long),
        pytest.param(3, INTERVAL, False, marks=pytest.mark.long),
        pytest.param(1, None, False, marks=pytest.mark.long),
    ],
)
def test_four_starts_with_kills_between_any_two_operations_leave_exactly_what_should_stay(
    corpus: Corpus, finished: Finished, tmp_path: Path, keep: int, keep_every: int | None, pins: bool
) -> None:
    yaml, run_folder = prepare(tmp_path / "it", corpus), tmp_path / "it" / "runs" / "phase1"
    settings = [OFTEN, f"checkpoint.keep={keep}", *([f"checkpoint.keep_every={keep_every}"] if keep_every else [])]
    rng = random.Random(keep)
    pinned = set()
    for _ in range(3):
        kill = partial(kill_points.kill_at_operation, str(run_folder), rng.randint(100, 180))
        assert train([yaml, *settings], tmp_path / "x.jsonl", changes=[kill]).exit_code == -9
        if pins:
            (newest_checkpoint(run_folder) / "pinned").touch()
            pinned.add(int(newest_checkpoint(run_folder).name[5:]))
        leave_debris(run_folder)
    outcome = train([yaml, *settings], tmp_path / "x.jsonl")
    assert outcome.exit_code == 0, outcome.output
    expected = steps_to_keep(steps_saved(finished[1]["phase1"]), keep, keep_every, pinned)
    assert names_in(run_folder) == sorted(["ledger.jsonl", "lock", *(f"step-{step:010d}" for step in expected)])
    check_same_end(run_folder, finished[0] / "runs" / "phase1")


@pytest.mark.fault(7)
@pytest.mark.long
@pytest.mark.parametrize("operations_before_the_end", [1, 5, 9, 15])
def test_what_a_kill_in_the_last_save_or_after_it_leaves_is_removed_by_the_next_start(
    corpus: Corpus, finished: Finished, tmp_path: Path, operations_before_the_end: int
) -> None:
    """Also where the run is finished by then, and nothing is left to train."""
    report = tmp_path / "operations.txt"
    counted = partial(kill_points.report_operations, str(tmp_path / "counted" / "runs"), str(report))
    assert train([prepare(tmp_path / "counted", corpus)], tmp_path / "x.jsonl", changes=[counted]).exit_code == 0
    total = sum(int(line.split()[1]) for line in report.read_text().splitlines())
    yaml, run_folder = prepare(tmp_path / "it", corpus), tmp_path / "it" / "runs" / "phase1"
    kill = partial(kill_points.kill_at_operation, str(tmp_path / "it" / "runs"), total - operations_before_the_end)
    assert train([yaml], tmp_path / "y.jsonl", changes=[kill]).exit_code == -9
    outcome = train([yaml], tmp_path / "y.jsonl")
    assert outcome.exit_code == 0, outcome.output
    check_tidy(run_folder)
    check_same_end(run_folder, finished[0] / "runs" / "phase1")


# ----------------------------------------------------------------------------------------------------- lost checkpoints

SAVED = (4, 9, 13, 17)  # steps, with the interval of the tests' runs


@pytest.fixture(scope="module")
def four_kept(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run folder of a phase 1 that kept all its checkpoints and was killed after step 18; to be copied."""
    folder = tmp_path_factory.mktemp("four-kept")
    yaml = prepare(folder / "it", corpus)
    assert train([yaml, "checkpoint.keep=5"], folder / "x.jsonl", kill_at=18).exit_code == -9
    run_folder = folder / "it" / "runs" / "phase1"
    assert [int(path.name[5:]) for path in step_folders(run_folder)] == list(reversed(SAVED))
    return run_folder


def lose(run_folder: Path, step: int, what: str) -> None:
    """Delete a checkpoint, or one of its files, or let it be a pointer to nowhere."""
    folder = run_folder / f"step-{step:010d}"
    if what in (*FILES, "manifest.json"):
        (folder / what).unlink()
        return
    shutil.rmtree(folder)
    if what == "pointer":
        folder.symlink_to("latest")


@pytest.mark.fault(8)
@pytest.mark.parametrize(
    "lost, what",
    [
        ((17,), "folder"),
        ((9, 13, 17), "manifest.json"),
        pytest.param((13, 17), "folder", marks=pytest.mark.long),
        pytest.param((9, 13, 17), "pointer", marks=pytest.mark.long),
        pytest.param((13, 17), "model.safetensors", marks=pytest.mark.long),
        pytest.param((4, 9, 13), "folder", marks=pytest.mark.long),
    ],
)
def test_a_run_goes_on_from_the_newest_checkpoint_that_is_left(
    corpus: Corpus, finished: Finished, four_kept: Path, tmp_path: Path, lost: tuple[int, ...], what: str
) -> None:
    yaml = prepare(tmp_path / "it", corpus, copied={"phase1": four_kept})
    run_folder = tmp_path / "it" / "runs" / "phase1"
    for step in lost:
        lose(run_folder, step, what)
    outcome = train([yaml], tmp_path / "x.jsonl")
    assert outcome.exit_code == 0, outcome.output
    assert outcome.steps[0]["step"] == max(set(SAVED) - set(lost)) + 1
    check_same_end(run_folder, finished[0] / "runs" / "phase1")


@pytest.mark.fault(8)
@pytest.mark.parametrize("what", ["folder", "pointer", "broken-", *FILES, "manifest.json"])
def test_a_run_that_has_lost_all_of_them_is_refused_every_time(
    corpus: Corpus, four_kept: Path, tmp_path: Path, what: str
) -> None:
    """Also where all lie there set aside, or a second start finds what the first refusal left."""
    yaml = prepare(tmp_path / "it", corpus, copied={"phase1": four_kept})
    run_folder = tmp_path / "it" / "runs" / "phase1"
    for folder in step_folders(run_folder):
        if what == "broken-":
            folder.rename(run_folder / f"broken-{folder.name}")
        else:
            lose(run_folder, int(folder.name[5:]), what)
    left = names_in(run_folder)
    for _ in range(2):
        outcome = train([yaml], tmp_path / "x.jsonl")
        assert outcome.exit_code == 1
        assert not outcome.steps
        assert outcome.output.startswith(f"error: {run_folder}")
        assert len(outcome.output.splitlines()) == 1
        assert "to start anew" in outcome.output
        assert names_in(run_folder) == left


@pytest.mark.fault(8, 20)
def test_a_phase_that_has_lost_its_own_checkpoints_does_not_begin_anew_from_its_parent(
    corpus: Corpus, finished: Finished, tmp_path: Path
) -> None:
    yaml = prepare(tmp_path / "it", corpus, "phase2", parent_of("phase2", finished))
    run_folder = tmp_path / "it" / "runs" / "phase2"
    assert train([yaml, OFTEN], tmp_path / "x.jsonl", kill_at=6).exit_code == -9
    assert step_folders(run_folder)
    for folder in step_folders(run_folder):
        shutil.rmtree(folder)
    outcome = train([yaml, OFTEN], tmp_path / "after.jsonl")
    assert outcome.exit_code == 1
    assert f"{run_folder} has no checkpoint, but its ledger says that step " in outcome.output
    assert not outcome.steps


@pytest.mark.fault(8)
def test_whichever_of_the_checkpoints_are_lost_the_newest_whole_one_is_found(
    four_kept: Path, tmp_path: Path, figures: dict[str, float]
) -> None:
    """All ways to lose some and keep at least one, in each way that one can be lost."""
    ways = ("folder", "pointer", "manifest.json", *FILES)
    for chosen in range(2 ** len(SAVED) - 1):
        lost = [step for bit, step in enumerate(SAVED) if chosen >> bit & 1]
        run_folder = Path(shutil.copytree(four_kept, tmp_path / str(chosen)))
        for number, step in enumerate(lost):
            lose(run_folder, step, ways[(chosen + number) % len(ways)])
        newest = tidy(run_folder)
        assert newest is not None
        assert int(newest.name[5:]) == max(set(SAVED) - set(lost))
        shutil.rmtree(run_folder)
    figures["ways to lose checkpoints"] = 2 ** len(SAVED) - 1


# -------------------------------------------------------------------------------------------------------------- bit rot


@pytest.mark.fault(9, 10)
def test_a_bit_that_flips_in_the_newest_checkpoint_before_every_restart_changes_nothing(
    corpus: Corpus, finished: Finished, half_done: Path, tmp_path: Path
) -> None:
    """Each restart goes on from the one before and saves the broken one's step again."""
    yaml = prepare(tmp_path / "it", corpus, copied={"phase1": half_done})
    run_folder, rng = tmp_path / "it" / "runs" / "phase1", random.Random(1)
    for kill_at, broken in ((15, 13), (18, 13), (None, 17)):
        path = run_folder / f"step-{broken:010d}" / rng.choice(FILES)
        flip(path, rng.randrange(8 * path.stat().st_size))
        outcome = train([yaml], tmp_path / "x.jsonl", kill_at=kill_at)
        assert outcome.exit_code == (-9 if kill_at else 0), outcome.output
        assert f"step-{broken:010d} is broken and now called broken-" in outcome.output
    check_same_end(run_folder, finished[0] / "runs" / "phase1")
    assert sum(name.startswith("broken-") for name in names_in(run_folder)) == 3
