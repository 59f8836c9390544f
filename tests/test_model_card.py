"""The model card of a converted folder says what was trained on what, and no more than the checkpoints know."""
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from mmbert import convert_to_hf, merge
from mmbert.checkpoint import newest_checkpoint, read_state
from mmbert.config import ModelConfig
from mmbert.data_config import GroupConfig
from mmbert.model_card import has_several, model_card
from tests.conftest import PHASES, Corpus, Finished
from tests.merges import change_state
from tests.tiny_runs import ENCODER, save_run


@pytest.fixture
def phases(finished: Finished, tmp_path: Path) -> Path:
    """A copy of the three phases' run folders."""
    return shutil.copytree(finished[0] / "runs", tmp_path / "runs")


def card_of(run: Path, **model: Any) -> str:
    return model_card(newest_checkpoint(run), ModelConfig(**{**vars(ENCODER), **model}), "<mask>", "hf")


def tables(card: str) -> list[dict[str, dict[str, str]]]:
    """First cell -> head -> cell, of each table."""
    found = []
    for block in re.findall(r"(?:^\|.*\n)+", card, re.MULTILINE):
        head, _, *rows = ([cell.strip() for cell in line.strip("|\n").split(" | ")] for line in block.splitlines())
        found.append({row[0]: dict(zip(head, row, strict=True)) for row in rows})
    return found


def metadata(card: str) -> dict[str, Any]:
    """Between its first two lines of dashes, as the hub reads it."""
    return dict(yaml.safe_load(card.split("---\n")[1]))


def facts(card: str) -> list[str]:
    return re.findall(r"^- (.*)\.$", card.split("## Training")[1], re.MULTILINE)


def test_card_tells_every_run_and_the_tokens_of_each_language_in_it(phases: Path) -> None:
    card = card_of(phases / "phase3")
    runs, languages = tables(card)
    states = {name: read_state(newest_checkpoint(phases / name)) for name in PHASES}
    assert list(runs) == list(PHASES)
    assert runs["phase1"] == {
        "run": "phase1", "tokens": f"{states['phase1']['tokens'] / 1000:.4g}K", "languages": "2",
        "rows x length": "4 x 64", "mask rate": "0.3", "tau": "0.7", "learning rate": "0.003",
    }  # fmt: skip
    assert runs["phase3"]["mask rate"] == "0.15 to 0.05, linear"
    assert runs["phase3"]["tau"] == "0.5 to 0.3, linear; 0.3"
    assert runs["phase3"]["learning rate"] == "0.001, at the end 2e-05"
    assert [runs[name]["languages"] for name in PHASES] == ["2", "4", "6"]
    for name, state in states.items():
        told = {code: row[name] for code, row in languages.items()}
        counted = {stream.partition("/")[2]: tokens for stream, tokens in state["tokens_per_stream"].items()}
        assert told == {code: f"{counted[code]:,}" if code in counted else "-" for code in languages}
    assert list(languages) == [f"la{letter}" for letter in "abcdef"]
    assert facts(card) == [
        "`phase1` began with random weights", "`phase2` went on from `phase1`", "`phase3` went on from `phase2`"
    ]  # fmt: skip
    assert metadata(card) == {
        "library_name": "transformers", "pipeline_tag": "fill-mask", "tags": ["modernbert"],
        "language": [f"la{letter}" for letter in "abcdef"],
    }  # fmt: skip


def test_runs_of_which_nothing_is_known_are_named(phases: Path) -> None:
    shutil.rmtree(phases / "phase1")
    card = card_of(phases / "phase3")
    assert list(tables(card)[0]) == ["phase2", "phase3"]
    assert facts(card)[0] == "what `phase1` was trained on is not known here"


def test_parent_that_was_trained_anew_is_not_told_for_the_one_that_was_gone_on_from(phases: Path) -> None:
    other = newest_checkpoint(phases / "phase2")
    shutil.rmtree(phases / "phase1")
    (phases / "phase1").mkdir()
    shutil.copytree(other, phases / "phase1" / other.name)
    card = card_of(phases / "phase2")
    assert list(tables(card)[0]) == ["phase2"]
    assert facts(card) == ["what `phase1` was trained on is not known here", "`phase2` went on from `phase1`"]


def test_broken_parent_and_one_of_another_version_do_not_keep_a_model_from_being_converted(phases: Path) -> None:
    (newest_checkpoint(phases / "phase1") / "state.json").write_text("{}")
    assert facts(card_of(phases / "phase2"))[0] == "what `phase1` was trained on is not known here"
    change_state(newest_checkpoint(phases / "phase2"), lambda state: state["config"].update(new_key=1))
    card = card_of(phases / "phase2")
    assert tables(card) == []
    assert facts(card) == ["what `phase2` was trained on is not known here"]


def test_unfinished_run_is_told(phases: Path) -> None:
    change_state(newest_checkpoint(phases / "phase1"), lambda state: state.update(finished=False, tokens=2500))
    card = card_of(phases / "phase1")
    assert facts(card)[-1] == "`phase1` is unfinished: 2,500 of 5,000 tokens"
    assert tables(card)[0]["phase1"]["tokens"] == "2.5K"


