"""Rows 6 to 10: disks that fill up, checkpoints that pile up, get lost, or rot."""
import json
import os
import random
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from mmbert.checkpoint import FILES, is_valid, newest_checkpoint, read_state, step_folders
from mmbert.file_contents import sha256_of
from mmbert.ledger import read_ledger
from tests.conftest import Corpus, Finished
from tests.damage import flip, truncate
from tests.faults.injected import full_disk, set_constant
from tests.faults.oracle import check_same_end, check_tidy, names_in
from tests.guards import with_retention_from_memory, without_checkpoint_check, without_ledger_check, without_retry
from tests.training_runs import prepare, train, train_ranks

AT_ONCE = partial(set_constant, "callbacks.checkpointing", "RETRY_SECONDS", 0.0)
SMALL = 30_000  # bytes: less than the weights, more than the ledger


# ------------------------------------------------------------------------------------------------------------ full disk


@pytest.mark.fault(6)
def test_a_disk_that_is_full_for_a_while_delays_a_save_and_changes_nothing(
    corpus: Corpus, finished: Finished, tmp_path: Path
) -> None:
    yaml, run_folder = prepare(tmp_path / "it", corpus), tmp_path / "it" / "runs" / "phase1"
    changes = [AT_ONCE, partial(full_disk, since=8, until=12, largest=SMALL)]
    outcome = train([yaml], tmp_path / "x.jsonl", changes=changes)
    assert outcome.exit_code == 0, outcome.output
    assert "step 9 could not be saved, training goes on: " in outcome.output
    saved = [event.step for event in read_ledger(run_folder).events if event.name == "saved"]
    assert 9 not in saved
    assert 12 in saved
    check_same_end(run_folder, finished[0] / "runs" / "phase1")
    check_tidy(run_folder)


@pytest.mark.fault(6)
def test_a_disk_that_stays_full_ends_all_ranks_with_the_remedy_and_the_last_checkpoint_is_whole(
    corpus: Corpus, two_ranks: Path, tmp_path: Path
) -> None:
    yaml, run_folder = prepare(tmp_path / "it", corpus), tmp_path / "it" / "runs" / "phase1"
    changes = [AT_ONCE, partial(full_disk, since=8, until=0, largest=SMALL)]
    arguments = [yaml, "checkpoint.give_up_minutes=0.001", "duration=1M"]
    for outcome in train_ranks(arguments, tmp_path / "x.jsonl", changes=changes):
        assert outcome.exit_code == 1
        assert "could be written for 0 minutes" in outcome.output
        assert "free space, and run the same command again" in outcome.output
    assert names_in(run_folder) == ["ledger.jsonl", "lock", "step-0000000004"]
    assert is_valid(run_folder / "step-0000000004")


@pytest.mark.fault(6)
@pytest.mark.long
def test_a_run_that_ends_on_a_full_disk_waits_for_room(corpus: Corpus, finished: Finished, tmp_path: Path) -> None:
    """The last step's save is tried again and again; here the first two attempts fail."""
    yaml, run_folder = prepare(tmp_path / "it", corpus), tmp_path / "it" / "runs" / "phase1"
    outcome = train([yaml], tmp_path / "x.jsonl", changes=[AT_ONCE, partial(fail_saves, step=20, times=2)])
    assert outcome.exit_code == 0, outcome.output
    assert outcome.output.count("step 20 could not be saved") == 2
    check_same_end(run_folder, finished[0] / "runs" / "phase1")


def fail_saves(step: int, times: int) -> None:
    """The first saves of a step meet a full disk."""
    import errno

    import mmbert.checkpoint

    write, failed = mmbert.checkpoint.write_tensors, []

    def full(path: Path, tensors: dict) -> None:
        if f"step-{step:010d}" in str(path) and len(failed) < times:
            failed.append(path)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        write(path, tensors)

    mmbert.checkpoint.write_tensors = full


