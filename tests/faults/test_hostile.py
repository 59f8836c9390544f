"""Rows 26 and 27: checkpoints, indexes and manifests made to run code or to write or read elsewhere."""
import os
import shutil
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import pytest
import torch
from streaming import MDSWriter, StreamingDataset

from mmbert import convert_to_hf
from mmbert.checkpoint import FILES, newest_checkpoint
from tests.conftest import Corpus, Finished
from tests.faults.bad_files import (
    edit_index,
    evil_pickle,
    evil_torch_file,
    record_of,
    rename_shard,
    report_pickles,
    sign,
    vouch_for,
)  # fmt: skip
from tests.faults.oracle import check_same_end
from tests.faults.test_kills import parent_of
from tests.tiny_checkpoints import content_of
from tests.training_runs import prepare, train

EVIL = {"a pickle": evil_pickle, "a torch.save file": evil_torch_file}
PLACES = [(name, vouched) for name in FILES for vouched in (False, True)] + [("manifest.json", False)]


def poison(checkpoint: Path, name: str, vouched: bool, kind: str, marker: Path) -> None:
    """Put a hostile file into the place of an honest one; with `vouched`, the manifest fits it."""
    (checkpoint / name).write_bytes(EVIL[kind](marker))
    if vouched:
        vouch_for(checkpoint)


def in_one_line(output: str, named: Path) -> bool:
    """Whether the program ended with one line that names the file."""
    last = output.splitlines()[-1]
    return last.startswith("error: ") and str(named) in last and "Traceback" not in output


# ---------------------------------------------------------------------------------------------------------- checkpoints


@pytest.mark.fault(26)
@pytest.mark.parametrize("kind", EVIL)
@pytest.mark.parametrize("name, vouched", PLACES)
def test_a_hostile_newest_checkpoint_is_set_aside_or_refused_and_runs_nothing(
    corpus: Corpus, finished: Finished, half_done: Path, tmp_path: Path, name: str, vouched: bool, kind: str
) -> None:
    """No pickle is opened in the whole run, up to its end."""
    yaml = prepare(tmp_path / "it", corpus, copied={"phase1": half_done})
    run_folder, marker, report = tmp_path / "it" / "runs" / "phase1", tmp_path / "marker", tmp_path / "pickles"
    checkpoint = newest_checkpoint(run_folder)
    poison(checkpoint, name, vouched, kind, marker)
    before = content_of(run_folder)
    outcome = train([yaml], tmp_path / "x.jsonl", changes=[partial(report_pickles, str(report))])
    assert not marker.exists()
    assert report.read_text() == ""
    if vouched:
        assert outcome.exit_code == 1
        assert not outcome.steps
        assert in_one_line(outcome.output, checkpoint / name)
        assert content_of(run_folder).items() - before.items() <= {("lock", content_of(run_folder)["lock"])}
    else:
        assert outcome.exit_code == 0, outcome.output
        assert f"{checkpoint} is broken and now called broken-{checkpoint.name}" in outcome.output
        check_same_end(run_folder, finished[0] / "runs" / "phase1")


@pytest.mark.fault(26)
@pytest.mark.parametrize("name, vouched", PLACES)
def test_a_hostile_parent_is_refused_and_runs_nothing(
    corpus: Corpus, finished: Finished, tmp_path: Path, name: str, vouched: bool
) -> None:
    yaml = prepare(tmp_path / "it", corpus, "phase2", parent_of("phase2", finished))
    marker, report = tmp_path / "marker", tmp_path / "pickles"
    parent = newest_checkpoint(tmp_path / "it" / "runs" / "phase1")
    poison(parent, name, vouched, "a pickle", marker)
    outcome = train([yaml], tmp_path / "x.jsonl", changes=[partial(report_pickles, str(report))])
    assert not marker.exists()
    assert report.read_text() == ""
    assert outcome.exit_code == 1
    assert not outcome.steps
    assert in_one_line(outcome.output, parent / name) or "parent = 'phase1' is unfinished" in outcome.output


def convert(checkpoint: str, output: str, report: str, log: str) -> None:
    """What `python -m mmbert.convert_to_hf` does, in a process of its own."""
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT)
    os.dup2(descriptor, 2)
    report_pickles(report)
    convert_to_hf.main(["--checkpoint", checkpoint, "--output", output])


@pytest.mark.fault(26)
@pytest.mark.parametrize("name, vouched", PLACES)
@pytest.mark.parametrize("given", ["checkpoint", pytest.param("run", marks=pytest.mark.long)])
def test_a_hostile_checkpoint_is_not_converted_and_runs_nothing(
    half_done: Path, tmp_path: Path, name: str, vouched: bool, given: str
) -> None:
    """A run is converted from the checkpoint before, where the newest does not fit its manifest."""
    run_folder, marker, log = tmp_path / "it", tmp_path / "marker", tmp_path / "log"
    shutil.copytree(half_done, run_folder)
    checkpoint = newest_checkpoint(run_folder)
    poison(checkpoint, name, vouched, "a pickle", marker)
    report, output = tmp_path / "pickles", tmp_path / "hf"
    source = checkpoint if given == "checkpoint" else run_folder
    process = get_context("forkserver").Process(target=convert, args=(str(source), str(output), str(report), str(log)))
    process.start()
    process.join(60)
    assert not marker.exists()
    assert "posix" not in report.read_text()
    if given == "run" and not vouched:
        assert process.exitcode == 0, log.read_text()
    else:
        assert process.exitcode == 1
        assert in_one_line(log.read_text(), checkpoint)
        assert not output.exists()


@pytest.mark.fault(26, control=True)
def test_torch_load_runs_what_the_same_files_hold(tmp_path: Path) -> None:
    """`torch.load(weights_only=False)`, as Composer 0.32.1 resumes, runs the code in the file."""
    for kind, make in EVIL.items():
        marker, path = tmp_path / f"marker of {kind}", tmp_path / kind
        path.write_bytes(make(marker))
        try:
            torch.load(path, weights_only=False)
        except Exception:
            pass  # what it returns need not be a state
        assert marker.is_dir() == (kind == "a torch.save file")
