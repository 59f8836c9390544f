"""The tokenizer and its special ids as one frozen, checked value.

A tokenizer folder holds `tokenizer.json`, `tokenizer_config.json` and `special_tokens_map.json`, so that
`transformers.AutoTokenizer` loads it too, and keeps this contract:

* tokenizer_config.json names a special token for each of five roles, and special_tokens_map.json no other. Here and in
  all that is written they are called `<pad> <eos> <bos> <unk> <mask>`, as in Gemma 2's vocabulary and in the demo's,
  where their ids are 0 to 4. ModernBERT spells them `[PAD] [SEP] [CLS] [UNK] [MASK]`;
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
from mmbert.file_contents import parse_object, seen_from
from mmbert.packing import TokenIds

SPECIAL_TOKENS = {
    "pad_token": "<pad>",
    "eos_token": "<eos>",
    "bos_token": "<bos>",
    "unk_token": "<unk>",
    "mask_token": "<mask>",
}
"""Role -> token, as data preparation names them where a vocabulary has no names yet."""
SOURCE_KEYS = {
    "pad_token": ("pad_token",),
    "eos_token": ("sep_token", "eos_token"),
    "bos_token": ("cls_token", "bos_token"),
    "unk_token": ("unk_token",),
    "mask_token": ("mask_token",),
}
"""Role -> under which keys another's tokenizer_config.json may name its token."""
NEVER = -1000.0  # a piece's score, the logarithm of its probability: below that of any other pieces of its letters
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
        return tuple(sorted(getattr(self, f"{role}_id") for role in SPECIAL_TOKENS))

    @property
    def special_tokens(self) -> dict[str, str]:
        """Role, a key of SPECIAL_TOKENS -> how this vocabulary spells its token."""
        return {role: self.backend.id_to_token(getattr(self, f"{role}_id")) for role in SPECIAL_TOKENS}

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
    _, token_map = _read(folder, "special_tokens_map.json")
    backend = _backend(folder / "tokenizer.json", spec_bytes.decode())
    named = named_tokens(config)
    if missing := [role for role in SPECIAL_TOKENS if role not in named]:
        raise ValueError(f"{folder / 'tokenizer_config.json'} names no {', no '.join(missing)}; {REMEDY}")
    tokens = {role: named[role] for role in SPECIAL_TOKENS}
    _check_distinct(folder / "tokenizer_config.json", tokens)
    _check_same_roles(folder, tokens, named_tokens(token_map))
    ids = _special_ids(folder / "tokenizer.json", spec, tokens)
    _check_template(folder / "tokenizer.json", backend, tokens, ids)
    names = config.get("model_input_names")
    if names != MODEL_INPUT_NAMES:
        raise ValueError(
            f"{folder / 'tokenizer_config.json'}: model_input_names is {names}, must be {MODEL_INPUT_NAMES}; {REMEDY}"
        )
    # Training text is data: a document that spells a special token must not gain one.
    backend.encode_special_tokens = True
    _check_spellings(folder / "tokenizer.json", backend, tokens, ids)
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


def tokenizer_of_run(folder: str, vocab_size: int) -> Tokenizer:
    """Load a run's tokenizer and check that `vocab_size`, its model's, fits; see `load_tokenizer`."""
    tokenizer = load_tokenizer(Path(folder))
    remedy = f"write model.vocab_size: {tokenizer.vocab_size}, or name the tokenizer that you mean"
    tokenizer.check_vocabulary("model.vocab_size", vocab_size, remedy)
    return tokenizer


def adopt_tokenizer(source: Path, target: Path) -> Tokenizer:
    """Copy any folder that holds a tokenizer.json, Gemma 2's and ModernBERT's included, to one that keeps the contract.

    The vocabulary and its ids stay as they are, and the scores of a Unigram's pieces, but for the special tokens'.

    Raises:
        FileNotFoundError: `source` holds no tokenizer.json.
        ValueError: the file is broken, it has no token for one of the five roles, or one for two of them.
        FileExistsError: `target` exists with other content.
    """
    remedy = "of transformers, AutoTokenizer.from_pretrained(SOURCE).save_pretrained(OTHER) writes one"
    _, spec = _read(source, "tokenizer.json", remedy)
    return save_tokenizer(spec, target, source / "tokenizer.json", _source_tokens(source, spec))


