"""The report of a run: numbers against hand-computed ones, sentences that follow them, a page that stands alone."""
import base64
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from mmbert.checkpoint import newest_checkpoint, save_checkpoint
from mmbert.config import OptimizerConfig
from mmbert.evaluation import report as program
from mmbert.evaluation.report_html import render_page
from mmbert.evaluation.report_numbers import Report, build_report, entry_phases, report_as_json
from mmbert.evaluation.report_summary import describe_change, summarise
from mmbert.evaluation.run_records import read_phases
from mmbert.file_contents import sha256_of
from mmbert.optim import build_optimizer
from mmbert.untrained_run import first_state

PHASES = ["phase1", "phase2", "phase3"]
# phase -> stream -> (planned share, realised tokens)
MIXTURES = {
    "phase1": {"udhr/eng": (0.75, 800), "udhr/deu": (0.25, 200)},
    "phase2": {"udhr/eng": (0.5, 250), "udhr/deu": (0.3, 150), "udhr/swh": (0.2, 100)},
    "phase3": {
        "udhr/eng": (0.4, 35),
        "wiki/eng": (0.1, 15),
        "udhr/deu": (0.2, 20),
        "udhr/swh": (0.2, 20),
        "udhr/tir": (0.1, 10),
    },
}
BITS = {
    "phase1": {"eng": 2.0, "deu": 3.0, "swh": 4.0, "tir": 8.0, "<b>": 9.0},
    "phase2": {"eng": 1.8, "deu": 2.7, "swh": 3.0, "tir": 8.0, "<b>": 9.0},
    "phase3": {"eng": 1.9, "deu": 2.6, "swh": 3.3, "tir": 6.0, "<b>": 9.9},
}
TAU = {"phase1": 0.7, "phase2": 0.5, "phase3": 0.3}
MASK_RATE = {"phase1": 0.3, "phase2": 0.15, "phase3": 0.05}
DIFFERENCE = {"phase1": 1e-6, "phase2": 3e-6, "phase3": 2e-6}


def write_json(path: Path, value: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def write_evaluation(run_root: Path, phase: str) -> None:
    languages = {language: {"bits_per_byte": bits} for language, bits in BITS[phase].items()}
    model = {"model.safetensors": f"of {phase}"}
    inputs = {"model": model, "shards": {"eng": "digest"}, "rows": None}
    write_json(run_root / phase / "bits_per_byte.json", {"languages": languages, "inputs": inputs})


def write_conversion(run_root: Path, phase: str, difference: float) -> None:
    """As convert_to_hf writes it, of the newest checkpoint."""
    checkpoint = newest_checkpoint(run_root / phase)
    record = {
        "hf_max_logit_difference": difference,
        "checkpoint": str(checkpoint),
        "checkpoint_sha256": sha256_of(checkpoint / "manifest.json"),
        "model_sha256": f"of {phase}",
    }
    write_json(run_root / phase / "hf" / "conversion.json", record)


def write_state(run_root: Path, phase: str, finished: bool = True, parent: str | None = None) -> None:
    model = torch.nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters())
    optimizer.param_groups[0]["step"] = 1
    mixture = MIXTURES[phase]
    state = {
        "step": 1,
        "rows": 1,
        "seconds": 1.0,
        "callbacks": {},
        "config": {"tokenizer": "tokenizer", "model": {}, "duration": 1000, "parent": parent},
        "identity": {"tokenizer.digest": "0"},
        "tokens": sum(tokens for _, tokens in mixture.values()),
        "finished": finished,
        "languages": list(mixture),
        "tau": TAU[phase],
        "mask_rate": MASK_RATE[phase],
        "planned_share": {stream: share for stream, (share, _) in mixture.items()},
        "tokens_per_stream": {stream: tokens for stream, (_, tokens) in mixture.items()},
    }
    save_checkpoint(run_root / phase, 1, model, optimizer, state)


@pytest.fixture
def run_root(tmp_path: Path) -> Path:
    """A run of three phases over five languages; the last language is in no mixture, and has a hostile name."""
    for phase in PHASES:
        write_state(tmp_path, phase)
        write_evaluation(tmp_path, phase)
        write_conversion(tmp_path, phase, DIFFERENCE[phase])
    return tmp_path


