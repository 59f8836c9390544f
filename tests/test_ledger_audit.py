"""The audit of a run's ledger names whatever the run lost or read twice, and passes an honest one."""
import csv
import hashlib
import json
import re
import runpy
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mmbert.checkpoint import newest_checkpoint, save_checkpoint
from mmbert.clock import batch_sizes
from mmbert.config import RunConfig, load_config
from mmbert.data import PhaseData
from mmbert.ledger import Event, Ledger, RunHistory, StepRecord, read_ledger
from mmbert.ledger_audit import Saved, audit, compare, extra_rows, main, planned_places, replay, rolled_back
from mmbert.mixture import Group, Integers, Plan
from mmbert.row_order import RowOrder, row_hashes
from mmbert.schedules import BatchSizes, Schedule
from mmbert.tokenizer import load_tokenizer
from tests.conftest import Corpus
from tests.test_ledger import step as kept_step
from tests.training_runs import write_yamls

Line = dict[str, Any]
STEPS = 60
# Attempt -> the step that it starts from, and the last one that it does: killed twice, each time behind a checkpoint.
ATTEMPTS = {1: (0, 25), 2: (20, 33), 3: (30, STEPS)}
BATCH_WARMUP = ["global_train_batch_size=6", "batch_size_warmup={start: 2, tokens: 5000}"]


def planned_records(config: RunConfig, data: PhaseData) -> list[StepRecord]:
    """STEPS steps as the run would do them, rows one by one; the tokens of a row are invented."""
    batches = data.row_order(config).batches(0, batch_sizes(config), 0, 1)
    records, position, clock = [], 0, 0
    for step, batch in enumerate(islice(batches, STEPS), start=1):
        streams: dict[str, int] = {}
        for place, stream, row in batch.tolist():
            streams[data.names[stream]] = streams.get(data.names[stream], 0) + 100 + (place + row) % 7
        clock += sum(streams.values())
        digest = int(row_hashes(*batch.T).sum())
        values = (position, len(batch), clock, digest)
        records.append(StepRecord(1, step, *values, 0.1, {"large": 0.4, "small": 0.3}, 1e-3, 9.0 / step, None, streams))
        position += len(batch)
    return records


def save(run_folder: Path, config: RunConfig, data: PhaseData, last: StepRecord, sums: dict[str, int]) -> None:
    """A checkpoint with what callbacks/checkpointing.py puts into state.json."""
    model = torch.nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters())
    optimizer.param_groups[0]["step"] = 0
    state = {
        "step": last.step, "rows": last.last_row, "tokens": last.tokens, "seconds": 1.0,
        "finished": False, "tokens_per_stream": sums, "callbacks": {}, "config": config.as_dict(),
        "identity": {f"shards.{name}": digest for name, digest in data.digests().items()}
        | {"tokenizer.digest": data.manifests[0].tokenizer},
    }  # fmt: skip
    save_checkpoint(run_folder, last.step, model, optimizer, state)


def write_run(folder: Path, corpus: Corpus, saved: int) -> Path:
    """A run in three attempts: killed twice, rolled back once, one step skipped, its newest checkpoint at step `saved`.

    Returns:
        Its folder.
    """
    folder.mkdir(exist_ok=True)
    write_yamls(folder, corpus)
    config = load_config(folder / "phase3.yaml", BATCH_WARMUP)
    data = PhaseData.open(config, load_tokenizer(Path(config.tokenizer)))
    records = planned_records(config, data)
    config.run_folder.mkdir(parents=True)
    for attempt, (start, end) in ATTEMPTS.items():
        ledger = Ledger(config.run_folder)
        assert ledger.attempt == attempt
        ledger.event("start", {"step": start, "tokens": 0, "host": "a", "world_size": attempt, "source": None})
        for one in records[start:end]:
            ledger.step(replace(one, attempt=attempt, skipped="spike" if one.step == 50 else None))
            if one.step == 45:
                ledger.event("rolled_back", {"step": 45, "to_step": 40})
        ledger.flush(durable=True)
        if end < STEPS:
            with ledger.path.open("ab") as file:
                file.write(b'{"attempt":%d,"step":' % attempt)  # killed in the middle of a line
    sums = dict.fromkeys(data.names, 0)
    for one in records[:saved]:
        for name, tokens in one.streams.items():
            sums[name] += tokens
    moved = replace(config, tokenizer=str(folder / "moved-away"))  # no audit needs it
    save(config.run_folder, moved, data, records[saved - 1], sums)
    return config.run_folder


