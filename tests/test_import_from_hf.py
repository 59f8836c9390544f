"""A published model becomes a run bit for bit, training continues from it, and what is not ours is refused."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForMaskedLM, AutoTokenizer

from data_prep.inputs import find_inputs
from data_prep.prepare import prepare as prepare_rows
from data_prep.work import Settings
from mmbert import convert_to_hf, import_from_hf
from mmbert.checkpoint import load_moments, newest_checkpoint, read_state
from mmbert.config import OptimizerConfig, load_config
from mmbert.file_contents import sha256_of
from mmbert.import_from_hf import main
from mmbert.ledger_audit import main as audit_ledger
from mmbert.model import MmBertForMaskedLM
from mmbert.optim import build_optimizer
from mmbert.published_model import CARRIED, FIXED, model_config
from mmbert.tokenizer import adopt_tokenizer, load_tokenizer
from tests.conftest import Corpus, write_text
from tests.published_models import INDEX, config_of, publish, refused, take, weights_of
from tests.published_tokenizers import modernbert_like
from tests.training_runs import prepare, train
from tests.training_runs import write_yamls as write_run_yamls

# ----------------------------------------------------------------------------------------------------------- the same
FORMS: dict[str, dict[str, Any]] = {
    "mmBERT": {},
    "ModernBERT": {"local_rope_theta": 10_000.0, "norm_eps": 1e-5},
    "a small window": {"local_attention": 16, "global_attn_every_n_layers": 2},
    "all global": {"global_attn_every_n_layers": 1, "num_attention_heads": 4},
    "one layer": {"num_hidden_layers": 1},
    "bfloat16": {"dtype": torch.bfloat16},
    "float16": {"dtype": torch.float16},
    "many files": {"max_shard_size": "20KB"},
    "many files of bfloat16": {"max_shard_size": "20KB", "dtype": torch.bfloat16},
    "no padding": {"vocab_size": 512},
}


@pytest.mark.parametrize("form", FORMS)
def test_imported_and_converted_back_every_tensor_has_the_same_name_and_bits(
    tmp_path: Path, corpus: Any, form: str
) -> None:
    folder = publish(tmp_path, **FORMS[form])
    assert (folder / INDEX).exists() == ("many" in form)
    published = weights_of(folder)
    run = take(folder, corpus.tokenizer)
    convert_to_hf.main(["--checkpoint", str(run), "--output", str(tmp_path / "back")])
    back = weights_of(tmp_path / "back")
    assert back.keys() == published.keys()
    for name, tensor in back.items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor.view(torch.int32), published[name].float().view(torch.int32)), name
        assert torch.equal(tensor.to(published[name].dtype), published[name])
    before, after = (json.loads((path / "config.json").read_text()) for path in (folder, tmp_path / "back"))
    assert {key: before[key] for key in (*CARRIED, *FIXED)} == {key: after[key] for key in (*CARRIED, *FIXED)}


def test_the_run_is_finished_has_trained_on_nothing_and_says_what_it_is(tmp_path: Path, corpus: Any) -> None:
    folder = publish(tmp_path)
    run = take(folder, corpus.tokenizer)
    checkpoint = newest_checkpoint(run)
    state = read_state(checkpoint)
    assert checkpoint.name == "step-0000000000"
    assert (state["finished"], state["tokens"], state["rows"]) == (True, 0, 0)
    record = json.loads((run / "import.json").read_text())
    assert 0 < record.pop("hf_max_logit_difference") < 1e-9
    assert record == {
        "model": str(folder),
        "model_sha256": {"model.safetensors": sha256_of(folder / "model.safetensors")},
        "tokenizer_digest": load_tokenizer(corpus.tokenizer).digest,
    }
    model = MmBertForMaskedLM(config_of(run))
    optimizer = build_optimizer(model, OptimizerConfig(1e-3, (0.9, 0.95), 1e-8, 1e-5), on_gpu=False)
    load_moments(checkpoint, model, optimizer)
    assert [int(group["step"]) for group in optimizer.param_groups] == [0, 0]
    assert not any(moments["exp_avg"].any() or moments["exp_avg_sq"].any() for moments in optimizer.state.values())
    with pytest.raises(SystemExit, match=r"published was imported or merged: it read no rows"):
        audit_ledger([str(run)])


def test_the_printed_lines_are_the_yaml_of_the_imported_model(
    tmp_path: Path, corpus: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    run = take(publish(tmp_path, local_attention=16, initializer_cutoff_factor=2.5), corpus.tokenizer)
    write_run_yamls(tmp_path, corpus)
    printed = capsys.readouterr().out
    (tmp_path / "mine.yaml").write_text("extends: [base.yaml]\nname: mine\nduration: 500M\n" + printed)
    config = load_config(tmp_path / "mine.yaml")
    assert config.optimizer.lr == 1e-4  # common.yaml's is for random weights
    assert (config.learning_rate.warmup, config.learning_rate.decay) == (25_000_000, 250_000_000)
    readme = Path("README.md").read_text()
    for line in printed.splitlines()[-2:]:
        assert f"\n   {line}\n" in readme
    assert config.model == config_of(run)
    assert (config.run_root, config.parent, config.tokenizer) == (str(run.parent), "published", str(corpus.tokenizer))


def test_training_continues_from_it_with_the_loss_that_it_would_have_had(
    finished: Any, corpus: Any, tmp_path: Path
) -> None:
    """Phase 1 goes out to Hugging Face and comes back as a parent of phase 2: same rows, masks, dropout and loss."""
    folder, outcomes = finished
    convert_to_hf.main(["--checkpoint", str(folder / "runs" / "phase1"), "--output", str(tmp_path / "hub")])
    yaml = prepare(tmp_path / "new", corpus, "phase2")
    published = tmp_path / "new" / "runs" / "published"
    main(["--model", str(tmp_path / "hub"), "--tokenizer", str(corpus.tokenizer), "--output", str(published)])
    outcome = train([yaml, "parent=published"], tmp_path / "steps.jsonl")
    assert outcome.exit_code == 0, outcome.output
    assert "starting from the parent's" in outcome.output
    mine, theirs = outcome.steps, outcomes["phase2"].steps
    for key in ("loss", "ids", "rows", "masked", "lr"):
        assert mine[0][key] == theirs[0][key]
    assert len(mine) == len(theirs)
    assert mine[0]["optimizer_step"] == 1 < theirs[0]["optimizer_step"]


def test_a_modernbert_goes_on_with_its_own_tokenizer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its tokenizer is adopted, text prepared with it, training continues, and the result reads texts as it did."""
    (tmp_path / "text").mkdir()
    texts = write_text(tmp_path / "text")
    ids = {"unk_token_id": 501, "cls_token_id": 502, "sep_token_id": 503, "pad_token_id": 504, "mask_token_id": 505}
    hub = publish(tmp_path, **ids, bos_token_id=502, eos_token_id=503, local_rope_theta=10_000.0)
    modernbert_like(hub, texts)
    tokenizer = adopt_tokenizer(hub, tmp_path / "tokenizer").folder
    settings = Settings(str(tmp_path / "rows"), str(tokenizer), row_length=64)
    prepare_rows(settings, find_inputs(str(tmp_path / "text"), "invented"), workers=1)
    capsys.readouterr()
    take(hub, tokenizer)
    write_run_yamls(tmp_path, Corpus(tokenizer, dict.fromkeys((64, 128), tmp_path / "rows")))
    (tmp_path / "mine.yaml").write_text("extends: [base.yaml]\nname: mine\n" + capsys.readouterr().out)
    changes = ["duration=1500", "learning_rate.warmup=0", "learning_rate.decay=0", "learning_rate.floor=0"]
    outcome = train([tmp_path / "mine.yaml", *changes], tmp_path / "steps.jsonl")
    assert outcome.exit_code == 0, outcome.output
    run, output = tmp_path / "runs" / "mine", tmp_path / "hf"
    convert_to_hf.main(["--checkpoint", str(run), "--output", str(output), "--prompt", f"{texts[0]} [MASK]"])
    assert capsys.readouterr().out.count("%") == 5
    with pytest.raises(SystemExit, match=r"has 0 times \[MASK\]; write it once"):
        convert_to_hf.main(["--checkpoint", str(run), "--output", str(output), "--prompt", "dabe <mask>"])
    before, after = (AutoTokenizer.from_pretrained(folder) for folder in (hub, output))
    for text in (*texts[:20], "dabe [MASK] gilo"):
        assert after(text)["input_ids"] == before(text)["input_ids"]
    config = json.loads((output / "config.json").read_text())
    for role in ("cls_token", "sep_token", "pad_token"):
        assert config[f"{role}_id"] == getattr(after, f"{role}_id") == ids[f"{role}_id"]


