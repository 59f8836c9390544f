"""Rows 23 and 28: storage that fails, is slow or goes away, and rows that are not what their manifest says."""
import json
import re
import shutil
import signal
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from streaming import MDSWriter

from mmbert.clock import batch_sizes
from mmbert.config import RunConfig, load_config
from mmbert.data import Microbatches, PhaseData, build_data
from mmbert.manifest import read_manifest
from mmbert.ranks import Ranks
from mmbert.tokenizer import load_tokenizer
from tests.conftest import Corpus, Finished
from tests.faults.bad_files import (
    RowLists,
    edit_index,
    fail_in_the_middle,
    fail_reads,
    rewrite,
    rows_of,
    sign,
    slow_reads,
    vanish_at_step,
    vouch_for_shard,
)  # fmt: skip
from tests.faults.neighbours import count_with_streaming
from tests.faults.oracle import check_same_end, processes_of
from tests.guards import without_row_check
from tests.training_runs import Run, prepare, train, train_ranks

ALONE = Ranks(0, 1, None)


@pytest.fixture
def shards(corpus: Corpus, tmp_path: Path) -> Path:
    """Shards of phase 1 of one's own, to be spoiled."""
    return Path(shutil.copytree(corpus.shards[64], tmp_path / "shards"))


# -------------------------------------------------------------------------------------------------------------- storage


@pytest.mark.fault(23)
@pytest.mark.parametrize("root", ["s3://bucket/shards", "gs://bucket/shards", "hf://datasets/x", "oci://b@n/shards"])
def test_an_object_store_without_a_cache_is_refused_with_the_remedy(corpus: Corpus, tmp_path: Path, root: str) -> None:
    outcome = train([prepare(tmp_path / "it", corpus), f"data.root={root}"], tmp_path / "x.jsonl")
    assert outcome.exit_code == 1
    assert f"data.root = {root} lies in an object store: name a folder on a local disk" in outcome.output
    assert len(outcome.output.splitlines()) == 1


@pytest.mark.fault(23)
@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.long)])
@pytest.mark.parametrize(
    "first, last", [(30, 30), pytest.param(1, 10**9, marks=pytest.mark.long)], ids=["once", "for ever"]
)
def test_a_read_that_fails_ends_the_run_with_the_file_and_the_same_command_goes_on(
    corpus: Corpus, finished: Finished, shards: Path, tmp_path: Path, first: int, last: int, workers: int
) -> None:
    arguments = [prepare(tmp_path / "it", corpus), f"data.root={shards}", f"data.num_workers={workers}"]
    run = Run(arguments, tmp_path / "x.jsonl", changes=[partial(fail_reads, str(shards), first, last)])
    outcome = run.wait(60)
    assert outcome.exit_code == 1
    line = outcome.output.splitlines()[-1]
    assert line.startswith("error: ")
    assert str(shards / "train" / "invented") in line
    assert "Input/output error" in line
    assert "Traceback" not in outcome.output
    assert not processes_of(run)
    assert train(arguments, tmp_path / "x.jsonl").exit_code == 0
    check_same_end(tmp_path / "it" / "runs" / "phase1", finished[0] / "runs" / "phase1")


@pytest.mark.fault(23)
def test_a_read_that_fails_in_the_middle_of_a_shard_names_the_file_too(
    corpus: Corpus, shards: Path, tmp_path: Path
) -> None:
    """The system's error for read(2) names none."""
    arguments = [prepare(tmp_path / "it", corpus), f"data.root={shards}"]
    outcome = train(arguments, tmp_path / "x.jsonl", changes=[partial(fail_in_the_middle, 1)])
    assert outcome.exit_code == 1
    assert "Input/output error" in outcome.output.splitlines()[-1]
    assert str(shards / "train" / "invented") in outcome.output.splitlines()[-1]


@pytest.mark.fault(23)
def test_storage_that_fails_on_one_rank_ends_both_with_its_number(corpus: Corpus, shards: Path, tmp_path: Path) -> None:
    changes = [partial(fail_reads, str(shards), 12, 10**9, rank=1)]
    arguments = [prepare(tmp_path / "it", corpus), f"data.root={shards}"]
    for outcome in train_ranks(arguments, tmp_path / "x.jsonl", changes=changes):
        assert outcome.exit_code == 1
        assert f"error: rank 1: {shards}" in outcome.output
        assert "Input/output error" in outcome.output


