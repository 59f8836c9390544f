"""Rows 26 and 27: checkpoints, indexes and manifests made to run code or to write or read elsewhere."""
import hashlib
import json
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from streaming import MDSWriter

from mmbert import convert_to_hf
from mmbert.checkpoint import FILES, newest_checkpoint, read_state
from mmbert.manifest import check_stream, read_manifest
from tests.conftest import Corpus, Finished
from tests.faults.bad_files import (
    Evil,
    edit_index,
    evil_pickle,
    evil_torch_file,
    record_of,
    rename_shard,
    report_opens,
    report_pickles,
    sign,
    sign_anything,
    vouch_for,
)  # fmt: skip
from tests.faults.neighbours import count_with_streaming, start
from tests.faults.oracle import check_same_end
from tests.faults.test_kills import parent_of
from tests.tiny_checkpoints import content_of
from tests.training_runs import prepare, train

EVIL = {"a pickle": evil_pickle, "a torch.save file": evil_torch_file}
PLACES = [(name, vouched) for name in FILES for vouched in (False, True)] + [("manifest.json", False)]
WHOLE_RUNS = [pytest.param(*place, "a pickle", marks=[] if place[1] or place == PLACES[0] else pytest.mark.long)
              for place in PLACES]  # fmt: skip
WHOLE_RUNS += [pytest.param(*place, "a torch.save file", marks=pytest.mark.long) for place in PLACES]
MOMENTS = ("optimizer.safetensors", True)  # conversion reads them only to hash them
CONVERSIONS: list[Any] = [("checkpoint", *place) for place in PLACES if place != MOMENTS]
CONVERSIONS += [("run", "state.json", True), pytest.param("run", "manifest.json", False, marks=pytest.mark.long)]


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
@pytest.mark.parametrize("name, vouched, kind", WHOLE_RUNS)
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


def convert(checkpoint: str, folder: str) -> None:
    """What `python -m mmbert.convert_to_hf` does, in a process of its own."""
    descriptor = os.open(f"{folder}/log", os.O_WRONLY | os.O_CREAT)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    report_pickles(f"{folder}/pickles")
    convert_to_hf.main(["--checkpoint", checkpoint, "--output", f"{folder}/hf"])


def run_conversion(source: Path, folder: Path) -> tuple[BaseProcess, str]:
    """Convert to `folder`/hf: the process, which has ended, and what it printed."""
    process = start(convert, str(source), str(folder))
    process.join(60)
    process.kill()
    return process, (folder / "log").read_text()


@pytest.mark.fault(26)
@pytest.mark.parametrize("given, name, vouched", CONVERSIONS)
def test_a_hostile_checkpoint_is_not_converted_and_runs_nothing(
    half_done: Path, tmp_path: Path, given: str, name: str, vouched: bool
) -> None:
    """A run whose newest checkpoint does not fit its manifest is converted from the one before."""
    run_folder, marker = tmp_path / "it", tmp_path / "marker"
    shutil.copytree(half_done, run_folder)
    checkpoint = newest_checkpoint(run_folder)
    poison(checkpoint, name, vouched, "a pickle", marker)
    process, log = run_conversion(checkpoint if given == "checkpoint" else run_folder, tmp_path)
    assert not marker.exists()
    assert "posix" not in (tmp_path / "pickles").read_text()
    if given == "run" and not vouched:
        assert process.exitcode == 0, log
    else:
        assert process.exitcode == 1
        assert in_one_line(log, checkpoint)
        assert not (tmp_path / "hf").exists()


HAND_MADE: dict[str, tuple[dict[str, Any], str]] = {
    "an unfinished parent without a duration": ({"config": {}, "finished": False}, "parent"),
    "a parent without a tokenizer": ({"identity": {}}, "parent"),
    "no configuration": ({"config": {}}, "conversion"),
    "no tokenizer": ({"identity": {}}, "conversion"),
    "a model with another key": ({"config": {"model": {"code": "os.system"}}}, "conversion"),
    "a model that is a list": ({"config": {"model": [1, 2]}}, "conversion"),
}


