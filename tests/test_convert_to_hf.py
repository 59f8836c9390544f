"""The converted folder as Hugging Face sees it, and what the converter refuses."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import AutoModelForMaskedLM, AutoTokenizer, ModernBertConfig, ModernBertForMaskedLM

from mmbert import convert_to_hf
from mmbert.attention import Packing
from mmbert.checkpoint import save_checkpoint
from mmbert.config import ModelConfig
from mmbert.convert_to_hf import fill_mask, main
from mmbert.file_contents import sha256_of
from mmbert.model import MmBertForMaskedLM
from mmbert.tokenizer import load_tokenizer

STEP = "step-0000000002"
Run = Callable[..., Path]


def build(global_rope_theta: float = 160e3, local_rope_theta: float = 160e3, seed: int = 0) -> MmBertForMaskedLM:
    """Four layers, with weights large enough that attention matters to the logits."""
    torch.manual_seed(seed)
    config = ModelConfig(
        vocab_size=520,  # the corpus' tokenizer has 512
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=4,
        num_attention_heads=2,
        max_position_embeddings=512,
        global_rope_theta=global_rope_theta,
        local_rope_theta=local_rope_theta,
        norm_eps=1e-4,
        initializer_range=0.15,
        attention="flash_attn",  # trained on a GPU, converted here
    )
    return MmBertForMaskedLM(config).eval()


@pytest.fixture
def save_run(tmp_path: Path, corpus: Any) -> Run:
    """Writes a run: an older checkpoint with other weights, and step 2 with those of `model`."""

    def save(model: MmBertForMaskedLM) -> Path:
        tokenizer = load_tokenizer(corpus.tokenizer)
        state: dict[str, Any] = {
            "rows": 8,
            "tokens": 4096,
            "seconds": 1.0,
            "finished": True,
            "callbacks": {},
            "tokens_per_stream": {},
            "config": {"model": asdict(model.config), "tokenizer": str(corpus.tokenizer), "duration": 1000},
            "identity": {"tokenizer.digest": tokenizer.digest},
        }
        optimizer: Any = SimpleNamespace(state={}, param_groups=[])
        for step, saved in ((1, build(seed=1)), (2, model)):
            save_checkpoint(tmp_path / "run", step, saved, optimizer, {**state, "step": step})
        return tmp_path / "run"

    return save


def convert(run: Path, output: Path, *more: str) -> None:
    main(["--checkpoint", str(run), "--output", str(output), *more])


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("thetas", [(10_000.0, 10_000.0), (160_000.0, 160_000.0), (160_000.0, 10_000.0)], ids=str)
def test_converted_model_gives_the_same_logits(save_run: Run, tmp_path: Path, thetas: tuple[float, float]) -> None:
    model = build(*thetas)
    run = save_run(model)
    convert(run, run / "hf")
    converted, report = AutoModelForMaskedLM.from_pretrained(run / "hf", output_loading_info=True)
    assert not any(report.values())  # no weight is missing, left over or of another shape
    assert next(converted.parameters()).dtype == torch.float32

    torch.manual_seed(5)
    lengths = [7, 200, 64, 129]
    input_ids = torch.randint(5, 512, (sum(lengths),))
    ours = MmBertForMaskedLM(ModelConfig(**{**asdict(model.config), "attention": "cpu"})).eval()
    ours.load_state_dict(model.state_dict())
    with torch.no_grad():
        expected = ours(input_ids, Packing.from_lengths(lengths, torch.device("cpu")))
        actual = torch.cat([converted(ids[None]).logits[0] for ids in input_ids.split(lengths)])
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-5)
    record = json.loads((run / "hf" / "conversion.json").read_text())
    assert 0 < record.pop("hf_max_logit_difference") < 1e-9
    assert record == {
        "checkpoint": str(run / STEP),
        "checkpoint_sha256": sha256_of(run / STEP / "manifest.json"),
        "model_sha256": sha256_of(run / "hf" / "model.safetensors"),
        "card_sha256": sha256_of(run / "hf" / "README.md"),
        "tokens": 4096,
    }


def test_what_is_converted_is_not_converted_again_unless_it_was_changed(
    save_run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    run = save_run(build(10_000.0, 10_000.0))
    weights = run / "hf" / "model.safetensors"
    convert(run, run / "hf")
    before = (weights.read_bytes(), weights.stat().st_mtime_ns)
    convert(run, run / "hf")
    assert "is up to date" in capsys.readouterr().out
    assert (weights.read_bytes(), weights.stat().st_mtime_ns) == before
    weights.write_bytes(b"damaged")
    convert(run, run / "hf")
    assert weights.read_bytes() == before[0]


def test_what_was_converted_and_is_no_longer_whole_is_converted_again_but_not_for_a_card_that_was_moved(
    save_run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    run = save_run(build())
    convert(run, run / "hf")
    before = files_of(run / "hf")
    for name in before.keys() - {"README.md", "conversion.json"}:
        (run / "hf" / name).unlink()
        convert(run, run / "hf")
        assert files_of(run / "hf") == before, name
    (run / "hf" / "README.md").unlink()
    capsys.readouterr()
    convert(run, run / "hf")
    assert "is up to date" in capsys.readouterr().out


@pytest.mark.parametrize("kept", ["hf", ".hf.old"])
def test_a_kill_leaves_no_folder_of_weights_unseen(
    save_run: Run, capsys: pytest.CaptureFixture[str], kept: str
) -> None:
    """Before or after the new folder took the older one's place."""
    run = save_run(build())
    convert(run, run / "hf")
    before = files_of(run / "hf")
    (run / "hf").rename(run / kept)
    for name in {".hf.old", ".hf.partial"} - {kept}:
        shutil.copytree(run / kept, run / name)
    capsys.readouterr()
    convert(run, run / "hf")
    assert "is up to date" in capsys.readouterr().out
    assert sorted(path.name for path in run.iterdir()) == ["hf", "step-0000000001", STEP]
    assert files_of(run / "hf") == before


