import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from data_prep.inputs import find_inputs
from data_prep.prepare import prepare
from data_prep.work import Settings
from mmbert.manifest import (
    OWN_FILES,
    Manifest,
    check_stream,
    list_languages,
    read_manifest,
    shard_name,
    stream_folder,
    write_manifest,
)
from tests.conftest import Corpus


@pytest.fixture
def stream(tmp_path: Path, corpus: Corpus) -> Path:
    """A stream of its own for each test to break."""
    (tmp_path / "fao.txt").write_text("\n\n".join(f"beda gola {number}" for number in range(30)))
    settings = Settings(str(tmp_path / "shards"), str(corpus.tokenizer), 64)
    prepare(settings, find_inputs(str(tmp_path / "fao.txt"), "own"), workers=1)
    return stream_folder(tmp_path / "shards", "train", "own", "fao")


def check(stream: Path) -> Manifest:
    """check_stream with what the stream really is."""
    manifest = read_manifest(stream)
    return check_stream(stream, manifest.row_length, manifest.tokenizer, manifest.vocab_size)


def test_a_manifest_read_back_is_the_one_written(stream: Path):
    manifest = check(stream)
    write_manifest(stream, manifest)
    assert read_manifest(stream) == manifest
    assert read_manifest(stream).digest == manifest.digest != replace(manifest, tokens=1).digest


def test_a_digest_is_computed_once_and_changes_with_what_it_is_of(
    stream: Path, monkeypatch: pytest.MonkeyPatch
):
    """Of the paper's corpora it takes seconds, and every checkpoint asks for it."""
    manifest = read_manifest(stream)
    digest = manifest.digest
    monkeypatch.setattr("mmbert.manifest._digest", lambda values: "computed")
    assert manifest.digest == digest
    assert replace(manifest, seed=manifest.seed + 1).digest == "computed"


@pytest.mark.fault(28)
def test_every_changed_character_of_a_manifest_is_noticed(stream: Path):
    path = stream / "manifest.json"
    content = path.read_bytes()
    manifest = read_manifest(stream)
    for position in range(len(content)):
        path.write_bytes(content[:position] + bytes([content[position] ^ 1]) + content[position + 1 :])
        try:
            outcome: Manifest | str = read_manifest(stream)
        except ValueError as error:
            outcome = str(error)
        # Only a changed space between two values may pass, for it changes nothing.
        assert outcome == manifest or str(path) in str(outcome)


def test_a_manifest_of_another_format_is_refused(stream: Path):
    write_manifest(stream, replace(read_manifest(stream), format=1))
    with pytest.raises(ValueError, match="not of format 2"):
        read_manifest(stream)