@pytest.fixture
def report(run_root: Path) -> Report:
    return build_report(read_phases(run_root, PHASES))


def run_program(run_root: Path, phases: list[str] = PHASES) -> None:
    program.main(["--run-root", str(run_root), "--phases", *phases, "--output", str(run_root / "report")])


def fail_with(run_root: Path, phases: list[str] = PHASES) -> str:
    """Run the program, expect it to refuse, and return the line it says."""
    with pytest.raises(SystemExit) as refusal:
        run_program(run_root, phases)
    assert isinstance(refusal.value.code, str)  # Python prints it to stderr and exits with 1
    assert "\n" not in refusal.value.code
    assert not (run_root / "report").exists()
    return refusal.value.code


def test_a_language_belongs_to_the_first_phase_whose_mixture_has_it(report: Report) -> None:
    assert entry_phases(report.phases) == {"eng": "phase1", "deu": "phase1", "swh": "phase2", "tir": "phase3"}
    assert report.groups == {
        "entered_phase1": ["deu", "eng"],
        "entered_phase2": ["swh"],
        "entered_phase3": ["tir"],
        "never_entered": ["<b>"],
    }


def test_bits_per_byte_of_a_group_is_the_mean_over_its_languages(report: Report) -> None:
    assert report.bits_per_byte["phase1"]["entered_phase1"] == pytest.approx(2.5)
    assert report.bits_per_byte["phase2"]["entered_phase1"] == pytest.approx(2.25)
    assert report.bits_per_byte["phase3"] == {
        "entered_phase1": pytest.approx(2.25),
        "entered_phase2": 3.3,
        "entered_phase3": 6.0,
        "never_entered": 9.9,
    }


def test_improvement_is_the_relative_reduction_from_the_phase_before(report: Report) -> None:
    assert report.improvement["phase2"]["entered_phase1"] == pytest.approx(0.1)
    assert report.improvement["phase3"]["entered_phase1"] == pytest.approx(0.0)
    assert report.improvement["phase3"]["entered_phase2"] == pytest.approx(-0.1)
    assert report.improvement["phase3"]["entered_phase3"] == pytest.approx(0.25)
    assert report.improvement_per_language["phase3"]["tir"] == pytest.approx(0.25)
    assert "phase1" not in report.improvement


def test_a_phase_is_compared_with_its_parent_and_not_with_another_that_went_on_from_it(run_root: Path) -> None:
    write_state(run_root, "phase3", parent="phase1")  # as phase 2 did
    write_conversion(run_root, "phase3", 1e-6)
    report = build_report(read_phases(run_root, PHASES))
    assert report.compared_with == {"phase2": "phase1", "phase3": "phase1"}
    assert report.improvement["phase3"]["entered_phase2"] == pytest.approx(0.175)
    assert report.improvement_per_language["phase3"]["swh"] == pytest.approx(0.175)
    assert "improved by 17.5% in phase3: 4.000 bits per byte after phase1, 3.300 after phase3" in summarise(report)[2]
    assert "improvement on phase1</th>" in render_page(report, figure=b"")


def test_tokens_and_shares_of_a_language_add_up_over_sources_and_phases(report: Report) -> None:
    assert report.tokens_per_language == {"deu": 370, "eng": 1100, "swh": 120, "tir": 10}
    third = report.phases[2]
    assert third.planned_share["eng"] == pytest.approx(0.5)
    assert third.realised_share["eng"] == pytest.approx(0.5)
    assert report.phases[0].max_share_deviation == pytest.approx(0.05)


def test_report_json_holds_the_agreed_keys(run_root: Path) -> None:
    run_program(run_root)
    written = json.loads((run_root / "report" / "report.json").read_text())
    assert written["phases"][2] == {
        "name": "phase3",
        "languages": 4,
        "tokens": 100,
        "finished": True,
        "tau": 0.3,
        "mask_rate": 0.05,
        "max_share_deviation": pytest.approx(0),
    }
    assert written["bits_per_byte"]["phase2"]["entered_phase3"] == 8.0
    assert written["tokens_per_language"]["eng"] == 1100
    assert written["hf_max_logit_difference"] == 3e-6
    assert written["bits_per_byte_per_language"]["phase1"]["swh"] == 4.0
    assert written["improvement"]["phase3"]["entered_phase3"] == pytest.approx(0.25)
    assert written["entry_phase"]["swh"] == "phase2"


