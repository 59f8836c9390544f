"""The invented corpus of tests and benchmarks: its size, its determinism, and that text survives every file format."""
import csv
import io
import unicodedata
from pathlib import Path

import orjson
import pyarrow.parquet
import pytest
import zstandard

from tests.synthetic_corpus import LAYOUTS, make_texts, write_corpus, write_language, zipf_sizes

BYTES = 3_000_000


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("corpus")


@pytest.fixture(scope="module")
def made(folder):
    return write_corpus(folder, num_languages=40, num_bytes=BYTES, seed=1)


def read(path: Path) -> list[str]:
    """All texts of one file."""
    content = path.read_bytes()
    if path.suffix == ".zst":
        content = zstandard.ZstdDecompressor().decompressobj().decompress(content)
    if path.suffix == ".txt":
        return content.decode().removesuffix("\n\n").split("\n\n")
    if path.suffix == ".csv":
        return [row["text"] for row in csv.DictReader(io.StringIO(content.decode(), newline=""))]
    if path.suffix == ".parquet":
        return pyarrow.parquet.read_table(path)["text"].to_pylist()
    return [orjson.loads(line)["text"] for line in content.splitlines()]


def test_the_corpus_has_the_size_asked_for_by_zipfs_law(made):
    assert sum(one.text_bytes for one in made) == pytest.approx(BYTES, rel=0.1)
    assert made[0].language == "eng"
    assert made[0].text_bytes == pytest.approx(10 * made[9].text_bytes, rel=0.3)
    assert sum(zipf_sizes(1833, 10**9)) == pytest.approx(10**9, rel=1e-4)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_file_holds_the_same_documents(tmp_path, layout):
    def texts(layout):
        made = write_language(tmp_path / layout[-5:], "kor", 300_000, seed=0, layout=layout)
        files = sorted(made.path.iterdir()) if made.path.is_dir() else [made.path]
        return [text for file in files for text in read(file)], made

    (found, made), (expected, _) = texts(layout), texts("{language}.jsonl")
    assert found == expected
    assert len(found) == made.documents
    assert sum(len(text.encode()) for text in found) == made.text_bytes
    assert made.copies > 0
    assert len(set(found)) == len(found) - made.copies


def test_the_same_arguments_give_the_same_bytes(made, folder, tmp_path):
    again = write_corpus(tmp_path, num_languages=40, num_bytes=BYTES, seed=1)
    assert [(one.language, one.documents) for one in again] == [(one.language, one.documents) for one in made]
    files = {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert {path.relative_to(tmp_path): path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == files


@pytest.mark.parametrize("language", ["eng", "rus", "jpn", "hin", "kor", "arb", "tha", "ell"])
def test_text_is_normal_and_of_its_language(language):
    texts = list(make_texts(language, 200_000, seed=0))
    assert all(unicodedata.is_normalized("NFC", text) and text == text.strip() and "\n\n" not in text for text in texts)
    assert texts != list(make_texts(language, 200_000, seed=1))
    scripts = {unicodedata.name(char).split()[0] for text in texts for char in text if char.isalpha()}
    assert scripts <= {"eng": {"LATIN"}, "rus": {"CYRILLIC"}, "jpn": {"CJK", "HIRAGANA"}, "hin": {"DEVANAGARI"},
                       "kor": {"HANGUL"}, "arb": {"ARABIC"}, "tha": {"THAI"}, "ell": {"GREEK"}}[language]  # fmt: skip
    assert (sum(text.count(" ") for text in texts) < 10) == (language in {"jpn", "tha"})


def test_more_languages_than_there_are_is_refused(tmp_path):
    with pytest.raises(ValueError, match="1833"):
        write_corpus(tmp_path, num_languages=1834, num_bytes=1000)
