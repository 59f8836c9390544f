"""The loader benchmark: the rows that it invents, the gate, what its clock counts, and a small run of all of it."""
import json
import multiprocessing
import time
from dataclasses import replace
from itertools import islice
from multiprocessing.synchronize import Event
from pathlib import Path

import numpy as np
import pytest

from mmbert import masking
from mmbert.benchmark.__main__ import main
from mmbert.benchmark.checkout import load_module
from mmbert.benchmark.loader import names_of
from mmbert.benchmark.loader_ours import Ours, gates_of_ours, processor_seconds
from mmbert.benchmark.result import Gate, check_gates
from mmbert.benchmark.synthetic_rows import (
    SOURCE,
    Shape,
    documents_of,
    language_name,
    make_rows,
    make_tokenizer,
    write_streams,
)
from mmbert.manifest import check_stream, stream_folder
from mmbert.packing import Row
from mmbert.tokenizer import Tokenizer, load_tokenizer

SHAPE = Shape(row_length=64, rows=4, batches=5, vocab_size=300)

STUB = '''
import numpy as np
import torch


class GreedyBestFitSequencePacker:
    """One document a batch, none masked."""

    @classmethod
    def from_composer(cls, src_iterable, **options):
        packer = cls()
        packer.source, packer._token_count = src_iterable, 0
        return packer

    def __iter__(self):
        for documents in self.source:
            for document in documents:
                self._token_count += len(document["input_ids"])
                yield {"input_ids": torch.from_numpy(document["input_ids"].astype(np.int64))}
'''


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return make_tokenizer(tmp_path_factory.mktemp("benchmark") / "tokenizer", SHAPE.vocab_size)


@pytest.fixture(scope="module")
def rows(tokenizer: Tokenizer) -> list[Row]:
    return make_rows(SHAPE, tokenizer)


def test_the_invented_tokenizer_keeps_the_contract(tokenizer: Tokenizer) -> None:
    loaded = load_tokenizer(tokenizer.folder)
    assert replace(loaded, backend=tokenizer.backend) == tokenizer
    assert tokenizer.vocab_size == SHAPE.vocab_size
    assert tokenizer.special_token_ids == (0, 1, 2, 3, 4)


def test_rows_are_as_many_as_asked_for_nearly_full_and_the_same_again(rows: list[Row], tokenizer: Tokenizer) -> None:
    assert len(rows) == SHAPE.total_rows
    assert max(len(row.input_ids) for row in rows) <= SHAPE.row_length
    assert sum(len(row.input_ids) for row in rows) > 0.9 * SHAPE.total_rows * SHAPE.row_length
    for row, again in zip(rows, make_rows(SHAPE, tokenizer), strict=True):
        assert np.array_equal(row.input_ids, again.input_ids)


def test_the_peers_documents_hold_every_token_of_the_rows(rows: list[Row]) -> None:
    documents = documents_of(rows)
    assert sorted(map(len, documents)) == sorted(int(length) for row in rows for length in row.lengths)
    together = [np.sort(np.concatenate(parts)) for parts in (documents, [row.input_ids for row in rows])]
    assert np.array_equal(*together)


@pytest.mark.parametrize("streams", [1, 3])
def test_streams_pass_the_check_before_training(
    tmp_path: Path, rows: list[Row], tokenizer: Tokenizer, streams: int
) -> None:
    write_streams(tmp_path, rows, streams, SHAPE, tokenizer)
    folders = [stream_folder(tmp_path, "train", SOURCE, language_name(stream)) for stream in range(streams)]
    manifests = [check_stream(folder, SHAPE.row_length, tokenizer.digest, tokenizer.vocab_size) for folder in folders]
    assert sum(manifest.rows for manifest in manifests) == SHAPE.total_rows


@pytest.fixture
def ours(tmp_path: Path, rows: list[Row], tokenizer: Tokenizer) -> Ours:
    write_streams(tmp_path, rows, 3, SHAPE, tokenizer)
    return Ours.over(tmp_path, 3, SHAPE, tokenizer, workers=2)


def passed(gates: list[Gate]) -> list[bool]:
    return [gate.passed for gate in gates]


def test_one_pass_through_two_workers_reads_every_row_once_and_leaves_no_worker(ours: Ours, rows: list[Row]) -> None:
    assert passed(gates_of_ours(ours, 3, rows, SHAPE.batches)) == [True] * 3
    assert not multiprocessing.active_children()


def test_a_pass_too_short_and_a_row_unlike_what_was_written_do_not_pass(ours: Ours, rows: list[Row]) -> None:
    short = gates_of_ours(ours, 3, rows, SHAPE.batches - 1)
    assert passed(short) == [False, True, True]
    other = replace(rows[7], input_ids=rows[7].input_ids + np.uint32(1))
    unlike = gates_of_ours(ours, 3, [*rows[:7], other, *rows[8:]], SHAPE.batches)
    assert passed(unlike) == [True, False, True]
    with pytest.raises(ValueError, match="nothing was timed: ours, 3 streams: rows with other ids than were written"):
        check_gates(unlike)