@pytest.mark.fault(23)
@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.long)])
def test_a_folder_that_goes_away_ends_the_run_and_is_gone_on_with_when_it_is_back(
    corpus: Corpus, finished: Finished, shards: Path, tmp_path: Path, workers: int
) -> None:
    arguments = [prepare(tmp_path / "it", corpus), f"data.root={shards}", f"data.num_workers={workers}"]
    run = Run(arguments, tmp_path / "x.jsonl", changes=[partial(vanish_at_step, 6, str(shards))])
    outcome = run.wait(60)
    assert outcome.exit_code == 1
    assert f"error: {shards}" in outcome.output
    assert "No such file or directory" in outcome.output
    again = train(arguments, tmp_path / "y.jsonl")  # it is still gone
    assert again.exit_code == 1
    assert f"error: {shards / 'train' / 'invented' / 'laa'} does not exist" in again.output
    Path(f"{shards}.gone").rename(shards)
    assert train(arguments, tmp_path / "x.jsonl").exit_code == 0
    check_same_end(tmp_path / "it" / "runs" / "phase1", finished[0] / "runs" / "phase1")


@pytest.mark.fault(23)
@pytest.mark.long
@pytest.mark.parametrize("workers", [0, 2])
def test_slow_storage_makes_a_run_slower_and_changes_nothing(
    corpus: Corpus, finished: Finished, shards: Path, tmp_path: Path, workers: int
) -> None:
    arguments = [prepare(tmp_path / "it", corpus), f"data.root={shards}", f"data.num_workers={workers}"]
    outcome = train(arguments, tmp_path / "x.jsonl", changes=[partial(slow_reads, str(shards), 0.02)])
    assert outcome.exit_code == 0, outcome.output
    check_same_end(tmp_path / "it" / "runs" / "phase1", finished[0] / "runs" / "phase1")


@pytest.mark.fault(4, 23, control=True)
def test_plain_streaming_ends_early_and_silently_where_a_shard_is_gone(tmp_path: Path) -> None:
    """Streaming ends its epoch early at a shard that cannot be read, with exit status 0 and a part of the rows."""
    write_numbers(tmp_path / "remote", rows=400)
    (tmp_path / "remote" / "shard.00003.mds").unlink()
    rows = count_with_streaming(tmp_path, {"remote": str(tmp_path / "remote"), "local": str(tmp_path / "local")})
    assert 0 < int(rows) < 400


def write_numbers(folder: Path, rows: int) -> None:
    """Several shards of small rows for Streaming."""
    with MDSWriter(out=str(folder), columns={"number": "int"}, size_limit=512) as writer:
        for number in range(rows):
            writer.write({"number": number})


# ------------------------------------------------------------------------------------------------------------- bad rows

ROWS: dict[str, tuple[RowLists, str]] = {
    "an id just beyond the vocabulary": (([2, 512, 1], [3]), "id 512 is outside the vocabulary of 512"),
    "the largest id": (([2, 2**32 - 1, 1], [3]), "id 4294967295 is outside the vocabulary of 512"),
    "a length that is too small": (([2, 9, 1], [2]), "3 ids, lengths sum to 2"),
    "a length too many": (([2, 9, 1], [3, 3]), "3 ids, lengths sum to 6"),
    "a length of zero": (([2, 9, 1], [0]), "3 ids, lengths sum to 0"),
    "more ids than the row length": (([2, *[9] * 63, 1], [65]), "65 ids, lengths sum to 65, row_length is 64"),
    "a document without text": (([2, 1], [2]), "a document of 2 tokens has no text"),
    "a document of nothing": (([2, 9, 1], [3, 0]), "a document of 0 tokens has no text"),
    "no first token": (([9, 9, 1], [3]), "bos .* does not stand at the 1 places"),
    "no last token": (([2, 9, 9], [3]), "eos .* does not stand at the 1 places"),
    "two documents called one": (([2, 9, 1, 2, 9, 1], [6]), "bos .* does not stand at the 1 places"),
}


def spoil_row(stream: Path, number: int, row: RowLists) -> None:
    """Replace one row, with hashes and counts that fit: nothing but a look at the row itself can find it."""
    rows = rows_of(stream)
    rows[number] = row
    rewrite(stream, rows)


@dataclass(frozen=True)
class Row:
    """One that a rank reads in its second step."""

    stream: Path
    number: int


def row_to_spoil(config: RunConfig, ranks: Ranks) -> Row:
    """The last row of this rank's second batch."""
    data = PhaseData.open(config, load_tokenizer(Path(config.tokenizer)))
    batches = data.row_order(config).batches(0, batch_sizes(config), ranks.rank, ranks.world_size)
    _, second = islice(batches, 2)
    _, stream, number = second[-1].tolist()
    return Row(data.folders[stream], number)