def test_a_missing_language_names_the_nearest_one(stream: Path):
    with pytest.raises(FileNotFoundError, match=r"fax does not exist; did you mean fao\? .*prepare, or leave fax out"):
        read_manifest(stream.with_name("fax"))
    (stream / "manifest.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"holds no manifest\.json"):
        read_manifest(stream)


def test_languages_are_listed_without_unfinished_folders(stream: Path):
    stream.with_name(".yy.partial").mkdir()
    stream.with_name("aa").mkdir()
    assert list_languages(stream.parents[2], "train", "own") == ["aa", "fao"]
    with pytest.raises(FileNotFoundError, match=r"did you mean own\?"):
        list_languages(stream.parents[2], "train", "won")


@pytest.mark.fault(27)
@pytest.mark.parametrize("split, source, language", [("test", "a", "b"), ("train", "..", "b"), ("train", "a", "/b")])
def test_a_stream_name_cannot_leave_the_root(split: str, source: str, language: str):
    with pytest.raises(ValueError, match=r"must be one of|may hold only"):
        stream_folder(Path("root"), split, source, language)


@pytest.mark.fault(28)
@pytest.mark.parametrize(
    "wrong, reason",
    [
        ({"row_length": 128}, "row_length is 64, the run wants 128; .*: python -m data_prep.repack --row-length 128"),
        ({"tokenizer_digest": "0" * 64}, "the run has 000000000000"),
        ({"vocab_size": 511}, r"the run has .* \(511 tokens\)"),
    ],
)
def test_rows_of_another_length_or_tokenizer_are_refused(stream: Path, wrong: dict, reason: str):
    manifest = read_manifest(stream)
    right = {"row_length": 64, "tokenizer_digest": manifest.tokenizer, "vocab_size": manifest.vocab_size}
    check_stream(stream, **right)
    with pytest.raises(ValueError, match=reason):
        check_stream(stream, **right | wrong)


def edit_index(stream: Path, manifest: Manifest, **changes: object) -> None:
    """Change the first shard of index.json, and let this manifest vouch for it, as a hostile one would."""
    index = json.loads((stream / "index.json").read_bytes())
    index["shards"][0].update(changes)
    content = json.dumps(index).encode()
    (stream / "index.json").write_bytes(content)
    write_manifest(stream, replace(manifest, index_sha256=hashlib.sha256(content).hexdigest()))


@pytest.mark.fault(27, 28)
@pytest.mark.parametrize(
    "changes, reason",
    [
        ({"samples": 3}, "disagree on shards or rows"),
        ({"column_encodings": ["pkl", "ndarray:uint16"]}, "columns .*pkl"),
        ({"column_names": ["lengths", "input_ids"]}, "columns"),
        ({"raw_data": {"basename": "../x.mds", "bytes": 1, "hashes": {}}}, "disagree on shards or rows"),
        ({"zip_data": {"basename": "x.zstd", "bytes": 1, "hashes": {}}}, "uncompressed"),
    ],
)
def test_an_index_that_says_something_else_is_refused(stream: Path, changes: dict, reason: str):
    edit_index(stream, read_manifest(stream), **changes)
    with pytest.raises(ValueError, match=reason):
        check(stream)


def test_a_changed_index_a_short_shard_and_a_missing_one_are_named(stream: Path):
    shard, index = stream / "shard.00000.mds", stream / "index.json"
    content = shard.read_bytes()
    shard.write_bytes(content[:-1])
    with pytest.raises(ValueError, match=f"{shard} holds {len(content) - 1} bytes, must be {len(content)}"):
        check(stream)
    shard.unlink()
    with pytest.raises(FileNotFoundError, match=f"{shard} is missing"):
        check(stream)
    index.write_bytes(index.read_bytes() + b" ")
    with pytest.raises(ValueError, match=f"{index} was changed"):
        check(stream)
    index.unlink()
    with pytest.raises(FileNotFoundError, match=f"{index} is missing"):
        check(stream)


def rename_shard(stream: Path, manifest: Manifest, name: str) -> None:
    """Call the shard `name` in index and manifest alike."""
    (record,) = manifest.shards.values()
    raw_data = {"basename": name, "bytes": record.bytes, "hashes": {}}
    edit_index(stream, replace(manifest, shards={name: record}), raw_data=raw_data)


@pytest.mark.fault(27)
def test_a_shard_outside_the_folder_is_refused_even_if_all_else_agrees(stream: Path):
    manifest, outside = read_manifest(stream), stream.parent / "shard.00000.mds"
    os.link(stream / "shard.00000.mds", outside)
    os.link(outside, stream / "a b.mds")
    for name in ("../shard.00000.mds", str(outside), "a b.mds", "..", ".hidden"):
        rename_shard(stream, manifest, name)
        with pytest.raises(ValueError, match="is no plain file in this folder"):
            check(stream)
    rename_shard(stream, manifest, "link.mds")
    (stream / "link.mds").symlink_to(outside)
    with pytest.raises(ValueError, match="is no plain file in this folder"):
        check(stream)


def test_the_file_system_is_asked_once_for_each_shard(stream: Path, monkeypatch: pytest.MonkeyPatch):
    """All ranks ask for each of hundreds of thousands of shards, on a file system that may be far away."""
    manifest = read_manifest(stream)
    (record,) = manifest.shards.values()
    names = [shard_name(number) for number in range(200)]
    for name in names[1:]:
        os.link(stream / names[0], stream / name)
    index = json.loads((stream / "index.json").read_bytes())
    (shard,) = index["shards"]
    index["shards"] = [shard | {"raw_data": shard["raw_data"] | {"basename": name}} for name in names]
    content = json.dumps(index).encode()
    (stream / "index.json").write_bytes(content)
    totals = {"rows": 200 * manifest.rows, "tokens": 200 * manifest.tokens}
    records = {"shards": dict.fromkeys(names, record), "index_sha256": hashlib.sha256(content).hexdigest()}
    write_manifest(stream, replace(manifest, **totals, **records))
    asked: list[str] = []

    def counted(call: str) -> Callable[..., Any]:
        plain = getattr(os, call)
        return lambda *arguments, **keys: (asked.append(call), plain(*arguments, **keys))[1]

    for call in ("stat", "lstat", "open"):
        monkeypatch.setattr(os, call, counted(call))
    assert len(check(stream).shards) == 200
    assert 200 <= len(asked) < 220


def test_a_moved_folder_is_noticed(stream: Path):
    moved = stream.rename(stream.with_name("yy"))
    with pytest.raises(ValueError, match="is of train/own/fao: the folder was moved"):
        check(moved)


@pytest.mark.parametrize("number", [0, 99_999, 100_000])
def test_shards_of_any_number_are_our_own_files(number: int) -> None:
    assert OWN_FILES.fullmatch(shard_name(number))