def test_what_was_converted_loads_without_a_word(save_run: Run) -> None:
    """transformers 4.57.6 warns of tokenizers that it takes for broken, and what it advises crashes."""
    run = save_run(build())
    convert(run, run / "hf")
    script = f"""
from transformers import AutoModelForMaskedLM, AutoTokenizer, PreTrainedTokenizerFast
PreTrainedTokenizerFast.vocab_size = property(lambda _: 256_000)  # it looks at large tokenizers alone
AutoTokenizer.from_pretrained({str(run / 'hf')!r})
AutoModelForMaskedLM.from_pretrained({str(run / 'hf')!r})
"""
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300, check=True)
    assert ended.stdout + ended.stderr == ""


def test_config_says_everything_that_inference_needs(save_run: Run, tmp_path: Path) -> None:
    convert(save_run(build(160_000.0, 10_000.0)), tmp_path / "hf")
    written = json.loads((tmp_path / "hf" / "config.json").read_text())
    expected = {
        "model_type": "modernbert",
        "architectures": ["ModernBertForMaskedLM"],
        "vocab_size": 520,
        "global_rope_theta": 160_000.0,
        "local_rope_theta": 10_000.0,
        "norm_eps": 1e-4,
        "attention_dropout": 0.0,
        "classifier_pooling": "mean",
        "pad_token_id": 0,
        "eos_token_id": 1,
        "sep_token_id": 1,
        "bos_token_id": 2,
        "cls_token_id": 2,
        "dtype": "float32",
    }
    assert {key: written[key] for key in expected} == expected
    assert "decoder.weight" not in load_file(tmp_path / "hf" / "model.safetensors")


def test_tokenizer_loads_and_wraps_text_as_in_training(save_run: Run, tmp_path: Path, corpus: Any) -> None:
    convert(save_run(build()), tmp_path / "hf")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "hf")
    ids = load_tokenizer(corpus.tokenizer).encode_batch(["some text"])[0].tolist()
    assert tokenizer("some text") == {"input_ids": [2, *ids, 1], "attention_mask": [1] * (len(ids) + 2)}
    assert (tokenizer.mask_token_id, tokenizer.pad_token_id, tokenizer.model_max_length) == (4, 0, 512)
    assert load_tokenizer(tmp_path / "hf").digest == load_tokenizer(corpus.tokenizer).digest


