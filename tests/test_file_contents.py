"""Hashes and JSON of files."""
import hashlib
from pathlib import Path

import pytest

from mmbert.file_contents import parse_object, seen_from, sha256_of


def test_the_sha256_is_that_of_the_bytes(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(range(256)) * 5000)
    assert sha256_of(tmp_path / "file") == hashlib.sha256(bytes(range(256)) * 5000).hexdigest()


def test_of_a_relative_path_alone_it_is_told_where_it_was_looked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert seen_from(tmp_path / "a") == ""
    assert seen_from(Path("a")) == f" below {tmp_path} (run this in the root of the repository)"


def test_an_object_is_parsed() -> None:
    assert parse_object('{"å": [1, null]}'.encode(), Path("a.json"), "remedy") == {"å": [1, None]}


@pytest.mark.parametrize(
    "content, words",
    [
        (b"", "a.json is no JSON: .*; remedy"),
        (b"\xff\xfe\x00", "a.json is no JSON: .*; remedy"),
        (b"{} {}", "a.json is no JSON: .*; remedy"),
        (b"[" * 100_000, "a.json is no JSON: .*; remedy"),
        (b"[1]", "a.json holds no JSON object; remedy"),
        (b"null", "a.json holds no JSON object; remedy"),
    ],
)
def test_all_else_is_refused_by_name(content: bytes, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        parse_object(content, Path("a.json"), "remedy")
