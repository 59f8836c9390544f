"""From text to rows: what `prepare` makes, and what it refuses."""
import json
from collections.abc import Callable
from functools import partial
from hashlib import sha256
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from streaming import MDSWriter

from data_prep import partition, prepare, publish, verify, work
from data_prep.split import document_hash, split_documents
from data_prep.steps import shares
from data_prep.totals import few
from data_prep.train_tokenizer import train
from mmbert.manifest import list_languages, read_manifest, stream_folder
from mmbert.tokenizer import load_tokenizer, save_tokenizer
from tests.conftest import Corpus
from tests.data_prep.programs import (
    arguments_of,
    call,
    documents_of,
    encoded,
    of_both_splits,
    read_back,
    read_rows,
    tree,
    write_jsonl,
)


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
def test_held_out_documents_of_several_buckets_share_a_shard(
    text: Path, corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    gather, hashes = publish.gather_heldout, list[str]()

    def gather_heldout(planned: work.Work, stream: work.StreamPlan, buckets: list) -> None:
        held_out = [bucket["shards"]["heldout"] for bucket in buckets if "heldout" in bucket["shards"]]
        hashes.append("".join(counts["hashes"] for counts in held_out))
        gather(planned, stream, buckets)

    monkeypatch.setattr(publish, "gather_heldout", gather_heldout)
    for name, rate in (("few", 0.05), ("many", 0.6)):
        arguments = arguments_of(text, corpus, tmp_path / name, "--heldout-rate", rate, "--languages", "fao")
        call(monkeypatch, prepare.main, *arguments)
    fewer, more = (read_manifest(stream_folder(tmp_path / name, "heldout", "own", "fao")) for name in ("few", "many"))
    train = read_manifest(stream_folder(tmp_path / "many", "train", "own", "fao"))
    assert [one.documents_sha256 for one in (fewer, more)] == [sha256(one.encode()).hexdigest() for one in hashes]
    assert len(fewer.shards) == 1
    assert fewer.documents > 1
    assert 1 < len(more.shards) <= more.text_bytes // 1500 + 1 < len(train.shards)
    assert sum(shard.rows for shard in more.shards.values()) == more.rows
    verify.verify_stream(stream_folder(tmp_path / "many", "heldout", "own", "fao"))


@pytest.mark.usefixtures("small_buckets")
def test_a_large_stream_is_made_in_buckets_and_loses_nothing(
    corpus: Corpus, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    folder = tmp_path / "large" / "fao"
    folder.mkdir(parents=True)
    texts = documents_of("fao")
    for number in range(4):
        write_jsonl(folder / f"{number}.jsonl", texts[number::4])
    arguments = arguments_of(tmp_path / "large", corpus, tmp_path / "out")
    assert call(monkeypatch, prepare.main, *arguments) == 0
    assert "60 documents read; left out: 0 exact duplicates" in capsys.readouterr().out
    (folder,) = (tmp_path / "out" / work.FOLDER / "plans").iterdir()
    plan = work.read_plan(folder).streams[0]
    assert len(plan.volumes) > 1
    assert plan.num_buckets > 8
    for split in ("train", "heldout"):
        whole, many = (stream_folder(root, split, "own", "fao") for root in (shards, tmp_path / "out"))
        assert read_back(many) == read_back(whole)
        assert (len(read_manifest(many).shards) > 1) == (split == "train")
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


@pytest.mark.parametrize("buckets", ["one", "many"])
def test_a_large_txt_without_a_blank_line_is_named(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    request: pytest.FixtureRequest, buckets: str,
):  # fmt: skip
    """A document on each line is what its writer meant, and rows of one document are what comes of it."""
    if buckets == "many":
        request.getfixturevalue("small_buckets")
    folder = tmp_path / "text" / "fao"
    folder.mkdir(parents=True)
    lines = [text.strip() for text in documents_of("fao")]
    (folder / "lign\udce9s.txt").write_text("\n".join(lines) + "\n\n")  # in Latin-1, as an old archive has it
    (folder / "divided.txt").write_text("\n\n".join(lines))
    (folder / "short.txt").write_text(lines[40][:400])
    write_jsonl(folder / "one.jsonl", [" ".join(lines)])
    arguments = arguments_of(tmp_path / "text", corpus, tmp_path / "out")
    for _ in range(2):  # it is told again when nothing is left to do
        assert call(monkeypatch, prepare.main, *arguments) == 0
        assert (
            "1 .txt files have no blank line, and each was taken as one document: "
            rf"{folder}/lign\udce9s.txt; blank lines tell"
        ) in capsys.readouterr().out
    call(monkeypatch, prepare.main, *arguments, "--whole-txt")
    assert "no blank line" not in capsys.readouterr().out


@pytest.mark.parametrize("key", ["digest", "quarantined", "undivided"])
def test_a_stream_whose_record_was_edited_is_made_anew(
    text: Path, shards: Path, corpus: Corpus, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    key: str,
):  # fmt: skip
    path = shards / work.FOLDER / "finished" / "own" / "fao.json"
    record = json.loads(path.read_text())
    del record[key]
    path.write_text(json.dumps(record))
    assert call(monkeypatch, prepare.main, *arguments_of(text, corpus, shards)) == 0
    assert "1 streams made, 2 were up to date" in capsys.readouterr().out


def test_languages_without_text_are_named_and_of_them_alone_there_are_no_rows(
    text: Path, corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    for language in ("dan", "swe"):
        write_jsonl(text / f"{language}.jsonl", [" ", ""])
    arguments = arguments_of(text, corpus, tmp_path / "out")
    for _ in range(2):  # it is told again when nothing is left to do
        assert call(monkeypatch, prepare.main, *arguments) == 0
        assert "no rows were made of own/dan, own/swe: there is no text in their files" in capsys.readouterr().out
    arguments = arguments_of(text, corpus, tmp_path / "none", "--languages", "dan", "swe")
    assert call(monkeypatch, prepare.main, *arguments) == 1
    assert "error: there are no rows, for no input file holds text: fill them" in capsys.readouterr().err


def test_many_names_are_told_in_a_few():
    assert few(["a", "b"]) == "a, b"
    assert few(list(map(str, range(12)))) == "0, 1, 2, 3, 4, 5, 6, 7, 8, 9 and 2 more"


def test_languages_without_held_out_text_are_named(
    text: Path, corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    arguments = arguments_of(text, corpus, tmp_path / "out")
    for _ in range(2):  # it is told again when nothing is left to do
        call(monkeypatch, prepare.main, *arguments)
        said = capsys.readouterr().out
        assert "no text is held out of own/isl: nothing can be measured there, which takes two documents\n" in said
    call(monkeypatch, prepare.main, *arguments, "--languages", "fao", "nno")
    assert "no text is held out" not in capsys.readouterr().out


def test_the_key_of_the_text_is_the_one_asked_for(corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "fao.jsonl").write_text('{"content": "beda", "text": "gola"}')
    arguments = arguments_of(tmp_path / "text", corpus, tmp_path / "out", "--text-key", "content")
    call(monkeypatch, prepare.main, *arguments)
    assert read_back(stream_folder(tmp_path / "out", "train", "own", "fao")) == encoded(corpus, ["beda"])


@pytest.mark.parametrize("heldout_rate", [1e-9, 1 - 1e-9])
def test_neither_split_of_a_language_of_several_documents_is_empty(
    text: Path, corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, heldout_rate: float
):
    call(monkeypatch, prepare.main, *arguments_of(text, corpus, tmp_path / "out", "--heldout-rate", heldout_rate))
    assert list_languages(tmp_path / "out", "train", "own") == ["fao", "isl", "nno"]
    assert list_languages(tmp_path / "out", "heldout", "own") == ["fao", "nno"]


@pytest.mark.parametrize("damage", [lambda path: path.write_text("{"), Path.unlink], ids=["damaged", "missing"])
def test_a_stream_whose_manifest_is_damaged_is_made_anew(
    text: Path, corpus: Corpus, shards: Path, monkeypatch: pytest.MonkeyPatch, damage: Callable[[Path], object]
):
    before = tree(shards)
    damage(shards / "train" / "own" / "fao" / "manifest.json")
    assert call(monkeypatch, prepare.main, *arguments_of(text, corpus, shards)) == 0
    assert tree(shards) == before


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


def test_rows_whose_text_is_gone_are_named(
    text: Path, corpus: Corpus, shards: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """They stay, for they may be another corpus'; who took a language out should know that training still finds it."""
    assert "streams of other text" not in capsys.readouterr().out
    before = tree(shards)
    (text / "nno.jsonl").unlink()
    assert call(monkeypatch, prepare.main, *arguments_of(text, corpus, shards)) == 0
    assert "1 streams of other text are there, too, and stay as they were: own/nno" in capsys.readouterr().out
    assert tree(shards) == before


@pytest.mark.parametrize("content, status", [('{"text": ""}\n', 0), ("{", prepare.QUARANTINED)])
def test_rows_that_stay_though_their_files_give_none_are_named(
    text: Path, corpus: Corpus, shards: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    content: str, status: int,
):  # fmt: skip
    (text / "nno.jsonl").write_text(content)
    assert call(monkeypatch, prepare.main, *arguments_of(text, corpus, shards)) == status
    assert "1 streams of other text are there, too, and stay as they were: own/nno" in capsys.readouterr().out


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
        (["--slurm", "x", "--tasks", 0], "--tasks 0: must be at least 1"),
        (["--slurm", "x", "--memory", 0], "--memory 0: must be at least 1"),
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


def test_what_the_system_hides_in_an_output_folder_is_no_obstacle(
    text: Path, corpus: Corpus, shards: Path, monkeypatch: pytest.MonkeyPatch
):
    """A Mac leaves `.DS_Store` in each folder that someone looks at, NFS `.nfs...` for a file that is open."""
    for folder in ("", "train", "train/own", "train/own/fao"):
        (shards / folder / ".DS_Store").touch()
    assert call(monkeypatch, prepare.main, *arguments_of(text, corpus, shards)) == 0
    write_jsonl(text / "fao.jsonl", ["another text"])
    assert call(monkeypatch, prepare.main, *arguments_of(text, corpus, shards)) == 0


def test_a_dry_run_needs_no_tokenizer_and_refuses_the_same_inputs_and_outputs(
    text: Path, corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def dry_run(output: Path) -> int:
        return call(monkeypatch, prepare.main, *arguments_of(text, corpus, output, "--tokenizer", "x", "--dry-run"))

    assert dry_run(tmp_path / "out") == 0
    assert "found 3 files of 3 languages; nothing was read or made" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()
    with pytest.raises(SystemExit, match="lies in the input"):
        dry_run(text / "out")
    (tmp_path / "full" / "train" / "own" / "fao").mkdir(parents=True)
    (tmp_path / "full" / "train" / "own" / "fao" / "notes.txt").touch()
    with pytest.raises(SystemExit, match=r"fao/notes\.txt is not of data_prep\.prepare: choose another --output"):
        dry_run(tmp_path / "full")
    (text / "notes.jsonl").touch()
    with pytest.raises(SystemExit, match=r"notes\.jsonl: language 'notes' is not known"):
        dry_run(tmp_path / "out")


@pytest.mark.parametrize("output", ["text", "text/rows-64", "text/nno/rows-64", "link/rows-64"])
@pytest.mark.parametrize("option", ["--input", "--mds"])
def test_an_output_folder_in_the_input_is_refused(
    text: Path, corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, output: str, option: str
):
    """Its rows would be found the next time, and fail as text."""
    (tmp_path / "link").symlink_to(text)
    before = tree(text)
    arguments = arguments_of(text, corpus, tmp_path / output)
    arguments[0] = option
    with pytest.raises(SystemExit, match=f"--output .*{output} lies in the input, {text}, .*: choose one outside"):
        call(monkeypatch, prepare.main, *arguments)
    assert tree(text) == before


def test_rows_of_another_tokenizer_are_refused_before_anything_is_done_or_submitted(
    text: Path, corpus: Corpus, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    save_tokenizer(train(documents_of("fao"), vocab_size=300), tmp_path / "other", origin=text)
    monkeypatch.setattr(prepare, "submit_to_slurm", partial(pytest.fail, "it was submitted"))
    before = tree(shards)
    for options in ([], ["--slurm", "partition"]):
        arguments = arguments_of(text, corpus, shards, "--tokenizer", tmp_path / "other", *options)
        with pytest.raises(SystemExit, match=r"error: .* has row_length 64 and tokenizer .* choose another --output"):
            call(monkeypatch, prepare.main, *arguments)
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
    share = np.mean([document_hash(payload.decode()) < 0.1 for payload in heldout])
    assert 0.06 < share < 0.14


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
    for option in (["--text-key", "content"], ["--whole-txt"], ["--keep-spelling"]):
        with pytest.raises(SystemExit, match="error: --text-key, --whole-txt and --keep-spelling say how text is read"):
            call(monkeypatch, prepare.main, *arguments, *option)
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
    with pytest.raises(SystemExit, match="error: --source and --language: --corpus fineweb2 has its own; give"):
        call(monkeypatch, prepare.main, "--corpus", "fineweb2", *common, "--source", "x", "--language", "fo",
             "--output", tmp_path / "c")  # fmt: skip
    with pytest.raises(SystemExit, match="error: --revision, --files and --mirror belong to --dataset or --corpus"):
        call(monkeypatch, prepare.main, "--input", tmp_path, *common, "--output", tmp_path / "c")
