"""Batches: how rows are laid end to end, cut into microbatches, and read from the shards."""
import threading
from collections.abc import Iterator
from dataclasses import replace
from itertools import count, islice
from multiprocessing import active_children
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from callbacks.dropout_seed import DropoutSeed
from callbacks.mask_ratio import MaskRatio
from mmbert import data as data_module
from mmbert.batch_memory import BatchMemory
from mmbert.config import RunConfig, load_config
from mmbert.data import (
    Microbatches,
    PhaseData,
    RankBatches,
    build_data,
    count_tokens,
    lay_end_to_end,
    read_ahead,
)
from mmbert.packing import Row, Rows
from mmbert.ranks import Ranks
from mmbert.streams import read_languages
from mmbert.tokenizer import load_tokenizer
from mmbert.trainer import microbatches
from tests.conftest import Corpus
from tests.training_runs import write_yamls


def row(position: int, lengths: list[int]) -> tuple[list[int], Row]:
    """A place, and a row whose ids say where they stand: 1000 * position + index."""
    ids = 1000 * position + np.arange(sum(lengths))
    return [position, position % 2, 7], Row(ids.astype(np.uint32), np.array(lengths, dtype=np.uint16))


PLACED = [row(1, [3, 4]), row(2, [7]), row(3, [1, 1, 5]), row(4, [2])]
PLACES, ROWS = np.array([place for place, _ in PLACED]), Rows.of([row for _, row in PLACED])


def masked_batch() -> dict:
    """The four rows, every third token masked."""
    batch = lay_end_to_end(PLACES, ROWS)
    masked = np.arange(0, 23, 3)
    return {**batch, "masked": masked, "targets": batch["input_ids"][masked] + 1, "num_labels": len(masked)}


def test_rows_lie_end_to_end_with_the_borders_of_all_documents() -> None:
    batch = lay_end_to_end(PLACES, ROWS)
    assert batch["input_ids"].tolist() == [int(i) for _, r in PLACED for i in r.input_ids]
    assert batch["lengths"].tolist() == [3, 4, 7, 1, 1, 5, 2]
    assert batch["row_tokens"] == [7, 7, 7, 2]
    assert batch["row_documents"] == [2, 1, 3, 1]
    assert batch["row_positions"].tolist() == [1, 2, 3, 4]


def test_ids_above_sixteen_bits_survive() -> None:
    large = Row(np.array([255_934, 255_999], dtype=np.uint32), np.array([2], dtype=np.uint16))
    assert lay_end_to_end(np.zeros((1, 3), np.int64), Rows.of([large]))["input_ids"].tolist() == [255_934, 255_999]


@pytest.mark.parametrize("size", [1, 2, 3, 4, 9])
def test_microbatches_are_whole_rows_and_lose_nothing(size: int) -> None:
    batch = masked_batch()
    parts = Microbatches()(batch, size)
    assert [len(part["row_tokens"]) for part in parts[:-1]] == [size] * (len(parts) - 1)
    for key in ("input_ids", "targets"):
        assert torch.cat([part[key] for part in parts]).tolist() == batch[key].tolist()
    starts = np.cumsum([0, *(len(part["input_ids"]) for part in parts)])
    masked = [part["masked"] + start for part, start in zip(parts, starts[:-1], strict=True)]
    assert torch.cat(masked).tolist() == batch["masked"].tolist()
    assert [part["num_labels"] for part in parts] == [len(part["targets"]) for part in parts]
    row_of = np.searchsorted(np.cumsum(batch["row_tokens"]), batch["masked"], side="right")
    streams = torch.cat([part["label_streams"] for part in parts])
    assert streams.tolist() == batch["row_streams"][row_of].tolist()
    assert [length for part in parts for length in part["lengths"]] == batch["lengths"].tolist()


@pytest.mark.parametrize("size", [1, 2, 3, 4, 9])
def test_padded_microbatches_have_one_shape_and_predict_nothing_of_the_padding(
    monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: self)  # it needs a GPU
    batch = masked_batch()
    parts = Microbatches(pad_to=9 * size, pad_token_id=99, max_seqlen=9)(batch, size)
    for part, plain in zip(parts, Microbatches()(batch, size), strict=True):
        tokens = len(plain["input_ids"])
        assert len(part["input_ids"]) == sum(part["lengths"]) == 9 * size
        assert part["input_ids"][:tokens].equal(plain["input_ids"])
        assert (part["input_ids"][tokens:] == 99).all()
        assert part["lengths"][: len(plain["lengths"])] == plain["lengths"]
        assert max(part["lengths"]) <= 9 == part["max_seqlen"]
        assert part["masked"].equal(plain["masked"])