def test_summary_says_improved_lost_or_unchanged_as_the_numbers_do(report: Report) -> None:
    first, *groups = summarise(report)[:5]
    assert "1,600 tokens of 4 languages" in first
    assert "tau went from 0.7 to 0.3 and the mask rate from 30% to 5%" in first
    assert "2 languages that entered in phase1 did not change in phase3: 2.250" in groups[0]
    assert "1 of 2 have fewer" in groups[0]
    assert "1 language that entered in phase2 lost 10.0% in phase3: 3.000" in groups[1]
    assert "1 language that entered in phase3 improved by 25.0% in phase3: 8.000" in groups[2]
    assert "1 language never trained on lost 10.0%" in groups[3]


@pytest.mark.parametrize(
    "improvement,words",
    [(0.25, "improved by 25.0%"), (-0.031, "lost 3.1%"), (0.0004, "did not change"), (-0.0004, "did not change")],
)
def test_a_change_is_put_in_the_right_words(improvement: float, words: str) -> None:
    assert describe_change(improvement) == words


def test_summary_names_the_worst_share_and_the_worst_conversion(report: Report) -> None:
    assert "5.00 percentage points (phase1)" in " ".join(summarise(report))
    assert "by at most 3.0e-06" in summarise(report)[-1]


def test_summary_opens_with_phases_that_are_not_finished(run_root: Path) -> None:
    write_state(run_root, "phase3", finished=False)
    report = build_report(read_phases(run_root, PHASES))
    assert re.match("Not finished.*: phase3", summarise(report)[0])


def test_page_stands_alone(run_root: Path) -> None:
    run_program(run_root)
    page = (run_root / "report" / "report.html").read_text()
    before, embedded, after = re.split(r"data:image/png;base64,([^\"]+)", page)
    assert not re.search(r"http|//|<link|@import|url\(|src=\"[^\"]", before + after)
    assert base64.b64decode(embedded) == (run_root / "report" / "report.png").read_bytes()
    assert (run_root / "report" / "report.png").read_bytes().startswith(b"\x89PNG")


def test_page_escapes_names_of_languages_and_phases(report: Report) -> None:
    page = render_page(build_report([replace(phase, name=f"<i>{phase.name}") for phase in report.phases]), figure=b"")
    assert not re.search("<b>|<i>", page)
    assert "&lt;b&gt;" in page
    assert "that entered in &lt;i&gt;phase1" in page


def test_page_lists_every_language_with_its_tokens_and_bits(report: Report) -> None:
    page = render_page(report, figure=b"")
    row = re.search(r"<tr><td data-value=\"swh\">.*?</tr>", page)
    assert row is not None
    cells = re.findall(r">([^<>]+)</td>", row[0])
    assert cells == ["swh", "phase2", "0", "100", "20", "4.000", "3.000", "3.300", "-10.0%"]


def test_the_same_run_gives_the_same_files(run_root: Path) -> None:
    run_program(run_root)
    first = {path.name: path.read_bytes() for path in (run_root / "report").iterdir()}
    run_program(run_root)
    assert {path.name: path.read_bytes() for path in (run_root / "report").iterdir()} == first
    assert set(first) == {"report.json", "report.png", "report.html"}


def test_two_phases_are_enough_and_one_is_not(run_root: Path) -> None:
    run_program(run_root, PHASES[:2])
    written = report_as_json(build_report(read_phases(run_root, PHASES[:2])))
    assert "entered_phase3" not in written["bits_per_byte"]["phase2"]
    with pytest.raises(ValueError, match="two or more"):
        build_report(read_phases(run_root, PHASES[:1]))


