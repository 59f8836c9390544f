"""The report of a run: its numbers are the ledger's and the plan's, at any time."""
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmbert.config import load_config
from mmbert.data import PhaseData
from mmbert.ledger import Event, Ledger, read_ledger
from mmbert.run_report import __main__ as program
from mmbert.run_report.curves import Steps, read_scores, read_validations, seconds_lost, smooth
from mmbert.run_report.mixture_tokens import StreamTokens, add_up, share_distance, worst
from mmbert.run_report.phase_run import PhaseRun, in_order, phase_folders, read_phase
from mmbert.run_report.summary import as_json, summarise
from mmbert.tokenizer import load_tokenizer
from tests.conftest import Corpus, Finished
from tests.test_ledger import record
from tests.test_ledger_audit import STEPS, write_run

STREAMS = ["invented/laa", "invented/lab", "invented/lac", "invented/lad", "invented/lae", "invented/laf"]


@pytest.fixture(scope="module")
def honest(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Killed twice, rolled back once, one step skipped; 60 steps."""
    return write_run(tmp_path_factory.mktemp("honest"), corpus, saved=55)


@pytest.fixture
def run(honest: Path, tmp_path: Path) -> Path:
    """A copy, to change."""
    return Path(shutil.copytree(honest, tmp_path / honest.name))


# ------------------------------------------------------------------------------------------------------- the numbers


def test_a_stream_is_compared_with_its_plan() -> None:
    stream = StreamTokens("web/eng", realised=120, planned=100.0, available=60, rows=6)
    assert (stream.difference, stream.ratio, stream.repeats, stream.difference_rows) == (20.0, 1.2, 2.0, 2.0)
    alone = StreamTokens("web/eng", realised=120)
    assert (alone.difference, alone.ratio, alone.repeats, alone.difference_rows) == (None, None, None, None)


def test_streams_add_up_by_language_and_what_is_not_known_of_one_is_not_of_the_sum() -> None:
    streams = [
        StreamTokens("web/eng", 10, 12.0, 5, 1, 2),
        StreamTokens("wiki/eng", 1, 2.0),
        StreamTokens("web/fao", 4, 3.0, 2, 2, 4),
    ]
    language = add_up(streams, lambda name: name.partition("/")[2])
    assert language == [StreamTokens("eng", 11, 14.0), StreamTokens("fao", 4, 3.0, 2, 2, 4)]
    assert [part.realised for part in add_up(streams, lambda name: name.partition("/")[0])] == [14, 1]


def test_the_worst_stream_is_furthest_in_rows() -> None:
    large, small = StreamTokens("a", 1100, 1000.0, 1000, 1), StreamTokens("b", 40, 10.0, 100, 10)
    assert worst([large, small]) == small  # 3 rows against a tenth of one
    assert worst([large, StreamTokens("b", 40, 10.0)]) == large  # in tokens, where rows are not known of all
    assert worst([StreamTokens("a", 5)]) is None


def test_the_distance_of_shares_is_what_must_move() -> None:
    assert share_distance([StreamTokens("a", 60, 100.0), StreamTokens("b", 40, 100.0)]) == pytest.approx(0.1)
    assert share_distance([StreamTokens("a", 60)]) is None


def test_a_smoothed_loss_is_the_mean_of_the_last_ones_that_are_numbers() -> None:
    values = np.array([np.nan, 2.0, 4.0, np.nan, 9.0])
    assert smooth(values, 2).tolist()[1:] == [2.0, 3.0, 4.0, 9.0]
    assert np.isnan(smooth(values, 2)[0])


def event(name: str, attempt: int, step: int, time: float) -> Event:
    return Event(name, attempt, step, {"time": time})


def test_time_is_lost_from_a_save_to_the_start_that_goes_on_from_it() -> None:
    events = [
        event("start", 1, 0, 100.0), event("start", 2, 0, 130.0), event("saved", 2, 10, 200.0),
        event("saved", 2, 20, 300.0), event("start", 3, 20, 350.0), event("saved", 3, 30, 400.0),
        event("start", 4, 20, 1000.0),
    ]  # fmt: skip
    assert seconds_lost(events) == 30.0 + 700.0  # the third attempt's 50 are in what the fourth lost
    assert seconds_lost(events[:1]) is None
    assert seconds_lost([Event("start", 1, 0, {}), Event("start", 2, 0, {})]) is None


def test_time_that_several_attempts_lost_from_one_save_counts_once() -> None:
    starts = [event("start", attempt, 10, 100.0 * attempt) for attempt in (2, 3, 4)]
    assert seconds_lost([event("start", 1, 0, 0.0), event("saved", 1, 10, 100.0), *starts]) == 300.0
    again = [event("start", attempt, 0, 100.0 * attempt) for attempt in (1, 2, 3)]
    assert seconds_lost(again) == 200.0


def write_events(folder: Path) -> None:
    """Forty tokens in four steps, done twice from step 2 on; the second attempt's first scores are of steps 2 to 3."""
    for start, events in (
        (0, [(1, {"web/eng": [2, 8.0, 1], "wiki/eng": [2, 4.0, 1]}), (3, {"web/fao": [9, 99.0, 9]})]),
        (2, [(3, {"web/fao": [4, 4.0, 2]}), (4, {"web/eng": [4, 2.0, 3]})]),
    ):
        ledger = Ledger(folder)
        ledger.event("start", {"step": start})
        for step in range(start + 1, 5):
            streams = {"web/eng": 4, "web/fao": 3, "wiki/eng": 3}
            ledger.step(record(step, ledger.attempt, streams=streams, loss=None if step == 4 else 2.0))
            for at, scores in events:
                if at == step:
                    values = {"step": at, "from_step": 0, "tokens": 10, "seconds": 2.0}
                    ledger.event("scores", {**values, "streams": scores})
        bits = {"web/eng": [9.0 - 3.0 * start, 2, 1]}
        ledger.event("validation", {"step": 4, "tokens": 40, "streams": bits})
        ledger.flush(durable=False)


def test_scores_are_those_that_stand_added_up_by_language(tmp_path: Path) -> None:
    write_events(tmp_path)
    scores = read_scores(read_ledger(tmp_path), stretches=4)
    assert scores is not None
    assert scores.of.tokens.tolist() == [10.0, 30.0, 40.0]
    assert (scores.tokens / scores.seconds).tolist() == [5.0, 5.0, 5.0]
    assert scores.of.names == ["eng", "fao"]
    nan = float("nan")
    np.testing.assert_equal(scores.of.quotient(scores.loss_sum), [[3.0, nan], [nan, 1.0], [0.5, nan]])
    assert scores.of.lately(scores.correct) == {"eng": 0.75}


def test_bits_per_byte_are_the_last_attempts(tmp_path: Path) -> None:
    write_events(tmp_path)
    validations = read_validations(read_ledger(tmp_path))
    assert validations is not None
    assert validations.of.ends(validations.bits) == {"eng": (1.5, 1.5)}
    assert validations.of.tokens.tolist() == [40.0]


@pytest.mark.parametrize(
    "values, told",
    [
        ({"tokens": 1, "seconds": 1.0, "streams": {"web/eng": [1, 2]}}, r"scores of web/eng = \[1, 2\] must be three"),
        ({"tokens": 1, "seconds": None, "streams": {}}, r"scores.seconds = None must be a number"),
        ({"tokens": 1, "seconds": 1.0, "streams": {"web/tir": [1, 2.0, 1]}}, r"no step has any token of web/tir"),
    ],
)
def test_an_event_that_cannot_be_is_named_with_its_place(tmp_path: Path, values: dict[str, Any], told: str) -> None:
    ledger = Ledger(tmp_path)
    ledger.step(record(1))
    ledger.event("scores", {"step": 1, **values})
    ledger.flush(durable=False)
    with pytest.raises(ValueError, match=rf"ledger.jsonl, byte \d+: .*{told}"):
        read_scores(read_ledger(tmp_path))


def test_a_step_that_gave_no_loss_is_not_a_number(tmp_path: Path) -> None:
    write_events(tmp_path)
    steps = Steps.of(read_ledger(tmp_path))
    assert steps.tokens.tolist() == [10, 20, 30, 40]
    assert steps.before.tolist() == [0, 10, 20, 30]
    assert np.isnan(steps.loss).tolist() == [False, False, False, True]
    assert steps.taus["all"].tolist() == [0.7] * 4


# ------------------------------------------------------------------------------------------------------- whole runs


def test_planned_and_realised_are_the_plans_and_the_ledgers(honest: Path, corpus: Corpus) -> None:
    phase = read_phase(honest)
    config = load_config(honest.parent.parent / "phase3.yaml")
    data = PhaseData.open(config, load_tokenizer(corpus.tokenizer))
    history = read_ledger(honest)
    clock = history.steps[-1].tokens
    assert phase.as_of == phase.tokens == clock
    assert [stream.name for stream in phase.streams] == list(data.names)
    assert [stream.planned for stream in phase.streams] == data.plan(config).walk(clock).stream_tokens.tolist()
    assert {s.name: s.realised for s in phase.streams} == history.tokens_per_stream()
    assert sum(stream.rows_read or 0 for stream in phase.streams) == history.steps[-1].last_row
    assert phase.notes == []


def test_the_numbers_and_the_sentences_are_the_audits(honest: Path) -> None:
    phase = read_phase(honest)
    found = as_json(phase)
    assert found["audit"] == {"rows_lost": 0, "rows_read_twice": 0, "steps_with_other_rows": 0, "faults": []}
    assert (found["steps"], found["attempts"], found["steps_skipped"], found["rollbacks"]) == (STEPS, 3, 1, 1)
    assert sorted(found["streams"]) == STREAMS
    sentences = " ".join(summarise(phase))
    assert "in 60 steps, with 2 restarts." in sentences
    assert "1 step made no update: 1 spike. 1 rollback after a loss spike undid 5 steps." in sentences
    assert "plan and outcome agree to the row" in sentences


def test_a_step_with_other_rows_is_told_and_quickly_is_not_looked_for(run: Path) -> None:
    lines = (run / "ledger.jsonl").read_text().splitlines()
    changed = [line.replace('"digest":', '"digest":1', 1) if '"step":50' in line else line for line in lines]
    (run / "ledger.jsonl").write_text("\n".join(changed) + "\n")
    phase, quick = read_phase(run), read_phase(run, quick=True)
    assert phase.audit is not None
    assert phase.audit.strange == 1
    assert "The audit found faults: step 50 read other rows" in " ".join(summarise(phase))
    assert phase.streams[0].rows_read is None
    assert "whether the rows are the plan's was not looked at" in " ".join(summarise(quick))


def test_without_manifests_the_plan_is_the_checkpoints_own(run: Path, tmp_path: Path) -> None:
    phase = read_phase(run, data_root=str(tmp_path / "gone"))
    assert re.search(r"The manifests of the shards cannot be used: .*gone", phase.notes[0])
    assert phase.as_of == read_ledger(run).steps[54].tokens  # the checkpoint's step
    assert all(stream.repeats is None for stream in phase.streams)
    assert phase.audit is not None
    assert phase.audit.strange is None


def test_of_a_run_that_one_may_only_read_the_report_goes_elsewhere(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path, value: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))  # root may write anywhere

    monkeypatch.setattr(program, "write_json", refuse)
    with pytest.raises(SystemExit, match=f"^error: {run}: Permission denied; name another folder with --output"):
        program.main([str(run)])