def test_tokens_are_counted_as_plain_ints() -> None:
    counts = count_tokens(masked_batch())
    assert counts == {"total": 23, "loss_generating": 8}
    assert all(type(count) is int for count in counts.values())


@pytest.fixture
def config(corpus: Corpus, tmp_path: Path) -> RunConfig:
    write_yamls(tmp_path, corpus)
    return load_config(tmp_path / "phase1.yaml")


def first_batches(config: RunConfig, start: int, rank: int, world_size: int, number: int) -> list[dict]:
    data = PhaseData.open(config, load_tokenizer(Path(config.tokenizer)))
    ranks = Ranks(rank, world_size, None)  # each thinks that it is alone: what they tell each other is not tested here
    return list(islice(build_data(config, data, start, ranks, Microbatches()).dataloader, number))


def test_two_ranks_read_the_rows_that_one_rank_reads(config: RunConfig) -> None:
    alone = first_batches(config, 0, 0, 1, 5)
    halves = [first_batches(config, 0, rank, 2, 5) for rank in (0, 1)]
    for batch, first, second in zip(alone, *halves, strict=True):
        assert [*first["input_ids"], *second["input_ids"]] == list(batch["input_ids"])
        assert [*first["row_positions"], *second["row_positions"]] == list(batch["row_positions"])


def test_a_phase_on_its_parents_streams_begins_with_other_rows_masks_and_dropout(config: RunConfig) -> None:
    tokenizer = load_tokenizer(Path(config.tokenizer))
    logger: Any = SimpleNamespace(log_metrics=lambda values: None)
    batch = first_batches(config, 0, 0, 1, 1)[0]
    rows, masks, dropout = [], [], []
    for name in ("phase1", "phase2"):
        own = replace(config, name=name)
        rows.append(first_batches(own, 0, 0, 1, 1)[0]["input_ids"])
        phase: Any = SimpleNamespace(config=own, tokenizer=tokenizer, ranks=Ranks(0, 1, None))
        state: Any = SimpleNamespace(batch=batch, timestamp=SimpleNamespace(token=0, batch=0))
        MaskRatio(phase).after_dataloader(state, logger)
        masks.append(state.batch["masked"])
        DropoutSeed(phase).batch_start(state, logger)
        dropout.append(torch.rand(8))
    assert np.array_equal(rows[0], batch["input_ids"])
    for parent, child in (rows, masks, dropout):
        assert not np.array_equal(parent, child)


def test_a_resumed_loader_goes_on_at_its_row(config: RunConfig) -> None:
    batches = first_batches(config, 0, 0, 1, 5)
    resumed = first_batches(config, 8, 0, 1, 3)
    for old, new in zip(batches[2:], resumed, strict=True):
        assert np.array_equal(old["input_ids"], new["input_ids"])


@pytest.mark.fault(22)
@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize("workers", range(9))
def test_the_number_of_workers_changes_nothing(config: RunConfig, workers: int) -> None:
    one, other = (
        first_batches(replace(config, data=replace(config.data, num_workers=number)), 4, 0, 1, 12)
        for number in (0, workers)
    )
    for batch, same in zip(one, other, strict=True):
        assert np.array_equal(batch["input_ids"], same["input_ids"])
        assert np.array_equal(batch["lengths"], same["lengths"])
        assert batch["digest"] == same["digest"]


def test_the_batch_says_what_the_global_batch_holds(config: RunConfig) -> None:
    batch = first_batches(config, 0, 0, 1, 1)[0]
    assert batch["stream_tokens"].tolist() == [
        sum(tokens for tokens, of in zip(batch["row_tokens"], batch["row_streams"], strict=True) if of == stream)
        for stream in (0, 1)
    ]
    assert batch["digest"] == int(batch["row_hashes"].sum())


@pytest.mark.fault(4)
@pytest.mark.parametrize("workers", [0, 2])
def test_a_shard_that_disappears_stops_the_run_instead_of_ending_the_epoch(
    config: RunConfig, corpus: Corpus, workers: int
) -> None:
    config = replace(config, data=replace(config.data, num_workers=workers))
    data = PhaseData.open(config, load_tokenizer(Path(config.tokenizer)))
    spec = build_data(config, data, 0, Ranks(0, 1, None), Microbatches())
    shard = corpus.shards[64] / "train" / "invented" / "laa" / "shard.00000.mds"
    hidden = shard.rename(shard.with_suffix(".hidden"))
    try:
        with pytest.raises(ValueError, match=r"shard.00000.mds is missing; .* data_prep.prepare") as refusal:
            list(islice(spec.dataloader, 5))
        assert "\n" not in str(refusal.value)
    finally:
        hidden.rename(shard)