def test_a_model_that_transformers_gave_new_tokens_goes_on(tmp_path: Path, corpus: Any) -> None:
    """As docs/data.md has it. A new token that is special stays text in rows, as all that a text spells."""
    tokenizer = AutoTokenizer.from_pretrained(corpus.tokenizer)
    tokenizer.add_tokens([" frobnicate", "<ent>"])
    tokenizer.add_tokens("<special>", special_tokens=True)
    model = AutoModelForMaskedLM.from_pretrained(publish(tmp_path, vocab_size=512))
    model.resize_token_embeddings(len(tokenizer))
    for written in (model, tokenizer):
        written.save_pretrained(tmp_path / "grown")
    adopted = adopt_tokenizer(tmp_path / "grown", tmp_path / "tokenizer")
    run = take(tmp_path / "grown", adopted.folder)
    assert read_state(newest_checkpoint(run))["config"]["model"]["vocab_size"] == 515
    [ids] = adopted.encode_batch(["we frobnicate <ent> <special>"])
    tokens = [adopted.backend.id_to_token(token_id) for token_id in ids.tolist()]
    assert {" frobnicate", "<ent>"} < set(tokens)
    assert "<special>" not in tokens


def test_links_as_in_the_cache_of_hugging_face_are_followed(tmp_path: Path, corpus: Any) -> None:
    blobs = publish(tmp_path, max_shard_size="20KB").rename(tmp_path / "blobs")
    (tmp_path / "snapshot").mkdir()
    for path in blobs.iterdir():
        (tmp_path / "snapshot" / path.name).symlink_to(path)
    take(tmp_path / "snapshot", corpus.tokenizer)


