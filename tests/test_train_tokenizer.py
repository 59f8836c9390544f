"""The sample that a tokenizer is trained on, and the program that trains it."""
import json
import random
import sys
from pathlib import Path

import numpy as np
import pytest

from data_prep import train_tokenizer
from data_prep.documents import Reading
from data_prep.inputs import Inputs, find_inputs
from data_prep.normalise import normalise
from data_prep.sample_texts import FLOOR, sample_rates, sample_texts
from data_prep.split import split_documents
from mmbert.tokenizer import load_tokenizer

Corpus = dict[str, list[str]]


def rates(characters: list[int], tau: float, budget: int) -> list[float]:
    return [float(rate) for rate in sample_rates(np.array(characters), tau, budget)]


def test_all_is_taken_where_there_is_no_more() -> None:
    assert rates([30, 70], 0.3, 100) == [1.0, 1.0]
    assert rates([30, 70], 0.3, 10**9) == [1.0, 1.0]


def test_shares_follow_the_temperature() -> None:
    sizes = [100_000, 400_000]
    assert rates(sizes, 1.0, 50_000) == pytest.approx([0.1, 0.1])
    assert rates(sizes, 0.0, 50_000) == pytest.approx([0.25, 0.0625])
    assert rates(sizes, 0.5, 30_000) == pytest.approx([0.1, 0.05])  # 1 : 2 of the characters


def test_what_a_small_language_lacks_the_others_give() -> None:
    taken = np.array(rates([100, 10_000, 10_000], 0.0, 9_000)) * [100, 10_000, 10_000]
    assert taken == pytest.approx([100, 4450, 4450])


def test_every_language_has_a_tenth_of_an_even_share_if_there_is_so_much() -> None:
    sizes = [50, 2_000, 10**9]
    taken = np.array(rates(sizes, 1.0, 30_000)) * sizes
    assert taken == pytest.approx([50, FLOOR * 10_000, 30_000 - 1_050])


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    """Three languages of 4,000, 600 and 1 documents of about 60 characters."""
    rng = random.Random(0)
    words = ["".join(rng.choice("aeioukmnst") for _ in range(rng.randint(2, 8))) for _ in range(300)]
    return {
        language: [f"{language} {number} " + " ".join(rng.choices(words, k=10)) for number in range(documents)]
        for language, documents in (("fao", 4000), ("isl", 600), ("nno", 1))
    }


def write(folder: Path, corpus: Corpus, files: int = 1) -> Inputs:
    """The corpus as a tree, each language in some files."""
    for language, texts in corpus.items():
        (folder / language).mkdir(parents=True)
        for number in range(files):
            lines = [json.dumps({"text": text}) + "\n" for text in texts[number::files]]
            (folder / language / f"{number}.jsonl").write_text("".join(lines))
    return find_inputs(str(folder), "text")


def taken(inputs: Inputs, tau: float = 0.3, budget: int = 10**9, workers: int = 1) -> dict[str, list[str]]:
    _, texts = sample_texts(inputs, tau, budget, 0.1, Reading(), workers)
    return {language: each for (_, language), each in texts.items()}


def test_nothing_held_out_is_taken_and_else_everything(corpus: Corpus, tmp_path: Path) -> None:
    found = taken(write(tmp_path, corpus))
    for language, texts in corpus.items():
        assert found[language] == split_documents(texts, 0.1)["train"]


def test_the_sample_is_as_large_as_asked_and_shared_as_asked(corpus: Corpus, tmp_path: Path) -> None:
    found = {language: sum(map(len, texts)) for language, texts in taken(write(tmp_path, corpus), 0.5, 60_000).items()}
    sizes = {language: sum(map(len, texts)) for language, texts in corpus.items()}
    assert found["nno"] == sizes["nno"]
    expected = (sizes["fao"] / sizes["isl"]) ** 0.5
    assert found["fao"] / found["isl"] == pytest.approx(expected, rel=0.15)
    assert sum(found.values()) == pytest.approx(60_000, rel=0.1)
    heldout = {language: set(split_documents(texts, 0.1)["heldout"]) for language, texts in corpus.items()}
    small = taken(write(tmp_path / "again", corpus), 0.5, 60_000)
    assert not any(heldout[language] & set(texts) for language, texts in small.items())


