"""gigatoken gives the ids of `tokenizers`, or the run ends; without it all is the same but slower."""
import json
import os
import random
import subprocess
import sys
import unicodedata
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers

from data_prep import fast_tokenizer
from data_prep.fast_tokenizer import CHECKED, SMALL, Encoder, encoder, with_marked_spaces
from data_prep.formats import read_texts
from data_prep.inputs import find_inputs
from data_prep.train_tokenizer import train
from mmbert.packing import TokenIds
from mmbert.tokenizer import SPECIAL_TOKENS, Tokenizer, adopt_tokenizer, load_tokenizer, save_tokenizer
from tests.published_tokenizers import modernbert_like
from tests.test_tokenizer import TEXTS, UNSEEN

GEMMA2 = [Path("data/tokenizer-gemma2"), Path("data/demo-gemma2/tokenizer")]
DEMO_TEXT = Path("data/demo/text")
PIECES = [
    "<mask>", "<eos>", "<bos>", "<unk>", "<table>", "<0x41>", "\n", "\n\n", " ", "  ", "\t", "\r\n", "\u2581",
    "a\u2581", "\u00a0", "\u3000", "\u200d", "\u0301", "1", "23", "...", "://", "!" * 9, " " * 40, "\n" * 40, "ab" * 50,
]  # fmt: skip


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """A tokenizer of train_tokenizer."""
    folder = tmp_path_factory.mktemp("own") / "tokenizer"
    return save_tokenizer(train(TEXTS * 2, vocab_size=700), folder, origin=Path("test"))