# ------------------------------------------------------------------------------------------------------------ refusals
def test_a_run_that_exists_is_never_touched(tmp_path: Path, corpus: Any) -> None:
    folder = publish(tmp_path)
    run = take(folder, corpus.tokenizer)
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    with pytest.raises(SystemExit, match=r"--output .*published exists; remove it, or name another"):
        take(folder, corpus.tokenizer)
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before


def test_an_object_store_holds_no_runs(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--model", "hub", "--tokenizer", "tokenizer", "--output", "s3://bucket/published"])
    assert "s3://bucket/published lies in an object store: name a folder" in capsys.readouterr().err


MISTAKES: dict[str, dict[str, Any]] = {
    "theta": {"local_rope_theta": 10_000.0},
    "window": {"local_attention": 126},
    "norm_eps": {"norm_eps": 1e-5},
    "layers": {"global_attn_every_n_layers": 2},
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_other_logits_than_those_of_transformers_are_refused(
    tmp_path: Path, corpus: Any, monkeypatch: pytest.MonkeyPatch, mistake: str
) -> None:
    monkeypatch.setattr(
        import_from_hf, "model_config", lambda written, path: replace(model_config(written, path), **MISTAKES[mistake])
    )
    refused(publish(tmp_path), corpus.tokenizer, r"logits differ by .*published was not written")


def test_transformers_reads_the_published_files_and_not_our_copy(
    tmp_path: Path, corpus: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = import_from_hf.load_stored

    def load_wrongly(stored: Any, model: MmBertForMaskedLM) -> None:
        load(stored, model)
        with torch.no_grad():
            dict(model.named_parameters())["model.layers.2.mlp.Wi.weight"][0, 0] += 1e-3

    monkeypatch.setattr(import_from_hf, "load_stored", load_wrongly)
    refused(publish(tmp_path, max_shard_size="20KB"), corpus.tokenizer, "logits differ by")
