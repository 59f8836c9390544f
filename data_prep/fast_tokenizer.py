"""The ids that `tokenizers` gives, several times as fast where the optional package gigatoken is installed.

    pip install -r requirements-fast.txt

gigatoken is young, so nothing is believed: what it gives is compared with `tokenizers` on texts made to be difficult at
the start, and on one character in 200 of all text; one other id ends the run. It encodes on the calling thread, with a
cache that lives as long as a batch: gigatoken 0.10 frees none before (its issue 36).
"""
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Literal, get_args

import numpy as np

from data_prep.batches import batches
from data_prep.train_tokenizer import WORD_SPLIT
from mmbert.packing import TokenIds
from mmbert.tokenizer import Tokenizer

Backend = Literal["auto", "gigatoken", "tokenizers"]
BACKENDS: tuple[Backend, ...] = get_args(Backend)
EncodeBatch = Callable[[list[str]], list[TokenIds]]

SPACE = "\u2581"  # what SentencePiece, and so gigatoken, writes for a space inside tokens
SMALL = 2**14  # characters; making a cache takes as long as `tokenizers` over so little text
LARGE = 2**22  # characters at a time: what bounds the cache
CHECKED = 1 / 200  # of all characters; `tokenizers` takes ten times as long over them
DIFFICULT = [
    "All human beings. Все люди. 人人生而自由,在尊严和权利上。 يولد جميع الناس أحرارًا. सभी मनुष्यों को गौरव। มนุษย์ทั้งหลาย",  # noqa: RUF001
    "모든 인간은 태어날 때부터 የሰው ልጅ ሁሉ ᎠᏂᎦᏔᎲ ꆈꌠꁱꂷ 𞤀𞤣𞤤𞤢𞤥 𐐀𐐨 👩‍👩‍👧 e\u0301 a\u200cb \ufffd\U0010ffff",
    "\u2581 a\u2581b \u2581\u2581c",
    "<bos>a <mask> b<eos><pad><unk><start_of_turn><2mass>[@BOS@]<unused7><table></td><h1>",
    "  two   three\n\n\nlines \n \t\t tabs\r\n \u00a0\u3000\u2028 end  ",
    "Ⅷ ½ ١٢٣ 1234567890 3.14 don't x=a[i]; https://a.b/c?d=e&f=%20 " + 300 * "ab" + 70 * " ",
]


class CannotLoadError(ValueError):
    """gigatoken is not there, or not for this tokenizer; the message is a reason."""


@dataclass
class Encoder:
    """Encodes texts like `Tokenizer.encode_batch`.

    Attributes:
        tokenizer: what the ids are compared with.
        description: what encodes, with its version, for the log; and why not gigatoken.
        fast: gigatoken, or None.
        takes: whether gigatoken may be given a text.
        num_encoded, num_checked: characters so far.
    """

    tokenizer: Tokenizer
    description: str
    fast: EncodeBatch | None = None
    takes: Callable[[str], bool] = lambda _: True
    num_encoded: int = 0
    num_checked: int = 0

    def __call__(self, texts: list[str]) -> list[TokenIds]:
        """Ids of each text alone, without <bos> and <eos>; a special token spelled in a text stays text.

        Raises:
            ValueError: gigatoken gives other ids than `tokenizers`.
        """
        if self.fast is None or sum(map(len, texts)) < SMALL:
            return self.tokenizer.encode_batch(texts)
        mine = [number for number, text in enumerate(texts) if self.takes(text)]
        ids: dict[int, TokenIds] = {}
        for batch in batches(mine, lambda number: len(texts[number]), LARGE):
            ids.update(zip(batch, self.fast([texts[number] for number in batch]), strict=True))
        sample = self.sample({number: len(texts[number]) for number in mine})
        self.check([texts[number] for number in sample], [ids[number] for number in sample])
        others = [number for number in range(len(texts)) if number not in ids]
        ids.update(zip(others, self.tokenizer.encode_batch([texts[number] for number in others]), strict=True))
        return [ids[number] for number in range(len(texts))]

    def sample(self, lengths: dict[int, int]) -> list[int]:
        """Numbers of the documents to check, of those with these characters: the first ones, while it is their turn."""
        self.num_encoded += sum(lengths.values())
        chosen = []
        for number, length in lengths.items():
            if self.num_checked > CHECKED * self.num_encoded:
                break
            chosen.append(number)
            self.num_checked += length
        return chosen

    def check(self, texts: list[str], found: list[TokenIds]) -> None:
        """ValueError if `tokenizers` gives other ids than `found`."""
        for text, theirs, ours in zip(texts, found, self.tokenizer.encode_batch(texts), strict=True):
            if not np.array_equal(theirs, ours):
                first = next(
                    (place for place, (a, b) in enumerate(zip(theirs, ours, strict=False)) if a != b),
                    min(len(theirs), len(ours)),
                )
                here = slice(first, first + 8)
                before = self.tokenizer.backend.decode(ours[:first].tolist(), skip_special_tokens=False)
                raise ValueError(
                    f"{self.description} gives the ids {theirs[here].tolist()}, tokenizers {ours[here].tolist()}, "
                    f"from character {len(before)} on of a text that begins with {text[:40]!r}; uninstall gigatoken, "
                    "or give --tokenizer-backend tokenizers"
                )


