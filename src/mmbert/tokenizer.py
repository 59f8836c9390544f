"""The tokenizer and its special ids as one frozen, checked value.

A tokenizer folder holds `tokenizer.json`, `tokenizer_config.json` and `special_tokens_map.json`, so that
`transformers.AutoTokenizer` loads it too, and keeps this contract:

* `<pad> <eos> <bos> <unk> <mask>` are special tokens (ids 0 to 4 in Gemma 2's vocabulary and in the demo's);
* the template is `<bos> A <eos>`, and `<bos> A <eos> <bos> B <eos>` for a pair: what packed training rows hold;
* `<mask>` swallows the spaces on its left (`lstrip`). A word's token carries the space before it, so "born <mask>
  and" must become `born`, `<mask>`, ` and`, as in training. Without lstrip it becomes `born`, ` `, `<mask>`,
  ` and`: a lone space that training never shows before a masked word;
* `model_input_names` is `[input_ids, attention_mask]`: the encoder takes no token_type_ids.

Two properties are told, not demanded, for a tokenizer that is taken over keeps its ids: whether a text begins as after
a space (`prefix_space`), and what does not survive decoding (`python -m data_prep.check_tokenizer`).

Only the light `tokenizers` package is imported here: data preparation must not wait for transformers.
"""
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers

from mmbert.atomic import publish_files
from mmbert.file_contents import parse_object
from mmbert.packing import TokenIds

SPECIAL_TOKENS = {
    "pad_token": "<pad>",
    "eos_token": "<eos>",
    "bos_token": "<bos>",
    "unk_token": "<unk>",
    "mask_token": "<mask>",
}
VOCABULARY_PADDING = 128
"""A model's embeddings may be padded to a multiple of 64 or 128 rows; more rows have tokens of another tokenizer."""
MODEL_INPUT_NAMES = ["input_ids", "attention_mask"]
REMEDY = "make a folder that keeps the contract: python -m data_prep.adopt_tokenizer SOURCE TARGET"


@dataclass(frozen=True)
class Tokenizer:
    """A tokenizer folder, loaded and checked.

    Attributes:
        folder: where it was loaded from.
        backend: the tokenizer itself.
        digest: sha256, in hex, of tokenizer.json's bytes.
        vocab_size: rows that an embedding needs; every id is below it.
    """

    folder: Path
    backend: tokenizers.Tokenizer
    digest: str
    vocab_size: int
    pad_token_id: int
    eos_token_id: int
    bos_token_id: int
    unk_token_id: int
    mask_token_id: int

    @property
    def special_token_ids(self) -> tuple[int, ...]:
        """The five special ids, sorted."""
        return tuple(
            sorted(
                (self.pad_token_id, self.eos_token_id, self.bos_token_id, self.unk_token_id, self.mask_token_id)
            )
        )

    @property
    def prefix_space(self) -> bool:
        """Whether a word at the start of a text is encoded like one after a space.

        Gemma 2's is not, nor train_tokenizer's. Then a word that is encoded alone, as for tagging words that were split
        before, becomes another token than the same word in a sentence.
        """
        alone, twice = (ids.tolist() for ids in self.encode_batch(["a", "a a"]))
        return bool(alone * 2 == twice)

    def check_vocabulary(self, key: str, vocab_size: int, remedy: str) -> None:
        """Refuse a model whose embeddings are another tokenizer's.

        Raises:
            ValueError: `vocab_size`, which `key` names, is too few rows, or more than padding explains.
        """
        if not 0 <= vocab_size - self.vocab_size < VOCABULARY_PADDING:
            raise ValueError(
                f"{key} = {vocab_size} must be the {self.vocab_size} ids of tokenizer {self.folder}, or less than "
                f"{VOCABULARY_PADDING} more as padding; {remedy}"
            )

    def encode_batch(self, texts: list[str]) -> list[TokenIds]:
        """Ids of each text alone, without <bos> and <eos>; a "<mask>" written in a text is ordinary text."""
        encodings = self.backend.encode_batch_fast(texts, add_special_tokens=False)
        return [np.array(encoding.ids, dtype=np.uint32) for encoding in encodings]


def load_tokenizer(folder: Path) -> Tokenizer:
    """Load a tokenizer folder and check that it keeps the contract.

    Raises:
        FileNotFoundError: the folder, or one of its files, is missing.
        ValueError: a file is broken, or the contract is.
    """
    spec_bytes, spec = _read(folder, "tokenizer.json")
    _, config = _read(folder, "tokenizer_config.json")
    _read(folder, "special_tokens_map.json")
    backend = _backend(folder / "tokenizer.json", spec_bytes.decode())
    ids = _special_ids(folder / "tokenizer.json", spec)
    _check_template(folder / "tokenizer.json", backend, ids["bos_token"], ids["eos_token"])
    names = config.get("model_input_names")
    if names != MODEL_INPUT_NAMES:
        raise ValueError(
            f"{folder / 'tokenizer_config.json'}: model_input_names is {names}, must be {MODEL_INPUT_NAMES}; {REMEDY}"
        )
    # Training text is data: a document that spells a special token must not gain one.
    backend.encode_special_tokens = True
    return Tokenizer(
        folder=folder,
        backend=backend,
        digest=hashlib.sha256(spec_bytes).hexdigest(),
        vocab_size=_vocab_size(folder / "tokenizer.json", backend),
        pad_token_id=ids["pad_token"],
        eos_token_id=ids["eos_token"],
        bos_token_id=ids["bos_token"],
        unk_token_id=ids["unk_token"],
        mask_token_id=ids["mask_token"],
    )