MISTAKES: dict[str, Callable[[ModernBertConfig], None]] = {
    "theta": lambda config: setattr(config, "local_rope_theta", 10_000.0),
    "window": lambda config: setattr(config, "local_attention", 126),
    "norm_eps": lambda config: setattr(config, "norm_eps", 1e-5),
    "layers": lambda config: setattr(config, "global_attn_every_n_layers", 2),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_other_logits_are_refused_and_the_older_folder_stays(
    save_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mistake: str
) -> None:
    run = save_run(build())
    convert(run / "step-0000000001", tmp_path / "hf")
    before = files_of(tmp_path / "hf")
    right_config = convert_to_hf.huggingface_config

    def wrong_config(*arguments: Any) -> ModernBertConfig:
        config = right_config(*arguments)
        MISTAKES[mistake](config)
        return config

    monkeypatch.setattr(convert_to_hf, "huggingface_config", wrong_config)
    with pytest.raises(SystemExit, match=r"error: .*logits differ by .*hf was not written"):
        convert(run, tmp_path / "hf")
    assert files_of(tmp_path / "hf") == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hf", "run"]


def test_weights_that_are_not_numbers_are_refused(save_run: Run, tmp_path: Path) -> None:
    run = save_run(build())
    path = run / STEP / "model.safetensors"
    weights = load_file(path)
    weights["head.dense.weight"][3, 3] = torch.nan
    save_file(weights, path)
    manifest = json.loads((run / STEP / "manifest.json").read_text())
    manifest[path.name] = {"sha256": sha256_of(path), "bytes": path.stat().st_size}
    (run / STEP / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(SystemExit, match=r"model.safetensors: head.dense.weight holds NaN"):
        convert(run, tmp_path / "hf")
    assert not (tmp_path / "hf").exists()


def test_own_output_is_replaced_and_other_folders_are_not(save_run: Run, tmp_path: Path) -> None:
    run = save_run(build())
    convert(run / "step-0000000001", tmp_path / "hf")
    older = files_of(tmp_path / "hf")
    convert(run, tmp_path / "hf")
    newer = files_of(tmp_path / "hf")
    assert newer["model.safetensors"] != older["model.safetensors"]
    assert newer.keys() == older.keys()

    (tmp_path / "hf" / "conversion.json").unlink()
    with pytest.raises(SystemExit, match=r"hf exists and holds no conversion.json"):
        convert(run, tmp_path / "hf")
    assert files_of(tmp_path / "hf").keys() == older.keys() - {"conversion.json"}


def test_what_somebody_put_into_the_folder_is_not_removed(save_run: Run, tmp_path: Path) -> None:
    run = save_run(build())
    convert(run / "step-0000000001", tmp_path / "hf")
    (tmp_path / "hf" / "onnx").mkdir()
    (tmp_path / "hf" / "onnx" / "model.onnx").write_text("hours of work")
    before = files_of(tmp_path / "hf" / "onnx")
    with pytest.raises(SystemExit, match=r"hf/onnx was not written by this program, and would be removed; move it"):
        convert(run, tmp_path / "hf")
    assert files_of(tmp_path / "hf" / "onnx") == before


def test_checkpoint_that_changed_or_is_not_there_is_refused(save_run: Run, tmp_path: Path) -> None:
    run = save_run(build())
    with (run / STEP / "model.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x7f")
    with pytest.raises(SystemExit, match=f"{STEP} is incomplete or changed"):
        convert(run / STEP, tmp_path / "hf")
    convert(run, tmp_path / "hf")  # the newest whole one
    assert json.loads((tmp_path / "hf" / "conversion.json").read_text())["checkpoint"].endswith("step-0000000001")
    with pytest.raises(SystemExit, match="no such folder"):
        convert(tmp_path / "runn", tmp_path / "hf")


def test_a_checkpoint_that_training_removes_meanwhile_is_told_as_that(
    save_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, check = save_run(build()), convert_to_hf.check_logits

    def check_while_it_goes(*arguments: Any) -> float:
        shutil.rmtree(run / STEP)
        return check(*arguments)

    monkeypatch.setattr(convert_to_hf, "check_logits", check_while_it_goes)
    with pytest.raises(SystemExit, match=f"{STEP} was removed while it was read, .*; run this again, or pin one first"):
        convert(run, tmp_path / "hf")
    monkeypatch.undo()
    convert(run, tmp_path / "hf")


def test_only_the_tokenizer_of_the_run_is_taken(save_run: Run, tmp_path: Path, corpus: Any) -> None:
    run = save_run(build())
    other = tmp_path / "tokenizer"
    other.mkdir()
    for name, content in files_of(corpus.tokenizer).items():
        (other / name).write_bytes(content)
    convert(run, tmp_path / "hf", "--tokenizer", str(other))  # a copy is the same tokenizer
    (other / "tokenizer.json").write_bytes((other / "tokenizer.json").read_bytes() + b"\n")
    with pytest.raises(SystemExit, match="trained with another tokenizer"):
        convert(run, tmp_path / "hf", "--tokenizer", str(other))
    with pytest.raises(SystemExit, match=r"does not exist; name the tokenizer of the run with --tokenizer"):
        convert(run, tmp_path / "hf", "--tokenizer", str(tmp_path / "nowhere"))


def test_fill_mask_gives_the_likeliest_tokens(
    save_run: Run, tmp_path: Path, corpus: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    model = build()
    tokenizer = AutoTokenizer.from_pretrained(corpus.tokenizer)
    with torch.no_grad():
        model.decoder.bias[[100, 200]] = torch.tensor([60.0, 50.0])  # beyond all that the encoder can say
    convert(save_run(model), tmp_path / "hf", "--prompt", "a <mask> b")
    (first, first_probability), (second, second_probability) = fill_mask(tmp_path / "hf", "a <mask> b", top_k=2)
    assert [first, second] == [tokenizer.decode(100), tokenizer.decode(200)]
    assert 1 >= first_probability > second_probability > 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].startswith(f"{tmp_path / 'hf'}: {tmp_path / 'run' / STEP} for Hugging Face")
    assert printed[1] == f"{first_probability:7.2%}  {first}"
    assert len(printed) == 6


def test_fill_mask_computes_on_a_cpu_where_flash_attn_is_installed_too(
    save_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """transformers takes it by itself then, and would call its kernel."""
    convert(save_run(build()), tmp_path / "hf")
    plain = fill_mask(tmp_path / "hf", "a <mask> b", top_k=2)
    monkeypatch.setattr(ModernBertForMaskedLM, "_flash_attn_2_can_dispatch", lambda *_, **__: True)
    assert fill_mask(tmp_path / "hf", "a <mask> b", top_k=2) == plain


@pytest.mark.parametrize("prompt", ["no mask", "<mask> and <mask>"])
def test_prompt_without_exactly_one_mask_is_refused(save_run: Run, tmp_path: Path, prompt: str) -> None:
    with pytest.raises(SystemExit, match="write it once"):
        convert(save_run(build()), tmp_path / "hf", "--prompt", prompt)


def test_what_was_converted_is_as_readable_for_others_as_any_file(save_run: Run, tmp_path: Path) -> None:
    convert(save_run(build()), tmp_path / "hf")
    (tmp_path / "any").touch()
    assert {path.stat().st_mode for path in (tmp_path / "hf").iterdir()} == {(tmp_path / "any").stat().st_mode}


def test_a_full_disk_is_told_in_one_line(save_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise SafetensorError('I/O error: No space left on device (os error 28)')

    run = save_run(build())
    monkeypatch.setattr("safetensors.torch.serialize_file", full)
    with pytest.raises(SystemExit, match=r"error: .*No space left on device: .*model\.safetensors"):
        convert(run, tmp_path / "hf")
    assert not (tmp_path / "hf").exists()
