"""Tokenizers that spell their special tokens in another way, and what is made of them."""
import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer as Backend
from tokenizers import models, processors

from mmbert.tokenizer import SPECIAL_TOKENS, adopt_tokenizer, load_tokenizer
from tests.published_tokenizers import NAMES, modernbert_like
from tests.test_tokenizer import TEXTS, UNSEEN, edit


def words_like(folder: Path, tokens: list[str], written: tuple[str, str] | None = None, **config: object) -> Path:
    """A folder of three words and these special tokens, with the template `written[0] A written[1]`, if any."""
    folder.mkdir()
    vocabulary = {token: id_ for id_, token in enumerate([*tokens, "a", "b", "unknown"])}
    backend = Backend(models.WordLevel(vocabulary, unk_token="unknown"))
    backend.add_special_tokens(tokens)
    if written:
        first, last = written
        backend.post_processor = processors.TemplateProcessing(
            single=f"{first} $A {last}", special_tokens=[(token, vocabulary[token]) for token in written]
        )
    (folder / "tokenizer.json").write_text(backend.to_str())
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def test_files_of_a_vocabulary_with_our_names_are_the_bytes_they_always_were(tmp_path: Path):
    """Computed before other names were known: rows and runs of before name this digest."""
    tokens = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
    entry = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    vocabulary = {token: id_ for id_, token in enumerate([*tokens, "a"])}
    spec = {
        "version": "1.0",
        "added_tokens": [{"id": id_, "content": token, **entry} for id_, token in enumerate(tokens)],
        "normalizer": None,
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": None,
        "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "<unk>"},
    }
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "tokenizer.json").write_text(json.dumps(spec))
    names = {"cls_token": "<bos>", "sep_token": "<eos>", "bos_token": "a", "mask_token": None}
    (tmp_path / "source" / "tokenizer_config.json").write_text(json.dumps(names))
    adopted = adopt_tokenizer(tmp_path / "source", tmp_path / "target")
    assert {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in adopted.folder.iterdir()} == {
        "tokenizer.json": "ee91a38a0708c890f6615612af4cff331a0b1683998f5371e6e3566744f184da",
        "tokenizer_config.json": "8a629712a4886b8545954c30a159f44ceba0d8f2569c0e69adb75546574fbe2d",
        "special_tokens_map.json": "12be0de5bc4d2806d033a4b936a6f04a8a86a4aac547e237581ccf0d06111e32",
    }
    assert adopted.digest == "ee91a38a0708c890f6615612af4cff331a0b1683998f5371e6e3566744f184da"
    assert adopted.special_token_ids == (0, 1, 2, 3, 4)


def test_a_modernbert_s_tokenizer_keeps_its_ids_and_names_and_the_contract(tmp_path: Path):
    from transformers import AutoTokenizer

    source = modernbert_like(tmp_path / "source", TEXTS)
    adopted = adopt_tokenizer(source, tmp_path / "target")
    assert adopted.special_tokens == {
        "pad_token": "[PAD]", "eos_token": "[SEP]", "bos_token": "[CLS]", "unk_token": "[UNK]", "mask_token": "[MASK]",
    }  # fmt: skip
    before, after = (AutoTokenizer.from_pretrained(folder) for folder in (source, tmp_path / "target"))
    assert before.get_vocab() == after.get_vocab()
    for role, token in NAMES.items():
        assert getattr(after, role) == getattr(before, role) == token
    assert (after.bos_token, after.eos_token) == ("[CLS]", "[SEP]")
    named = {role: getattr(after, f"{role}_id") for role in SPECIAL_TOKENS}
    assert named == {role: getattr(adopted, f"{role}_id") for role in SPECIAL_TOKENS}
    for text in [*TEXTS, *UNSEEN, "born [MASK] and     not"]:
        assert after(text)["input_ids"] == before(text)["input_ids"]
    assert after.convert_ids_to_tokens(after("a", "b")["input_ids"]) == ["[CLS]", "a", "[SEP]", "[CLS]", "b", "[SEP]"]
    (spelled,) = adopted.encode_batch(["[CLS] a [MASK] b[PAD]"])
    assert not np.isin(spelled, adopted.special_token_ids).any()
    assert adopt_tokenizer(tmp_path / "target", tmp_path / "again").digest == adopted.digest
    for path in (tmp_path / "target").iterdir():
        assert (tmp_path / "again" / path.name).read_bytes() == path.read_bytes()


REST = {"pad_token": "[PAD]", "unk_token": "[UNK]", "mask_token": {"content": "[MASK]", "lstrip": False}}
BOTH = {"cls_token": "[CLS]", "sep_token": "[SEP]", "bos_token": "<s>", "eos_token": "</s>"}


