"""Row 22: which rows a step reads, whatever number of ranks and workers there are and were.

`tests/test_row_order.py` and `tests/test_data.py` decide it for 1 to 64 ranks and 0 to 8 workers.
"""
import signal
from collections import Counter
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file

from mmbert.checkpoint import newest_checkpoint, read_state
from mmbert.ledger import RunHistory, Step, read_ledger
from mmbert.ledger_audit import audit
from mmbert.mixture import Group, Plan
from mmbert.row_order import RowOrder
from mmbert.schedules import BatchSizes, Schedule
from tests.conftest import Corpus
from tests.faults.oracle import check_same_end
from tests.training_runs import Outcome, prepare, train, train_ranks

pytestmark = pytest.mark.fault(22)
NO_DROPOUT = "model.attn_out_dropout=0.0"  # each rank draws its own
STOP_AT = 8


@pytest.fixture(scope="module")
def alone(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Outcome]:
    """Run folder and steps of a phase 1 that one rank trained, without dropout."""
    folder = tmp_path_factory.mktemp("alone")
    outcome = train([prepare(folder / "it", corpus), NO_DROPOUT], folder / "steps.jsonl")
    assert outcome.exit_code == 0, outcome.output
    return folder / "it" / "runs" / "phase1", outcome


def train_part(arguments: list[Any], record: Path, num_ranks: int, stop_at: int | None) -> list[Outcome]:
    """Train on one or two ranks, up to a planned stop or to the end."""
    if num_ranks == 1:
        outcomes = [train(arguments, record, kill_at=stop_at, number=signal.SIGUSR1)]
    else:
        kill_at = {} if stop_at is None else {1: stop_at}
        outcomes = train_ranks(arguments, record, num_ranks, kill_at=kill_at, number=signal.SIGUSR1)
    for outcome in outcomes:
        assert outcome.exit_code == (0 if stop_at is None else 85), outcome.output
    return outcomes


def rows_of(outcomes: list[Outcome]) -> dict[int, list[int]]:
    """Step -> positions of its global batch, rank after rank."""
    rows: dict[int, list[int]] = {}
    for outcome in outcomes:
        for step in outcome.steps:
            rows.setdefault(step["step"], []).extend(step["rows"])
    return rows


def what_was_read(history: RunHistory, record: Step) -> tuple[object, ...]:
    """What the number of ranks must not change, to the bit."""
    return record.step, record.first_row, record.num_rows, record.tokens, record.digest, history.streams_of(record)


@pytest.mark.parametrize("first, then", [(1, 2), (2, 1)], ids=["one then two ranks", "two then one rank"])
def test_a_run_goes_on_with_the_same_rows_on_another_number_of_ranks(
    corpus: Corpus, alone: tuple[Path, Outcome], tmp_path: Path, first: int, then: int
) -> None:
    arguments, run_folder = [prepare(tmp_path / "it", corpus), NO_DROPOUT], tmp_path / "it" / "runs" / "phase1"
    before = train_part(arguments, tmp_path / "before.jsonl", first, STOP_AT)
    after = train_part(arguments, tmp_path / "after.jsonl", then, None)
    stopped, goes_on = max(rows_of(before)), min(rows_of(after))
    assert (stopped in (STOP_AT, STOP_AT + 1), goes_on) == (True, stopped + 1)
    assert rows_of(before) | rows_of(after) == rows_of([alone[1]])  # row by row, and no rank has one of another's

    history, other = read_ledger(run_folder), read_ledger(alone[0])
    assert [what_was_read(history, one) for one in history.steps] == [what_was_read(other, one) for one in other.steps]
    losses, expected = ([record.loss for record in of.steps] for of in (history, other))
    assert losses == pytest.approx(expected, rel=1e-5)
    worlds = [event.values["world_size"] for event in history.events if event.name == "start"]
    assert worlds == [first, then]
    assert audit(run_folder).faults == []

    one, two = newest_checkpoint(run_folder), newest_checkpoint(alone[0])
    assert read_state(one)["tokens_per_stream"] == read_state(two)["tokens_per_stream"]
    weights, others = (load_file(folder / "model.safetensors") for folder in (one, two))
    for name, weight in weights.items():
        assert (others[name] - weight).norm() / weight.norm().clamp_min(1e-3) < 1e-5, name


@pytest.mark.fault(14)
def test_three_ranks_that_were_stopped_end_with_the_same_bits(corpus: Corpus, tmp_path: Path) -> None:
    """Two add their gradients in one way only; with three it matters in which buckets DDP adds them."""
    arguments = ["global_train_batch_size=8", "device_train_microbatch_size=8"]
    whole, stopped = ([prepare(tmp_path / name, corpus), *arguments] for name in ("whole", "stopped"))
    train_part(whole, tmp_path / "whole.jsonl", 3, None)
    train_part(stopped, tmp_path / "stopped.jsonl", 3, 6)
    train_part(stopped, tmp_path / "stopped.jsonl", 3, None)
    check_same_end(tmp_path / "stopped" / "runs" / "phase1", tmp_path / "whole" / "runs" / "phase1")


# ------------------------------------------------------------------------------------------ an order of each rank's own

SIZES, BATCHES = BatchSizes([0], [12]), 40


def toy_order() -> RowOrder:
    """One stream of 480 rows, read once."""
    group = Group("all", 1.0, Schedule(1.0), None, np.arange(1))
    plan = Plan([group], np.array([480]), np.array([48_000]), 48_000, 480)
    return RowOrder(plan, ["a"], [np.full(8, 60)], seed=3)


def shuffled_by_each_rank(rank: int, world_size: int) -> list[list[int]]:
    """What loaders do where each rank shuffles its own share of the rows: its part of every global batch."""
    own = np.random.default_rng([3, rank]).permutation(np.arange(rank, 480, world_size))
    return own.reshape(BATCHES, -1).tolist()


def planned(rank: int, world_size: int) -> list[list[int]]:
    """What ours do."""
    batches = islice(toy_order().batches(0, SIZES, rank, world_size), BATCHES)
    return [batch[:, 2].tolist() for batch in batches]


def read_in_one_epoch(part: Any, worlds: list[int]) -> Counter[int]:
    """How often each row is read when the number of ranks changes in the middle of an epoch."""
    seen, each = Counter[int](), BATCHES // len(worlds)
    for number, world_size in enumerate(worlds):
        for rank in range(world_size):
            for batch in part(rank, world_size)[number * each : (number + 1) * each]:
                seen.update(batch)
    return seen


def test_no_row_is_lost_or_read_twice_when_the_number_of_ranks_changes_within_an_epoch() -> None:
    for worlds in ([1, 2], [4, 1], [2, 3, 4, 6], [12, 1]):
        assert read_in_one_epoch(planned, worlds) == Counter(range(480))


@pytest.mark.fault(22, control=True)
def test_ranks_that_shuffle_for_themselves_lose_rows_when_their_number_changes() -> None:
    """Where each rank shuffles for itself, another number of ranks reads some rows twice and others never."""
    seen = read_in_one_epoch(shuffled_by_each_rank, [1, 2])
    assert max(seen.values()) == 2
    assert len(seen) < 480
    first = [{row for rank in range(world) for row in shuffled_by_each_rank(rank, world)[0]} for world in (1, 2)]
    assert first[0] != first[1]
