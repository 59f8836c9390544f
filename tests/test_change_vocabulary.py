"""A model with another vocabulary: which rows its tokens get, and that all else stays."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import decoders, normalizers
from torch import Tensor
from transformers import AutoModelForMaskedLM

from mmbert import change_vocabulary, convert_to_hf
from mmbert.change_vocabulary import BIAS, main, mean_rows, meanings, old_tokens, parse_arguments
from mmbert.file_contents import sha256_of
from mmbert.published_model import DECODER
from mmbert.tokenizer import SPECIAL_TOKENS, Tokenizer, adopt_tokenizer, load_tokenizer, save_tokenizer
from tests.conftest import write_text
from tests.published_models import EMBEDDINGS, change_json, change_weights, publish, take, weights_of
from tests.published_tokenizers import modernbert_like, xlmr_like


def with_tokenizer(hub: Path, tokenizer: Path) -> Path:
    """A published folder has its tokenizer, too."""
    for path in tokenizer.iterdir():
        shutil.copy(path, hub)
    return hub


def change(hub: Path, tokenizer: Path) -> Path:
    output = hub.parent / "changed"
    main(["--model", str(hub), "--tokenizer", str(tokenizer), "--output", str(output)])
    return output


def refused(hub: Path, tokenizer: Path, message: str) -> None:
    with pytest.raises(SystemExit, match=message) as refusal:
        change(hub, tokenizer)
    assert "\n" not in str(refusal.value)
    assert not [path for path in hub.parent.iterdir() if "changed" in path.name]


@torch.no_grad()
def logits_of(folder: Path, input_ids: Tensor) -> Tensor:
    model = AutoModelForMaskedLM.from_pretrained(folder, dtype=torch.float64, attn_implementation="sdpa").eval()
    logits: Tensor = model(input_ids[None]).logits[0]
    return logits


def in_bytes(*found: Any) -> bytes:
    """What tokens mean, none of them a special one."""
    return b"".join(meaning.encode() if isinstance(meaning, str) else meaning for meaning in found)


def permuted(tokenizer: Path, target: Path) -> tuple[Path, list[int]]:
    """The same tokenizer with other ids, and the old id of each new one."""
    spec = json.loads((tokenizer / "tokenizer.json").read_text())
    order: list[int] = np.random.default_rng(0).permutation(len(spec["model"]["vocab"])).tolist()
    spec["model"]["vocab"] = {piece: order.index(old) for piece, old in spec["model"]["vocab"].items()}
    for token in spec["added_tokens"]:
        token["id"] = order.index(token["id"])
    return save_tokenizer(spec, target, target).folder, order


@pytest.fixture
def byte_level(tmp_path: Path) -> Tokenizer:
    """ModernBERT's way, of two of the six languages. Four spaces are two of its tokens, of which one was added."""
    (tmp_path / "text").mkdir()
    texts = [*write_text(tmp_path / "text")[-10:], *["a     a"] * 100]
    return adopt_tokenizer(modernbert_like(tmp_path / "source", texts), tmp_path / "byte-level")


@pytest.fixture
def unigram(tmp_path: Path) -> Tokenizer:
    """XLM-R's way, with few letters and no bytes."""
    return adopt_tokenizer(xlmr_like(tmp_path / "xlmr", "<>/abdeiklmnpsu"), tmp_path / "unigram")


@pytest.fixture
def gemma_like(tmp_path: Path, corpus: Any) -> Tokenizer:
    """The corpus' tokenizer with its spaces as Gemma 2's, and its tokens in another order."""
    folder, _ = permuted(corpus.tokenizer, tmp_path / "permuted")
    spec = json.loads((folder / "tokenizer.json").read_text())
    model = json.dumps(spec["model"], separators=(",", ":"))  # no space but those of the pieces
    backend = load_tokenizer(folder).backend
    backend.normalizer = normalizers.Replace(" ", "\u2581")
    backend.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()])
    made = json.loads(backend.to_str())
    spec |= {key: made[key] for key in ("normalizer", "decoder")}
    spec |= {"pre_tokenizer": None, "model": json.loads(model.replace(" ", "\\u2581"))}
    return save_tokenizer(spec, tmp_path / "gemma-like", tmp_path)


# ----------------------------------------------------------------------------------------------------------- which rows
def test_rows_are_copied_or_the_mean_of_those_that_are_named() -> None:
    rows = torch.tensor([[1.0, 2.0], [3.0, 4.0], [-0.0, 9.0]])
    numbers: list[list[int]] = [[2], [0, 1], [], [1, 1, 0, 0], [0]]
    expected = torch.tensor([[-0.0, 9.0], [2.0, 3.0], [4 / 3, 5.0], [2.0, 3.0], [1.0, 2.0]])
    for made, wanted in ((mean_rows(rows, numbers), expected), (mean_rows(rows[:, 0], numbers), expected[:, 0])):
        assert torch.equal(made.view(torch.int32), wanted.contiguous().view(torch.int32))