@pytest.mark.parametrize(
    "names, written, around",
    [
        ({"cls_token": "[CLS]", "sep_token": "[SEP]"}, None, ("[CLS]", "[SEP]")),
        ({"bos_token": "<s>", "eos_token": "</s>"}, None, ("<s>", "</s>")),
        (BOTH, None, ("[CLS]", "[SEP]")),
        (BOTH, ("[CLS]", "[SEP]"), ("[CLS]", "[SEP]")),
        (BOTH, ("<s>", "</s>"), ("<s>", "</s>")),
        (BOTH, ("<s>", "[SEP]"), ("<s>", "[SEP]")),
        ({"bos_token": "<s>", "sep_token": "[SEP]"}, None, ("<s>", "[SEP]")),
    ],
)
def test_around_a_text_stands_what_the_tokenizer_itself_writes_there_or_what_it_calls_cls_and_sep(
    tmp_path: Path, names: dict, written: tuple[str, str] | None, around: tuple[str, str]
):
    tokens = ["[PAD]", "[UNK]", "[MASK]", "[CLS]", "[SEP]", "<s>", "</s>"]
    source = words_like(tmp_path / "source", tokens, written, **REST, **names)
    adopted = adopt_tokenizer(source, tmp_path / "target")
    assert (adopted.special_tokens["bos_token"], adopted.special_tokens["eos_token"]) == around
    assert adopted.backend.encode("a").tokens == [around[0], "a", around[1]]
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        written_names = json.loads((tmp_path / "target" / name).read_text())
        assert written_names.get("cls_token") == (around[0] if "cls_token" in names else None)
        assert written_names.get("sep_token") == (around[1] if "sep_token" in names else None)


@pytest.mark.parametrize("added", [{"<mask>": 4}, ["<mask>"], [{"content": "<mask>"}], None])
def test_added_tokens_of_another_shape_are_no_tokenizer(tmp_path: Path, added: object):
    source = words_like(tmp_path / "source", ["[PAD]", "[UNK]", "[MASK]", "[CLS]", "[SEP]"])
    spec = json.loads((source / "tokenizer.json").read_text())
    (source / "tokenizer.json").write_text(json.dumps(spec | {"added_tokens": added}))
    with pytest.raises(ValueError, match=r"tokenizer\.json: added_tokens must be a list of tokens, each with"):
        adopt_tokenizer(source, tmp_path / "target")


def test_a_source_without_a_fast_tokenizer_is_told_how_to_get_one(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=r"holds no tokenizer\.json; of transformers, AutoTokenizer\.from_pre"):
        adopt_tokenizer(tmp_path, tmp_path / "target")
    with pytest.raises(FileNotFoundError, match=r"tokenizer folder .*nowhere does not exist"):
        adopt_tokenizer(tmp_path / "nowhere", tmp_path / "target")


def test_names_that_stand_in_special_tokens_map_alone_are_read(tmp_path: Path):
    tokens = ["[PAD]", "[UNK]", "[MASK]", "[CLS]", "[SEP]"]
    source = words_like(tmp_path / "source", tokens, cls_token="[CLS]", mask_token=None)
    (source / "special_tokens_map.json").write_text(json.dumps(REST | {"cls_token": "[PAD]", "sep_token": "[SEP]"}))
    assert adopt_tokenizer(source, tmp_path / "target").special_tokens["bos_token"] == "[CLS]"


@pytest.mark.parametrize(
    "changes, reason",
    [
        ({"mask_token": ...}, r"lacks <pad> <eos> <bos> <unk> <mask>, and .* name no mask_token; name them there"),
        ({"cls_token": ..., "sep_token": ...}, "name no sep_token or eos_token, no cls_token or bos_token; "),
        ({"mask_token": "[GAP]"}, r"tokenizer\.json: added_tokens lacks \[GAP\]; add them, or take another"),
        ({"pad_token": "[SEP]"}, r"tokenizer\.json: pad_token and eos_token are both \[SEP\]; each needs a token"),
    ],
)
def test_a_role_without_a_token_of_its_own_is_refused_by_name_before_anything_is_written(
    tmp_path: Path, changes: dict, reason: str
):
    tokens = ["[PAD]", "[UNK]", "[MASK]", "[CLS]", "[SEP]"]
    names = REST | {"cls_token": "[CLS]", "sep_token": "[SEP]"} | changes
    names = {key: token for key, token in names.items() if token is not ...}
    source = words_like(tmp_path / "source", tokens, **names)
    with pytest.raises(ValueError, match=reason) as error:
        adopt_tokenizer(source, tmp_path / "target")
    assert str(source) in str(error.value)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "target").exists()


@pytest.mark.parametrize(
    "name, changes, reason",
    [
        ("tokenizer_config.json", {"mask_token": None, "pad_token": 7}, "names no pad_token, no mask_token; make a"),
        ("tokenizer_config.json", {"mask_token": "[PAD]"}, r"pad_token and mask_token are both \[PAD\]; each needs"),
        ("tokenizer.json", {"post_processor": None}, r"is not \[CLS\] A \[SEP\] \(pair: \[CLS\] A \[SEP\] \[CLS\] B"),
        ("tokenizer.json", {"added_tokens": []}, r"\[PAD\] is not a special token"),
    ],
)
def test_a_folder_with_other_names_that_breaks_the_contract_is_refused_in_its_own_words(
    tmp_path: Path, name: str, changes: dict, reason: str
):
    adopt_tokenizer(modernbert_like(tmp_path / "source", TEXTS), tmp_path / "target")
    with pytest.raises(ValueError, match=reason) as error:
        load_tokenizer(edit(tmp_path / "target", tmp_path / "broken", name, **changes))
    assert str(tmp_path / "broken" / name) in str(error.value)
