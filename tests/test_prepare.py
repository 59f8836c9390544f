"""From text to rows: prepare, verify and repack."""
import hashlib
import json
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from streaming import MDSWriter
from streaming.base.format import reader_from_json

from data_prep import partition, prepare, publish, repack, verify, work
from data_prep.pieces import read_documents
from data_prep.split import split_documents
from data_prep.steps import shares
from mmbert.file_contents import sha256_of
from mmbert.manifest import COLUMNS, list_languages, read_manifest, shard_records, stream_folder, write_manifest
from mmbert.packing import Row
from mmbert.run_lock import hold_run
from mmbert.shards import LanguageShards
from mmbert.tokenizer import load_tokenizer
from tests.conftest import Corpus


def call(monkeypatch: pytest.MonkeyPatch, main: Callable[[], None], *arguments: object) -> int:
    """Run a program of data_prep as from the command line; its exit status."""
    monkeypatch.setattr(sys, "argv", ["program", *map(str, arguments)])
    try:
        main()
    except SystemExit as exit_:
        if isinstance(exit_.code, int):
            return exit_.code
        raise
    return 0


def tree(root: Path) -> dict[str, bytes]:
    """Every file that a user sees below `root`."""
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in root.rglob("*")
        if path.is_file() and ".prepare" not in path.parts
    }


def write_jsonl(path: Path, texts: list[str]) -> None:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))


@pytest.fixture
def text(tmp_path: Path) -> Path:
    """A text folder: two languages, and one that has a single document."""
    folder = tmp_path / "text"
    folder.mkdir()
    for language in ("fao", "nno"):
        write_jsonl(folder / f"{language}.jsonl", documents_of(language))
    (folder / "isl.txt").write_text("one document\nin two lines\n")
    return folder


def documents_of(language: str) -> list[str]:
    return [f"{language} beda gola {number} " * (1 + number % 40) for number in range(60)]


def arguments_of(text: Path, corpus: Corpus, output: Path, *more: object) -> list[object]:
    return [
        *("--input", text, "--tokenizer", corpus.tokenizer, "--row-length", 64, "--output", output, "--source", "own"),
        *("--workers", 1, *more),
    ]