@pytest.mark.parametrize("wrong", [(1, 0), (0, 1)], ids=["another token is touched", "a target is another"])
def test_masking_that_loses_a_token_does_not_pass(
    ours: Ours, rows: list[Row], monkeypatch: pytest.MonkeyPatch, wrong: tuple[int, int]
) -> None:
    real = masking.mask_tokens

    def broken(*arguments: object) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        corrupted, masked, targets = real(*arguments)
        unmasked = np.setdiff1d(np.arange(len(corrupted)), masked)
        corrupted[unmasked[0]] += wrong[0]
        return corrupted, masked, targets + wrong[1]

    monkeypatch.setattr(masking, "mask_tokens", broken)
    assert passed(gates_of_ours(ours, 3, rows, SHAPE.batches)) == [True, False, True]


def test_masking_that_leaves_half_out_does_not_pass(
    ours: Ours, rows: list[Row], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = masking.mask_tokens

    def lazy(*arguments: object) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        corrupted, masked, targets = real(*arguments)
        corrupted[masked[::2]] = targets[::2]
        return corrupted, masked[1::2], targets[1::2]

    monkeypatch.setattr(masking, "mask_tokens", lazy)
    assert passed(gates_of_ours(ours, 3, rows, SHAPE.batches)) == [True, True, False]


def burn(burnt: Event, finish: Event) -> None:
    began = time.process_time()
    while time.process_time() < began + 0.05:
        pass
    burnt.set()
    finish.wait()


def test_the_clock_counts_a_child_that_lives_and_goes_on_counting_it_when_it_has_ended() -> None:
    context = multiprocessing.get_context("fork")
    burnt, finish = context.Event(), context.Event()
    child = context.Process(target=burn, args=(burnt, finish))
    before = processor_seconds()
    child.start()
    burnt.wait()
    alive = processor_seconds()
    finish.set()
    child.join()
    assert before + 0.05 <= alive <= processor_seconds() + 0.01  # rusage of a child that ended counts in ticks


def test_a_closed_loader_ends_its_workers(ours: Ours) -> None:
    loaded = ours.batches()
    assert len(list(islice(loaded, 2))) == 2
    assert len(multiprocessing.active_children()) == 2
    loaded.close()
    assert not multiprocessing.active_children()


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--streams=3,2", "--streams '3,2' must be ascending numbers"),
        ("--streams=a", "--streams 'a' must be ascending numbers"),
        ("--streams=99", "--streams 99: only 20 rows; raise --batches or --rows"),
        ("--rows=0", "--rows 0 must be at least 1"),
        ("--microbatches=2", "--batches 5 must be a multiple of --microbatches 2"),
        ("--modernbert=nowhere", "--modernbert nowhere: no src/sequence_packer.py; name a checkout"),
        ("--min-cpu-ratio=nobody=2", "--min-cpu-ratio nobody=2: no such peer here, choose from ours-1, ours-1-fresh"),
        ("--min-cpu-ratio=hf", "'hf' must name a peer and a number above 0"),
    ],
)
def test_a_wrong_option_ends_in_one_line(option: str, message: str) -> None:
    small = ["data", "--row-length=64", "--rows=4", "--batches=5", "--microbatches=1", "--vocab-size=300"]
    small += ["--workers=0", "--streams=1,2"]
    with pytest.raises(SystemExit) as ended:
        main([*small, option])
    assert message in str(ended.value)
    assert "\n" not in str(ended.value)


def checkout(folder: Path, text: str) -> Path:
    (folder / "src").mkdir(parents=True)
    (folder / "src" / "sequence_packer.py").write_text(text)
    return folder


def test_a_package_that_the_checkout_needs_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="needs no_such_package: pip install no_such_package, or leave it out"):
        load_module(checkout(tmp_path / "clone", "import no_such_package"), "sequence_packer")


def test_a_small_run_measures_all_candidates_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    written = tmp_path / "data.json"
    main(
        [
            *("data", "--row-length=64", "--rows=4", "--batches=6", "--microbatches=2"),
            *("--vocab-size=300", "--workers=1"),
            *("--streams=1,3", "--repetitions=1", "--warmup=0", f"--json={written}"),
            f"--modernbert={checkout(tmp_path / 'clone', STUB)}",
        ]
    )
    document = json.loads(written.read_text())
    names = ["ours", "ours-1", "ours-1-fresh", "modernbert", "hf", "hf-patched", "hf-tuned"]
    assert list(document["candidates"]) == names == ["ours", *names_of([1, 3], with_packer=True)]
    tokens = document["candidates"]["modernbert"]["tokens"]
    assert [document["candidates"][name]["tokens"] for name in names[:3]] == [2 * tokens, 2 * tokens, tokens]
    assert list(document["cpu_ratios"]) == names[1:]
    assert 0.0 <= document["facts"]["data_wait_share"] <= 1.0
    assert len(document["gates"]) == 2 * 3 + 4
    assert "hf-patched" in capsys.readouterr().out
    assert not list((tmp_path / "temporary").iterdir())
    assert not multiprocessing.active_children()
