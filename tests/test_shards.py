"""Rows by number: the right ones, and none of a shard that is not what was written."""
import errno
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from streaming import StreamingDataset

import mmbert.shards
from mmbert.manifest import read_manifest
from mmbert.shards import LanguageShards
from tests.conftest import Corpus


@pytest.fixture
def folders(corpus: Corpus, tmp_path: Path) -> list[Path]:
    """Two streams, of several rows each, to break."""
    root = corpus.shards[64] / "train" / "invented"
    return [Path(shutil.copytree(root / name, tmp_path / name)) for name in ("laa", "lab")]


def open_shards(folders: list[Path]) -> LanguageShards:
    return LanguageShards(folders, [read_manifest(folder) for folder in folders])


def test_rows_are_those_that_streaming_itself_reads(folders: list[Path], tmp_path: Path) -> None:
    shards = open_shards(folders)
    for stream, folder in enumerate(folders):
        dataset = StreamingDataset(local=str(folder), batch_size=1)
        assert len(dataset) == read_manifest(folder).rows > 3
        for number in range(len(dataset)):
            row = shards.rows([(stream, number)])
            assert np.array_equal(row.input_ids, dataset[number]["input_ids"])
            assert np.array_equal(row.lengths, dataset[number]["lengths"])


@pytest.mark.fault(11)
def test_one_flipped_bit_anywhere_is_found_before_any_row_is_used(folders: list[Path]) -> None:
    path = folders[0] / "shard.00000.mds"
    content = path.read_bytes()
    for position in np.random.default_rng(0).integers(len(content), size=200):
        path.write_bytes(content[:position] + bytes([content[position] ^ 1]) + content[position + 1 :])
        with pytest.raises(ValueError, match=f"{path} was changed after it was written"):
            open_shards(folders).rows([(0, 0)])


@pytest.mark.fault(4)
def test_a_truncated_a_missing_and_another_streams_shard_are_named(folders: list[Path]) -> None:
    path, other = (folder / "shard.00000.mds" for folder in folders)
    shards = open_shards(folders)
    content = path.read_bytes()
    for size in (0, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:size])
        with pytest.raises(ValueError, match=f"{path} holds {size} bytes, must be {len(content)}"):
            shards.rows([(0, 0)])
    path.write_bytes(other.read_bytes())
    with pytest.raises(ValueError, match=str(path)):
        shards.rows([(0, 0)])
    path.unlink()
    with pytest.raises(FileNotFoundError, match=f"{path} is missing"):
        shards.rows([(0, 0)])
    assert len(shards.rows([(1, 0)]).input_ids)  # the other stream is read on


@pytest.mark.parametrize("behind", [0, 5])
def test_a_row_behind_the_last_of_its_stream_is_not_the_next_streams(folders: list[Path], behind: int) -> None:
    """Rows are numbered through all streams, so it would be one that can be read."""
    shards = open_shards(folders)
    with pytest.raises(AssertionError, match="a row that its stream does not have"):
        shards.rows([(0, shards.manifests[0].rows + behind)])


@pytest.mark.fault(11, 28)
def test_what_happens_to_a_shard_after_its_check_is_still_no_row(folders: list[Path]) -> None:
    """Its ids are checked whenever they are read."""
    shards = open_shards(folders)
    path = folders[0] / "shard.00000.mds"
    shards.rows([(0, 0)])
    path.write_bytes(bytes(path.stat().st_size))
    with pytest.raises(ValueError, match=f"{path} row 1"):
        shards.rows([(0, 1)])


@pytest.mark.fault(11, 23)
def test_a_shard_that_goes_away_is_read_on_where_it_is_open_and_named_elsewhere(folders: list[Path]) -> None:
    reading, about_to_read = open_shards(folders), open_shards(folders)
    path = folders[0] / "shard.00000.mds"
    reading.rows([(0, 0)])
    about_to_read.check(0)
    path.unlink()
    assert len(reading.rows([(0, 1)]).input_ids)
    with pytest.raises(OSError, match=f"{path} cannot be read: No such file or directory; look at the disk"):
        about_to_read.rows([(0, 1)])


def open_files() -> list[str]:
    """The shards that this process has open."""
    links = [os.path.realpath(f"/proc/self/fd/{number}") for number in os.listdir("/proc/self/fd")]
    return sorted(link for link in links if link.endswith(".mds"))