def test_before_the_first_checkpoint_and_with_a_torn_line(run: Path) -> None:
    for checkpoint in run.glob("step-*"):
        shutil.rmtree(checkpoint)
    with (run / "ledger.jsonl").open("ab") as file:
        file.write(b'{"attempt":3,"st')
    phase = read_phase(run)
    assert phase.name == run.name
    assert phase.duration is None
    assert phase.audit is None
    assert "holds no checkpoint" in phase.notes[0]
    program.main([str(run)])
    assert json.loads((run / "run_report.json").read_text())["phases"][0]["audit"] is None


def test_a_ledger_without_a_step_is_reported(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    ledger.event("start", {"step": 0})
    ledger.flush(durable=False)
    program.main([str(tmp_path)])
    assert "No step is in the ledger yet." in (tmp_path / "run_report.html").read_text()


def test_phases_stand_behind_their_parents() -> None:
    def phase(name: str, parent: str | None) -> PhaseRun:
        class Fake:
            def __init__(self) -> None:
                self.name, self.config = name, type("Config", (), {"parent": parent})

        return Fake()  # type: ignore[return-value]

    phases = [phase("a", "c"), phase("b", "a"), phase("c", "elsewhere"), phase("d", "a")]
    assert [one.name for one in in_order(phases)] == ["c", "a", "b", "d"]


def test_a_real_run_of_three_phases_stands_alone_on_one_page(
    finished: Finished, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    program.main([str(finished[0] / "runs"), "--output", str(tmp_path)])
    page = (tmp_path / "run_report.html").read_text()
    assert re.findall(r"<h2>(.*)</h2>", page) == ["phase1", "phase2", "phase3"]
    parts = re.split(r"data:image/png;base64,[^\"]+", page)
    assert len(parts) > 6
    assert not re.search(r"http|//|<link|@import|url\(|src=\"[^\"]", "".join(parts))
    assert capsys.readouterr().out.count("plan and outcome agree to the row") == 3
    found = json.loads((tmp_path / "run_report.json").read_text())
    assert [phase["audit"]["faults"] for phase in found["phases"]] == [[], [], []]


def test_names_are_escaped(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    ledger.step(record(1, streams={"web/<b>": 10}))
    ledger.flush(durable=False)
    program.main([str(tmp_path)])
    page = (tmp_path / "run_report.html").read_text()
    assert "<b>" not in page
    assert "web/&lt;b&gt;" in page


def test_a_folder_without_a_ledger_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"neither it nor a folder in it holds a ledger.jsonl"):
        phase_folders(tmp_path)