def save_tokenizer(
    spec: dict[str, Any], target: Path, origin: Path, special_tokens: dict[str, str] = SPECIAL_TOKENS
) -> Tokenizer:
    """Write `spec`, a parsed tokenizer.json, to the folder `target` so that it keeps the contract.

    Args:
        spec: what tokenizer.json holds.
        target: the folder to make.
        origin: where `spec` comes from, for error messages.
        special_tokens: role -> token, and what else tokenizer_config.json shall name.
    """
    added = _added_tokens(origin, spec)
    missing = [token for token in dict.fromkeys(special_tokens.values()) if token not in added]
    if missing:
        raise ValueError(f"{origin}: added_tokens lacks {' '.join(missing)}; add them, or take another tokenizer")
    _check_distinct(origin, special_tokens)
    for token in special_tokens.values():
        is_mask = token == special_tokens["mask_token"]
        added[token] = added[token] | {"special": True, "normalized": False, "lstrip": is_mask}
        if is_mask:  # it takes no space on its right, and may touch a word
            added[token] |= {"rstrip": False, "single_word": False}
    bos, eos = special_tokens["bos_token"], special_tokens["eos_token"]
    spec = _without_spellings(spec, special_tokens) | {
        "truncation": None,
        "padding": None,
        "added_tokens": list(added.values()),
        "post_processor": _template({bos: added[bos]["id"], eos: added[eos]["id"]}),
    }
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_input_names": MODEL_INPUT_NAMES,
        "clean_up_tokenization_spaces": False,
        **special_tokens,
    }
    files = {
        "tokenizer.json": json.dumps(spec, ensure_ascii=False).encode(),
        "tokenizer_config.json": _pretty(config),
        "special_tokens_map.json": _pretty(special_tokens),
    }
    _backend(origin, files["tokenizer.json"].decode())  # before anything is written
    publish_files(target, files)
    return load_tokenizer(target)


def _pretty(value: dict[str, Any]) -> bytes:
    return (json.dumps(value, indent=2) + "\n").encode()


def named_tokens(config: dict[str, Any]) -> dict[str, str]:
    """Key -> token of a tokenizer_config.json, `mask_token` say; there a token may stand with its properties."""
    values = {key: value.get("content") if isinstance(value, dict) else value for key, value in config.items()}
    return {key: value for key, value in values.items() if key.endswith("_token") and isinstance(value, str)}


def _source_tokens(source: Path, spec: dict[str, Any]) -> dict[str, str]:
    """Role -> token of a tokenizer that may have other names than ours, for `save_tokenizer`.

    What a BERT calls cls and sep stands around a text; Gemma 2 calls that bos and eos, and XLM-R has both names for
    both. Of a tokenizer with a `<cls>` and another `<s>`, that one is taken which its own template writes; if that
    writes neither, cls and sep, which only encoders have. Users of a BERT ask for `tokenizer.cls_token`: where these
    two names were they stay, for the tokens that now stand around a text.
    """
    origin = source / "tokenizer.json"
    added = _added_tokens(origin, spec)
    lacking = [token for token in SPECIAL_TOKENS.values() if token not in added]
    if not lacking:
        return SPECIAL_TOKENS
    files = ("special_tokens_map.json", "tokenizer_config.json")
    named: dict[str, str] = {}
    for name in files:  # the second is the newer kind of file, and goes before
        if (source / name).is_file():
            named |= named_tokens(_read(source, name)[1])
    if missing := [" or ".join(keys) for keys in SOURCE_KEYS.values() if not named.keys() & set(keys)]:
        raise ValueError(
            f"{origin}: added_tokens lacks {' '.join(lacking)}, and {' and '.join(files)} beside it name no "
            f"{', no '.join(missing)}; name them there, or take another tokenizer"
        )
    written = _backend(origin, json.dumps(spec)).encode("").tokens
    tokens = {}
    for role, keys in SOURCE_KEYS.items():
        choice = [named[key] for key in keys if key in named]
        tokens[role] = next((token for token in choice if token in written), choice[0])
    for key, role in (("cls_token", "bos_token"), ("sep_token", "eos_token")):
        if key in named:
            tokens[key] = tokens[role]
    return tokens


def _without_spellings(spec: dict[str, Any], special_tokens: dict[str, str]) -> dict[str, Any]:
    """A Unigram model that prefers any other pieces of a text to its special tokens.

    SentencePiece gives them the score 0, the best there is: so each text that spells one would become one.
    """
    model = spec.get("model")
    if not isinstance(model, dict) or model.get("type") != "Unigram":
        return spec
    special = {special_tokens[role] for role in SPECIAL_TOKENS}
    vocabulary = [[piece, NEVER if piece in special else score] for piece, score in model["vocab"]]
    return spec | {"model": model | {"vocab": vocabulary}}


