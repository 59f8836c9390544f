"""Rows of another length are those of a direct preparation."""
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from data_prep import prepare, repack, verify
from mmbert.file_contents import sha256_of
from mmbert.manifest import read_manifest, stream_folder, write_manifest
from tests.conftest import Corpus
from tests.data_prep.programs import arguments_of, call, tree


@pytest.mark.usefixtures("small_buckets")
@pytest.mark.parametrize("row_length", [16, 200])
def test_rows_of_another_length_are_those_of_a_direct_preparation(
    text: Path, corpus: Corpus, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, row_length: int
):
    direct, held_out = tmp_path / "direct", ("--heldout-rate", 0.4)
    call(monkeypatch, prepare.main, *arguments_of(text, corpus, direct, "--row-length", row_length, *held_out))
    first = tmp_path / "first"
    call(monkeypatch, prepare.main, *arguments_of(text, corpus, first, *held_out))
    monkeypatch.setattr(verify, "SHARDS", 3)
    fao = stream_folder(first, "train", "own", "fao")
    assert len(verify.parts_of(fao, read_manifest(fao))) > 2
    assert len(read_manifest(stream_folder(first, "heldout", "own", "fao")).shards) > 1
    arguments = ["--input", first, "--output", tmp_path / "repacked", "--row-length", row_length, "--workers", 2]
    for _ in range(2):
        call(monkeypatch, repack.main, *arguments)
        assert tree(tmp_path / "repacked") == tree(direct)


@pytest.mark.usefixtures("small_buckets")
def test_a_damaged_shard_leaves_the_streams_before_it_whole_and_nothing_else(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(verify, "SHARDS", 3)
    broken = sorted((shards / "train" / "own" / "fao").glob("*.mds"))[4]
    broken.write_bytes(broken.read_bytes()[:-1] + b"x")
    arguments = ["--input", shards, "--output", tmp_path / "out", "--row-length", 32, "--workers", 2]
    with pytest.raises(SystemExit, match=f"error: {broken} was changed"):
        call(monkeypatch, repack.main, *arguments)
    there = {path.relative_to(tmp_path / "out") for path in (tmp_path / "out").glob("*/*/*")}
    assert there == {Path("heldout/own/fao"), Path("heldout/own/nno")}
    shutil.rmtree(broken.parent)
    call(monkeypatch, repack.main, *arguments)
    call(monkeypatch, verify.main, tmp_path / "out")


@pytest.fixture
def fao(text: Path, corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The training rows of fao, in a shards folder that a test may damage."""
    for language in ("isl.txt", "nno.jsonl"):
        (text / language).unlink()
    call(monkeypatch, prepare.main, *arguments_of(text, corpus, tmp_path / "fao"))
    return stream_folder(tmp_path / "fao", "train", "own", "fao")


def repacked(monkeypatch: pytest.MonkeyPatch, folder: Path, output: Path, row_length: int = 32) -> None:
    """Repack the shards folder that a stream lies in."""
    arguments = ["--input", folder.parents[2], "--output", output, "--row-length", row_length, "--workers", 1]
    call(monkeypatch, repack.main, *arguments)


@pytest.mark.parametrize("options", [["--seed", 1], ["--keep-spelling"]], ids=["seed", "text"])
def test_what_is_there_already_and_was_made_of_something_else_is_refused(
    fao: Path, text: Path, corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list
):
    repacked(monkeypatch, fao, tmp_path / "out")
    before = tree(tmp_path / "out")
    call(monkeypatch, prepare.main, *arguments_of(text, corpus, tmp_path / "other", *options))
    other = stream_folder(tmp_path / "other", "train", "own", "fao")
    with pytest.raises(SystemExit, match="holds other documents: remove it, or choose another --output"):
        repacked(monkeypatch, other, tmp_path / "out")
    with pytest.raises(SystemExit, match="row_length is 32, the run wants 48"):
        repacked(monkeypatch, fao, tmp_path / "out", 48)
    assert tree(tmp_path / "out") == before


def test_its_own_input_is_no_output(fao: Path, monkeypatch: pytest.MonkeyPatch):
    root = fao.parents[2]
    before = tree(root)
    for output in (root, root / "repacked"):
        with pytest.raises(SystemExit, match=f"error: --output {output} lies in the input, {root}, "):
            repacked(monkeypatch, fao, output)
    assert tree(root) == before


def test_rows_are_not_written_among_other_files(
    fao: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    with pytest.raises(SystemExit, match=r"text/fao\.jsonl is not of data_prep\.prepare: choose another --output"):
        repacked(monkeypatch, fao, text)
    assert [path.name for path in text.iterdir()] == ["fao.jsonl"]


def test_a_stream_that_is_there_is_not_written_again(fao: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    repacked(monkeypatch, fao, tmp_path / "out")
    monkeypatch.setattr(repack, "write_shard", partial(pytest.fail, "it was there"))
    repacked(monkeypatch, fao, tmp_path / "out")


def test_a_row_length_that_cannot_be_is_refused_before_anything_is_made(
    fao: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    with pytest.raises(SystemExit, match="row_length=2 tokens"):
        repacked(monkeypatch, fao, tmp_path / "out", 2)
    assert not (tmp_path / "out").exists()


def test_pieces_that_are_missing_or_damaged_are_named(fao: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = fao / "shard.00000.pieces.npy"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(SystemExit, match=f"error: {path} was changed after it was written"):
        repacked(monkeypatch, fao, tmp_path / "out")
    path.unlink()
    with pytest.raises(SystemExit, match=f"error: {path} is missing"):
        repacked(monkeypatch, fao, tmp_path / "out")
    assert not list((tmp_path / "out" / "train").rglob("*.mds"))


def test_pieces_that_a_manifest_vouches_for_are_still_checked(
    fao: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path = fao / "shard.00000.pieces.npy"
    for pieces in (np.load(path)[1:], np.array([Unpickled(tmp_path / "code")], dtype=object)):
        np.save(path, pieces)
        vouch_for(fao, sha256_of(path))
        with pytest.raises(SystemExit, match=f"error: {path}: .*; prepare the rows again from their text"):
            repacked(monkeypatch, fao, tmp_path / "out")
    assert not (tmp_path / "code").exists()


def vouch_for(folder: Path, pieces_sha256: str) -> None:
    """Write another digest of its pieces into the manifest of a stream of one shard."""
    manifest = read_manifest(folder)
    shards = {name: replace(record, pieces_sha256=pieces_sha256) for name, record in manifest.shards.items()}
    write_manifest(folder, replace(manifest, shards=shards))


class Unpickled:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.touch, (self.path,)