@pytest.mark.fault(5)
def test_a_worker_that_is_killed_is_an_error_in_one_line(config: RunConfig) -> None:
    config = replace(config, data=replace(config.data, num_workers=2))
    data = PhaseData.open(config, load_tokenizer(Path(config.tokenizer)))
    batches = iter(build_data(config, data, 0, Ranks(0, 1, None), Microbatches()).dataloader)
    next(batches)
    for child in active_children():
        child.kill()
    with pytest.raises(ValueError, match="a loader worker died") as refusal:
        list(islice(batches, 50))
    assert "\n" not in str(refusal.value)


def test_reading_ahead_changes_neither_the_batches_nor_how_they_fail() -> None:
    def batches() -> Iterator[dict]:
        yield {"number": 1}
        yield {"number": 2}
        raise KeyError("unexpected")

    ahead = read_ahead(batches())
    assert [next(ahead), next(ahead)] == [{"number": 1}, {"number": 2}]
    with pytest.raises(KeyError, match="unexpected"):
        next(ahead)
    with pytest.raises(RuntimeError, match="the order of rows has no end"):
        list(read_ahead(iter([{"number": 1}])))


def test_a_closed_reader_ends_its_thread_and_reads_no_more() -> None:
    before = set(threading.enumerate())
    numbers = count()
    ahead = read_ahead({"number": number} for number in numbers)
    next(ahead)
    ahead.close()
    assert not set(threading.enumerate()) - before
    assert next(numbers) < 10


def test_language_lists_are_codes_and_files(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("# a comment\nfao\nisl  # another\n\n")
    assert read_languages(["eng", str(tmp_path / "list.txt")], "key") == ["eng", "fao", "isl"]


def test_the_wait_for_rows_is_that_of_the_slowest_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    """This rank's batch takes 2 s, and the word of the others that theirs are there 3 s more."""
    clock = {"now": 0.0}

    def pass_time(seconds: float) -> None:
        clock["now"] += seconds

    class Loader:
        num_workers, prefetch_factor = 0, None

        def __iter__(self) -> Iterator[dict]:
            while True:
                pass_time(2.0)
                yield lay_end_to_end(PLACES, ROWS)

    class Others:
        def sum(self, told: np.ndarray) -> np.ndarray:
            pass_time(3.0)
            return told

    monkeypatch.setattr(data_module, "monotonic", lambda: clock["now"])
    loader, ranks = Loader(), Others()
    batches = iter(RankBatches(loader, BatchMemory(23, 0, 2), ranks, 2))  # type: ignore[arg-type]
    for _ in range(2):
        assert next(batches)["seconds_waited"] == 5.0
        pass_time(100.0)  # the step


def test_a_worker_has_a_place_for_each_batch_that_may_be_on_its_way() -> None:
    loader: Any = SimpleNamespace(num_workers=2, prefetch_factor=3)
    with pytest.raises(AssertionError, match="a worker would write over a batch on its way"):
        RankBatches(loader, BatchMemory(8, 2, 2), Ranks(0, 1, None), 1)


def test_what_reading_without_workers_raises_is_told_as_it_is() -> None:
    class Loader:
        num_workers, prefetch_factor = 0, None

        def __iter__(self) -> Iterator[Any]:
            yield from ()
            raise RuntimeError("no room for a tensor")

    loader: Any = Loader()
    with pytest.raises(ValueError, match=r"^no room for a tensor$"):
        next(iter(RankBatches(loader, BatchMemory(23, 0, 2), Ranks(0, 1, None), 2)))


def test_a_gpu_gets_one_shape_and_a_cpu_no_padding() -> None:
    config = SimpleNamespace(device="gpu", device_train_microbatch_size=3, max_seq_len=64)
    phase: Any = SimpleNamespace(config=config, tokenizer=SimpleNamespace(pad_token_id=7))
    assert microbatches(phase) == Microbatches(pad_to=192, pad_token_id=7, max_seqlen=64)
    config.device = "cpu"
    assert microbatches(phase) == Microbatches(pad_to=None)