def write_merged(run_root: Path, finished: bool = True) -> None:
    """What follows from a merge: a finished run of 0 tokens, evaluated."""
    model = torch.nn.Linear(1, 1)
    optimizer = build_optimizer(model, OptimizerConfig(1.0, (0.9, 0.95), 1e-8, 0.0), on_gpu=False)
    state = {**first_state({}, "tokenizer", "0"), "finished": finished}
    save_checkpoint(run_root / "merged", 0, model, optimizer, state)
    weights = {"model.safetensors": "of merged"}
    inputs = {"model": weights, "shards": {"eng": "digest"}, "rows": None}
    languages = {language: {"bits_per_byte": bits / 2} for language, bits in BITS["phase3"].items()}
    write_json(run_root / "merged" / "bits_per_byte.json", {"languages": languages, "inputs": inputs})
    write_conversion(run_root, "merged", 1e-9)


def test_what_was_merged_stands_behind_the_phases_with_what_it_scores(run_root: Path) -> None:
    write_merged(run_root)
    run_program(run_root, [*PHASES, "merged"])
    report = build_report(read_phases(run_root, [*PHASES, "merged"]))
    alone = build_report(read_phases(run_root, PHASES))
    assert report.improvement["merged"] == {group: pytest.approx(0.5) for group in report.groups}
    assert report.groups == alone.groups
    said, said_alone = summarise(report), summarise(alone)
    assert said[0] == said_alone[0]  # 3 phases trained
    assert "improved by 50.0% in merged" in said[1]
    assert "5.00 percentage points (phase1)" in " ".join(said)
    assert report_as_json(report)["phases"][-1] == {
        "name": "merged", "languages": 0, "tokens": 0, "finished": True, "tau": None, "mask_rate": None,
        "max_share_deviation": 0.0,
    }  # fmt: skip
    row = re.search(r"<tr><td data-value=\"merged\">.*?</tr>", render_page(report, figure=b""))
    assert row is not None
    assert re.findall(r">([^<>]+)</td>", row[0]) == ["merged", "0", "yes", "0", "-", "-", "-", "1.0e-09"]


def test_one_trained_phase_beside_what_was_merged_goes_nowhere(run_root: Path) -> None:
    write_merged(run_root)
    said = summarise(build_report(read_phases(run_root, ["merged", "phase3"])))[0]
    assert said == "phase3 trained on 100 tokens of 4 languages, and ended at a tau of 0.3 and a mask rate of 5%."


def test_a_phase_that_has_not_trained_yet_is_no_merge(run_root: Path) -> None:
    write_merged(run_root, finished=False)
    assert "has a checkpoint of 0 tokens; train the phase first" in fail_with(run_root, ["phase1", "merged"])


def test_a_missing_phase_is_named_with_those_that_exist(run_root: Path) -> None:
    assert "phase phase4 is missing" in fail_with(run_root, ["phase1", "phase4"])
    assert "phase1, phase2, phase3" in fail_with(run_root, ["phase1", "phase4"])


def test_a_missing_file_is_named_with_the_program_that_writes_it(run_root: Path) -> None:
    (run_root / "phase2" / "hf" / "conversion.json").unlink()
    assert re.search(r"phase2/hf/conversion.json is missing; .*convert_to_hf", fail_with(run_root))
    (run_root / "phase2" / "bits_per_byte.json").unlink()
    assert re.search(r"phase2/bits_per_byte.json is missing; .*bits_per_byte", fail_with(run_root))


def test_a_phase_without_checkpoint_is_refused(run_root: Path) -> None:
    (run_root / "phase2" / "step-0000000001" / "manifest.json").unlink()
    assert "phase2" in fail_with(run_root)


def test_a_score_of_an_earlier_checkpoint_is_not_told_as_a_finished_phases(run_root: Path) -> None:
    write_state(run_root, "phase3")  # with weights that are not those of the conversion
    said = fail_with(run_root)
    assert "phase3/hf was converted from" in said
    assert re.search(r"run .*convert_to_hf again, and then .*bits_per_byte$", said)
    write_json(run_root / "phase3" / "hf" / "conversion.json", {"model_sha256": "of another", "checkpoint_sha256": ""})
    assert "phase3/bits_per_byte.json was measured on another model than" in fail_with(run_root)


def test_evaluations_of_other_rows_are_not_compared(run_root: Path) -> None:
    path = run_root / "phase2" / "bits_per_byte.json"
    evaluation = json.loads(path.read_text())
    write_json(path, {**evaluation, "inputs": {**evaluation["inputs"], "rows": 1}})
    assert "measured with other rows than phase1's" in fail_with(run_root)