@pytest.mark.fault(26)
@pytest.mark.parametrize("case", HAND_MADE)
def test_a_state_made_by_hand_is_refused_in_one_line(
    corpus: Corpus, finished: Finished, tmp_path: Path, case: str
) -> None:
    """All hashes fit it, and all keys that every checkpoint has are of their kind."""
    parent = Path(shutil.copytree(finished[0] / "runs" / "phase1", tmp_path / "runs" / "phase1"))
    checkpoint, (changes, reader) = newest_checkpoint(parent), HAND_MADE[case]
    state = read_state(checkpoint)
    if "model" in changes.get("config", {}):
        changes = {"config": state["config"] | changes["config"]}
    (checkpoint / "state.json").write_text(json.dumps(state | changes))
    vouch_for(checkpoint)
    if reader == "parent":
        child = prepare(tmp_path / "child", corpus, "phase2", {"phase1": parent})
        said, named = train([child], tmp_path / "x.jsonl").output, Path("phase1")
    else:
        said, named = run_conversion(checkpoint, tmp_path)[1], checkpoint
    assert in_one_line(said, named)


@pytest.mark.fault(26, control=True)
def test_torch_load_runs_what_the_same_files_hold(tmp_path: Path) -> None:
    """`torch.load(weights_only=False)`, as Composer 0.32.1 resumes, runs the code in the file."""
    for kind, make in EVIL.items():
        marker, path = tmp_path / f"marker of {kind}", tmp_path / kind
        path.write_bytes(make(marker))
        with suppress(Exception):  # what it returns need not be a state
            torch.load(path, weights_only=False)
        assert marker.is_dir()


# -------------------------------------------------------------------------------------------------------------- streams


@pytest.fixture
def shards(corpus: Corpus, tmp_path: Path) -> Path:
    """The shards of phase 1, to be forged, beside a folder that is none of its business."""
    (tmp_path / "victim").mkdir()
    (tmp_path / "victim" / "precious").write_text("content")
    return Path(shutil.copytree(corpus.shards[64], tmp_path / "shards"))


def climb(stream: Path, victim: Path) -> None:
    """The shard is said to lie, and lies, in the victim's folder."""
    shutil.copy(stream / "shard.00000.mds", victim / "shard.00000.mds")
    rename_shard(stream, os.path.relpath(victim / "shard.00000.mds", stream))


def name_absolutely(stream: Path, victim: Path) -> None:
    shutil.copy(stream / "shard.00000.mds", victim / "shard.00000.mds")
    rename_shard(stream, str(victim / "shard.00000.mds"))


def link(stream: Path, victim: Path) -> None:
    (stream / "shard.00000.mds").rename(victim / "shard.00000.mds")
    (stream / "shard.00000.mds").symlink_to(victim / "shard.00000.mds")


def name_a_missing_one(stream: Path, victim: Path) -> None:
    """Where Streaming would download to."""
    rename_shard(stream, os.path.relpath(victim / "pwned.mds", stream))


def name_precious(stream: Path, victim: Path) -> None:
    """A file of somebody else is said to be the shard."""
    path = victim / "precious"
    rows = edit_index(stream, lambda index: index["shards"][0]["raw_data"].update(bytes=path.stat().st_size)).rows
    sign(stream, shards={"shard.00000.mds": record_of(path, rows)})
    rename_shard(stream, os.path.relpath(path, stream))


def pickle_a_column(stream: Path, victim: Path) -> None:
    """The rows are pickles that make a folder; index and manifest fit them."""
    write_pickled_column(stream / "new", victim)
    rows = read_manifest(stream).rows
    os.replace(stream / "new" / "shard.00000.mds", stream / "shard.00000.mds")
    index = json.loads((stream / "new" / "index.json").read_text())
    shutil.rmtree(stream / "new")
    edit_index(stream, lambda old: old.update(index))
    sign(stream, shards={"shard.00000.mds": record_of(stream / "shard.00000.mds", rows)})


def write_pickled_column(folder: Path, victim: Path, rows: int = 60) -> None:
    """Rows for Streaming that are pickles."""
    columns = {"input_ids": "pkl", "lengths": "ndarray:uint16"}
    with MDSWriter(out=str(folder), columns=columns) as writer:
        for _ in range(rows):
            writer.write({"input_ids": Evil(victim / "pwned"), "lengths": np.array([3], np.uint16)})


FORGERIES: dict[Callable[[Path, Path], None], str] = {
    climb: "is no plain file in this folder",
    name_absolutely: "is no plain file in this folder",
    link: "is no plain file in this folder",
    name_a_missing_one: "is no plain file in this folder",
    name_precious: "is no plain file in this folder",
    pickle_a_column: "must be {'input_ids': 'ndarray:uint32'",
}