@pytest.fixture(scope="module")
def honest(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("honest"), corpus, saved=STEPS)


@pytest.fixture
def run(honest: Path, tmp_path: Path) -> Path:
    """A copy of the honest run, to damage."""
    return Path(shutil.copytree(honest, tmp_path / honest.name))


def rewrite(run: Path, change: Callable[[list[Line]], Any]) -> None:
    """Let `change` edit the ledger's lines, as a list of JSON objects."""
    lines = [json.loads(line) for line in (run / "ledger.jsonl").read_text().splitlines()]
    change(lines)
    (run / "ledger.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def find(lines: list[Line], step: int, attempt: int | None = None) -> Line:
    """The record of a step in one attempt, or in the only one that did it."""
    found = [line for line in lines if "event" not in line and line["step"] == step]
    (one,) = [line for line in found if attempt in (None, line["attempt"])]
    return one


def test_an_honest_run_passes(honest: Path) -> None:
    found = audit(honest)
    assert found.faults == []
    table = dict(found.table)
    rows = read_ledger(honest).steps[-1].last_row
    assert table.pop("largest repeats of large").endswith(", no limit")
    assert table.pop("largest repeats of small").endswith(", max_repeats 40")
    assert table == {
        "attempts": "3",
        "steps": "60, the checkpoint after step 60",
        "rows": f"{rows:,}",
        "steps done more than once": "8, with the same rows and tokens; losses that differ: 0",
        "rows lost": "0",
        "rows seen more often than planned": "0",
        "steps with other rows than planned": "0",
        "steps without an update": "1; 1 spike",
        "steps rolled back": "5",
    }


def test_losses_that_differ_between_attempts_are_told_and_are_no_fault(run: Path) -> None:
    """On another number of ranks the last bits of a loss differ."""

    def change(lines: list[Line]) -> None:
        find(lines, 21, attempt=1)["loss"] = find(lines, 21, attempt=2)["loss"] + 0.5
        find(lines, 22, attempt=1)["loss"] = None

    rewrite(run, change)
    found = audit(run)
    assert found.faults == []
    assert dict(found.table)["steps done more than once"].endswith("tokens; losses that differ: 2, by 0.5 at most")


def add(key: str, step: int, number: int, attempt: int | None = None) -> Callable[[list[Line]], Any]:
    """A change: add to a number of a step."""

    def change(lines: list[Line]) -> None:
        find(lines, step, attempt)[key] += number

    return change


def lose(step: int, attempt: int | None = None) -> Callable[[list[Line]], Any]:
    """A change: a step's line is gone."""
    return lambda lines: lines.remove(find(lines, step, attempt))


def lose_start(lines: list[Line]) -> None:
    """The line of the second start is gone."""
    lines.remove(next(line for line in lines if line.get("event") == "start" and line["attempt"] == 2))


def lose_attempt(lines: list[Line]) -> None:
    """The whole second attempt is gone."""
    lines[:] = [line for line in lines if line["attempt"] != 2]


def move_tokens(lines: list[Line]) -> None:
    """A token of step 9 was of another stream than its line says; every other number still fits."""
    streams = find(lines, 9)["streams"]
    streams[next(iter(streams))] -= 1
    streams["invented/lax"] = 1


def move_tokens_of_one_attempt(lines: list[Line]) -> None:
    """A step that was done twice had a token of another stream the first time."""
    streams = find(lines, 22, attempt=1)["streams"]
    streams[next(iter(streams))] -= 1
    streams["invented/lax"] = 1


def swap_rows(lines: list[Line]) -> None:
    """Steps 8 and 9 read each other's rows."""
    one, other = find(lines, 8), find(lines, 9)
    one["digest"], other["digest"] = other["digest"], one["digest"]


@pytest.mark.parametrize(
    "change, fault",
    [
        (lose(7), r"step 7 is missing"),
        (lose(STEPS), rf"step {STEPS} is missing"),
        (lambda lines: lines.__delitem__(slice(-3, None)), r"steps 58 to 60 are missing"),
        (lose(22, attempt=2), r"attempt 2: step 23 follows on step 21"),
        (lose_start, r"attempt 2: the line of its start is missing"),
        (lose_attempt, r"attempts 1 to 3: only 2 of them left a line"),
        (add("digest", 8, 1), r"step 8 read other rows than those that the plan puts at \[14, 18\)"),
        (swap_rows, r"step 9 read other rows"),
        (add("num_rows", 10, 1), r"step 10 read rows \[22, 27\), its plan is \[22, 26\)"),
        (add("first_row", 10, 1), r"step 10 read rows \[23, 27\), its plan is \[22, 26\)"),
        (add("digest", 22, 1, attempt=1), r"step 22: attempts 1 and 2 differ in digest: \d+ and \d+"),
        (add("tokens", 22, 1, attempt=1), r"step 22: attempts 1 and 2 differ in tokens"),
        (move_tokens_of_one_attempt, r"step 22: attempts 1 and 2 differ in streams: \{.* and \{"),
        (add("tokens", 11, 1), r"step 11: the clock moved by \d+ tokens, its streams have \d+"),
        (add("tokens", STEPS, 1), rf"step {STEPS}: [\d,]+ tokens so far, .*step-00000000{STEPS} has"),
        (add("num_rows", STEPS, 1), rf"step {STEPS}: [\d,]+ rows so far, .*step-00000000{STEPS} has"),
        (move_tokens, r"invented/lax: its steps sum to 1 tokens, .* has 0"),
        (lambda lines: lines.append(find(lines, STEPS)), rf"attempt 3: step {STEPS} follows on step {STEPS}"),
        (lambda lines: lines.append(find(lines, 22, attempt=1)), r"attempt 1 goes on after attempt 3 began: two proc"),
        (lambda lines: lines.append({**find(lines, STEPS), "step": 1 << 33}), r"steps 61 to \d+ are missing"),
    ],
)
def test_whatever_a_run_lost_or_read_twice_is_named(run: Path, change: Callable[[list[Line]], Any], fault: str) -> None:
    rewrite(run, change)
    faults = audit(run).faults
    assert any(re.search(fault, one) for one in faults), faults


def test_rows_lost_and_rows_read_twice_are_counted(run: Path) -> None:
    rewrite(run, lambda lines: (lose(7)(lines), add("num_rows", 10, 3)(lines), add("digest", 8, 1)(lines)))
    table = dict(audit(run).table)
    assert table["rows lost"] == "2"
    assert table["rows seen more often than planned"] == "3"
    assert table["steps with other rows than planned"] == "2"


def test_rows_lost_and_rows_read_twice_are_faults_without_a_plan_too(run: Path) -> None:
    assert compare(read_ledger(run), Saved.open(run), None).faults == []
    rewrite(run, lambda lines: (add("num_rows", 10, 3)(lines), add("num_rows", 20, -1)(lines)))
    found = compare(read_ledger(run), Saved.open(run), None)
    assert found.faults == ["1 rows are in no step", "3 rows were read more than once"]


def test_many_faults_of_one_kind_do_not_hide_another(run: Path) -> None:
    def change(lines: list[Line]) -> None:
        for step in range(1, 20):
            find(lines, step)["digest"] += 1
        lose(40)(lines)

    rewrite(run, change)
    faults = audit(run).faults
    assert "... and 14 more like the last one" in faults
    assert "step 40 is missing" in faults


def test_steps_behind_the_newest_checkpoint_are_audited_and_are_no_fault(corpus: Corpus, tmp_path: Path) -> None:
    """Killed before it could save again: the checkpoint's sums are those of the steps before it."""
    run = write_run(tmp_path, corpus, saved=55)
    assert audit(run).faults == []
    rewrite(run, add("digest", 58, 1))
    assert [fault.partition(" than")[0] for fault in audit(run).faults] == ["step 58 read other rows"]


def test_a_run_that_saves_while_it_is_audited_is_no_fault(
    corpus: Corpus, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the audit reads first, five more steps and their checkpoint are there when it reads the next."""
    behind = write_run(tmp_path / "behind", corpus, saved=55)
    rewrite(behind, lambda lines: [lose(step)(lines) for step in range(56, STEPS + 1)])

    def then_goes_on(read: Callable[[Path], Any]) -> Callable[[Path], Any]:
        def first_read(folder: Path) -> Any:
            found = read(folder)
            shutil.copytree(run, behind, dirs_exist_ok=True)
            return found

        return first_read

    for name, read in (("read_ledger", read_ledger), ("newest_checkpoint", newest_checkpoint)):
        monkeypatch.setattr(f"mmbert.ledger_audit.{name}", then_goes_on(read))
    found = audit(behind)
    assert found.faults == []
    assert dict(found.table)["steps"] == "60, the checkpoint after step 55"


def test_a_rollback_that_a_restart_forgot_is_not_counted() -> None:
    """The second attempt began before the rollback at step 5; the third after the one at step 7."""
    events = [
        Event("rolled_back", 1, 5, {"to_step": 1}),
        Event("start", 2, 4, {}),
        Event("rolled_back", 2, 7, {"to_step": 5}),
        Event("start", 3, 7, {}),
    ]
    history = RunHistory([kept_step(step) for step in range(1, 10)], events)
    assert (np.flatnonzero(rolled_back(history)) + 1).tolist() == [6, 7]


def test_an_empty_ledger_misses_every_step(run: Path) -> None:
    (run / "ledger.jsonl").write_text("")
    assert f"steps 1 to {STEPS} are missing" in audit(run).faults


def test_the_plan_replayed_by_periods_is_the_order_row_by_row() -> None:
    """Any stretches of rows, also overlapping ones and those that cross periods."""
    rows = np.array([17, 4, 1])
    group = Group("all", 1.0, Schedule(0.5, "linear", 0.1), None, np.arange(3))
    plan = Plan([group], rows, rows * 100, 100_000, period_rows=60)
    order = RowOrder(plan, ["a", "b", "c"], [np.array([5, 12]), np.array([4]), np.array([1])], seed=3)
    whole = next(order.batches(0, BatchSizes([0], [250]), 0, 1))
    places = np.array([[0, 60], [59, 61], [60, 60], [3, 190], [120, 121], [119, 235], [7, 8]])
    again = replay(order, places)
    expected = [row_hashes(*whole[first:last].T).sum() for first, last in places]
    assert again.digests.tolist() == [int(digest) for digest in expected]
    assert again.seen.tolist() == np.bincount(whole[:235, 1], minlength=3).tolist()


@pytest.mark.parametrize(
    "sizes", [BatchSizes([0], [4]), BatchSizes.build(36, 12, 100), BatchSizes.build(8, 2, 1), BatchSizes.build(6, 2, 0)]
)
def test_a_step_finds_its_rows_without_counting_up_to_it(sizes: BatchSizes) -> None:
    position, expected = 0, []
    for _ in range(50):
        expected.append([position, position + sizes.at(position)])
        position += sizes.at(position)
    assert planned_places(sizes, np.arange(1, 51)).tolist() == expected


@pytest.mark.parametrize(
    "max_repeats, seen, overshoot, extra",
    [
        (2.0, [21, 201], 0.9, [0, 0]),  # one more by rounding
        (2.0, [22, 203], 0.9, [1, 2]),
        (1.5, [16, 151], 1.0, [0, 0]),  # all rows once, and half of them again
        (1.5, [22, 203], 1.0, [6, 52]),
        (0.5, [7, 51], 1.0, [1, 0]),
        (2.0, [22, 203], 1.02, [0, 0]),  # the last step ends after the duration
        (None, [999, 9999], 1.0, [0, 0]),
    ],
)
def test_rows_above_max_repeats_are_counted(
    max_repeats: float | None, seen: list[int], overshoot: float, extra: list[int]
) -> None:
    group = Group("small", 1.0, Schedule(0.3), max_repeats, np.array([2, 0]))
    rows, counts = np.array([100, 5, 10]), np.array([seen[1], 500, seen[0]])
    assert extra_rows(group, rows, counts, overshoot).tolist() == extra


def test_a_fraction_of_max_repeats_is_a_fraction_of_the_rows() -> None:
    """A plan holds 1.2 passes at every moment; one for 2.0 reads too many rows for that, though none of them thrice."""
    rows, ends = np.array([1000, 300, 7]), np.arange(40, 1441, 40)

    def extra(cap: float) -> Integers:
        """By 1.2, of the rows of a plan with this cap: (ends, streams)."""
        plan = Plan([Group("all", 1.0, Schedule(0.0), cap, np.arange(3))], rows, rows * 100, 140_000, period_rows=50)
        order = RowOrder(plan, ["a", "b", "c"], [np.array([number]) for number in rows], seed=3)
        again = [replay(order, np.array([[0, end]])) for end in ends]
        group = Group("all", 1.0, Schedule(0.0), 1.2, np.arange(3))
        return np.array([extra_rows(group, rows, one.seen, one.planned_tokens / plan.duration) for one in again])

    assert not extra(1.2).any()
    assert (extra(2.0)[-1] > 0).tolist() == [False, True, True]


def test_a_plan_that_repeats_a_stream_too_often_is_named(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the mixture did not heed the cap: the rows are the plan's, and there are too many of one language."""
    monkeypatch.setattr("mmbert.ledger_audit.extra_rows", lambda group, *_: np.arange(len(group.members)))
    faults = audit(run).faults
    assert faults == [
        "invented/lab: 1 rows more than max_repeats = None allows",
        "invented/lac: 2 rows more than max_repeats = None allows",
        "invented/lad: 3 rows more than max_repeats = None allows",
        "invented/laf: 1 rows more than max_repeats = 40.0 allows",
    ]


def test_shards_that_are_not_the_runs_are_refused_and_moved_ones_found(
    corpus: Corpus, run: Path, tmp_path: Path
) -> None:
    moved = Path(shutil.copytree(corpus.shards[128], tmp_path / "moved"))
    assert audit(run, data_root=str(moved)).faults == []
    manifest = moved / "train" / "invented" / "laa" / "manifest.json"
    values = json.loads(manifest.read_text())
    values["documents"] += 1
    del values["digest"]
    canonical = json.dumps(values, sort_keys=True, separators=(",", ":")).encode()
    manifest.write_text(json.dumps(values | {"digest": hashlib.sha256(canonical).hexdigest()}))
    with pytest.raises(ValueError, match=r"invented/laa is not what .* was trained on.*--data-root"):
        audit(run, data_root=str(moved))
    with pytest.raises(FileNotFoundError, match="nowhere"):
        audit(run, data_root=str(tmp_path / "nowhere"))


def test_the_manifests_are_enough_where_the_shards_were_deleted_since(
    corpus: Corpus, run: Path, tmp_path: Path
) -> None:
    for manifest in corpus.shards[128].rglob("manifest.json"):
        copy = tmp_path / "kept" / manifest.relative_to(corpus.shards[128])
        copy.parent.mkdir(parents=True)
        shutil.copy(manifest, copy)
    found = audit(run, data_root=str(tmp_path / "kept"))
    assert (found.faults, found.strange) == ([], 0)


def test_the_program_prints_a_table_and_fails_on_faults(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main([str(run)])
    printed = capsys.readouterr().out
    assert re.search(r"^attempts +3$", printed, re.MULTILINE)
    assert printed.endswith("nothing lost, nothing extra\n")
    rewrite(run, lose(7))
    with pytest.raises(SystemExit) as ended:
        main([str(run)])
    assert ended.value.code == 1
    assert "fault: step 7 is missing\n" in capsys.readouterr().out
    (run / "ledger.jsonl").unlink()
    with pytest.raises(SystemExit, match=r"error: .*ledger\.jsonl is missing"):
        main([str(run)])


def test_the_csv_has_every_step_once(run: Path, tmp_path: Path) -> None:
    main([str(run), "--csv", str(tmp_path / "new" / "steps.csv")])
    rows = list(csv.DictReader((tmp_path / "new" / "steps.csv").open()))
    steps = read_ledger(run).steps
    assert [int(row["step"]) for row in rows] == list(range(1, STEPS + 1))
    assert [float(row["loss"]) for row in rows] == [one.loss for one in steps]
    assert [int(row["attempt"]) for row in rows] == [1] * 20 + [2] * 10 + [3] * 30
    assert [int(row["step"]) for row in rows if row["rolled_back"] == "1"] == [41, 42, 43, 44, 45]
    assert rows[49]["skipped"] == "spike"
    assert rows[0]["tau/large"] == "0.4"


@pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")
def test_the_program_is_started_by_the_name_of_the_ledger(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["mmbert.ledger", str(run / "nothing")])
    with pytest.raises(SystemExit, match=r"^error: .*nothing holds no checkpoint"):
        runpy.run_module("mmbert.ledger", run_name="__main__")
