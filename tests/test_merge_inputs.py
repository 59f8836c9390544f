"""Which runs are refused for a merge, and which may be merged."""
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from mmbert.checkpoint import FILES, newest_checkpoint, read_state, weights_sha256
from mmbert.merge import main
from tests.conftest import Corpus
from tests.merges import MEAN, TIES, change_state, damage, refused, sign, weights, write
from tests.tiny_runs import save_run

# ------------------------------------------------------------------------------------------------------------ refusals
REFUSALS: dict[str, tuple[list[str], str]] = {
    "no such base": (["ties.base=phase4"], r"ties\.base: .*phase4 is no run .*; there are all, cont, eng, phase2$"),
    "no such checkpoint": (
        ["ties.base=phase2/step-0000000009"], r"ties\.base: .* is not there; there are step-0000000008$",
    ),
    "one twice": (
        ["ties.runs.eng/step-0000000008=1"], r"ties\.runs names eng/step-0000000008 twice; take one out",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSALS)
def test_entries_that_name_nothing_or_the_same_are_refused(runs: Path, tmp_path: Path, case: str) -> None:
    overrides, message = REFUSALS[case]
    refused(write(tmp_path, TIES), message, *overrides)


def test_an_unfinished_run_is_refused_with_the_name_of_its_newest_checkpoint(runs: Path, tmp_path: Path) -> None:
    change_state(newest_checkpoint(runs / "eng"), lambda state: state.update(finished=False))
    refused(
        write(tmp_path, TIES), r"ties\.runs: eng is unfinished: 800 of 1,000 tokens; .*checkpoint: eng/step-0000000008"
    )


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("run", ["phase2", "all"])
def test_a_damaged_checkpoint_is_refused(runs: Path, tmp_path: Path, run: str, file: str) -> None:
    damage(newest_checkpoint(runs / run) / file)
    refused(write(tmp_path, TIES), rf"{run}.*({file}.* its sha256 does not fit.*bring it back|no JSON)")


def test_a_damaged_checkpoint_is_not_left_out_of_a_mean(runs: Path, tmp_path: Path) -> None:
    damage(runs / "all" / "step-0000000002" / "model.safetensors")
    refused(write(tmp_path, MEAN), "all/step-0000000002 is not whole.*rename its folder to merge without it")
    (runs / "all" / "step-0000000002").rename(runs / "all" / "broken-step-0000000002")
    main([str(write(tmp_path, MEAN))])


def test_a_mean_of_one_checkpoint_is_refused(runs: Path, tmp_path: Path) -> None:
    refused(write(tmp_path, MEAN), "eng holds one checkpoint.*larger checkpoint.keep", "exponential.run=eng")


def test_runs_of_two_tokenizers_are_refused(runs: Path, tmp_path: Path) -> None:
    change_state(newest_checkpoint(runs / "eng"), lambda state: state["identity"].update({"tokenizer.digest": "other"}))
    refused(write(tmp_path, TIES), "eng/step-0000000008 has another tokenizer than phase2/step-0000000008")


@pytest.mark.parametrize("change", [{"norm_eps": 1e-6}, {"global_rope_theta": 1e4}, {"num_hidden_layers": 2}])
def test_runs_of_two_models_are_refused(runs: Path, tmp_path: Path, corpus: Corpus, change: dict[str, Any]) -> None:
    shutil.rmtree(runs / "eng")
    save_run(runs, "eng", 1, corpus.tokenizer, config={"parent": "phase2"}, model=change)
    refused(write(tmp_path, TIES), rf"eng/\S+ is another model than phase2/\S+: model\.{next(iter(change))} is .*there")


@pytest.mark.parametrize(
    "change",
    [
        {"attention": "flash_attn"}, {"attn_out_dropout": 0.0}, {"initializer_range": 0.1},
        {"initializer_cutoff_factor": 3.0},
    ],
    ids=str,
)  # fmt: skip
def test_what_trained_weights_do_not_depend_on_makes_no_other_model(
    runs: Path, tmp_path: Path, change: dict[str, Any]
) -> None:
    """A decay without dropout, say; or runs with our initializer, behind a published model with its own."""
    path = write(tmp_path, TIES)
    main([str(path), "name=same"])
    change_state(newest_checkpoint(runs / "eng"), lambda state: state["config"]["model"].update(change))
    main([str(path)])
    states = [read_state(newest_checkpoint(runs / name)) for name in ("phase2", "merged")]
    assert states[1]["config"]["model"] == {**states[0]["config"]["model"], "attention": "cpu"}
    same, merged = (weights(newest_checkpoint(runs / name)) for name in ("same", "merged"))
    assert all(torch.equal(tensor, same[name]) for name, tensor in merged.items())


def test_other_tensors_than_the_models_are_refused(runs: Path, tmp_path: Path) -> None:
    checkpoint = newest_checkpoint(runs / "eng")
    tensors = {"more": torch.zeros(1), **weights(checkpoint)}
    save_file(tensors, checkpoint / "model.safetensors", metadata={"format": "pt"})
    sign(checkpoint)
    refused(write(tmp_path, TIES), "eng.*does not fit the model: more is F32")


def test_a_weight_that_is_not_finite_is_refused(runs: Path, tmp_path: Path) -> None:
    checkpoint = newest_checkpoint(runs / "eng")
    tensors = weights(checkpoint)
    tensors["decoder.bias"][3] = float("nan")
    save_file(tensors, checkpoint / "model.safetensors", metadata={"format": "pt"})
    sign(checkpoint)
    refused(write(tmp_path, TIES), "eng.*decoder.bias holds NaN or infinity; take another checkpoint")


def test_a_result_that_is_not_finite_is_refused(runs: Path, tmp_path: Path) -> None:
    refused(write(tmp_path, TIES), "holds NaN or infinity; nothing is written. Lower ties.scale", "ties.scale=1e300")


# --------------------------------------------------------------------------------------------------------- descent
def test_a_run_from_elsewhere_is_refused(runs: Path, tmp_path: Path) -> None:
    change_state(newest_checkpoint(runs / "eng"), lambda state: state["config"].update(parent="phase1"))
    refused(
        write(tmp_path, TIES),
        r"whether eng/\S+ goes back to ties\.base = phase2 is not known: its parents are phase1, and \S+1 holds no",
    )
    change_state(newest_checkpoint(runs / "eng"), lambda state: state["config"].update(parent=None))
    refused(
        write(tmp_path, TIES),
        r"eng/\S+ does not go back to ties\.base = phase2: its parents are None; name the run .* as ties\.base",
    )


def test_a_run_from_elsewhere_through_others_is_refused(runs: Path, tmp_path: Path) -> None:
    change_state(newest_checkpoint(runs / "eng"), lambda state: state["config"].update(parent="cont"))
    change_state(newest_checkpoint(runs / "cont"), lambda state: state["config"].update(parent="all"))
    change_state(newest_checkpoint(runs / "all"), lambda state: state["config"].update(parent=None))
    path = write(tmp_path, "ties: {base: phase2, runs: {eng: 1, eng/step-0000000004: 1}, density: 1, scale: 1}")
    shutil.copytree(runs / "phase2" / "step-0000000008", runs / "eng" / "step-0000000004")
    change_state(runs / "eng" / "step-0000000004", lambda state: state.update(step=4))
    refused(path, "eng/step-0000000008 does not go back to ties.base = phase2: its parents are cont, all, None")


def test_a_run_whose_parent_was_trained_anew_from_it_is_refused(runs: Path, tmp_path: Path) -> None:
    change_state(newest_checkpoint(runs / "eng"), lambda state: state["config"].update(parent="cont"))
    change_state(newest_checkpoint(runs / "cont"), lambda state: state["config"].update(parent="eng"))
    refused(write(tmp_path, TIES), r"does not go back to ties\.base = phase2: its parents are eng, cont;")


def test_a_run_whose_parent_was_trained_anew_is_refused(runs: Path, tmp_path: Path, corpus: Corpus) -> None:
    """What the base is now, it did not begin with, itself or the one between."""
    began = {"Checkpointing": {"parent_weights": weights_sha256(runs / "phase2")}}
    change_state(newest_checkpoint(runs / "cont"), lambda state: state.update(callbacks=began))
    change_state(newest_checkpoint(runs / "eng"), lambda state: state["config"].update(parent="cont"))
    path = write(tmp_path, "ties: {base: phase2, runs: {all: 1, eng: 1}, density: 1, scale: 1}")
    main([str(path), "name=before"])
    shutil.rmtree(runs / "phase2")
    save_run(runs, "phase2", 7, corpus.tokenizer, config={"parent": "phase1"})
    refused(path, "runs/cont began with other weights than phase2 has now: that was trained anew")


def test_a_run_may_descend_from_the_base_through_others(runs: Path, tmp_path: Path) -> None:
    change_state(newest_checkpoint(runs / "eng"), lambda state: state["config"].update(parent="cont"))
    main([str(write(tmp_path, TIES))])


def test_of_an_imported_or_merged_run_the_origin_is_not_known(runs: Path, tmp_path: Path) -> None:
    change_state(newest_checkpoint(runs / "eng"), lambda state: state["config"].pop("parent"))
    main([str(write(tmp_path, TIES))])