def adopt_tokenizer(source: Path, target: Path) -> Tokenizer:
    """Copy any folder that holds a tokenizer.json, Gemma 2's included, to one that keeps the contract.

    The vocabulary and its ids stay as they are.

    Raises:
        FileNotFoundError: `source` holds no tokenizer.json.
        ValueError: its vocabulary lacks one of the five special tokens.
        FileExistsError: `target` exists with other content.
    """
    _, spec = _read(source, "tokenizer.json")
    return save_tokenizer(spec, target, origin=source / "tokenizer.json")


def save_tokenizer(spec: dict[str, Any], target: Path, origin: Path) -> Tokenizer:
    """Write `spec`, a parsed tokenizer.json, to the folder `target` so that it keeps the contract.

    Args:
        spec: what tokenizer.json holds.
        target: the folder to make.
        origin: where `spec` comes from, for error messages.
    """
    added = _added_tokens(origin, spec)
    missing = [token for token in SPECIAL_TOKENS.values() if token not in added]
    if missing:
        raise ValueError(f"{origin}: added_tokens lacks {' '.join(missing)}; add them, or take another tokenizer")
    for token in SPECIAL_TOKENS.values():
        is_mask = token == SPECIAL_TOKENS["mask_token"]
        added[token] = added[token] | {"special": True, "normalized": False, "lstrip": is_mask}
        if is_mask:  # it takes no space on its right, and may touch a word
            added[token] |= {"rstrip": False, "single_word": False}
    spec = spec | {
        "truncation": None,
        "padding": None,
        "added_tokens": list(added.values()),
        "post_processor": _template(added["<bos>"]["id"], added["<eos>"]["id"]),
    }
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_input_names": MODEL_INPUT_NAMES,
        "clean_up_tokenization_spaces": False,
        **SPECIAL_TOKENS,
    }
    files = {
        "tokenizer.json": json.dumps(spec, ensure_ascii=False).encode(),
        "tokenizer_config.json": _pretty(config),
        "special_tokens_map.json": _pretty(SPECIAL_TOKENS),
    }
    _backend(origin, files["tokenizer.json"].decode())  # before anything is written
    publish_files(target, files)
    return load_tokenizer(target)


def _pretty(value: dict[str, Any]) -> bytes:
    return (json.dumps(value, indent=2) + "\n").encode()


def _template(bos: int, eos: int) -> dict[str, Any]:
    """The post-processor of tokenizer.json that writes `<bos> A <eos>` and `<bos> A <eos> <bos> B <eos>`."""

    def wrapped(sequence: str) -> list[dict[str, Any]]:
        return [
            {"SpecialToken": {"id": "<bos>", "type_id": 0}},
            {"Sequence": {"id": sequence, "type_id": 0}},
            {"SpecialToken": {"id": "<eos>", "type_id": 0}},
        ]

    return {
        "type": "TemplateProcessing",
        "single": wrapped("A"),
        "pair": wrapped("A") + wrapped("B"),
        "special_tokens": {
            token: {"id": token, "ids": [id_], "tokens": [token]} for token, id_ in (("<bos>", bos), ("<eos>", eos))
        },
    }


def _read(folder: Path, name: str) -> tuple[bytes, dict[str, Any]]:
    """A file's bytes, and the JSON object in them."""
    if not folder.is_dir():
        raise FileNotFoundError(f"tokenizer folder {folder} does not exist")
    if not (folder / name).is_file():
        raise FileNotFoundError(f"tokenizer folder {folder} holds no {name}; {REMEDY}")
    content = (folder / name).read_bytes()
    return content, parse_object(content, folder / name, "copy the tokenizer's files anew")


def _backend(path: Path, spec: str) -> tokenizers.Tokenizer:
    try:
        return tokenizers.Tokenizer.from_str(spec)
    except Exception as error:  # tokenizers raises the bare class
        raise ValueError(f"{path} is not a tokenizer that the package tokenizers reads: {error}") from None


def _added_tokens(path: Path, spec: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Content -> entry of each token outside the model's own vocabulary, in their order."""
    if "added_tokens" not in spec:
        raise ValueError(f"{path} has no added_tokens: it is not a tokenizer.json of the package tokenizers")
    return {token["content"]: token for token in spec["added_tokens"]}


def _special_ids(path: Path, spec: dict[str, Any]) -> dict[str, int]:
    """Role -> id of the five special tokens, each checked."""
    added = _added_tokens(path, spec)
    for token in SPECIAL_TOKENS.values():
        if token not in added or not added[token]["special"]:
            raise ValueError(f"{path}: {token} is not a special token; {REMEDY}")
    if not added[SPECIAL_TOKENS["mask_token"]]["lstrip"]:
        raise ValueError(f"{path}: <mask> has lstrip false, must be true; {REMEDY}")
    return {role: added[token]["id"] for role, token in SPECIAL_TOKENS.items()}


def _check_template(path: Path, backend: tokenizers.Tokenizer, bos: int, eos: int) -> None:
    text = backend.encode("a", add_special_tokens=False).ids
    wrapped = [bos, *text, eos]
    if backend.encode("a").ids != wrapped or backend.encode("a", "a").ids != wrapped * 2:
        raise ValueError(f"{path}: the template is not <bos> A <eos> (pair: <bos> A <eos> <bos> B <eos>); {REMEDY}")


def _vocab_size(path: Path, backend: tokenizers.Tokenizer) -> int:
    ids = backend.get_vocab(with_added_tokens=True).values()
    if max(ids) != len(ids) - 1:
        raise ValueError(f"{path}: {len(ids)} tokens, but the highest id is {max(ids)}: ids must have no gaps")
    return len(ids)
