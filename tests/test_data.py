"""Batches: how rows are laid end to end, cut into microbatches, and read from the shards."""
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from mmbert.config import RunConfig, load_config
from mmbert.data import PhaseData, build_data, collate, count_tokens, read_languages, split_batch
from mmbert.masking import IGNORE
from mmbert.tokenizer import load_tokenizer
from tests.conftest import Corpus
from tests.training_runs import write_yamls


def row(position: int, lengths: list[int]) -> dict:
    """A row whose ids say where they stand: 1000 * position + index."""
    ids = 1000 * position + np.arange(sum(lengths))
    return {
        "input_ids": ids.astype(np.uint32), "lengths": np.array(lengths, dtype=np.uint16),
        "position": position, "stream": position % 2,
    }  # fmt: skip


ROWS = [row(1, [3, 4]), row(2, [7]), row(3, [1, 1, 5]), row(4, [2])]


def masked_batch() -> dict:
    """The four rows, every third token with a label."""
    batch = collate(ROWS)
    labels = torch.full_like(batch["input_ids"], IGNORE)
    labels[::3] = batch["input_ids"][::3]
    return {**batch, "labels": labels, "num_labels": int((labels != IGNORE).sum())}


def test_rows_lie_end_to_end_with_the_borders_of_all_documents() -> None:
    batch = collate(ROWS)
    assert batch["input_ids"].tolist() == [int(i) for r in ROWS for i in r["input_ids"]]
    assert batch["cu_seqlens"].tolist() == [0, 3, 7, 14, 15, 16, 21, 23]
    assert batch["cu_seqlens"].dtype == torch.int32
    assert batch["max_seqlen"] == 7
    assert batch["row_tokens"] == [7, 7, 7, 2]
    assert batch["row_documents"] == [2, 1, 3, 1]
    assert batch["row_positions"].tolist() == [1, 2, 3, 4]


def test_ids_above_sixteen_bits_survive() -> None:
    large = {**row(0, [2]), "input_ids": np.array([255_934, 255_999], dtype=np.uint32)}
    assert collate([large])["input_ids"].tolist() == [255_934, 255_999]


@pytest.mark.parametrize("size", [1, 2, 3, 4, 9])
def test_microbatches_are_whole_rows_and_lose_nothing(size: int) -> None:
    batch = masked_batch()
    parts = split_batch(batch, size)
    assert [len(part["row_tokens"]) for part in parts[:-1]] == [size] * (len(parts) - 1)
    for key in ("input_ids", "labels"):
        assert torch.cat([part[key] for part in parts]).equal(batch[key])
    assert sum(part["num_labels"] for part in parts) == batch["num_labels"]
    documents = [length for part in parts for length in part["cu_seqlens"].diff().tolist()]
    assert documents == batch["cu_seqlens"].diff().tolist()
    assert all(part["cu_seqlens"][0] == 0 and part["max_seqlen"] == part["cu_seqlens"].diff().max() for part in parts)


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
    return list(islice(build_data(config, data, start, rank, world_size).dataloader, number))


def test_two_ranks_read_the_rows_that_one_rank_reads(config: RunConfig) -> None:
    alone = first_batches(config, 0, 0, 1, 5)
    halves = [first_batches(config, 0, rank, 2, 5) for rank in (0, 1)]
    for batch, first, second in zip(alone, *halves, strict=True):
        assert torch.cat([first["input_ids"], second["input_ids"]]).equal(batch["input_ids"])
        assert [*first["row_positions"], *second["row_positions"]] == list(batch["row_positions"])


def test_a_resumed_loader_goes_on_at_its_row(config: RunConfig) -> None:
    batches = first_batches(config, 0, 0, 1, 5)
    resumed = first_batches(config, 8, 0, 1, 3)
    for old, new in zip(batches[2:], resumed, strict=True):
        assert old["input_ids"].equal(new["input_ids"])


def test_a_shard_that_disappears_stops_the_run_instead_of_ending_the_epoch(config: RunConfig, corpus: Corpus) -> None:
    data = PhaseData.open(config, load_tokenizer(Path(config.tokenizer)))
    spec = build_data(config, data, 0, 0, 1)
    shard = corpus.shards[64] / "train" / "invented" / "laa" / "shard.00000.mds"
    hidden = shard.rename(shard.with_suffix(".hidden"))
    try:
        with pytest.raises(OSError, match=r"laa: cannot read row .* data_prep.verify"):
            list(islice(spec.dataloader, 5))
    finally:
        hidden.rename(shard)


def test_language_lists_are_codes_and_files(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("# a comment\nfao\nisl  # another\n\n")
    assert read_languages(["eng", str(tmp_path / "list.txt")], "key") == ["eng", "fao", "isl"]