def test_merge_tells_the_runs_of_all_that_it_is_made_of(phases: Path, tmp_path: Path) -> None:
    shutil.copytree(phases / "phase3", phases / "other")
    change_state(newest_checkpoint(phases / "other"), lambda state: state["config"].update(name="other"))
    ties = "ties: {base: phase2, runs: {phase3: 1.0, other: 1.0}, density: 0.3, scale: 0.8}"
    (tmp_path / "merge.yaml").write_text(f"name: merged\nrun_root: {phases}\n{ties}\n")
    merge.main([str(tmp_path / "merge.yaml")])
    card = card_of(phases / "merged")
    assert list(tables(card)[0]) == ["phase1", "phase2", "other", "phase3"]
    steps = {name: newest_checkpoint(phases / name).name for name in ("phase2", "other", "phase3")}
    made_of = ", ".join(f"`{name}/{step}`" for name, step in steps.items())
    assert facts(card)[-1] == f"`merged` is a merge (ties, density 0.3, scale 0.8) of {made_of}"


def test_mean_of_a_run_tells_it_once_as_its_newest_checkpoint_has_it(phases: Path, tmp_path: Path) -> None:
    mean = "exponential: {run: phase1, ratio: 0.5}"
    (tmp_path / "merge.yaml").write_text(f"name: merged\nrun_root: {phases}\n{mean}\n")
    merge.main([str(tmp_path / "merge.yaml")])
    card = card_of(phases / "merged")
    assert len(list(phases.glob("phase1/step-*"))) == 2
    assert tables(card)[0].keys() == {"phase1"}
    assert not any("unfinished" in fact for fact in facts(card))
    shutil.rmtree(newest_checkpoint(phases / "phase1"))
    gone = facts(card_of(phases / "merged"))
    assert re.fullmatch(r"what `phase1/step-[0-9]+` was trained on is not known here", gone[0])


def test_import_is_named_without_the_place_where_it_lay(tmp_path: Path, corpus: Corpus) -> None:
    run = save_run(tmp_path, "published", 0, corpus.tokenizer)
    (run / "import.json").write_text(json.dumps({"model": "/home/somebody/mmBERT-base"}))
    card = card_of(run)
    assert facts(card) == ["`published` was imported from a Hugging Face folder, `mmBERT-base`"]
    assert "somebody" not in card
    assert "language" not in metadata(card)


def test_languages_are_codes_that_the_hub_knows_and_no_truths_of_yaml(phases: Path) -> None:
    names = {"a/yes": 5, "b/yes": 2, "a/uzn_cyrl": 3, "a/code": 1, "a/a_long_name": 4, "a/none": 0, "a/nan": 7}
    change_state(newest_checkpoint(phases / "phase1"), lambda state: state.update(tokens_per_stream=names))
    card = card_of(phases / "phase1")
    assert metadata(card)["language"] == ["code", "nan", "uzn", "yes"]
    languages = tables(card)[1]
    assert {code: row["phase1"] for code, row in languages.items()} == {
        "a_long_name": "4", "code": "1", "nan": "7", "uzn_cyrl": "3", "yes": "7"
    }  # fmt: skip
    assert (languages["uzn_cyrl"]["name"], languages["uzn_cyrl"]["script"]) == ("Northern Uzbek", "Cyrl")


def test_names_do_not_break_a_table(phases: Path) -> None:
    shutil.copytree(phases / "phase1", phases / "a | b")
    assert "| a \\| b |" in card_of(phases / "a | b")


def test_tau_counts_where_a_group_may_have_several_languages() -> None:
    groups = {"one": ["eng"], "file": ["yamls/languages/phase1.txt"], "two": ["fao", "isl"]}
    assert [name for name, codes in groups.items() if has_several(GroupConfig("s", codes, 1.0))] == ["file", "two"]


def test_converted_folder_has_the_card_of_its_model(finished: Finished, tmp_path: Path, corpus: Corpus) -> None:
    run = finished[0] / "runs" / "phase3"
    output = tmp_path / "my-model"
    convert_to_hf.main(["--checkpoint", str(run), "--output", str(output)])
    card = (output / "README.md").read_text()
    config = ModelConfig(**read_state(newest_checkpoint(run))["config"]["model"])
    assert card == model_card(newest_checkpoint(run), config, "<mask>", "my-model")
    model, _ = convert_to_hf.load_checkpoint(newest_checkpoint(run), None)
    parameters = sum(tensor.numel() for tensor in model.parameters())
    assert "# phase3\n\nAn encoder, ModernBERT, for masked language modelling: 3 layers of 32 channels" in card
    assert f"channels, {parameters:,} parameters,\n512 entries in the vocabulary, texts of up to 128 tokens." in card
    assert 'pipeline("fill-mask", model="my-model")' in card
    assert 'fill_mask("... <mask> ...")' in card


def test_card_that_somebody_wrote_in_is_not_replaced(tmp_path: Path, corpus: Corpus) -> None:
    run = save_run(tmp_path, "run", 0, corpus.tokenizer, steps=(4, 8))
    output = tmp_path / "hf"
    convert_to_hf.main(["--checkpoint", str(run / "step-0000000004"), "--output", str(output)])
    (output / "README.md").write_text("license: mit\n")
    with pytest.raises(SystemExit, match=r"error: .*README.md was changed, and would be replaced; move it away"):
        convert_to_hf.main(["--checkpoint", str(run), "--output", str(output)])
    assert (output / "README.md").read_text() == "license: mit\n"
    convert_to_hf.main(["--checkpoint", str(run / "step-0000000004"), "--output", str(output)])  # up to date
    (output / "README.md").rename(tmp_path / "mine.md")
    convert_to_hf.main(["--checkpoint", str(run), "--output", str(output)])
    assert "# run\n" in (output / "README.md").read_text()
