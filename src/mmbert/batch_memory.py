"""The way of token ids from a loader worker to the rank it reads for: memory that both share.

The pipe of torch's DataLoader carries all else. Ids in it, a few megabytes a batch, cost as much processor time as
reading them from the shards. The memory has no name: nothing stays when a process is killed, and /dev/shm, which is
small in many containers, is not needed.
"""
import mmap
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch.utils.data import get_worker_info

Batch = dict[str, Any]
ID = np.dtype(np.int32)


@dataclass(frozen=True)
class Stored:
    """Where ids lie: `num_tokens` of them from token `start` of the memory on."""

    start: int
    num_tokens: int


class BatchMemory:
    """Places for as many batches as may be on their way, to be made before the workers are forked.

    A worker fills its places in turn. The loader asks it for one more batch just before it hands one out, so it may
    write to as many places as it has batches to prepare while that one is read from its own.

    Args:
        num_tokens: the most that a batch may have.
        workers: loader processes; with none, ids stay where they are.
        prefetched: batches that a worker prepares, the loader's `prefetch_factor`.
    """

    def __init__(self, num_tokens: int, workers: int, prefetched: int) -> None:
        self.num_tokens, self.places, self.turn = num_tokens, prefetched + 1, 0
        size = ID.itemsize * num_tokens * self.places * workers
        self.ids = np.frombuffer(mmap.mmap(-1, size), ID) if size else None  # takes memory only where it is written to

    def put(self, batch: Any) -> Any:
        """In a worker: leave the ids of a batch here. An exception, which comes in place of one, passes as it is."""
        worker = get_worker_info()
        return batch if worker is None or isinstance(batch, Exception) else self.store(batch, worker.id)

    def store(self, batch: Batch, worker: int) -> Batch:
        """The batch with its ids in this worker's next place."""
        assert self.ids is not None
        stored = Stored((worker * self.places + self.turn) * self.num_tokens, len(batch["input_ids"]))
        assert stored.num_tokens <= self.num_tokens, f"{stored.num_tokens} tokens, a place has {self.num_tokens}"
        self.turn = (self.turn + 1) % self.places
        self.ids[stored.start : stored.start + stored.num_tokens] = batch["input_ids"]
        return {**batch, "input_ids": stored}

    def take(self, batch: Batch | Exception) -> Batch | Exception:
        """In the process that made this: a copy of the ids, before the next batch is asked for."""
        if isinstance(batch, Exception) or not isinstance(stored := batch["input_ids"], Stored):
            return batch
        assert self.ids is not None
        return {**batch, "input_ids": self.ids[stored.start : stored.start + stored.num_tokens].copy()}