@pytest.mark.fault(6, control=True)
@pytest.mark.long
def test_without_the_retry_one_failed_save_ends_the_run(corpus: Corpus, tmp_path: Path) -> None:
    """The run dies of the first save that fails, although the disk has room again soon after."""
    changes = [AT_ONCE, without_retry, partial(full_disk, since=8, until=12, largest=SMALL)]
    outcome = train([prepare(tmp_path / "it", corpus)], tmp_path / "x.jsonl", changes=changes)
    assert outcome.exit_code == 1
    assert outcome.steps[-1]["step"] == 9


@pytest.mark.fault(6)
def test_a_disk_with_no_room_for_one_checkpoint_is_refused_before_training(corpus: Corpus, tmp_path: Path) -> None:
    outcome = train([prepare(tmp_path / "it", corpus)], tmp_path / "x.jsonl", changes=[almost_full])
    assert outcome.exit_code == 1
    assert "free some, or choose another run_root" in outcome.output
    assert not outcome.steps


def almost_full() -> None:
    """The disk has ten kilobytes."""
    usage = shutil.disk_usage(".")
    shutil.disk_usage = lambda path: usage._replace(free=10_000)  # type: ignore[assignment]


# ------------------------------------------------------------------------------------------------------------ retention


def start_four_times(corpus: Corpus, folder: Path, changes: list[Callable[[], None]]) -> Path:
    """Three kills, each after other saves; and what a kill in the middle of a save and of a removal leaves."""
    yaml, run_folder = prepare(folder, corpus), folder / "runs" / "phase1"
    for step in (6, 11, 15):
        assert train([yaml], folder / "x.jsonl", kill_at=step, changes=changes).exit_code == -9
        (run_folder / f".step-{step:010d}.partial").mkdir()
        (run_folder / f".step-{step:010d}.partial" / "model.safetensors").write_bytes(b"torn")
    assert train([yaml], folder / "x.jsonl", changes=changes).exit_code == 0
    return run_folder


@pytest.mark.fault(7)
def test_four_starts_and_three_kills_leave_exactly_the_checkpoints_to_keep(corpus: Corpus, tmp_path: Path) -> None:
    check_tidy(start_four_times(corpus, tmp_path / "it", []))


@pytest.mark.fault(7, control=True)
@pytest.mark.long
def test_retention_from_memory_leaves_a_checkpoint_or_two_at_every_restart(corpus: Corpus, tmp_path: Path) -> None:
    """Composer removes only what the same process wrote: with keep = 2, four starts leave more."""
    assert len(step_folders(start_four_times(corpus, tmp_path / "it", [with_retention_from_memory]))) > 2


# ----------------------------------------------------------------------------------------------------- lost checkpoints


@pytest.mark.fault(8, control=True)
def test_without_the_ledger_a_run_silently_begins_at_step_one(corpus: Corpus, half_done: Path, tmp_path: Path) -> None:
    """A run whose checkpoints are gone begins at step 1 and says nothing."""
    yaml = prepare(tmp_path / "it", corpus, copied={"phase1": half_done})
    for folder in step_folders(tmp_path / "it" / "runs" / "phase1"):
        shutil.rmtree(folder)
    outcome = train([yaml], tmp_path / "x.jsonl", changes=[without_ledger_check])
    assert outcome.exit_code == 0, outcome.output
    assert outcome.steps[0]["step"] == 1


# ------------------------------------------------------------------------------------------ broken checkpoints, bit rot