@pytest.fixture
def shards(text: Path, corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The shards of `text`, prepared in this process."""
    output = tmp_path / "shards"
    assert call(monkeypatch, prepare.main, *arguments_of(text, corpus, output)) == 0
    return output


@pytest.fixture
def small_buckets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Buckets and runs so small that a test's languages need many."""
    monkeypatch.setattr(work, "BUCKET_BYTES", 1500)
    monkeypatch.setattr(work, "VOLUME_BYTES", 8000)
    monkeypatch.setattr(partition, "RUN_BYTES", 1000)


def read_rows(folder: Path) -> list[Row]:
    """Rows as Streaming reads them."""
    index = json.loads((folder / "index.json").read_bytes())
    readers = [reader_from_json(str(folder), "", shard) for shard in index["shards"]]
    return [Row(**reader[number]) for reader in readers for number in range(reader.samples)]


def read_back(folder: Path) -> list[bytes]:
    """The documents of a stream, as the bytes of their ids, sorted."""
    manifest = read_manifest(folder)
    shards = LanguageShards([folder], [manifest])
    return sorted(ids.tobytes() for shard in range(len(manifest.shards)) for ids in read_documents(shards, shard))


def of_both_splits(output: Path) -> list[bytes]:
    """What `read_back` gives of own/fao, held out or not."""
    train, heldout = (read_back(stream_folder(output, split, "own", "fao")) for split in work.SPLITS)
    return sorted(train + heldout)


def encoded(corpus: Corpus, texts: list[str]) -> list[bytes]:
    """What `read_back` gives of texts."""
    return sorted(ids.tobytes() for ids in load_tokenizer(corpus.tokenizer).encode_batch(texts))


# --- prepare -------------------------------------------------------------------------------------------------------


def test_the_rows_hold_every_document_of_their_split(text: Path, corpus: Corpus, shards: Path):
    tokenizer = load_tokenizer(corpus.tokenizer)
    assert list_languages(shards, "train", "own") == ["fao", "isl", "nno"]
    assert list_languages(shards, "heldout", "own") == ["fao", "nno"]
    for split, texts in split_documents([text.strip() for text in documents_of("fao")], 0.1).items():
        folder = stream_folder(shards, split, "own", "fao")
        manifest, rows = read_manifest(folder), read_rows(folder)
        ids = np.concatenate([row.input_ids for row in rows])
        expected = np.concatenate(tokenizer.encode_batch(texts))
        special = np.isin(ids, (tokenizer.bos_token_id, tokenizer.eos_token_id))
        assert np.array_equal(np.sort(ids[~special]), np.sort(expected))
        assert (manifest.documents, manifest.rows, manifest.tokens) == (len(texts), len(rows), len(ids))
        assert manifest.text_bytes == sum(len(text.encode()) for text in texts)
        assert read_back(folder) == encoded(corpus, texts)


def test_rows_are_shuffled_by_seed_stream_and_bucket(
    text: Path, corpus: Corpus, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    keys = [(0, "s", "a", 0), (0, "s", "b", 0), (0, "t", "a", 0), (1, "s", "a", 0), (0, "s", "a", 1)]
    assert len({publish.shuffle_seed(*key) for key in keys}) == len(keys)
    call(monkeypatch, prepare.main, *arguments_of(text, corpus, tmp_path / "other", "--seed", 1))
    before, after = (read_rows(stream_folder(root, "train", "own", "fao")) for root in (shards, tmp_path / "other"))
    ids_before, ids_after = ([row.input_ids.tobytes() for row in rows] for rows in (before, after))
    assert ids_before != ids_after
    assert sorted(ids_before) == sorted(ids_after)


def test_neither_workers_nor_files_nor_formats_change_a_byte(
    text: Path, corpus: Corpus, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    call(monkeypatch, prepare.main, *arguments_of(text, corpus, tmp_path / "two", "--workers", 2))
    assert tree(tmp_path / "two") == tree(shards)
    pieces = tmp_path / "pieces"
    for language in ("fao", "nno"):
        (pieces / language).mkdir(parents=True)
        texts = documents_of(language)[::-1]
        write_jsonl(pieces / language / "z.jsonl", texts[:20])
        (pieces / language / "a.csv").write_text("text\n" + "\n".join(texts[20:]) + "\n")
    (pieces / "isl").mkdir()
    (pieces / "isl" / "x.txt").write_bytes(b"\n\none document\r\nin two lines")
    call(monkeypatch, prepare.main, *arguments_of(pieces, corpus, tmp_path / "three"))
    assert tree(tmp_path / "three") == tree(shards)


@pytest.mark.usefixtures("small_buckets")
def test_a_large_stream_is_made_in_buckets_and_loses_nothing(
    text: Path, corpus: Corpus, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    folder = tmp_path / "large" / "fao"
    folder.mkdir(parents=True)
    texts = documents_of("fao")
    for number in range(4):
        write_jsonl(folder / f"{number}.jsonl", texts[number::4])
    arguments = arguments_of(tmp_path / "large", corpus, tmp_path / "out")
    assert call(monkeypatch, prepare.main, *arguments) == 0
    plan = work.read_plan(str(tmp_path / "out")).streams[0]
    assert len(plan.volumes) > 1
    assert plan.num_buckets > 8
    for split in ("train", "heldout"):
        whole, many = (stream_folder(root, split, "own", "fao") for root in (shards, tmp_path / "out"))
        assert read_back(many) == read_back(whole)
        assert len(read_manifest(many).shards) > 1
        assert verify.verify_stream(many).text_bytes == read_manifest(whole).text_bytes
    call(monkeypatch, prepare.main, *arguments_of(tmp_path / "large", corpus, tmp_path / "again", "--workers", 2))
    assert tree(tmp_path / "again") == tree(tmp_path / "out")
    assert not list((tmp_path / "out" / ".prepare" / "streams").rglob("*.run"))


@pytest.mark.usefixtures("small_buckets")
def test_copies_of_a_document_are_found_across_files_and_runs(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "text" / "fao").mkdir(parents=True)
    texts = documents_of("fao")[:20]
    for number in range(3):
        write_jsonl(tmp_path / "text" / "fao" / f"{number}.jsonl", [*texts, f"own {number}", " ", f"{texts[0]}\r\n"])
    monkeypatch.setattr(work, "VOLUME_BYTES", 10**9)
    arguments = arguments_of(tmp_path / "text", corpus, tmp_path / "out")
    call(monkeypatch, prepare.main, *arguments)
    assert "69 documents read; left out: 43 exact duplicates, 3 without text" in capsys.readouterr().out
    expected = [*(text.strip() for text in texts), "own 0", "own 1", "own 2"]
    assert of_both_splits(tmp_path / "out") == encoded(corpus, expected)
    call(monkeypatch, prepare.main, *arguments_of(tmp_path / "text", corpus, tmp_path / "all", "--keep-duplicates"))
    assert "left out: 0 exact duplicates, 3 without text" in capsys.readouterr().out


def test_spelling_is_kept_on_demand(corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "text").mkdir()
    write_jsonl(tmp_path / "text" / "fao.jsonl", ["e\u0301 "])
    for option, expected in (([], "é"), (["--keep-spelling"], "e\u0301 ")):
        output = tmp_path / f"out{len(option)}"
        call(monkeypatch, prepare.main, *arguments_of(tmp_path / "text", corpus, output, *option))
        assert read_back(stream_folder(output, "train", "own", "fao")) == encoded(corpus, [expected])


def test_only_what_changed_is_done_again(
    text: Path, corpus: Corpus, shards: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    again = arguments_of(text, corpus, shards)
    before = tree(shards)
    times = {path: path.stat().st_mtime_ns for path in shards.rglob("*.mds")}
    call(monkeypatch, prepare.main, *again)
    assert "0 streams made, 3 were up to date" in capsys.readouterr().out
    with (text / "nno.jsonl").open("a") as file:
        file.write('{"text": "new"}\n')
    (shards / "train" / "own" / "fao" / "shard.00000.mds").unlink()
    call(monkeypatch, prepare.main, *again)
    assert "2 streams made, 1 were up to date" in capsys.readouterr().out
    changed = {name for name, content in tree(shards).items() if before[name] != content}
    assert changed
    assert {name.split("/")[2] for name in changed} == {"nno"}
    untouched = shards / "train" / "own" / "isl" / "shard.00000.mds"
    assert untouched.stat().st_mtime_ns == times[untouched]


def test_a_language_that_shrank_to_one_document_keeps_no_held_out_rows(
    text: Path, corpus: Corpus, shards: Path, monkeypatch: pytest.MonkeyPatch
):
    (text / "fao.jsonl").write_text('{"text": "the only one"}\n')
    call(monkeypatch, prepare.main, *arguments_of(text, corpus, shards))
    assert list_languages(shards, "train", "own") == ["fao", "isl", "nno"]
    assert list_languages(shards, "heldout", "own") == ["nno"]


def test_languages_are_selected_by_name_or_list(
    text: Path, corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "list.txt").write_text("is # Icelandic\n")
    some = arguments_of(text, corpus, tmp_path / "some", "--languages", tmp_path / "list.txt", "nn")
    call(monkeypatch, prepare.main, *some)
    assert list_languages(tmp_path / "some", "train", "own") == ["isl", "nno"]
    with pytest.raises(SystemExit, match="error: --languages: there is no text in dan"):
        call(monkeypatch, prepare.main, *arguments_of(text, corpus, tmp_path / "some", "--languages", "dan"))


@pytest.mark.parametrize(
    "changes, reason",
    [
        (["--input", "nowhere"], "--input nowhere does not exist"),
        (["--tokenizer", "nowhere"], "tokenizer folder nowhere does not exist"),
        (["--row-length", 2], "row_length=2"),
        (["--row-length", 128], "has row_length 64 .* not 128 .*choose another --output"),
        (["--heldout-rate", 2], "heldout_rate=2.0 lies outside"),
        (["--source", "../x"], "--source '../x'"),
        (["--workers", 0], "--workers 0"),
    ],
)
def test_a_wrong_argument_is_one_line_and_changes_nothing(
    text: Path, corpus: Corpus, shards: Path, monkeypatch: pytest.MonkeyPatch, changes: list, reason: str
):
    before = tree(shards)
    with pytest.raises(SystemExit, match=f"error: .*{reason}") as exit_:
        call(monkeypatch, prepare.main, *arguments_of(text, corpus, shards, *changes))
    assert "\n" not in str(exit_.value)
    assert tree(shards) == before


@pytest.mark.parametrize("stranger", ["notes.txt", "train/own/fao/notes.txt", "train/own/zz/model.bin"])
def test_an_output_folder_with_something_else_in_it_is_refused(
    text: Path, corpus: Corpus, shards: Path, monkeypatch: pytest.MonkeyPatch, stranger: str
):
    (shards / stranger).parent.mkdir(exist_ok=True)
    (shards / stranger).write_text("mine")
    before = tree(shards)
    with pytest.raises(SystemExit, match=f"error: .*{stranger} is not of data_prep.prepare"):
        call(monkeypatch, prepare.main, *arguments_of(text, corpus, shards))
    assert tree(shards) == before


def test_an_output_that_cannot_be_written_is_one_line(
    text: Path, corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "file").touch()
    for output in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(SystemExit, match=r"error: .*file"):
            call(monkeypatch, prepare.main, *arguments_of(text, corpus, output))


def test_units_are_shared_out_once_each_the_largest_first():
    done: list[int] = []
    units = [(size, lambda s=size: done.append(s)) for size in (1, 5, 3, 8, 2)]
    tasks = shares(units, 2)
    for task in tasks:
        for unit in task:
            unit()
    assert done == [8, 2, 5, 3, 1]
    assert [len(task) for task in shares(units, 9)].count(0) == 4


def test_a_document_falls_into_its_bucket_whatever_is_held_out():
    payloads = [f"text {number}".encode() for number in range(4000)]
    buckets = np.bincount([partition.bucket_of(payload, 8) for payload in payloads], minlength=8)
    assert buckets.min() > 400
    heldout = [payload for payload in payloads if partition.bucket_of(payload, 8) == 3]
    share = np.mean([publish_share(payload) < 0.1 for payload in heldout])
    assert 0.06 < share < 0.14


def publish_share(payload: bytes) -> float:
    return (int.from_bytes(hashlib.sha256(payload).digest()[:8]) >> 11) / 2**53


def test_token_ids_of_others_become_the_rows_of_their_text(
    text: Path, corpus: Corpus, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    tokenizer = load_tokenizer(corpus.tokenizer)
    texts = [text.strip() for text in documents_of("fao")]
    folder = tmp_path / "mds" / "fao_Latn" / "x-tokenized-chunked-8192-512-32-backfill-nodups"
    with MDSWriter(out=str(folder), columns={"input_ids": "ndarray:uint32", "id": "str"}, compression="zstd") as writer:
        for number, ids in enumerate(tokenizer.encode_batch(texts)):
            wrapped = np.array([tokenizer.bos_token_id, *ids, tokenizer.eos_token_id], np.uint32)
            writer.write({"input_ids": wrapped, "id": str(number)})
    arguments = arguments_of(text, corpus, tmp_path / "out")
    arguments[:2] = ["--mds", tmp_path / "mds"]
    assert call(monkeypatch, prepare.main, *arguments) == 0
    assert of_both_splits(tmp_path / "out") == encoded(corpus, texts)
    for split in work.SPLITS:
        folder = stream_folder(tmp_path / "out", split, "own", "fao")
        manifest, decode = verify.verify_stream(folder), tokenizer.backend.decode
        found = [decode(np.frombuffer(ids, np.uint32).tolist()) for ids in read_back(folder)]
        assert manifest.text_bytes == sum(len(text.encode()) for text in found)


def test_corpora_and_data_sets_are_read_from_a_mirror(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    folder = tmp_path / "mirror" / "HuggingFaceFW" / "fineweb-2" / "data" / "fao_Latn" / "train"
    folder.mkdir(parents=True)
    pyarrow.parquet.write_table(pyarrow.table({"text": documents_of("fao")}), folder / "000.parquet")
    common = ["--tokenizer", corpus.tokenizer, "--row-length", 64, "--workers", 1, "--mirror", tmp_path / "mirror"]
    call(monkeypatch, prepare.main, "--corpus", "fineweb2", "--languages", "fo", *common, "--output", tmp_path / "a")
    files = ["--revision", "main", "--files", "data/{language}/train/*.parquet", "--source", "fineweb2"]
    data_set = ["--dataset", "HuggingFaceFW/fineweb-2", *files]
    call(monkeypatch, prepare.main, *data_set, *common, "--output", tmp_path / "b")
    assert list_languages(tmp_path / "a", "train", "fineweb2") == ["fao"]
    assert tree(tmp_path / "a") == tree(tmp_path / "b")
    with pytest.raises(SystemExit, match="error: --dataset x: give its --revision and the pattern of its --files"):
        call(monkeypatch, prepare.main, "--dataset", "x", *common, "--output", tmp_path / "c")
    with pytest.raises(SystemExit, match="error: --revision, --files and --mirror belong to --dataset or --corpus"):
        call(monkeypatch, prepare.main, "--input", tmp_path, *common, "--output", tmp_path / "c")


# --- faults --------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("small_buckets")
@pytest.mark.parametrize("size", [0, 100_000])
def test_a_broken_file_is_named_and_the_rest_goes_on(
    text: Path, corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    size: int,
):  # fmt: skip
    texts = [text.strip() for text in documents_of("fao")]
    (text / "fao.jsonl").unlink()
    (text / "fao").mkdir()
    write_jsonl(text / "fao" / "0.jsonl", texts[:30])
    (text / "fao" / "1.jsonl").write_bytes(b'{"text": "good"}\n' + b" " * size + b"{")
    write_jsonl(text / "fao" / "2.jsonl", texts[30:])
    output = tmp_path / "out"
    for _ in range(2):  # it is told again when nothing is left to do
        assert call(monkeypatch, prepare.main, *arguments_of(text, corpus, output)) == prepare.QUARANTINED
        said = capsys.readouterr().err
        assert "1.jsonl:2 is not valid JSON" in said
        assert "error: of 1 input files nothing was taken" in said
    assert list_languages(output, "train", "own") == ["fao", "isl", "nno"]
    assert of_both_splits(output) == encoded(corpus, texts)
    (text / "fao" / "1.jsonl").unlink()
    assert call(monkeypatch, prepare.main, *arguments_of(text, corpus, output)) == 0


def test_a_stream_of_broken_files_alone_stays_as_it_was(
    text: Path, corpus: Corpus, shards: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    before = tree(shards)
    (text / "fao.jsonl").write_text("{")
    assert call(monkeypatch, prepare.main, *arguments_of(text, corpus, shards)) == prepare.QUARANTINED
    assert "fao.jsonl:1 is not valid JSON" in capsys.readouterr().err
    assert tree(shards) == before


@pytest.mark.usefixtures("small_buckets")
@pytest.mark.parametrize("function", ["make_folder", "write_file", "publish_folder", "write_shard", "write_index"])
def test_a_run_that_was_stopped_anywhere_goes_on_where_it_was(
    text: Path, corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, function: str
):
    whole = tmp_path / "whole"
    call(monkeypatch, prepare.main, *arguments_of(text, corpus, whole))
    arguments = arguments_of(text, corpus, tmp_path / "killed")
    real = getattr(publish, function)
    number = 0
    while number < 40:
        calls = iter(range(number))

        def stopped(*given: object, calls: object = calls, **named: object) -> object:
            if next(calls, None) is None:  # type: ignore[call-overload]
                raise KeyboardInterrupt
            return real(*given, **named)

        monkeypatch.setattr(publish, function, stopped)
        try:
            call(monkeypatch, prepare.main, *arguments)
            break
        except KeyboardInterrupt:
            number += 7
    assert number
    monkeypatch.setattr(publish, function, real)
    call(monkeypatch, prepare.main, *arguments)
    assert tree(tmp_path / "killed") == tree(whole)


def test_two_runs_into_one_folder_are_refused(
    text: Path, corpus: Corpus, shards: Path, monkeypatch: pytest.MonkeyPatch
):
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        hold_run(shards / ".prepare")
        os.write(writing, b"x")
        signal.pause()
    os.read(reading, 1)
    try:
        with pytest.raises(SystemExit, match=f"error: .*is being written by process {child} on host"):
            call(monkeypatch, prepare.main, *arguments_of(text, corpus, shards))
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    assert call(monkeypatch, prepare.main, *arguments_of(text, corpus, shards)) == 0


def test_a_tokenizer_that_changes_under_a_run_is_noticed(
    text: Path, corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    planned = work.plan(work.Settings(str(tmp_path), str(corpus.tokenizer), 64), {})
    assert planned.tokenizer.digest == planned.tokenizer_digest
    with pytest.raises(ValueError, match="was changed while rows were made with it"):
        _ = replace(planned, tokenizer_digest="other").tokenizer


# --- repack --------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("small_buckets")
@pytest.mark.parametrize("row_length", [16, 200])
def test_rows_of_another_length_are_those_of_a_direct_preparation(
    text: Path, corpus: Corpus, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, row_length: int
):
    direct = tmp_path / "direct"
    call(monkeypatch, prepare.main, *arguments_of(text, corpus, direct, "--row-length", row_length))
    first = tmp_path / "first"
    call(monkeypatch, prepare.main, *arguments_of(text, corpus, first))
    arguments = ["--input", first, "--output", tmp_path / "repacked", "--row-length", row_length, "--workers", 2]
    for _ in range(2):
        call(monkeypatch, repack.main, *arguments)
        assert tree(tmp_path / "repacked") == tree(direct)


def test_repack_refuses_what_it_cannot_make_again(
    shards: Path, text: Path, corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    arguments = ["--output", tmp_path / "other", "--row-length", 32, "--workers", 1]
    call(monkeypatch, repack.main, "--input", shards, *arguments)
    call(monkeypatch, prepare.main, *arguments_of(text, corpus, tmp_path / "seed", "--seed", 1))
    with pytest.raises(SystemExit, match="holds other documents: remove it, or choose another --output"):
        call(monkeypatch, repack.main, "--input", tmp_path / "seed", *arguments)
    path = shards / "train" / "own" / "fao" / "shard.00000.pieces.npy"
    content = path.read_bytes()
    path.write_bytes(content[:-1] + b"x")
    arguments[1] = tmp_path / "third"
    with pytest.raises(SystemExit, match=f"error: {path} was changed after it was written"):
        call(monkeypatch, repack.main, "--input", shards, *arguments)
    path.unlink()
    with pytest.raises(SystemExit, match=f"error: {path} is missing"):
        call(monkeypatch, repack.main, "--input", shards, *arguments)


# --- verify --------------------------------------------------------------------------------------------------------


def test_a_whole_folder_is_verified(shards: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    call(monkeypatch, verify.main, shards)
    assert "5 streams are whole" in capsys.readouterr().out
    with pytest.raises(SystemExit, match=r"error: .* holds no <split>/<source>/<language>"):
        call(monkeypatch, verify.main, shards / "train")


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
        ([2, 9, 1], [3], {"tokens": 4}, "holds 3 tokens, its manifest says 4"),
    ],
)
def test_rows_that_break_the_format_are_found(shards: Path, ids: list, lengths: list, changes: dict, reason: str):
    folder = stream_folder(shards, "train", "own", "isl")
    forge(folder, [([2, 9, 1], [3])])
    assert verify.verify_stream(folder).tokens == 3
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