@pytest.mark.fault(27)
@pytest.mark.parametrize("forge", FORGERIES, ids=lambda forge: forge.__name__)
def test_a_forged_stream_is_refused_in_one_line_and_nothing_outside_is_read_or_written(
    corpus: Corpus, shards: Path, tmp_path: Path, forge: Callable[[Path, Path], None]
) -> None:
    stream, report = shards / "train" / "invented" / "laa", tmp_path / "pickles"
    forge(stream, tmp_path / "victim")
    before = content_of(tmp_path / "victim")
    yaml = prepare(tmp_path / "it", corpus)
    changes = [partial(report_pickles, str(report)), partial(report_opens, str(tmp_path / "victim"), str(report))]
    outcome = train([yaml, f"data.root={shards}"], tmp_path / "x.jsonl", changes=changes)
    assert outcome.exit_code == 1
    assert in_one_line(outcome.output, stream)
    assert FORGERIES[forge] in outcome.output
    assert content_of(tmp_path / "victim") == before
    assert report.read_text() == ""


NONSENSE: dict[str, tuple[str, Any]] = {
    "a manifest with unknown words": ("manifest", {"shards": {"shard.00000.mds": {"run": "this"}}}),
    "a manifest with a list": ("manifest", {"shards": []}),
    "a manifest with a number": ("manifest", {"tokenizer": 5}),
    "a manifest with a text": ("manifest", {"tokens": "many"}),
    "a manifest with a fraction": ("manifest", {"bos_token_id": 2.5}),
    "an index that is a list": ("index", []),
    "an index of nothing": ("index", {}),
    "an index with a number": ("index", {"shards": 5}),
    "an index with an empty shard": ("index", {"shards": [{}]}),
}


@pytest.mark.fault(27, 28)
@pytest.mark.parametrize("case", [*NONSENSE, "a nested manifest", "a nested index"])
def test_an_index_or_a_manifest_made_by_hand_is_refused_by_name(shards: Path, case: str) -> None:
    """All hashes fit it."""
    stream = shards / "train" / "invented" / "laa"
    manifest = read_manifest(stream)
    if case == "a nested manifest":
        (stream / "manifest.json").write_bytes(b"[" * 10**5)
    elif case == "a nested index" or NONSENSE[case][0] == "index":
        content = b"[" * 10**5 if case == "a nested index" else json.dumps(NONSENSE[case][1]).encode()
        (stream / "index.json").write_bytes(content)
        sign(stream, index_sha256=hashlib.sha256(content).hexdigest())
    else:
        sign_anything(stream, NONSENSE[case][1])
    with pytest.raises(ValueError, match=rf"^{stream}/(manifest|index)\.json"):
        check_stream(stream, manifest.row_length, manifest.tokenizer, manifest.vocab_size)


@pytest.mark.fault(27, control=True)
def test_plain_streaming_writes_where_the_index_says(tmp_path: Path) -> None:
    """Streaming copies a shard called `../victim/pwned.mds` out of its folder, and reads all rows."""
    with MDSWriter(out=str(tmp_path / "written"), columns={"number": "int"}) as writer:
        for number in range(20):
            writer.write({"number": number})
    (tmp_path / "remote" / "victim").mkdir(parents=True)
    os.rename(tmp_path / "written" / "shard.00000.mds", tmp_path / "remote" / "victim" / "pwned.mds")
    index = (tmp_path / "written" / "index.json").read_text()
    (tmp_path / "remote" / "data").mkdir()
    (tmp_path / "remote" / "data" / "index.json").write_text(index.replace("shard.00000.mds", "../victim/pwned.mds"))
    (tmp_path / "local" / "victim").mkdir(parents=True)
    options = {"remote": str(tmp_path / "remote" / "data"), "local": str(tmp_path / "local" / "data")}
    assert count_with_streaming(tmp_path, options) == "20"
    assert (tmp_path / "local" / "victim" / "pwned.mds").is_file()


@pytest.mark.fault(27, control=True)
def test_plain_streaming_runs_what_a_pickled_column_holds(tmp_path: Path) -> None:
    """Streaming that allows unsafe types, as ModernBERT lets it, runs the code in a `pkl` column."""
    (tmp_path / "victim").mkdir()
    write_pickled_column(tmp_path / "data", tmp_path / "victim", rows=1)
    count_with_streaming(tmp_path, {"local": str(tmp_path / "data"), "allow_unsafe_types": True})
    assert (tmp_path / "victim" / "pwned").is_dir()