def _template(ids: dict[str, int]) -> dict[str, Any]:
    """The post-processor of tokenizer.json that writes `<bos> A <eos>` and `<bos> A <eos> <bos> B <eos>`.

    Args:
        ids: token -> id, of these two in this order.
    """
    bos, eos = ids

    def wrapped(sequence: str) -> list[dict[str, Any]]:
        return [
            {"SpecialToken": {"id": bos, "type_id": 0}},
            {"Sequence": {"id": sequence, "type_id": 0}},
            {"SpecialToken": {"id": eos, "type_id": 0}},
        ]

    return {
        "type": "TemplateProcessing",
        "single": wrapped("A"),
        "pair": wrapped("A") + wrapped("B"),
        "special_tokens": {token: {"id": token, "ids": [id_], "tokens": [token]} for token, id_ in ids.items()},
    }


def _read(folder: Path, name: str, remedy: str = REMEDY) -> tuple[bytes, dict[str, Any]]:
    """A file's bytes, and the JSON object in them; `remedy` is for the error that there is no such file."""
    if not folder.is_dir():
        raise FileNotFoundError(f"tokenizer folder {folder} does not exist{seen_from(folder)}")
    if not (folder / name).is_file():
        raise FileNotFoundError(f"tokenizer folder {folder} holds no {name}; {remedy}")
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
    added = spec["added_tokens"]
    is_list = isinstance(added, list)
    if not is_list or not all(isinstance(token, dict) and {"id", "content"} <= token.keys() for token in added):
        raise ValueError(
            f"{path}: added_tokens must be a list of tokens, each with its content and id; take another tokenizer"
        )
    return {token["content"]: token for token in added}


def _check_distinct(path: Path, tokens: dict[str, str]) -> None:
    """Refuse a token that has two roles: of its ids nothing could say which was meant."""
    roles: dict[str, str] = {}
    for role in SPECIAL_TOKENS:
        if tokens[role] in roles:
            raise ValueError(
                f"{path}: {roles[tokens[role]]} and {role} are both {tokens[role]}; each needs a token of its own: "
                "take another tokenizer"
            )
        roles[tokens[role]] = role


def _check_same_roles(folder: Path, tokens: dict[str, str], mapped: dict[str, str]) -> None:
    """Refuse roles that were changed in one file alone: the digest, which is tokenizer.json's, does not show it."""
    for role, token in tokens.items():
        if mapped.get(role, token) != token:
            raise ValueError(
                f"{folder / 'tokenizer_config.json'}: {role} is {token}, and special_tokens_map.json beside it says "
                f"{mapped[role]}; copy the tokenizer's files anew"
            )


def _special_ids(path: Path, spec: dict[str, Any], tokens: dict[str, str]) -> dict[str, int]:
    """Role -> id of the five special tokens, each checked."""
    added = _added_tokens(path, spec)
    for token in tokens.values():
        if token not in added or not added[token]["special"]:
            raise ValueError(f"{path}: {token} is not a special token; {REMEDY}")
    mask = tokens["mask_token"]
    if not added[mask]["lstrip"]:
        raise ValueError(f"{path}: {mask} has lstrip false, must be true; {REMEDY}")
    return {role: added[token]["id"] for role, token in tokens.items()}


def _check_template(
    path: Path, backend: tokenizers.Tokenizer, tokens: dict[str, str], ids: dict[str, int]
) -> None:
    text = backend.encode("a", add_special_tokens=False).ids
    wrapped = [ids["bos_token"], *text, ids["eos_token"]]
    if backend.encode("a").ids != wrapped or backend.encode("a", "a").ids != wrapped * 2:
        bos, eos = tokens["bos_token"], tokens["eos_token"]
        raise ValueError(
            f"{path}: the template is not {bos} A {eos} (pair: {bos} A {eos} {bos} B {eos}); {REMEDY}"
        )


def _check_spellings(
    path: Path, backend: tokenizers.Tokenizer, tokens: dict[str, str], ids: dict[str, int]
) -> None:
    """Refuse a tokenizer that makes a special token of a text that spells it; `unk` may stand for an odd letter."""
    for role in SPECIAL_TOKENS.keys() - {"unk_token"}:
        try:
            made = backend.encode(f"a {tokens[role]}a", add_special_tokens=False).ids
        except Exception:  # tokenizers raises the bare class of a letter that it does not know; then no text spells it
            continue
        if ids[role] in made:
            raise ValueError(f"{path}: a text that spells {tokens[role]} becomes the special token; {REMEDY}")


def _vocab_size(path: Path, backend: tokenizers.Tokenizer) -> int:
    ids = backend.get_vocab(with_added_tokens=True).values()
    if max(ids) != len(ids) - 1:
        raise ValueError(f"{path}: {len(ids)} tokens, but the highest id is {max(ids)}: ids must have no gaps")
    return len(ids)