def test_tokens_of_a_text_mean_that_text_however_they_are_spelled(
    corpus: Any, byte_level: Tokenizer, gemma_like: Tokenizer, unigram: Tokenizer
) -> None:
    text = "the größer \u00e9\ufffd 中文 <0x41>\n  \U0001f600 x"
    own = load_tokenizer(corpus.tokenizer)
    for tokenizer in (own, byte_level, gemma_like):
        known = meanings(tokenizer)
        found = [known[token_id] for token_id in tokenizer.encode_batch([text])[0].tolist()]
        assert any(isinstance(meaning, bytes) for meaning in found)
        assert in_bytes(*found) == text.encode()
    known = meanings(unigram)
    assert [known[token_id] for token_id in unigram.encode_batch(["ab a"])[0].tolist()] == [" ", "a", "b", " ", "a"]
    assert meanings(own)[own.mask_token_id] == ("mask_token",)
    assert meanings(own)[own.backend.token_to_id("<0x41>")] == b"A"
    own.backend.add_special_tokens(["<entity>"])  # one that has none of the roles
    assert meanings(replace(own, vocab_size=513))[512] == "<entity>"


def test_a_token_gets_the_old_one_of_its_meaning_or_those_of_its_parts_or_none(
    corpus: Any, byte_level: Tokenizer, gemma_like: Tokenizer, unigram: Tokenizer
) -> None:
    own = load_tokenizer(corpus.tokenizer)
    assert [meanings(own)[old] for [old] in old_tokens(own, gemma_like)] == meanings(gemma_like)
    for old, new, wanted in ((own, byte_level, {1, 2}), (byte_level, own, {1, 2}), (unigram, own, {0, 1, 2})):
        theirs, kinds = meanings(old), set()
        for chosen, meaning in zip(old_tokens(old, new), meanings(new), strict=True):
            found = [theirs[old_id] for old_id in chosen]
            if meaning in theirs:
                assert found == [meaning]
            elif found:
                assert in_bytes(*found).removeprefix(b" ") == in_bytes(meaning).removeprefix(b" ")
            kinds.add(min(len(chosen), 2))
        assert kinds == wanted
        assert old_tokens(old, old) == [[token_id] for token_id in range(old.vocab_size)]


def test_of_two_old_tokens_of_one_text_that_one_counts_which_is_made_of_it(
    byte_level: Tokenizer, gemma_like: Tokenizer
) -> None:
    added, merged = byte_level.backend.token_to_id(" " * 4), byte_level.backend.token_to_id("\u0120" * 4)
    assert [meanings(byte_level)[token_id] for token_id in (added, merged)] == [" " * 4] * 2
    assert byte_level.encode_batch([" " * 4])[0].tolist() == [added]
    gemma_like.backend.add_tokens(["\u2581" * 4])  # spelled as neither
    assert old_tokens(byte_level, replace(gemma_like, vocab_size=513))[512] == [added]


# ------------------------------------------------------------------------------------------------------------ the model
FORMS: dict[str, dict[str, Any]] = {
    "padded": {},
    "bfloat16": {"vocab_size": 512, "dtype": torch.bfloat16},
    "many files of float16": {"dtype": torch.float16, "max_shard_size": "20KB"},
}


@pytest.mark.parametrize("form", FORMS)
def test_the_same_tokenizer_gives_the_same_bits_and_another_order_the_same_logits_in_it(
    tmp_path: Path, corpus: Any, form: str, capsys: pytest.CaptureFixture[str]
) -> None:
    hub = with_tokenizer(publish(tmp_path, **FORMS[form]), corpus.tokenizer)
    before, input_ids = weights_of(hub), torch.randint(512, (200,))
    same = change(hub, corpus.tokenizer)
    assert capsys.readouterr().out == f"{same}: 507 copied, 0 averaged, 5 special, 0 unknown\n"
    after = weights_of(same)
    assert before.keys() == after.keys()
    old_config, config = (json.loads((folder / "config.json").read_text()) for folder in (hub, same))
    assert config["dtype"] == old_config["dtype"]
    for name, tensor in after.items():
        wanted = before[name][:512] if name in (EMBEDDINGS, BIAS) else before[name]
        assert tensor.dtype == wanted.dtype
        assert torch.equal(tensor.view(torch.uint8), wanted.contiguous().view(torch.uint8)), name
    logits = logits_of(hub, input_ids)[:, :512]
    torch.testing.assert_close(logits_of(same, input_ids), logits, rtol=0, atol=1e-12)

    shutil.rmtree(same)
    tokenizer, order = permuted(corpus.tokenizer, tmp_path / "permuted")
    other = change(hub, tokenizer)
    for name in (EMBEDDINGS, BIAS):
        assert torch.equal(weights_of(other)[name], before[name][order])
    new_ids = torch.tensor([order.index(old) for old in input_ids.tolist()])
    torch.testing.assert_close(logits_of(other, new_ids), logits[:, order], rtol=0, atol=1e-12)