@pytest.mark.fault(4)
def test_a_disk_that_fails_is_named_and_leaves_no_file_open(
    folders: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(file: int, size: int, place: int) -> bytes:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    shards = open_shards(folders)
    path = shards.check(0)
    monkeypatch.setattr(os, "pread", fail)
    with pytest.raises(OSError, match=f"^{path} cannot be read: Input/output error; look at the disk"):
        shards.rows([(0, 0)])
    assert path not in open_files()


def test_a_shard_that_may_not_be_read_is_no_fault_of_the_disk(
    folders: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: Any) -> None:
        raise PermissionError(13, "Permission denied")  # root may read anything

    monkeypatch.setattr("mmbert.shards.check_shard", refuse)
    with pytest.raises(OSError, match=r"shard\.00000\.mds cannot be read: Permission denied; give this user the right"):
        open_shards(folders).rows([(0, 0)])


@pytest.mark.fault(25)
def test_no_more_shards_stay_open_than_may_and_none_without_the_object(
    folders: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    both = open_shards(folders)
    wanted = [(stream, number) for number in range(3) for stream in (0, 1)]
    rows = both.rows(wanted)
    assert open_files() == [str(folder / "shard.00000.mds") for folder in folders]
    monkeypatch.setattr(mmbert.shards, "most_open", lambda: 1)
    one = open_shards(folders)
    assert np.array_equal(one.rows(wanted).input_ids, rows.input_ids)
    assert len(open_files()) == 3
    del one
    assert len(open_files()) == 2
    del both
    assert open_files() == []


@pytest.mark.fault(28)
@pytest.mark.parametrize("what", ["trailing bytes", "dimensions of ids", "number of ids", "number of lengths"])
def test_a_sample_must_be_two_vectors_and_nothing_else(folders: list[Path], what: str) -> None:
    """Of row 1: its end, which is row 2's begin, and the two bytes that begin a vector of less than 256 numbers."""
    shards = open_shards(folders)
    path = folders[0] / "shard.00000.mds"
    whole = shards.rows([(0, 1)])
    content = path.read_bytes()
    begin = int.from_bytes(content[8:12], "little")
    first = int.from_bytes(content[begin : begin + 4], "little")
    ids, lengths = begin + 8, begin + 8 + first
    assert content[ids : ids + 2] == bytes([4, len(whole.input_ids)])
    assert content[lengths : lengths + 2] == bytes([4, len(whole.lengths)])
    place, more = {
        "trailing bytes": (12, 4),
        "dimensions of ids": (ids, 4),
        "number of ids": (ids + 1, -1),
        "number of lengths": (lengths + 1, -1),
    }[what]
    path.write_bytes(content[:place] + bytes([content[place] + more]) + content[place + 1 :])
    mmbert.shards.close(shards.files)
    shards.files.clear()  # an open shard's places are known already
    with pytest.raises(ValueError, match=rf"{path} row 1: cannot be decoded \(\d+ bytes are no vector"):
        shards.rows([(0, 1)])


@pytest.mark.fault(28)
def test_a_checked_shard_that_ends_in_its_table_of_places_is_named(folders: list[Path]) -> None:
    """As where a disk loses the end of a file between the check and the next time that it is opened."""
    shards = open_shards(folders)
    path = folders[0] / "shard.00000.mds"
    shards.rows([(0, 1)])
    path.write_bytes(path.read_bytes()[:12])
    mmbert.shards.close(shards.files)
    shards.files.clear()  # an open shard's places are known already
    assert f"{path} row 1: cannot be decoded (" in why_refused(shards)


def why_refused(shards: LanguageShards) -> str:
    """What is said of row 1 of the first stream."""
    try:
        shards.rows([(0, 1)])
    except ValueError as error:
        return str(error)
    return "nothing"


@pytest.mark.fault(28)
def test_garbage_in_a_shard_that_was_checked_is_named_whatever_it_is(folders: list[Path]) -> None:
    """Bytes at the places that say where things are, and anywhere: a row, or an error that names file and row."""
    shards = open_shards(folders)
    path = folders[0] / "shard.00000.mds"
    shards.rows([(0, 0)])
    whole, random = path.read_bytes(), np.random.default_rng(0)
    begin = int.from_bytes(whole[8:12], "little")  # of row 1
    for number in range(600):
        content = bytearray(whole)
        place = random.choice([*range(8, 16), *range(begin, begin + 12)]) if number % 2 else random.integers(len(whole))
        content[place : place + 4] = random.choice([b"\0\0\0\0", b"\xff\xff\xff\xff", random.bytes(4)])
        path.write_bytes(content[: len(whole) - (number % 3) * 50])
        assert f"{path} row 1: " in why_refused(shards) or why_refused(shards) == "nothing"