def read_all(config: RunConfig) -> str:
    """Read the phase's rows as a run does, until they are refused: what is said then."""
    number_before = signal.getsignal(signal.SIGCHLD)
    try:
        data = PhaseData.open(config, load_tokenizer(Path(config.tokenizer)))
        batches = iter(build_data(config, data, 0, ALONE, Microbatches()).dataloader)
        for _ in range(20):
            next(batches)
    except (ValueError, OSError) as error:
        return str(error)
    finally:
        signal.signal(signal.SIGCHLD, number_before)
    return "nothing"


@pytest.mark.fault(28)
@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.long)])
@pytest.mark.parametrize("case", ROWS)
def test_a_bad_row_that_all_hashes_vouch_for_is_refused_before_it_is_used(
    corpus: Corpus, shards: Path, tmp_path: Path, case: str, workers: int
) -> None:
    overrides = [f"data.root={shards}", f"data.num_workers={workers}"]
    config = load_config(prepare(tmp_path / "it", corpus), overrides)
    row, (content, words) = row_to_spoil(config, ALONE), ROWS[case]
    assert read_all(config) == "nothing"
    spoil_row(row.stream, row.number, content)
    assert re.match(f"{row.stream / 'shard.00000.mds'} row {row.number}: {words}", read_all(config))


def swap_columns(index: dict[str, Any]) -> None:
    index["shards"][0]["column_names"].reverse()


def list_twice(index: dict[str, Any]) -> None:
    index["shards"] *= 2