def test_files_workers_and_copies_change_no_document_of_the_sample(corpus: Corpus, tmp_path: Path) -> None:
    one = taken(write(tmp_path / "one", corpus), 0.3, 60_000)
    several = taken(write(tmp_path / "several", corpus, files=3), 0.3, 60_000, workers=2)
    assert {language: sorted(texts) for language, texts in several.items()} == {
        language: sorted(texts) for language, texts in one.items()
    }
    doubled = write(tmp_path / "doubled", {language: texts * 2 for language, texts in corpus.items()}, files=2)
    for texts in taken(doubled).values():
        assert len(texts) == len(set(texts))


def test_texts_are_normalised_before_they_are_split(tmp_path: Path) -> None:
    texts = [f"cafe\u0301 {number} \r\n" for number in range(200)]
    found = taken(write(tmp_path, {"fra": texts}))["fra"]
    assert found == split_documents([normalise(text) for text in texts], 0.1)["train"]


def test_a_language_without_text_is_named(tmp_path: Path) -> None:
    inputs = write(tmp_path, {"fao": ["a"], "isl": [" "]})
    with pytest.raises(ValueError, match="no text in isl"):
        taken(inputs)


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", ["train_tokenizer", *map(str, arguments)])
    train_tokenizer.main()


def test_one_text_gives_one_tokenizer_and_no_language_is_spelled_in_bytes(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cherokee = "ᏂᎦᏓ ᎠᏂᏴᏫ ᏂᎨᎫᏓᎸᎾ ᎠᎴ ᎤᏂᏠᏱ ᎤᎾᏕᎿ ᏚᏳᎧᏛ ᎨᏒᎢ"
    corpus = corpus | {"chr": [cherokee]}  # 41 characters of 300,000: fewer than the 5 in 10,000 that may be left out
    digests = []
    for name, files, workers in (("one", 1, 1), ("several", 3, 2)):
        write(tmp_path / name, corpus, files)
        output = tmp_path / f"{name}-tokenizer"
        run(monkeypatch, "--input", tmp_path / name, "--output", output, "--vocab-size", 600, "--workers", workers)
        digests.append(load_tokenizer(output).digest)
    assert digests[0] == digests[1]
    assert "of 4,602 documents, 4 languages" in capsys.readouterr().out
    tokenizer = load_tokenizer(output)
    assert set(cherokee) <= set(tokenizer.backend.get_vocab())


@pytest.mark.parametrize("vocab_size", [2000, 10**12])
def test_more_tokens_than_the_text_can_give_are_refused(vocab_size: int) -> None:
    """At 10^12 the package tokenizers asks for 72 TB, and aborts."""
    with pytest.raises(ValueError, match=f"--vocab-size {vocab_size}: the text is so small that it gives"):
        train_tokenizer.train(["beda gola"] * 100, vocab_size)


def test_a_tokenizer_is_not_written_among_the_text(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next run would take its tokenizer.json for text."""
    write(tmp_path / "text", corpus)
    output = tmp_path / "text" / "tokenizer"
    with pytest.raises(SystemExit, match=r"--output .*tokenizer lies in the input, .*text, .*: choose one outside"):
        run(monkeypatch, "--input", tmp_path / "text", "--output", output, "--vocab-size", 600, "--workers", 1)
    assert not output.exists()


@pytest.mark.parametrize(
    "option, value, reason",
    [
        ("--heldout-rate", 5, r"heldout_rate=5\.0 lies outside \(0, 1\)"),
        ("--characters", 0, "--characters 0: must be at least 1"),
        ("--tau", "nan", r"--tau nan lies outside \[0, 1\]"),
        ("--tau", -1, r"--tau -1\.0 lies outside \[0, 1\]"),
    ],
)
def test_a_wrong_number_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, option: str, value: object, reason: str
) -> None:
    """With a held-out rate of 5 it would learn from a document of each language, and say nothing."""
    with pytest.raises(SystemExit, match=f"error: {reason}"):
        run(monkeypatch, "--input", tmp_path, "--output", tmp_path.parent / "new", "--vocab-size", 600, option, value)
