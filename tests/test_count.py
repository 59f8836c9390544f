"""Counting text and rows: sums by hand, the same whoever counts, and a table that the plan reads."""
import json
import sys
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import matplotlib.image
import pytest

from data_prep import count
from data_prep.count_figure import draw_counts
from data_prep.count_table import FEW, counts_table
from data_prep.counts import Counts, Stream, by_script, counts_csv, mean_tokens_per_word, total
from data_prep.documents import Reading
from data_prep.inputs import find_inputs
from data_prep.train_tokenizer import train
from mmbert.manifest import read_manifest, stream_folder
from mmbert.plan.counts import Count, read_counts
from mmbert.tokenizer import load_tokenizer, save_tokenizer
from tests.conftest import Corpus
from tests.data_prep.programs import write_jsonl

TEXTS = ["beda gola", "beda\u0301 ", "gola gola beda"]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """It knows " gola", "beda" and single letters; all else is spelled in bytes."""
    folder = tmp_path_factory.mktemp("count") / "tokenizer"
    save_tokenizer(train(["beda gola beda gola " * 9], vocab_size=277), folder, origin=Path("test"))
    return folder


def counted(folder: Path, tokenizer: Path, workers: int = 1) -> dict[Stream, Counts]:
    settings = count.Settings((tokenizer,), "tokenizers", 0.0, Reading())
    return count.count_inputs(find_inputs(str(folder), "own"), settings, workers)[tokenizer.name]


def test_every_number_is_what_one_counts_by_hand(tokenizer: Path, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "fao.jsonl", [*TEXTS, " \n"])
    backend = load_tokenizer(tokenizer).backend
    normal = ("beda gola", "bed\u00e1", "gola gola beda")
    tokens = [backend.encode(text, add_special_tokens=False).tokens for text in normal]
    assert tokens[1][-2:] == ["<0xC3>", "<0xA1>"]
    assert counted(tmp_path, tokenizer)["own", "fao"] == Counts(
        tokens=sum(map(len, tokens)) + 2 * 3,
        documents=3,
        characters=9 + 4 + 14,
        bytes=9 + 5 + 14,
        words=2 + 1 + 3,
        text_tokens=sum(map(len, tokens)),
        unknown_tokens=0,
        byte_tokens=2,
    )


def test_unknown_tokens_are_counted(tokenizer: Path, tmp_path: Path) -> None:
    spec = json.loads((tokenizer / "tokenizer.json").read_text())
    spec["model"]["byte_fallback"] = False
    save_tokenizer(spec, tmp_path / "tokenizer", origin=Path("test"))
    write_jsonl(tmp_path / "text" / "fao.jsonl", ["beda \u00e1 gola \u00e1"])
    assert counted(tmp_path / "text", tmp_path / "tokenizer")["own", "fao"].unknown_tokens == 2


