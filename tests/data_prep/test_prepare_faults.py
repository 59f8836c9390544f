"""`prepare` over broken files, stopped anywhere, or started twice."""
import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from unittest.mock import Mock

import pytest

from data_prep import clean, count, partition, prepare, publish, repack, train_tokenizer, work
from data_prep.inputs import find_inputs
from data_prep.steps import STAGES
from mmbert.manifest import list_languages, stream_folder
from tests.conftest import Corpus
from tests.data_prep.programs import (
    arguments_of,
    call,
    documents_of,
    encoded,
    of_both_splits,
    read_back,
    tree,
    write_jsonl,
    written_by_another,
)


@pytest.fixture(params=["one", "many"])
def _one_bucket_or_many(request: pytest.FixtureRequest) -> None:
    if request.param == "many":
        request.getfixturevalue("small_buckets")


@pytest.mark.parametrize(
    "broken, reason",
    [
        (b'{"text": "good"}\n{', "1.jsonl:2 is not valid JSON"),
        (b'{"text": "good"}\n' + b" " * 100_000 + b"{", "1.jsonl:2 is not valid JSON"),
        (b'{"text": "%s"}\n{' % (b"good " * 1000), "1.jsonl:2 is not valid JSON"),
        (b"", "1.jsonl holds no document"),
    ],
    ids=["short", "long", "slices before it", "empty"],
)
@pytest.mark.usefixtures("_one_bucket_or_many")
def test_a_broken_file_is_named_and_the_rest_goes_on(
    text: Path, corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    broken: bytes, reason: str,
):  # fmt: skip
    texts = [text.strip() for text in documents_of("fao")]
    for language in ("fao", "nno"):
        (text / f"{language}.jsonl").unlink()
    (text / "fao").mkdir()
    write_jsonl(text / "fao" / "0.jsonl", texts[:30])
    (text / "fao" / "1.jsonl").write_bytes(broken)
    write_jsonl(text / "fao" / "2.jsonl", [*texts[30:], " "])
    output = tmp_path / "out"
    for _ in range(2):  # it is told again when nothing is left to do
        assert call(monkeypatch, prepare.main, *arguments_of(text, corpus, output)) == prepare.QUARANTINED
        said = capsys.readouterr()
        assert reason in said.err
        assert "error: nothing was taken of 1 of 4 input files, see above: mend or remove them" in said.err
        assert "62 documents read; left out: 0 exact duplicates, 1 without text" in said.out
    assert list_languages(output, "train", "own") == ["fao", "isl"]
    assert of_both_splits(output) == encoded(corpus, texts)
    (text / "fao" / "1.jsonl").unlink()
    assert call(monkeypatch, prepare.main, *arguments_of(text, corpus, output)) == 0


