"""What ranks tell each other: three processes over gloo."""
import json
import multiprocessing
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from mmbert.ranks import Ranks, weights_digest

pytestmark = pytest.mark.usefixtures("no_process_group")  # a fork lacks the threads that ending one takes

WORLD = 3


def with_ranks(action: Callable[[Ranks], Any], folder: Path) -> list[Any]:
    """What `action` returns on each of three ranks."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def run(rank: int) -> None:
        os.environ |= {
            "RANK": str(rank), "WORLD_SIZE": str(WORLD), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(WORLD),
            "NODE_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
        }  # fmt: skip
        torch.set_num_threads(1)
        ranks = Ranks.connect("cpu", hang_minutes=0.5)
        result = action(ranks)
        ranks.texts("")  # rank 0 has the store by which they meet: it must not end before all are there
        ranks.leave()
        del ranks  # and with it its group, at once
        (folder / f"{rank}.json").write_text(json.dumps(result))

    processes = [multiprocessing.get_context("fork").Process(target=run, args=(rank,)) for rank in range(WORLD)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    codes = [process.exitcode for process in processes]
    for process in processes:
        process.kill()
    assert codes == [0] * WORLD
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(WORLD)]


def told_error(ranks: Ranks, error: Exception | None) -> str:
    try:
        ranks.raise_together(error)
    except ValueError as raised:
        return str(raised)
    return ""


def all_of_it(ranks: Ranks) -> dict[str, Any]:
    large = np.array([2**62, ranks.rank], dtype=np.int64)
    results: dict[str, Any] = {
        "sum": ranks.sum(large).tolist(),
        "any": [ranks.any(False), ranks.any(ranks.rank == 2)],
        "texts": ranks.texts("é" * ranks.rank),
        "long": [len(text) for text in ranks.texts("x" * 5000)],
        "of_first": ranks.of_first("é" * 5000 if ranks.rank == 0 else "another text"),
        "nothing": told_error(ranks, None),
        "error": told_error(ranks, ValueError("shard.00001.mds is missing") if ranks.rank == 1 else None),
        "first": ranks.by_first(lambda: f"from {ranks.rank}"),
    }

    def fail() -> str:
        raise OSError(f"disk of {ranks.rank} is full")

    try:
        ranks.by_first(fail)
    except ValueError as error:
        results["first_error"] = str(error)
    return results


def test_three_ranks_agree_on_sums_texts_and_errors(tmp_path: Path) -> None:
    for result in with_ranks(all_of_it, tmp_path):
        assert result["sum"] == [3 * 2**62 - 2**64, 3]  # modulo 2^64
        assert result["any"] == [False, True]
        assert result["texts"] == ["", "é", "éé"]
        assert result["long"] == [4096] * 3
        assert result["of_first"] == "é" * 5000
        assert result["nothing"] == ""
        assert result["error"] == "rank 1: shard.00001.mds is missing"
        assert result["first"] == "from 0"
        assert result["first_error"] == "rank 0: disk of 0 is full"


def test_ranks_that_part_right_after_a_message_end(tmp_path: Path) -> None:
    """One of five such partings hung for ever."""
    for _ in range(8):
        assert with_ranks(lambda ranks: ranks.texts("x" * ranks.rank), tmp_path) == [["", "x", "xx"]] * WORLD


def test_one_rank_is_told_what_it_says() -> None:
    alone = Ranks(0, 1, None)
    assert alone.sum(np.array([3])).tolist() == [3]
    assert alone.texts("a") == ["a"]
    assert alone.of_first("a") == "a"
    assert told_error(alone, ValueError("plain")) == "plain"


@pytest.mark.fault(29)
def test_every_single_bit_of_the_weights_changes_their_digest() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4))
    digest = weights_digest(model)
    for parameter in model.parameters():
        bits = parameter.detach().view(torch.int32).flatten()
        for index in range(len(bits)):
            for bit in range(32):
                mask = torch.tensor(1 << bit if bit < 31 else -(1 << 31), dtype=torch.int32)
                bits[index] ^= mask
                assert weights_digest(model) != digest
                bits[index] ^= mask
    assert weights_digest(model) == digest


def test_no_rank_gives_up_waiting_before_the_watchdog_has_shown_what_hangs(tmp_path: Path) -> None:
    """Composer's group would after 5 minutes, torch's own after 30, with another exit status and without the stacks."""

    def timeouts(ranks: Ranks) -> list[float]:
        groups = [torch.distributed.group.WORLD, ranks.group]
        return [group._get_backend(torch.device("cpu")).options._timeout.total_seconds() for group in groups]  # type: ignore[union-attr]

    assert with_ranks(timeouts, tmp_path) == [[60.0, 60.0]] * WORLD
