"""A merge is what its formulas say, a run like any other, there whole or not at all."""
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch

from mmbert import convert_to_hf, merge, merging
from mmbert.checkpoint import load_moments, newest_checkpoint, read_state
from mmbert.config import OptimizerConfig, load_config
from mmbert.file_contents import sha256_of
from mmbert.ledger import Ledger
from mmbert.merge import group_of, main
from mmbert.merge_config import load_merge
from mmbert.merge_inputs import is_merged
from mmbert.model import MmBertForMaskedLM
from mmbert.optim import build_optimizer
from mmbert.run_report.phase_run import phase_folders
from mmbert.tokenizer import load_tokenizer
from tests.conftest import Corpus, Finished
from tests.merges import DECAYS, MEAN, TIES, change_state, damage, refused, weights, write
from tests.published_models import weights_of
from tests.tiny_checkpoints import content_of, in_child
from tests.tiny_runs import ENCODER, save_run
from tests.training_runs import prepare, train


# ---------------------------------------------------------------------------------------------------------- the result
def test_ties_of_runs_is_ties_of_each_of_their_tensors(runs: Path, tmp_path: Path) -> None:
    main([str(write(tmp_path, TIES))])
    base, *decays = (weights(newest_checkpoint(runs / name)) for name in ("phase2", *DECAYS))
    merged = weights(runs / "merged" / "step-0000000000")
    assert merged.keys() == base.keys()
    for name, tensor in merged.items():
        expected = merging.ties(base[name], [decay[name] for decay in decays], [1.0, 2.0, 1.5], 0.3, 0.8)
        assert torch.equal(tensor, expected), name
        assert not torch.equal(tensor, base[name])


def test_the_order_in_which_runs_are_written_does_not_matter(runs: Path, tmp_path: Path) -> None:
    main([str(write(tmp_path, TIES))])
    first = content_of(runs / "merged")
    shutil.rmtree(runs / "merged")
    main([str(write(tmp_path, TIES.replace("eng: 1.0, cont: 2.0, all: 1.5", "all: 1.5, eng: 1.0, cont: 2.0")))])
    assert content_of(runs / "merged") == first


def test_a_mean_is_over_all_checkpoints_of_a_run_and_the_newest_weighs_most(runs: Path, tmp_path: Path) -> None:
    main([str(write(tmp_path, MEAN))])
    kept = [weights(runs / "all" / f"step-{step:010d}") for step in (2, 4, 8)]
    for name, tensor in weights(newest_checkpoint(runs / "merged")).items():
        mean = sum(weight * each[name].double() for weight, each in zip((1 / 7, 2 / 7, 4 / 7), kept, strict=True))
        torch.testing.assert_close(tensor, mean.float(), rtol=1e-7, atol=0)


def test_a_mean_is_the_same_wherever_the_run_was_stopped(tmp_path: Path, corpus: Corpus) -> None:
    """A checkpoint is due at every second step; those of steps 1, 3 and 5 were saved by a stop."""
    merged = []
    for steps in ((2, 4, 6, 7), range(1, 8)):
        folder = tmp_path / str(len(steps))
        save_run(folder / "runs", "all", 3, corpus.tokenizer, steps)
        main([str(write(folder, MEAN))])
        merged.append(json.loads((folder / "runs" / "merged" / "merge.json").read_text()))
    assert merged[0] == merged[1]
    assert [each["step"] for each in merged[0]["inputs"]] == [2, 4, 6, 7]