def encoder(tokenizer: Tokenizer, backend: Backend = "auto") -> Encoder:
    """What encodes texts, one thread a process.

    Args:
        backend: "auto" takes gigatoken where it is installed and reads this tokenizer, and says which in `description`.

    Raises:
        ValueError: `backend` is "gigatoken" and cannot be had, or it gives other ids than `tokenizers`.
    """
    plain = f"tokenizers {version('tokenizers')}"
    if backend == "tokenizers":
        return Encoder(tokenizer, plain)
    try:
        found = load_gigatoken(tokenizer)
    except CannotLoadError as error:
        if backend == "gigatoken":
            raise ValueError(f"--tokenizer-backend gigatoken: {error}; leave the option out") from None
        return Encoder(tokenizer, f"{plain} ({error})")
    assert found.fast is not None
    spelled = "".join(tokenizer.special_tokens.values())
    difficult = [text for text in [*DIFFICULT, spelled] if found.takes(text)]
    found.check(difficult, found.fast(difficult))
    return found


def load_gigatoken(tokenizer: Tokenizer) -> Encoder:
    """gigatoken with the tokenizer's vocabulary.

    Raises:
        CannotLoadError: it is not installed, or cannot read the tokenizer.
    """
    try:
        name = f"gigatoken {version('gigatoken')}"
    except PackageNotFoundError:
        raise CannotLoadError("gigatoken is not installed") from None
    spec = json.loads((tokenizer.folder / "tokenizer.json").read_bytes())
    # Training text is data: without them, a text that spells a special token gains none.
    spec["added_tokens"] = [token for token in spec["added_tokens"] if not token["special"]]
    if not spec["model"].get("byte_fallback"):
        # It encodes them with a cache that lives as long as the process, and grows.
        raise CannotLoadError(f"{name} is used for tokenizers with byte fallback only")
    is_own = spec["normalizer"] is None and spec["pre_tokenizer"] == WORD_SPLIT
    if is_own:
        spec = with_marked_spaces(spec)
    try:
        backend = import_module("gigatoken").Tokenizer.from_json(json.dumps(spec))
    except (RuntimeError, ValueError) as error:
        raise CannotLoadError(f"{name} cannot read this tokenizer: {str(error).partition(chr(10))[0]}") from None
    return Encoder(
        tokenizer,
        name,
        fast=partial(encode_ragged, backend),
        takes=(lambda text: SPACE not in text) if is_own else (lambda _: True),
    )


def with_marked_spaces(spec: dict[str, Any]) -> dict[str, Any]:
    """A tokenizer of train_tokenizer as gigatoken reads it: U+2581 for a space, and no splitting into words before.

    Splitting is not needed: a token was learned inside one piece, and its characters, being of these classes in this
    order, lie in one piece wherever they stand. So no merge that gives a token crosses pieces.

    Raises:
        CannotLoadError: a token holds U+2581 itself, or there is none for a space, which is then spelled in bytes.
    """
    if " " not in spec["model"]["vocab"]:
        raise CannotLoadError("this tokenizer has no token for a space, which gigatoken would spell as U+2581")
    if any(SPACE in token for token in spec["model"]["vocab"]):
        raise CannotLoadError("a token of this tokenizer holds U+2581, which gigatoken takes for a space")
    model = spec["model"] | {
        "vocab": {token.replace(" ", SPACE): id_ for token, id_ in spec["model"]["vocab"].items()},
        "merges": [[part.replace(" ", SPACE) for part in merge] for merge in spec["model"]["merges"]],
    }
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    return spec | {"model": model, "normalizer": replace, "pre_tokenizer": None}


def encode_ragged(backend: Any, texts: list[str]) -> list[TokenIds]:
    """gigatoken's ids of each text, on this thread."""
    if not texts:
        return []
    ragged = backend.encode_batch(texts, parallel=False)
    awkward = import_module("awkward")
    ends = np.cumsum(awkward.to_numpy(awkward.num(ragged)))
    return np.split(awkward.to_numpy(awkward.flatten(ragged)), ends[:-1])