@pytest.mark.usefixtures("_one_bucket_or_many")
def test_a_document_that_is_too_large_is_named_and_the_rest_goes_on(
    text: Path, corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(partition, "LENGTH_BYTES", 2)
    monkeypatch.setattr(partition, "LARGEST_DOCUMENT", 2**16 - 1)
    largest = "beda " * 13107
    write_jsonl(text / "fao.jsonl", ["gola", largest])
    assert call(monkeypatch, prepare.main, *arguments_of(text, corpus, tmp_path / "whole", "--keep-spelling")) == 0
    capsys.readouterr()
    write_jsonl(text / "fao.jsonl", ["gola", f"{largest}b", "gola"])
    arguments = arguments_of(text, corpus, tmp_path / "out", "--keep-spelling")
    said = f"quarantined: {text / 'fao.jsonl'}: document 2 has 65,536 bytes, and may have 65,535 at most: cut it"
    for made, there in ((2, 0), (0, 2)):
        assert call(monkeypatch, prepare.main, *arguments) == prepare.QUARANTINED
        printed = capsys.readouterr()
        assert said in printed.err
        assert f"{made} streams made, {there} were up to date" in printed.out
    assert list_languages(tmp_path / "out", "train", "own") == ["isl", "nno"]


def test_broken_files_alone_are_an_error_like_any_other(
    text: Path, corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """There are no rows, with which anything could go on."""
    for path in text.iterdir():
        path.unlink()
    (text / "fao.jsonl").write_text("{")
    assert call(monkeypatch, prepare.main, *arguments_of(text, corpus, tmp_path / "out")) == 1
    assert "error: nothing was taken of 1 of 1 input files" in capsys.readouterr().err


def test_a_stream_of_broken_files_alone_stays_as_it_was(
    text: Path, corpus: Corpus, shards: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    before = tree(shards)
    (text / "fao.jsonl").write_text("{")
    assert call(monkeypatch, prepare.main, *arguments_of(text, corpus, shards)) == prepare.QUARANTINED
    assert "fao.jsonl:1 is not valid JSON" in capsys.readouterr().err
    assert tree(shards) == before


@pytest.mark.usefixtures("small_buckets")
@pytest.mark.parametrize(
    "function, step",
    [
        ("make_folder", 7), ("write_file", 7), ("publish_folder", 1), ("write_shard", 7), ("gather_heldout", 1),
        ("write_index", 1),
    ],
)
def test_a_run_that_was_stopped_anywhere_goes_on_where_it_was(
    text: Path, corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, function: str, step: int
):
    whole = tmp_path / "whole"
    call(monkeypatch, prepare.main, *arguments_of(text, corpus, whole))
    arguments = arguments_of(text, corpus, tmp_path / "killed")
    now = (text / "fao.jsonl").read_bytes()
    write_jsonl(text / "fao.jsonl", ["what was", "there before"])
    call(monkeypatch, prepare.main, *arguments)
    (text / "fao.jsonl").write_bytes(now)
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
            number += step
    assert number
    monkeypatch.setattr(publish, function, real)
    call(monkeypatch, prepare.main, *arguments)
    assert tree(tmp_path / "killed") == tree(whole)


@pytest.mark.usefixtures("_one_bucket_or_many")
@pytest.mark.parametrize("place", ["before", "after"])
def test_rows_are_never_beside_held_out_ones_of_other_options(
    text: Path, corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
):
    """A kill between the two splits of a stream, and what it left behind goes in the next run."""
    for language in ("nno.jsonl", "isl.txt"):
        (text / language).unlink()
    output, real = tmp_path / "out", publish.publish_folder
    now = arguments_of(text, corpus, output, "--heldout-rate", 0.1)
    for number in range(2):  # the split in whose publication it is killed
        call(monkeypatch, prepare.main, *arguments_of(text, corpus, output, "--heldout-rate", 0.5))
        calls = iter(range(number))

        def killed(staged: Path, folder: Path, calls: Iterator[int] = calls) -> None:
            is_now = next(calls, None) is None
            if not is_now or place == "after":
                real(staged, folder)
            if is_now:
                (folder.parent / ".fao.old").mkdir()  # as a kill within leaves it
                raise KeyboardInterrupt

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(publish, "publish_folder", killed)
            with pytest.raises(KeyboardInterrupt):
                call(monkeypatch, prepare.main, *now)
        there = [folder for split in work.SPLITS if (folder := stream_folder(output, split, "own", "fao")).exists()]
        assert there
        found = [document for folder in there for document in read_back(folder)]
        assert len(found) == len(set(found))
        call(monkeypatch, prepare.main, *now)
        assert of_both_splits(output) == encoded(corpus, [text.strip() for text in documents_of("fao")])
        assert not list(output.rglob(".fao.old"))


@pytest.mark.usefixtures("small_buckets")
def test_what_an_earlier_version_left_half_done_is_begun_anew(
    text: Path, corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """It had no held-out documents of its own for each bucket."""
    call(monkeypatch, prepare.main, *arguments_of(text, corpus, tmp_path / "whole"))
    arguments = arguments_of(text, corpus, tmp_path / "again")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(work, "LAYOUT", work.LAYOUT - 1)
        patch.setattr(publish, "gather_heldout", Mock(side_effect=KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            call(monkeypatch, prepare.main, *arguments)
    left = [*(tmp_path / "again").rglob("heldout-documents")]
    assert left
    for folder in left:
        shutil.rmtree(folder)
    call(monkeypatch, prepare.main, *arguments)
    assert tree(tmp_path / "again") == tree(tmp_path / "whole")


def test_two_runs_into_one_folder_are_refused(
    text: Path, corpus: Corpus, shards: Path, monkeypatch: pytest.MonkeyPatch
):
    with written_by_another(shards) as process:
        for program in (prepare.main, repack.main):
            arguments = arguments_of(text, corpus, shards)
            if program is repack.main:
                arguments = ["--input", corpus.shards[128], "--output", shards, "--row-length", 32]
            with pytest.raises(SystemExit, match=f"error: .*is being written by process {process} on host"):
                call(monkeypatch, program, *arguments)
    assert call(monkeypatch, prepare.main, *arguments_of(text, corpus, shards)) == 0


@pytest.mark.usefixtures("small_buckets")
def test_a_task_that_is_started_again_does_nothing_again(
    text: Path, corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """As Slurm does it with the tasks of a node that died."""
    whole = tmp_path / "whole"
    call(monkeypatch, prepare.main, *arguments_of(text, corpus, whole))
    settings = work.Settings(str(tmp_path / "again"), str(corpus.tokenizer), 64)
    planned = work.plan(settings, find_inputs(str(text), "own"))
    work.write_plan(planned)
    for stage in STAGES:
        with pytest.MonkeyPatch.context() as patch:
            for _ in range(2):
                for _, unit in stage(planned.plan_folder).units(planned):
                    unit()
                for name in ("payloads", "make_bucket", "publish_stream"):
                    patch.setattr(partition if name == "payloads" else publish, name, partial(pytest.fail, name))
    assert tree(tmp_path / "again") == tree(whole)


@pytest.mark.usefixtures("small_buckets")
def test_what_a_record_speaks_of_is_on_the_disk_before_it(
    text: Path, corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    on_disk: set[Path] = set()
    records: list[Path] = []

    def fsync(path: Path) -> None:
        on_disk.add(path)

    def write_file(path: Path, content: bytes) -> None:
        values = json.loads(content)
        staging, shards = path.parents[1], values.get("shards", ())
        rows = {staging / "train" / f"shard.{path.stem}.{kind}" for kind in ("mds", "pieces.npy")}
        documents = {staging / "heldout-documents" / f"{path.stem}.npz"}
        spoken_of = {part for split in shards for part in (rows if split == "train" else documents)}
        run = {path.with_suffix(".run"), path.with_suffix(".npy")} if "quarantined" in values else set()
        assert spoken_of | run <= on_disk
        records.append(path)
        path.write_bytes(content)

    for module in (partition, publish):
        monkeypatch.setattr(module, "fsync", fsync)
        monkeypatch.setattr(module, "write_file", write_file)
    call(monkeypatch, prepare.main, *arguments_of(text, corpus, tmp_path / "out"))
    assert {path.parent.name for path in records} == {"files", "buckets"}
    assert {path.suffix for path in on_disk} >= {".mds", ".npz", ".run"}


def test_a_tokenizer_that_changes_under_a_run_is_noticed(
    text: Path, corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    planned = work.plan(work.Settings(str(tmp_path), str(corpus.tokenizer), 64), {})
    assert planned.tokenizer.digest == planned.tokenizer_digest
    with pytest.raises(ValueError, match="was changed while rows were made with it"):
        _ = replace(planned, tokenizer_digest="other").tokenizer


def test_a_run_with_other_settings_that_was_killed_between_two_splits_is_not_taken_for_the_one_before(
    text: Path, corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Held-out documents of the earlier settings would stand in the rows of the later ones, and train."""
    output = tmp_path / "out"
    with_rate = partial(arguments_of, text, corpus, output, "--heldout-rate")
    assert call(monkeypatch, prepare.main, *with_rate("0.3")) == 0
    whole = tree(output)
    publish_folder = publish.publish_folder

    def killed(*paths: Path) -> None:
        publish_folder(*paths)
        raise KeyboardInterrupt

    monkeypatch.setattr(publish, "publish_folder", killed)
    with pytest.raises(KeyboardInterrupt):
        call(monkeypatch, prepare.main, *with_rate("0.01"))
    monkeypatch.setattr(publish, "publish_folder", publish_folder)
    assert call(monkeypatch, prepare.main, *with_rate("0.3")) == 0
    assert tree(output) == whole


def test_the_digest_of_a_stream_is_computed_once(
    text: Path, corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """It goes over all files of the stream, and is asked for with every file of every bucket."""
    assert call(monkeypatch, prepare.main, *arguments_of(text, corpus, tmp_path / "out")) == 0
    (folder,) = (tmp_path / "out" / work.FOLDER / "plans").iterdir()
    plan = work.read_plan(folder)
    digests = [plan.digest(stream) for stream in plan.streams]
    monkeypatch.setattr(work.StreamPlan, "__dataclass_fields__", None)  # it cannot be gone over again
    assert [plan.digest(stream) for stream in plan.streams] == digests


def test_an_object_store_is_no_folder_to_write_to(
    text: Path, corpus: Corpus, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    assert call(monkeypatch, prepare.main, *arguments_of(text, corpus, "s3://bucket/rows")) == 2  # type: ignore[arg-type]
    assert "s3://bucket/rows lies in an object store: name a folder" in capsys.readouterr().err
    for program in (count, train_tokenizer, clean):
        assert call(monkeypatch, program.main, "--input", text, "--output", "s3://bucket/made") == 2
        assert "s3://bucket/made lies in an object store: name a folder" in capsys.readouterr().err