def test_a_mean_leaves_out_the_checkpoints_of_a_spike_that_the_run_went_back_from(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    newest = newest_checkpoint(runs / "all")
    change_state(newest, lambda state: state.update(callbacks={"SpikeRollback": {"num_rollbacks": 1}}))
    path = write(tmp_path, MEAN)
    refused(path, "ledger.jsonl is missing")
    ledger = Ledger(runs / "all")
    ledger.event("rolled_back", {"step": 5, "to_step": 2})
    ledger.flush(durable=False)
    main([str(path)])
    assert re.findall(r"all/step-\d+", capsys.readouterr().out) == ["all/step-0000000002", "all/step-0000000008"]
    assert is_merged(load_merge(path))


def test_one_checkpoint_of_a_run_may_be_named_also_of_an_unfinished_one(runs: Path, tmp_path: Path) -> None:
    change_state(newest_checkpoint(runs / "all"), lambda state: state.update(finished=False))
    path = write(tmp_path, "ties: {base: phase2, runs: {eng: 1, all/step-0000000004: 1}, density: 1, scale: 1}")
    main([str(path)])
    base, eng, chosen = (
        weights(runs / folder) for folder in ("phase2/step-0000000008", "eng/step-0000000008", "all/step-0000000004")
    )
    for name, tensor in weights(newest_checkpoint(runs / "merged")).items():
        assert torch.equal(tensor, merging.ties(base[name], [chosen[name], eng[name]], [1.0, 1.0], 1.0, 1.0))


def test_the_result_is_a_finished_run_that_has_trained_on_nothing(runs: Path, tmp_path: Path, corpus: Corpus) -> None:
    main([str(write(tmp_path, TIES))])
    checkpoint = newest_checkpoint(runs / "merged")
    state, tokenizer = read_state(checkpoint), load_tokenizer(corpus.tokenizer)
    assert (state["finished"], state["tokens"]) == (True, 0)
    assert (state["config"]["tokenizer"], state["identity"]) == (
        str(corpus.tokenizer), {"tokenizer.digest": tokenizer.digest},
    )  # fmt: skip
    model = MmBertForMaskedLM(ENCODER)
    optimizer = build_optimizer(model, OptimizerConfig(1e-3, (0.9, 0.95), 1e-8, 0.0), on_gpu=False)
    load_moments(checkpoint, model, optimizer)
    assert not any(moments["exp_avg"].any() or moments["exp_avg_sq"].any() for moments in optimizer.state.values())


def test_merge_json_says_what_it_was_made_from_and_how_far_the_runs_agree(runs: Path, tmp_path: Path) -> None:
    main([str(write(tmp_path, TIES))])
    record = json.loads((runs / "merged" / "merge.json").read_text())
    assert (record["method"], record["settings"]) == ("ties", {"density": 0.3, "scale": 0.8})
    assert record["inputs"] == [
        {
            "checkpoint": f"{name}/step-0000000008", "step": 8, "weight": weight,
            "manifest_sha256": sha256_of(runs / name / "step-0000000008" / "manifest.json"),
        }
        for name, weight in (("phase2", None), ("all", 1.5), ("cont", 2.0), ("eng", 1.0))
    ]  # fmt: skip
    groups = record["agreement"]
    assert groups.keys() == {
        "all", "embeddings.tok_embeddings", "embeddings.norm", "attn_norm", "attn.Wqkv", "attn.Wo", "mlp_norm",
        "mlp.Wi", "mlp.Wo", "final_norm", "head.dense", "head.norm", "decoder.bias",
    }  # fmt: skip
    changed = sum(tensor.numel() for tensor in weights(newest_checkpoint(runs / "all")).values())
    assert groups["all"]["num_changed"] == changed
    assert sum(group["num_changed"] for group in groups.values()) == 2 * changed  # "all" is one of the groups
    assert groups["all"]["same_sign"] == pytest.approx(0.25, abs=0.02)  # the changes are independent
    assert groups["attn.Wqkv"]["cosine"].keys() == {
        "all/step-0000000008 cont/step-0000000008", "all/step-0000000008 eng/step-0000000008",
        "cont/step-0000000008 eng/step-0000000008",
    }  # fmt: skip
    assert record["versions"].keys() == {"python", "mmbert", "torch", "numpy", "safetensors"}
    assert record["versions"]["torch"] == version("torch")


def test_the_program_tells_the_result_in_a_few_lines(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main([str(write(tmp_path, TIES)), "ties.density=0.5"])
    told = capsys.readouterr().out
    assert f"{runs / 'merged'}: ties, density 0.5, scale 0.8" in told
    assert "phase2/step-0000000008: base" in told
    assert re.search(r"in the same direction: 2\d\.\d% \(25\.0% by chance\)", told)
    assert told.count("cosine") == 3


@pytest.mark.parametrize("name, group", [
    ("model.layers.11.attn.Wqkv.weight", "attn.Wqkv"), ("model.final_norm.weight", "final_norm"),
    ("decoder.bias", "decoder.bias"), ("model.embeddings.tok_embeddings.weight", "embeddings.tok_embeddings"),
])  # fmt: skip
def test_tensors_of_one_kind_are_one_group(name: str, group: str) -> None:
    assert group_of(name) == group


# ------------------------------------------------------------------------------------------------------ as a run
def test_training_goes_on_from_a_merge_of_trained_runs_and_its_conversion_gives_the_same_logits(
    finished: Finished, corpus: Corpus, tmp_path: Path
) -> None:
    """Of real runs: phase 3 and a checkpoint on its way onto phase 2, and a phase 3 that continues from that."""
    trained = finished[0] / "runs"
    yaml = prepare(tmp_path / "it", corpus, "phase3", {"phase2": trained / "phase2", "phase3": trained / "phase3"})
    older = sorted((trained / "phase3").glob("step-*"))[0].name
    path = write(yaml.parent, f"ties: {{base: phase2, runs: {{phase3: 1, phase3/{older}: 1}}, density: 0.5, scale: 1}}")
    main([str(path)])
    merged = yaml.parent / "runs" / "merged"
    convert_to_hf.main(["--checkpoint", str(merged), "--output", str(merged / "hf")])
    assert json.loads((merged / "hf" / "conversion.json").read_text())["hf_max_logit_difference"] < 1e-9
    assert is_merged(load_merge(path))

    outcome = train([yaml, "parent=merged", "name=more", "duration=1000"], tmp_path / "steps.jsonl")
    assert outcome.exit_code == 0, outcome.output
    assert f"starting from the parent's {merged / 'step-0000000000'}" in outcome.output
    assert outcome.steps[0]["optimizer_step"] == 1

    assert [folder.name for folder in phase_folders(yaml.parent / "runs")] == ["more", "phase2", "phase3"]
    with pytest.raises(FileNotFoundError, match="name a run's folder"):
        phase_folders(merged)


def test_a_merge_is_no_phase(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"is no phase but a merge: python -m mmbert\.merge"):
        load_config(write(tmp_path, MEAN))


def test_a_phase_is_no_merge() -> None:
    with pytest.raises(ValueError, match=r"demo/phase1\.yaml is no merge but a phase: composer main\.py yamls/demo"):
        load_merge("yamls/demo/phase1.yaml")


# ------------------------------------------------------------------------------------------- again, and half-way
@pytest.mark.parametrize("method", [TIES, MEAN])
def test_the_same_command_again_does_nothing(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], method: str
) -> None:
    path = write(tmp_path, method)
    assert not is_merged(load_merge(path))
    main([str(path)])
    assert is_merged(load_merge(path))
    before = {file: file.stat().st_mtime_ns for file in runs.rglob("*")}
    capsys.readouterr()
    main([str(path)])
    assert capsys.readouterr().out == f"{runs / 'merged'} is done\n"
    assert {file: file.stat().st_mtime_ns for file in runs.rglob("*")} == before


CHANGES = {
    "density": (["ties.density=0.4"], "settings was .*0.3.* is .*0.4"),
    "weight": (["ties.runs.eng=3"], "eng/step-0000000008 was changed"),
    "base": (["ties.base=phase2/step-0000000004"], "phase2/step-0000000004 is new"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_other_settings_than_those_of_the_merge_that_is_there_are_refused(
    runs: Path, tmp_path: Path, corpus: Corpus, change: str
) -> None:
    overrides, message = CHANGES[change]
    save_run(runs, "phase2", 0, corpus.tokenizer, (4, 8), config={"parent": "phase1"})
    path = write(tmp_path, TIES)
    main([str(path)])
    refused(path, f"merged was merged from other inputs or settings: {message}.*another `name`", *overrides)
    with pytest.raises(ValueError, match=message):
        is_merged(load_merge(path, overrides))


def test_a_run_that_changed_since_is_refused_and_without_it_nobody_knows(
    runs: Path, tmp_path: Path, corpus: Corpus
) -> None:
    path = write(tmp_path, TIES)
    main([str(path)])
    shutil.rmtree(runs / "eng")
    assert not is_merged(load_merge(path))
    save_run(runs, "eng", 9, corpus.tokenizer, config={"parent": "phase2"})
    refused(path, "eng/step-0000000008 was changed; give this merge another `name`, or move that folder away")
    with pytest.raises(ValueError, match="eng/step-0000000008 was changed"):
        is_merged(load_merge(path))


def test_a_checkpoint_more_or_less_is_another_mean(runs: Path, tmp_path: Path) -> None:
    path = write(tmp_path, MEAN)
    main([str(path)])
    shutil.rmtree(runs / "all" / "step-0000000002")
    with pytest.raises(ValueError, match="all/step-0000000004 was changed"):
        is_merged(load_merge(path))
    refused(path, "was merged from other inputs or settings: all/step-0000000004 was changed")


def test_a_folder_that_is_no_merge_is_left_alone(runs: Path, tmp_path: Path) -> None:
    refused(write(tmp_path, TIES), "runs/cont exists and is no merge; give this merge another `name`", "name=cont")


def test_a_damaged_merge_is_not_taken_for_done(runs: Path, tmp_path: Path) -> None:
    path = write(tmp_path, TIES)
    main([str(path)])
    damage(newest_checkpoint(runs / "merged") / "model.safetensors")
    refused(path, "none of its 1 checkpoints is whole")


@pytest.mark.parametrize("place", ["merged_tensor", "untrained_run"])
def test_a_kill_leaves_no_run_and_the_next_merge_is_whole(runs: Path, tmp_path: Path, place: str) -> None:
    path = write(tmp_path, TIES)

    def kill(*_: Any) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def work() -> None:
        if place == "merged_tensor":
            merge.merged_tensor = kill  # type: ignore[assignment]
        else:
            from mmbert import untrained_run

            untrained_run.publish_folder = kill  # type: ignore[assignment]
        main([str(path)])

    before = sorted(os.listdir(runs))
    assert in_child(work) == -signal.SIGKILL
    assert sorted(name for name in os.listdir(runs) if not name.startswith(".")) == before
    main([str(path)])
    assert sorted(os.listdir(runs)) == sorted([*before, "merged"])
    assert is_merged(load_merge(path))


def test_an_error_on_the_way_leaves_nothing(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("mmbert.checkpoint.write_tensors", full)
    refused(write(tmp_path, TIES), "No space left on device")


# --------------------------------------------------------------------------------------------------------- mergekit
def mergekit() -> list[str]:
    """How to call mergekit-yaml, wherever it is; it needs other versions than ours, so mostly in a venv of its own."""
    if named := os.environ.get("MERGEKIT"):
        return [named]
    if importlib.util.find_spec("mergekit"):
        return [sys.executable, "-m", "mergekit.scripts.run_yaml"]
    pytest.skip("no mergekit: name the mergekit-yaml of a venv with mergekit==0.1.4 in MERGEKIT")


@pytest.mark.parametrize("method", [TIES, MEAN])
def test_mergekit_gives_the_same(runs: Path, tmp_path: Path, method: str) -> None:
    command = mergekit()
    main([str(write(tmp_path, method))])
    record = json.loads((runs / "merged" / "merge.json").read_text())
    models = []
    for number, each in enumerate(record["inputs"]):
        folder = tmp_path / f"hf-{number}"
        convert_to_hf.main(["--checkpoint", str(runs / each["checkpoint"]), "--output", str(folder)])
        parameters = {} if each["weight"] is None else {"parameters": {"weight": each["weight"]}}
        models.append({"model": str(folder), **parameters})
    settings: dict[str, Any] = {"models": models, "dtype": "float32", "merge_method": "linear"}
    if record["method"] == "ties":
        for model in models[1:]:
            model["parameters"]["density"] = record["settings"]["density"]
        settings |= {
            "merge_method": "ties", "base_model": models.pop(0)["model"],
            "parameters": {"normalize": True, "lambda": record["settings"]["scale"]},
        }  # fmt: skip
    (tmp_path / "mergekit.yaml").write_text(json.dumps(settings))
    subprocess.run([*command, str(tmp_path / "mergekit.yaml"), str(tmp_path / "out")], check=True, timeout=300)
    theirs = weights_of(tmp_path / "out")
    ours = weights(newest_checkpoint(runs / "merged"))
    assert theirs.keys() == ours.keys()
    furthest = max(float((ours[name] - theirs[name]).abs().max()) for name in ours)
    print(f"mergekit, {record['method']}: largest difference of a weight {furthest:.2e}")
    assert furthest < 5e-7