@pytest.fixture(scope="module")
def like_gemma2(own: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """The same vocabulary in Gemma 2's shape: U+2581 for a space, and tokens that are found before all others."""
    spec = with_marked_spaces(json.loads((own.folder / "tokenizer.json").read_text()))
    for number, content in enumerate(("\n\n", "<table>", "\u2581\u2581")):
        entry = {"id": 700 + number, "content": content, "special": False, "normalized": False}
        spec["added_tokens"].append(dict.fromkeys(("single_word", "lstrip", "rstrip"), False) | entry)
    spec["pre_tokenizer"] = {
        "type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False,
    }  # fmt: skip
    return save_tokenizer(spec, tmp_path_factory.mktemp("gemma") / "tokenizer", origin=Path("test"))


def random_texts(number: int) -> list[str]:
    """Words of many scripts, spelled special tokens, white space and any characters, in any order."""
    rng = random.Random(number)
    words = " ".join(TEXTS + UNSEEN).split(" ")
    characters = [chr(point) for point in range(0x20000) if unicodedata.category(chr(point)) != "Cs"]
    sources = (words, [" " + word for word in words], PIECES, characters)
    return [
        "".join(rng.choice(rng.choices(sources, (4, 3, 3, 1))[0]) for _ in range(rng.randint(0, 60)))
        for _ in range(number)
    ]


def assert_same_ids(encode: Encoder, texts: list[str]) -> None:
    found, expected = encode(texts), encode.tokenizer.encode_batch(texts)
    assert sum(map(len, texts)) > SMALL, "too little text to reach gigatoken"
    assert [(ids.tolist(), ids.dtype) for ids in found] == [(ids.tolist(), ids.dtype) for ids in expected]


@pytest.mark.parametrize("name", ["own", "like_gemma2"])
def test_gigatoken_gives_the_same_ids_for_any_text(name: str, request: pytest.FixtureRequest) -> None:
    pytest.importorskip("gigatoken")
    encode = encoder(request.getfixturevalue(name), "gigatoken")
    assert_same_ids(encode, random_texts(3000))
    assert 0 < encode.num_checked < encode.num_encoded / 20


@pytest.mark.parametrize("name", ["own", "like_gemma2"])
def test_gigatoken_makes_no_special_token_of_a_spelled_one(name: str, request: pytest.FixtureRequest) -> None:
    pytest.importorskip("gigatoken")
    encode = encoder(request.getfixturevalue(name), "gigatoken")
    spelled = "".join(SPECIAL_TOKENS.values())
    for ids in encode([f"{spelled} a {spelled}"] * 1000):
        assert not np.isin(ids, encode.tokenizer.special_token_ids).any()


def test_a_tokenizer_that_learned_no_space_is_encoded_without_gigatoken(tmp_path: Path) -> None:
    """One of Chinese text alone, say: a space is then a byte, and not those of U+2581."""
    pytest.importorskip("gigatoken")
    spec = train(["人人生而自由在尊严和权利上一律平等" * 2] * 9, vocab_size=290)
    tokenizer = save_tokenizer(spec, tmp_path / "tokenizer", origin=Path("test"))
    encode = encoder(tokenizer)
    assert encode.fast is None
    assert "has no token for a space" in encode.description
    with pytest.raises(ValueError, match="--tokenizer-backend gigatoken: this tokenizer has no token for a space"):
        encoder(tokenizer, "gigatoken")


@pytest.mark.parametrize("path", GEMMA2, ids=str)
def test_gemma2_gives_the_same_ids_in_every_language_of_the_demo(path: Path) -> None:
    pytest.importorskip("gigatoken")
    if not path.is_dir() or not DEMO_TEXT.is_dir():
        pytest.skip("python -m data_prep.gemma2 and make demo make it")
    files = [file for of_stream in find_inputs(str(DEMO_TEXT), "udhr").values() for file in of_stream]
    assert_same_ids(encoder(load_tokenizer(path), "gigatoken"), [text for file in files for text in read_texts(file)])


def test_the_special_tokens_are_compared_as_the_tokenizer_spells_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = adopt_tokenizer(modernbert_like(tmp_path / "source", TEXTS), tmp_path / "tokenizer")

    def fast(texts: list[str]) -> list[TokenIds]:
        """A text that spells [MASK] gains one."""
        masked = np.array([tokenizer.mask_token_id], np.uint32)
        return [masked if "[MASK]" in text else tokenizer.encode_batch([text])[0] for text in texts]

    monkeypatch.setattr(fast_tokenizer, "load_gigatoken", lambda _: Encoder(tokenizer, "another", fast))
    with pytest.raises(ValueError, match=rf"another gives the ids \[{tokenizer.mask_token_id}\]"):
        encoder(tokenizer)


def test_gigatoken_starts_no_threads(own: Tokenizer) -> None:
    pytest.importorskip("gigatoken")
    program = (  # in a process of its own, where no pool is left; of more than 1 MB gigatoken would make chunks for one
        "import os, sys; from pathlib import Path; from data_prep.fast_tokenizer import encoder; "
        "from mmbert.tokenizer import load_tokenizer; "
        "tokenizer = load_tokenizer(Path(sys.argv[1])); before = os.listdir('/proc/self/task'); "
        "encoder(tokenizer, 'gigatoken').fast(['All human beings are born free. '] * 100_000); "
        "print(len(os.listdir('/proc/self/task')) - len(before))"
    )
    environment = os.environ | {"TOKENIZERS_PARALLELISM": "false", "PYTHONPATH": "."}
    command = [sys.executable, "-c", program, str(own.folder)]
    result = subprocess.run(
        command, env=environment, cwd=Path(__file__).parents[1], capture_output=True, text=True, check=True
    )
    assert int(result.stdout) == 0


def wrong_from_character(place: int, own: Tokenizer) -> fast_tokenizer.EncodeBatch:
    """An encoder that errs in every text from the token at `place` on."""

    def encode(texts: list[str]) -> list[TokenIds]:
        return [np.concatenate([ids[:place], ids[place:] + 1]) for ids in own.encode_batch(texts)]

    return encode


def test_other_ids_end_the_run_and_are_named(own: Tokenizer) -> None:
    encode = Encoder(own, "gigatoken 9.9", wrong_from_character(3, own))
    expected = own.encode_batch(TEXTS[:1])[0][3:11]
    with pytest.raises(ValueError, match=r"uninstall gigatoken, or give --tokenizer-backend tokenizers") as error:
        encode(TEXTS[:1] * 400)
    assert f"gigatoken 9.9 gives the ids {(expected + 1).tolist()}, tokenizers {expected.tolist()}" in str(error.value)
    assert "a text that begins with 'All human beings" in str(error.value)


def test_missing_ids_end_the_run(own: Tokenizer) -> None:
    encode = Encoder(own, "gigatoken 9.9", lambda texts: [ids[:-1] for ids in own.encode_batch(texts)])
    with pytest.raises(ValueError, match=r"gives the ids \[\]"):
        encode(TEXTS * 100)


def test_an_error_that_only_difficult_texts_show_ends_the_run_at_its_start(
    own: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("gigatoken")
    real = fast_tokenizer.encode_ragged

    def wrong(backend: object, texts: list[str]) -> list[TokenIds]:
        return [ids + ("<mask>" in text) for text, ids in zip(texts, real(backend, texts), strict=True)]

    monkeypatch.setattr(fast_tokenizer, "encode_ragged", wrong)
    for backend in ("auto", "gigatoken"):
        with pytest.raises(ValueError, match="gives the ids"):
            encoder(own, backend)  # type: ignore[arg-type]


def test_one_character_in_200_is_checked_whatever_the_lengths(own: Tokenizer) -> None:
    encode = Encoder(own, "", own.encode_batch)
    rng = random.Random(0)
    longest = 0
    for _ in range(2000):
        lengths = {number: rng.choice((10, 100, 1000, 100_000)) for number in range(rng.randint(1, 30))}
        chosen = encode.sample(lengths)
        longest = max([longest, *(lengths[number] for number in chosen)])
        due = CHECKED * encode.num_encoded
        assert encode.num_checked <= due + longest
        assert encode.num_checked > due or len(chosen) == len(lengths)


def test_without_gigatoken_tokenizers_encodes_and_says_so(own: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> str:
        if name == "gigatoken":
            raise PackageNotFoundError
        return "1.2.3"

    monkeypatch.setattr(fast_tokenizer, "version", version)
    assert encoder(own).description == "tokenizers 1.2.3 (gigatoken is not installed)"
    assert_same_ids(encoder(own), TEXTS * 100)
    with pytest.raises(ValueError, match="--tokenizer-backend gigatoken: gigatoken is not installed"):
        encoder(own, "gigatoken")


def test_tokenizers_can_be_asked_for(own: Tokenizer) -> None:
    assert encoder(own, "tokenizers").description.startswith("tokenizers ")
    assert encoder(own, "tokenizers").fast is None


def test_what_gigatoken_cannot_read_is_left_to_tokenizers_with_the_reason(own: Tokenizer, tmp_path: Path) -> None:
    pytest.importorskip("gigatoken")
    spec = json.loads((own.folder / "tokenizer.json").read_text())
    other = spec | {"pre_tokenizer": {"type": "Whitespace"}}
    split = save_tokenizer(other, tmp_path / "split", origin=Path("test"))
    assert "cannot read this tokenizer: Unsupported pre_tokenizer" in encoder(split).description
    backend = Backend(models.BPE())
    backend.add_special_tokens(list(SPECIAL_TOKENS.values()))
    backend.add_tokens(["a"])
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    byte_level = save_tokenizer(json.loads(backend.to_str()), tmp_path / "bytes", origin=Path("test"))
    assert "with byte fallback only" in encoder(byte_level).description
    for tokenizer in (split, byte_level):
        with pytest.raises(ValueError, match="leave the option out"):
            encoder(tokenizer, "gigatoken")


def test_a_vocabulary_that_holds_the_mark_of_a_space_is_not_rewritten(own: Tokenizer) -> None:
    spec = json.loads((own.folder / "tokenizer.json").read_text())
    spec["model"]["vocab"]["a\u2581"] = 700
    with pytest.raises(fast_tokenizer.CannotLoadError, match=r"U\+2581"):
        with_marked_spaces(spec)