def test_batches_files_and_workers_change_no_number(
    tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for language, texts in (("fao", TEXTS * 20), ("isl", TEXTS)):
        write_jsonl(tmp_path / "one" / f"{language}.jsonl", texts)
        for part in range(2):
            write_jsonl(tmp_path / "two" / language / f"{part}.jsonl", texts[part::2])
    one = counted(tmp_path / "one", tokenizer)
    assert one["own", "fao"].tokens == 20 * one["own", "isl"].tokens
    assert counted(tmp_path / "two", tokenizer, workers=2) == one
    monkeypatch.setattr(count, "BATCH", 20)
    assert counted(tmp_path / "one", tokenizer) == one


def test_a_document_without_a_token_is_left_out_as_it_is_of_rows(tokenizer: Path, tmp_path: Path) -> None:
    spec = json.loads((tokenizer / "tokenizer.json").read_text())
    spec["normalizer"] = {"type": "Replace", "pattern": {"String": "\u200b"}, "content": ""}
    save_tokenizer(spec, tmp_path / "tokenizer", origin=Path("test"))
    write_jsonl(tmp_path / "text" / "fao.jsonl", ["beda", "\u200b"])
    write_jsonl(tmp_path / "text" / "isl.jsonl", ["\u200b\u200b"])
    found = counted(tmp_path / "text", tmp_path / "tokenizer")
    assert list(found) == [("own", "fao")]
    assert (found["own", "fao"].tokens, found["own", "fao"].documents, found["own", "fao"].bytes) == (3, 1, 4)


def test_a_stream_without_text_is_left_out(tokenizer: Path, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "fao.jsonl", ["beda"])
    write_jsonl(tmp_path / "isl.jsonl", ["\n"])
    assert list(counted(tmp_path, tokenizer)) == [("own", "fao")]


# ---------------------------------------------------------------------------------------------------------- numbers

SPACED = Counts(40, None, 4, 80, 90, 20, 30, 0, 3)
UNSPACED = Counts(50, None, 5, 100, 300, 2, 45, 0, 0)


def test_ratios_are_of_text_tokens() -> None:
    assert (SPACED.tokens_per_byte, SPACED.tokens_per_character, SPACED.tokens_per_word) == (30 / 90, 30 / 80, 30 / 20)


def test_text_without_spaces_has_no_words_and_does_not_blur_those_of_others() -> None:
    assert UNSPACED.tokens_per_word is None
    assert mean_tokens_per_word([SPACED, UNSPACED]) == 1.5
    assert mean_tokens_per_word([UNSPACED]) is None


def test_what_one_does_not_count_the_sum_does_not_have() -> None:
    assert total([SPACED, replace(UNSPACED, words=None)]) == Counts(90, None, 9, 180, 390, None, 75, 0, 3)


def test_scripts_are_ordered_by_languages_and_the_unknown_is_last() -> None:
    streams = [("a", "zzz"), ("a", "zzy"), ("a", "rus"), ("a", "fao"), ("b", "fao")]
    groups = by_script(dict.fromkeys(streams, SPACED))
    assert {script: list(members) for script, members in groups.items()} == {
        "Latn": [("a", "fao"), ("b", "fao")],
        "Cyrl": [("a", "rus")],
        "unknown": [("a", "zzy"), ("a", "zzz")],
    }


def test_the_plan_reads_the_table(tmp_path: Path) -> None:
    path = tmp_path / "counts.csv"
    path.write_text(counts_csv({("a", "fao"): SPACED, ("a", "tha"): UNSPACED}))
    assert read_counts(path) == {("a", "fao"): Count(40), ("a", "tha"): Count(50)}
    path.write_text(counts_csv({("a", "fao"): Counts(40, 3, 4, None, 90, None, None, None, None)}))
    assert path.read_text().splitlines()[0] == "source,language,tokens,rows,documents,bytes"
    assert read_counts(path) == {("a", "fao"): Count(40, 3)}


def test_the_console_lists_streams_or_scripts() -> None:
    few = counts_table({("a", "fao"): SPACED, ("a", "tha"): UNSPACED}).splitlines()
    assert [line.split()[0] for line in few[1:]] == ["a/fao", "a/tha", "all"]
    assert "rows" not in few[0]
    assert few[2].split()[-3:] == ["-", "0.00%", "0.00%"]
    assert few[3].split()[-3:] == ["1.500", "0.00%", "4.00%"]
    many = counts_table({("a", f"z{number:02}"): SPACED for number in range(FEW)} | {("a", "rus"): SPACED}).splitlines()
    assert [line.split()[:2] for line in many[1:]] == [["Cyrl", "1"], ["unknown", str(FEW)], ["all", str(FEW + 1)]]


@pytest.mark.parametrize("number", [3, 532])
def test_the_figure_stays_readable(number: int) -> None:
    table = {("a", f"z{index:03}"): SPACED for index in range(number)} | {("a", "tha"): UNSPACED}
    height, width, _ = matplotlib.image.imread(BytesIO(draw_counts({"one": table, "two": table}))).shape
    assert width == 1200
    assert 150 < height < 400


# ---------------------------------------------------------------------------------------------------------- program


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", ["count", *map(str, arguments)])
    count.main()


def test_rows_are_counted_by_their_manifests(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run(monkeypatch, "--shards", corpus.shards[64], "--output", tmp_path)
    folders = stream_folder(corpus.shards[64], "train", "invented", "x").parent.iterdir()
    manifests = {folder.name: read_manifest(folder) for folder in folders}
    assert read_counts(tmp_path / "counts.csv") == {
        ("invented", language): Count(manifest.tokens, manifest.rows)
        for language, manifest in manifests.items()
    }
    assert f"{sum(manifest.text_bytes for manifest in manifests.values()):,}" in capsys.readouterr().out


def test_several_tokenizers_have_a_table_each(
    tokenizer: Path, corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_jsonl(tmp_path / "text" / "fao.jsonl", TEXTS)
    other = tmp_path / "other"
    other.symlink_to(corpus.tokenizer)
    arguments = ("--input", tmp_path / "text", "--source", "own", "--output", tmp_path / "counts", "--workers", 1)
    run(monkeypatch, *arguments, "--tokenizer", tokenizer, "--tokenizer", other)
    assert sorted(path.name for path in (tmp_path / "counts").iterdir()) == [
        "counts-other.csv", "counts-tokenizer.csv", "counts.png",
    ]  # fmt: skip
    by_other = read_counts(tmp_path / "counts" / "counts-other.csv")
    assert by_other["own", "fao"].tokens == counted(tmp_path / "text", other)["own", "fao"].tokens
    assert f"{tokenizer}: encoded by " in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments, reason",
    [
        (["--input", "{text}", "--tokenizer", "{tokenizer}", "--heldout-rate", "2"], r"heldout_rate=2\.0 lies outside"),
        (["--input", "{text}"], "--tokenizer is missing"),
        (["--input", "{text}", "--tokenizer", "a/x", "--tokenizer", "b/x"], "several of different names"),
        (["--input", "{text}", "--tokenizer", "{tokenizer}"], "holds nothing to count"),
        (["--shards", "{text}"], "is it a folder of data_prep.prepare"),
    ],
)
def test_a_wrong_argument_is_one_line(
    tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], reason: str
) -> None:
    write_jsonl(tmp_path / "text" / "fao.jsonl", [" "])
    filled = [argument.format(text=tmp_path / "text", tokenizer=tokenizer) for argument in arguments]
    with pytest.raises(SystemExit, match=f"error: .*{reason}"):
        run(monkeypatch, *filled, "--output", tmp_path / "counts", "--workers", 1)
    assert not (tmp_path / "counts").exists()


@pytest.mark.parametrize("what", ["--input", "--shards"])
def test_counts_are_not_written_among_what_is_counted(
    tokenizer: Path, corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """The next run would take counts.csv for text, or refuse a folder of rows that holds it."""
    write_jsonl(tmp_path / "text" / "fao.jsonl", TEXTS)
    folder = {"--input": tmp_path / "text", "--shards": corpus.shards[64]}[what]
    arguments = (what, folder, "--tokenizer", tokenizer, "--output", folder / "counts", "--workers", 1)
    with pytest.raises(SystemExit, match=rf"--output .*counts lies in the input, {folder}, .*: choose one outside"):
        run(monkeypatch, *arguments)
    assert not (folder / "counts").exists()
