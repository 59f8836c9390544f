"""`verify` finds every byte that is not what was written, and every row that breaks the format."""
import hashlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from streaming import MDSWriter

from data_prep import verify
from mmbert.file_contents import sha256_of
from mmbert.manifest import COLUMNS, read_manifest, shard_records, stream_folder, write_manifest
from mmbert.shards import LanguageShards
from tests.data_prep.programs import call


def test_a_whole_folder_is_verified(shards: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    for workers in (1, 2):
        call(monkeypatch, verify.main, shards, "--workers", workers)
        assert "5 streams are whole" in capsys.readouterr().out
    with pytest.raises(SystemExit, match=r"error: .* holds no <split>/<source>/<language>"):
        call(monkeypatch, verify.main, shards / "train")


def test_each_row_is_read_once(shards: Path, monkeypatch: pytest.MonkeyPatch):
    folder = shards / "train" / "own" / "fao"
    read: list[int] = []
    rows_of = LanguageShards.rows

    def rows(self: LanguageShards, wanted: list[tuple[int, int]]) -> object:
        read.extend(number for _, number in wanted)
        return rows_of(self, wanted)

    monkeypatch.setattr(LanguageShards, "rows", rows)
    verify.verify_stream(folder)
    assert read == list(range(read_manifest(folder).rows))


@pytest.mark.fault(28)
@pytest.mark.parametrize("key", ["tokens", "documents"])
def test_a_manifest_that_counts_otherwise_is_found(shards: Path, key: str, monkeypatch: pytest.MonkeyPatch):
    folder = shards / "train" / "own" / "fao"
    manifest = read_manifest(folder)
    there = getattr(manifest, key)
    write_manifest(folder, replace(manifest, **{key: there + 1}))
    with pytest.raises(ValueError, match=f"{folder} holds {there} {key}, its manifest says {there + 1}"):
        verify.verify_stream(folder)
    with pytest.raises(SystemExit, match=f"^broken: train/own/fao: .* holds {there} {key}, its manifest says"):
        call(monkeypatch, verify.main, shards)


@pytest.mark.usefixtures("small_buckets")
@pytest.mark.parametrize("workers", [1, 2])
def test_all_parts_of_a_stream_are_read_by_any_number_of_workers(
    shards: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], workers: int
):
    folder = shards / "train" / "own" / "fao"
    manifest = read_manifest(folder)
    monkeypatch.setattr(verify, "SHARDS", 3)
    parts = [part.numbers for part in verify.parts_of(folder, manifest)]
    assert len(parts) > 2
    assert [number for numbers in parts for number in numbers] == list(range(len(manifest.shards)))
    call(monkeypatch, verify.main, shards, "--workers", workers)
    assert "5 streams are whole" in capsys.readouterr().out
    for name in manifest.shards:
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        with pytest.raises(SystemExit, match=f"^broken: train/own/fao: {folder / name} was changed .*again$"):
            call(monkeypatch, verify.main, shards, "--workers", workers)
        (folder / name).write_bytes(content)


@pytest.mark.fault(11)
def test_any_flipped_bit_of_a_shard_is_found_and_its_stream_named(shards: Path, monkeypatch: pytest.MonkeyPatch):
    path = shards / "train" / "own" / "isl" / "shard.00000.mds"
    content = path.read_bytes()
    for position in range(len(content)):
        path.write_bytes(content[:position] + bytes([content[position] ^ 16]) + content[position + 1 :])
        with pytest.raises(ValueError, match=f"{path} was changed"):
            verify.verify_stream(path.parent)
    (shards / "heldout" / "own" / "fao" / "index.json").unlink()
    with pytest.raises(SystemExit) as exit_:
        call(monkeypatch, verify.main, shards)
    lines = str(exit_.value).splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("broken: heldout/own/fao: ")
    assert lines[1].startswith("broken: train/own/isl: ")


def forge(folder: Path, rows: list[tuple[list[int], list[int]]], **changes: object) -> None:
    """Write other rows into a stream, with an index and a manifest that vouch for them."""
    manifest = read_manifest(folder)
    for path in folder.iterdir():
        path.unlink()
    with MDSWriter(out=str(folder), columns=COLUMNS) as writer:
        for ids, lengths in rows:
            writer.write({"input_ids": np.array(ids, np.uint32), "lengths": np.array(lengths, np.uint16)})
    values = {
        "rows": len(rows),
        "tokens": sum(len(ids) for ids, _ in rows),
        "index_sha256": sha256_of(folder / "index.json"),
        "shards": shard_records(folder),
    }
    write_manifest(folder, replace(manifest, **values | changes))


@pytest.mark.fault(28)
@pytest.mark.parametrize(
    "ids, lengths, changes, reason",
    [
        ([2, 9, 1], [4], {}, "3 ids, lengths sum to 4"),
        ([2, *[9] * 63, 1], [65], {"tokens": 64}, "65 ids, .* row_length is 64"),
        ([2, 1], [2], {}, "a document of 2 tokens has no text"),
        ([2, 512, 1], [3], {}, "id 512 is outside the vocabulary of 512"),
        ([9, 9, 1], [3], {}, "bos .* only there"),
        ([2, 9, 9], [3], {}, "eos .* only there"),
        ([2, 9, 1, 2, 9, 1], [6], {}, "bos .* only there"),
    ],
)
def test_rows_that_break_the_format_are_found(shards: Path, ids: list, lengths: list, changes: dict, reason: str):
    folder = stream_folder(shards, "train", "own", "isl")
    forge(folder, [([2, 9, 1], [3])])
    with pytest.raises(FileNotFoundError, match="is missing: copy it"):  # which are looked at last
        verify.verify_stream(folder)
    forge(folder, [(ids, lengths)], **changes)
    with pytest.raises(ValueError, match=reason):
        verify.verify_stream(folder)


@pytest.mark.fault(28)
def test_a_row_count_that_the_shard_itself_does_not_hold_is_found(shards: Path):
    folder = stream_folder(shards, "train", "own", "isl")
    forge(folder, [([2, 9, 1], [3]), ([2, 8, 1], [3])])
    index = json.loads((folder / "index.json").read_bytes())
    index["shards"][0]["samples"] = 1
    (folder / "index.json").write_text(json.dumps(index))
    content = (folder / "index.json").read_bytes()
    manifest = read_manifest(folder)
    shards_of_one = {name: replace(record, rows=1) for name, record in manifest.shards.items()}
    sha256 = hashlib.sha256(content).hexdigest()
    write_manifest(folder, replace(manifest, rows=1, tokens=3, shards=shards_of_one, index_sha256=sha256))
    with pytest.raises(ValueError, match="holds 2 rows, not 1"):
        verify.verify_stream(folder)


def test_streams_of_two_row_lengths_in_one_folder_are_found(shards: Path):
    manifest = read_manifest(stream_folder(shards, "train", "own", "isl"))
    assert not verify.find_mixture([manifest, manifest])
    assert "several row lengths" in verify.find_mixture([manifest, replace(manifest, row_length=128)])