def test_the_record_counts_and_the_result_is_imported_and_converted_back(
    tmp_path: Path, corpus: Any, unigram: Tokenizer
) -> None:
    ids = {f"{role}_id": getattr(unigram, f"{role}_id") for role in ("pad_token", "bos_token", "eos_token")}
    hub = with_tokenizer(publish(tmp_path, **ids, vocab_size=unigram.vocab_size + 9), unigram.folder)
    new = load_tokenizer(corpus.tokenizer)
    numbers = old_tokens(unigram, new)
    changed = change(hub, new.folder)
    before, after = weights_of(hub), weights_of(changed)
    for name in (EMBEDDINGS, BIAS):
        for role in SPECIAL_TOKENS:
            row, old_row = (getattr(tokenizer, f"{role}_id") for tokenizer in (new, unigram))
            assert torch.equal(after[name][row], before[name][old_row]), role
        assert torch.equal(after[name], mean_rows(before[name][: unigram.vocab_size], numbers))
    record = json.loads((changed / "vocabulary.json").read_text())
    lengths = list(map(len, numbers))
    assert record == {
        "copied": lengths.count(1) - 5,
        "averaged": len(lengths) - lengths.count(1) - lengths.count(0),
        "special": 5,
        "unknown": lengths.count(0),
        "model": str(hub),
        "model_sha256": {"model.safetensors": sha256_of(hub / "model.safetensors")},
        "old_tokenizer_sha256": sha256_of(hub / "tokenizer.json"),
        "tokenizer_digest": new.digest,
    }
    assert min(record[key] for key in ("copied", "averaged", "unknown")) > 0
    config = json.loads((changed / "config.json").read_text())
    assert [config[f"{role}_token_id"] for role in ("pad", "eos", "bos", "cls", "sep")] == [0, 1, 2, 2, 1]
    run = take(changed, new.folder)
    convert_to_hf.main(["--checkpoint", str(run), "--output", str(tmp_path / "back")])
    back = weights_of(tmp_path / "back")
    assert back.keys() == after.keys()
    assert all(torch.equal(back[name], tensor) for name, tensor in after.items())
    card = (tmp_path / "back" / "README.md").read_text()
    assert f"from a Hugging Face folder, `changed`, which is `{hub.name}` with another vocabulary" in card


# ------------------------------------------------------------------------------------------------------------ refusals
def test_what_exists_is_never_touched(tmp_path: Path, corpus: Any) -> None:
    hub = with_tokenizer(publish(tmp_path), corpus.tokenizer)
    (tmp_path / "changed").mkdir()
    (tmp_path / "changed" / "mine.txt").write_text("mine")
    with pytest.raises(SystemExit, match=r"--output .*changed exists; remove it, or name another folder"):
        change(hub, corpus.tokenizer)
    assert [path.name for path in (tmp_path / "changed").iterdir()] == ["mine.txt"]


def test_what_the_import_would_refuse_is_refused(tmp_path: Path, corpus: Any) -> None:
    refused(tmp_path / "OWNER", corpus.tokenizer, r"OWNER/config.json is missing; .*fetched first: hf download")
    hub = publish(tmp_path)
    refused(hub, corpus.tokenizer, r"hub holds no tokenizer.json; of transformers")
    with_tokenizer(hub, corpus.tokenizer)
    change_json(hub / "config.json", {"mask_token_id": 7})
    refused(hub, corpus.tokenizer, r"mask_token_id = 7 is 4 in tokenizer .*hub; take config.json and")
    change_json(hub / "config.json", {"mask_token_id": 4, "tie_word_embeddings": False})
    change_weights(hub, {DECODER: torch.randn(520, 32)})
    refused(hub, corpus.tokenizer, "decoder.weight differs from .*tie_word_embeddings true")


def test_a_tokenizer_that_does_not_keep_the_contract_is_refused(tmp_path: Path, corpus: Any) -> None:
    hub = with_tokenizer(publish(tmp_path), corpus.tokenizer)
    refused(hub, modernbert_like(tmp_path / "their", ["a b"]), r"holds no special_tokens_map.json; make a folder that")


def test_the_readmes_command_is_one() -> None:
    [line] = re.findall(r"python -m mmbert\.change_vocabulary (.*)", Path("README.md").read_text())
    options = parse_arguments(line.split())
    assert (options.model, options.tokenizer) == (Path("mmBERT-base"), Path("data/mytokenizer"))
    assert line in str(change_vocabulary.__doc__)