def fill_with_zeros(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


BREAKS: dict[str, Callable[[Path], object]] = {
    "empty": partial(truncate, share=0.0),
    "half": partial(truncate, share=0.5),
    "99 %": partial(truncate, share=0.99),
    "zeros": fill_with_zeros,
    "one bit": flip,
}
ALL = [(name, how) for name in (*FILES, "manifest.json") for how in BREAKS]
CASES = [pytest.param(*case, marks=[] if index % 13 == 1 else pytest.mark.long) for index, case in enumerate(ALL)]


@pytest.mark.fault(9)
@pytest.mark.parametrize("name, how", CASES)
def test_a_broken_newest_checkpoint_is_set_aside_and_the_end_is_the_same(
    corpus: Corpus, finished: Finished, half_done: Path, tmp_path: Path, name: str, how: str
) -> None:
    yaml = prepare(tmp_path / "it", corpus, copied={"phase1": half_done})
    run_folder = tmp_path / "it" / "runs" / "phase1"
    BREAKS[how](run_folder / "step-0000000013" / name)
    outcome = train([yaml], tmp_path / "x.jsonl")
    assert outcome.exit_code == 0, outcome.output
    assert outcome.steps[0]["step"] == 10
    assert "step-0000000013 is broken and now called broken-step-0000000013" in outcome.output
    check_same_end(run_folder, finished[0] / "runs" / "phase1")
    shutil.rmtree(run_folder / "broken-step-0000000013")
    check_tidy(run_folder)


@pytest.mark.fault(10)
def test_every_one_of_a_thousand_flipped_bits_is_found(
    half_done: Path, tmp_path: Path, figures: dict[str, float]
) -> None:
    """Drawn over all bits of all files, the manifest's among them."""
    checkpoint = Path(shutil.copytree(newest_checkpoint(half_done), tmp_path / "step-0000000013"))
    paths = [checkpoint / name for name in (*FILES, "manifest.json")]
    sizes = [path.stat().st_size for path in paths]
    rng = random.Random(0)
    found = 0
    for _ in range(1000):
        (path,) = rng.choices(paths, weights=sizes)
        bit = rng.randrange(8 * path.stat().st_size)
        flip(path, bit)
        found += not is_valid(checkpoint)
        flip(path, bit)
    assert is_valid(checkpoint)
    figures["flipped bits of a checkpoint"], figures["of them found"] = 1000, found
    assert found == 1000


@pytest.mark.fault(9, 10, control=True)
def test_without_the_hashes_a_flipped_bit_is_trained_on(
    corpus: Corpus, finished: Finished, half_done: Path, tmp_path: Path
) -> None:
    """A flipped bit in the newest checkpoint is loaded without a word, and the final weights are others."""
    yaml = prepare(tmp_path / "it", corpus, copied={"phase1": half_done})
    run_folder = tmp_path / "it" / "runs" / "phase1"
    flip(run_folder / "step-0000000013" / "model.safetensors")
    outcome = train([yaml], tmp_path / "x.jsonl", changes=[without_checkpoint_check])
    assert outcome.exit_code == 0, outcome.output
    assert outcome.steps[0]["step"] == 14
    own, other = (newest_checkpoint(run) for run in (run_folder, finished[0] / "runs" / "phase1"))
    assert sha256_of(own / "model.safetensors") != sha256_of(other / "model.safetensors")
    assert read_state(own)["step"] == read_state(other)["step"]


@pytest.mark.fault(10)
@pytest.mark.long
def test_bit_rot_in_the_parent_is_found_before_the_next_phase_begins(
    corpus: Corpus, finished: Finished, tmp_path: Path
) -> None:
    """The child then takes the parent's checkpoint before, which is not the finished one, and refuses."""
    yaml = prepare(tmp_path / "it", corpus, "phase2", {"phase1": finished[0] / "runs" / "phase1"})
    flip(newest_checkpoint(tmp_path / "it" / "runs" / "phase1") / "model.safetensors")
    outcome = train([yaml], tmp_path / "x.jsonl")
    assert outcome.exit_code == 1
    assert "parent = 'phase1' is unfinished" in outcome.output


@pytest.mark.fault(9)
@pytest.mark.long
def test_the_state_is_checked_by_hash_before_it_is_believed(corpus: Corpus, half_done: Path, tmp_path: Path) -> None:
    """A state.json that says `finished` and does not fit its hash is no finished run."""
    yaml = prepare(tmp_path / "it", corpus, copied={"phase1": half_done})
    path = tmp_path / "it" / "runs" / "phase1" / "step-0000000013" / "state.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"finished": True}))
    outcome = train([yaml], tmp_path / "x.jsonl")
    assert outcome.exit_code == 0, outcome.output
    assert outcome.steps[0]["step"] == 10
