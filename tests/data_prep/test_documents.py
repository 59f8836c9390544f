"""Every program that reads text finds the documents in it that `prepare` finds, and leaves out the same ones."""
import csv
import json
from pathlib import Path
from typing import Any

import pytest
import zstandard

from data_prep import clean, count, prepare, train_tokenizer
from data_prep.split import split_documents
from mmbert.manifest import read_manifest, stream_folder
from tests.conftest import Corpus
from tests.data_prep.programs import arguments_of, call, documents_of, encoded, read_back, write_jsonl

OPTIONS = [[], ["--whole-txt"], ["--keep-spelling"], ["--whole-txt", "--keep-spelling"]]
RATE = ("--heldout-rate", 0.3)
NAMES = [first + second for first in "bdfgkl" for second in "aeioumnprs"]


def paragraphs(name: str) -> list[str]:
    return [f"beda\u0301 {name} {which} gola " for which in ("first", "second")]


class EnoughError(Exception):
    """A tokenizer's texts are known: it need not be trained."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Sixty files of two paragraphs, with an accent that is a character of its own, and a space at the end."""
    (tmp_path / "text" / "fao").mkdir(parents=True)
    for name in NAMES:
        (tmp_path / "text" / "fao" / f"{name}.txt").write_text("\n\n".join(paragraphs(name)))
    return tmp_path / "text"


@pytest.fixture(params=OPTIONS, ids=lambda options: " ".join(options) or "none")
def options(request: pytest.FixtureRequest) -> list[str]:
    return request.param


@pytest.fixture
def rows(folder: Path, options: list[str], corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What `prepare` makes of the folder."""
    assert call(monkeypatch, prepare.main, *arguments_of(folder, corpus, tmp_path / "rows", *RATE, *options)) == 0
    return tmp_path / "rows"


def expected(options: list[str]) -> dict[str, list[str]]:
    """The documents of each split."""
    if "--whole-txt" in options:
        documents = ["\n\n".join(paragraphs(name)) for name in NAMES]
    else:
        documents = [paragraph for name in NAMES for paragraph in paragraphs(name)]
    if "--keep-spelling" not in options:
        documents = [text.replace("a\u0301", "\u00e1").strip() for text in documents]
    return split_documents(documents, 0.3)


def test_a_tokenizer_learns_from_what_prepare_makes_training_rows_of_and_from_no_more(
    folder: Path, options: list[str], rows: Path, corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learned: list[str] = []

    def train(texts: list[str], *_: Any) -> None:
        learned.extend(texts)
        raise EnoughError

    monkeypatch.setattr(train_tokenizer, "train", train)
    arguments = ("--input", folder, "--output", tmp_path / "new", "--vocab-size", 600, "--workers", 1)
    with pytest.raises(EnoughError):
        call(monkeypatch, train_tokenizer.main, *arguments, *RATE, *options)
    assert encoded(corpus, learned) == read_back(stream_folder(rows, "train", "own", "fao"))
    splits = expected(options)
    assert sorted(learned) == sorted(splits["train"])
    assert read_back(stream_folder(rows, "heldout", "own", "fao")) == encoded(corpus, splits["heldout"])


def test_text_is_counted_as_the_rows_hold_it(
    folder: Path, options: list[str], rows: Path, corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ("--input", folder, "--output", tmp_path / "counts", "--tokenizer", corpus.tokenizer, "--workers", 1)
    call(monkeypatch, count.main, *arguments, *RATE, *options)
    found = counted(tmp_path / "counts" / "counts.csv")["fao"]
    manifest = read_manifest(stream_folder(rows, "train", "own", "fao"))
    assert found == (manifest.tokens, manifest.documents)
    assert manifest.documents == len(expected(options)["train"])


def counted(path: Path) -> dict[str, tuple[int, int]]:
    """Language -> tokens and documents, by a table of one source."""
    with path.open() as file:
        return {row["language"]: (int(row["tokens"]), int(row["documents"])) for row in csv.DictReader(file)}


@pytest.mark.parametrize("rate", [1e-9, 0.1, 0.5, 1 - 1e-9])
@pytest.mark.parametrize("buckets", ["one", "many"])
def test_what_prepare_holds_out_of_a_language_however_small_is_not_counted(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest, rate: float,
    buckets: str,
) -> None:  # fmt: skip
    """Of two documents or more one is held out and one is not, whatever their hashes are."""
    if buckets == "many":
        request.getfixturevalue("small_buckets")
    large, text = [text.strip() for text in documents_of("fao")], tmp_path / "text"
    files = {
        "fao": [large[:30], large[30:]],
        "isl": [["the only one"]],
        "nno": [["beda"], ["gola"]],
        "dan": [["beda gola"], ["beda gola", "gola", ""]],
        "swe": [[f"beda {number}"] for number in range(5)],
    }
    for language, parts in files.items():
        (text / language).mkdir(parents=True)
        for number, texts in enumerate(parts):
            write_jsonl(text / language / f"{number}.jsonl", texts)
    options = ("--heldout-rate", rate)
    as_counted = ("--row-length", 8192, "--keep-duplicates")  # no document is cut, and copies count
    call(monkeypatch, prepare.main, *arguments_of(text, corpus, tmp_path / "rows", *as_counted, *options))
    arguments = ("--input", text, "--tokenizer", corpus.tokenizer, "--source", "own", "--workers", 1)
    call(monkeypatch, count.main, *arguments, "--output", tmp_path / "counts", *options)
    counts = counted(tmp_path / "counts" / "counts.csv")
    manifests = {folder.name: read_manifest(folder) for folder in (tmp_path / "rows" / "train" / "own").iterdir()}
    assert counts == {name: (manifest.tokens, manifest.documents) for name, manifest in manifests.items()}
    assert buckets == "many" or len(counts) == 5


@pytest.mark.parametrize("options", OPTIONS[:2], indirect=True, ids=["none", "--whole-txt"])
def test_text_that_was_cleaned_has_the_documents_that_it_had(
    folder: Path, options: list[str], rows: Path, corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ("--input", folder, "--output", tmp_path / "clean", "--minhash", "--workers", 1)
    call(monkeypatch, clean.main, *arguments, *options)
    call(monkeypatch, prepare.main, *arguments_of(tmp_path / "clean" / "text", corpus, tmp_path / "again", *RATE))
    for split in ("train", "heldout"):
        before, after = (stream_folder(root, split, "own", "fao") for root in (rows, tmp_path / "again"))
        assert read_back(after) == read_back(before)
    kept = (tmp_path / "clean" / "text" / "fao" / "00000.jsonl.zst").read_bytes()
    lines = zstandard.ZstdDecompressor().decompressobj().decompress(kept).splitlines()
    assert len(lines) == (60 if options else 120)
    assert json.loads(lines[0])["text"].endswith("second gola " if options else "first gola ")