def claim_rows(stream: Path, more: int) -> None:
    """Say that the shard has more rows than it has, and tokens in proportion."""
    manifest = read_manifest(stream)
    vouch_for_shard(stream, manifest.rows + more)
    sign(stream, tokens=manifest.tokens * (manifest.rows + more) // manifest.rows)


def spoil_shard(stream: Path, change: Callable[[bytes], bytes]) -> None:
    """Change the shard's bytes, and let index and manifest fit them."""
    path = stream / "shard.00000.mds"
    path.write_bytes(change(path.read_bytes()))
    vouch_for_shard(stream, read_manifest(stream).rows)


def lose_offsets(content: bytes) -> bytes:
    """Say of the first 16 rows that they begin and end far behind the end."""
    return content[:4] + bytes([255]) * 64 + content[68:]


def name_columns(stream: Path, key: str, values: list[str]) -> None:
    edit_index(stream, lambda index: index["shards"][0].update({key: values}))


STREAMS: dict[str, tuple[Callable[[Path], object], str]] = {
    "five rows more than there are": (lambda stream: claim_rows(stream, 5), "holds [0-9]+ rows, not "),
    "five rows fewer than there are": (lambda stream: claim_rows(stream, -5), "holds [0-9]+ rows, not "),
    "a shard listed twice": (lambda stream: edit_index(stream, list_twice), "disagree on shards or rows"),
    "no shard": (lambda stream: edit_index(stream, lambda index: index["shards"].clear()), "disagree on shards"),
    "no row": (lambda stream: claim_rows(stream, -read_manifest(stream).rows), "rows"),
    "swapped columns": (lambda stream: edit_index(stream, swap_columns), "columns .*, must be"),
    "a renamed column": (
        lambda stream: name_columns(stream, "column_names", ["tokens", "lengths"]), "columns .*, must be"
    ),
    "another dtype in the index": (
        lambda stream: name_columns(stream, "column_encodings", ["ndarray:int16", "ndarray:uint16"]), "columns .*, must"
    ),
    "another dtype in the shard": (
        lambda stream: rewrite(stream, rows_of(stream), input_ids="ndarray:uint16"), "row [0-9]+: "
    ),
    "floats in the shard": (
        lambda stream: rewrite(stream, rows_of(stream), input_ids="ndarray:float32"), "row [0-9]+: "
    ),
    "offsets that lead nowhere": (lambda stream: spoil_shard(stream, lose_offsets), "row [0-9]+: "),
    "a shard cut in half": (lambda stream: spoil_shard(stream, lambda old: old[: len(old) // 2]), "row [0-9]+: "),
    "another row length": (lambda stream: sign(stream, row_length=128), "row_length is 128, the run wants 64"),
    "another vocabulary": (lambda stream: sign(stream, vocab_size=1024), "the run has .* \\(512 tokens\\)"),
    "no token": (lambda stream: sign(stream, tokens=0), "tokens"),
    "too many tokens": (lambda stream: sign(stream, tokens=10**30), "tokens"),
}  # fmt: skip


@pytest.mark.fault(28)
@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.long)])
@pytest.mark.parametrize("case", STREAMS)
def test_a_stream_that_is_not_what_its_signed_manifest_says_is_refused_by_name(
    corpus: Corpus, shards: Path, tmp_path: Path, case: str, workers: int
) -> None:
    overrides = [f"data.root={shards}", f"data.num_workers={workers}"]
    config = load_config(prepare(tmp_path / "it", corpus), overrides)
    (forge, words), stream = STREAMS[case], row_to_spoil(config, ALONE).stream
    forge(stream)
    said = read_all(config)
    assert said.startswith(str(stream))
    assert re.search(words, said)


@pytest.mark.fault(28)
@pytest.mark.parametrize("workers", [0, 2])
def test_a_bad_row_ends_a_run_in_one_line(corpus: Corpus, shards: Path, tmp_path: Path, workers: int) -> None:
    arguments = [str(prepare(tmp_path / "it", corpus)), f"data.root={shards}", f"data.num_workers={workers}"]
    row = row_to_spoil(load_config(arguments[0], arguments[1:]), ALONE)
    spoil_row(row.stream, row.number, ROWS["an id just beyond the vocabulary"][0])
    run = Run(arguments, tmp_path / "x.jsonl")
    outcome = run.wait(60)
    assert outcome.exit_code == 1
    assert len(outcome.steps) == 1
    last = outcome.output.splitlines()[-1]
    assert last.startswith(f"error: {row.stream / 'shard.00000.mds'} row {row.number}: id 512 is outside")
    assert "Traceback" not in outcome.output
    assert not processes_of(run)


@pytest.mark.fault(28)
def test_a_bad_row_of_one_rank_is_named_by_both(corpus: Corpus, shards: Path, tmp_path: Path) -> None:
    arguments = [str(prepare(tmp_path / "it", corpus)), f"data.root={shards}"]
    row = row_to_spoil(load_config(arguments[0], arguments[1:]), Ranks(1, 2, None))
    spoil_row(row.stream, row.number, ROWS["no first token"][0])
    for outcome in train_ranks(arguments, tmp_path / "x.jsonl"):
        assert outcome.exit_code == 1
        assert f"error: rank 1: {row.stream / 'shard.00000.mds'} row {row.number}: bos" in outcome.output
        assert len(outcome.steps) == 1


@pytest.mark.fault(28, control=True)
@pytest.mark.parametrize(
    "case", ["an id just beyond the vocabulary", pytest.param("two documents called one", marks=pytest.mark.long)]
)
def test_without_the_look_at_rows_a_bad_one_is_trained_on(
    corpus: Corpus, shards: Path, tmp_path: Path, case: str
) -> None:
    """An id that is no token, or one document where there are two, is trained on without a word."""
    # The model's table is padded, as for speed: else the id would end the run, by a page of traceback on a GPU.
    arguments = [str(prepare(tmp_path / "it", corpus)), f"data.root={shards}", "model.vocab_size=576"]
    row = row_to_spoil(load_config(arguments[0], arguments[1:]), ALONE)
    spoil_row(row.stream, row.number, ROWS[case][0])
    outcome = train(arguments, tmp_path / "x.jsonl", changes=[without_row_check])
    assert outcome.exit_code == 0, outcome.output


@pytest.mark.fault(28, control=True)
@pytest.mark.parametrize(
    "rows, edit",
    [(35, lambda shard: [{**shard, "samples": 35}]), (80, lambda shard: [shard, shard])],
    ids=["five rows fewer", "a shard listed twice"],
)
def test_plain_streaming_believes_the_index(
    tmp_path: Path, rows: int, edit: Callable[[dict[str, Any]], list[dict[str, Any]]]
) -> None:
    """Streaming loses five of 40 rows, or reads all twice, as a wrong index says, and ends well."""
    with MDSWriter(out=str(tmp_path / "data"), columns={"number": "int"}) as writer:
        for number in range(40):
            writer.write({"number": number})
    path = tmp_path / "data" / "index.json"
    index = json.loads(path.read_text())
    path.write_text(json.dumps({**index, "shards": edit(index["shards"][0])}))
    assert count_with_streaming(tmp_path, {"local": str(tmp_path / "data")}) == str(rows)
