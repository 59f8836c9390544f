"""The ranks of a run, and what they tell each other between steps.

Over the CPU (gloo), beside the GPUs' own group: nothing here waits for a kernel.
"""
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta

import numpy as np
import torch
from composer.utils import dist
from numpy.typing import NDArray
from torch import distributed, nn

TEXT_BYTES = 4096  # of a message between ranks: an error in one line, or the path of a checkpoint


@dataclass(frozen=True)
class Ranks:
    """This process among those that train together.

    Every method must be called by all ranks, in the same order.
    """

    rank: int
    world_size: int
    group: distributed.ProcessGroup | None

    @classmethod
    def connect(cls, device: str, hang_minutes: float) -> "Ranks":
        """Meet the other ranks; the launcher has told Composer where.

        Args:
            hang_minutes: of the watchdog, which shows what a rank hangs in; no rank gives up waiting before that.
        """
        timeout = timedelta(minutes=2 * hang_minutes)
        dist.initialize_dist(device, timeout.total_seconds())
        world_size = dist.get_world_size()
        group = distributed.new_group(backend="gloo", timeout=timeout) if world_size > 1 else None
        return cls(dist.get_global_rank(), world_size, group)

    def leave(self) -> None:
        """Part, when there is no more to be told; NCCL warns of leaks where nobody does."""
        if distributed.is_initialized():
            distributed.destroy_process_group()

    @property
    def is_first(self) -> bool:
        """Whether this rank writes files."""
        return self.rank == 0

    def sum(self, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        """Elementwise sum over the ranks, modulo 2^64."""
        if self.group is None:
            return numbers
        total = torch.from_numpy(numbers.copy())
        distributed.all_reduce(total, group=self.group)
        return total.numpy()

    def any(self, flag: bool) -> bool:
        """Whether it is true on any rank."""
        return bool(self.sum(np.array([int(flag)])).any())

    def texts(self, text: str) -> list[str]:
        """The text of every rank, in the order of the ranks; more than 4,096 bytes are cut off."""
        if self.group is None:
            return [text]
        content = text.encode()[:TEXT_BYTES]
        own = torch.frombuffer(bytearray(content.ljust(TEXT_BYTES, b"\0")), dtype=torch.uint8)
        all_texts = [torch.empty_like(own) for _ in range(self.world_size)]
        distributed.all_gather(all_texts, own, group=self.group)
        return [bytes(found.numpy()).rstrip(b"\0").decode(errors="ignore") for found in all_texts]

    def of_first(self, text: str) -> str:
        """Rank 0's text, of any length, on all ranks."""
        if self.group is None:
            return text
        content = torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)
        size = int(self.sum(np.array([len(content) if self.is_first else 0]))[0])
        if not self.is_first:
            content = torch.empty(size, dtype=torch.uint8)
        distributed.broadcast(content, 0, group=self.group)
        return content.numpy().tobytes().decode()

    def raise_together(self, error: Exception | None) -> None:
        """Raise an error of one rank on all of them.

        Raises:
            ValueError: names the rank and what it says.
        """
        for rank, message in enumerate(self.texts(str(error) if error else "")):
            if message:
                raise ValueError(f"rank {rank}: {message}" if self.world_size > 1 else message) from error

    def by_first(self, action: Callable[[], object]) -> str:
        """What `action` returns on rank 0, as text, or "" for None; it runs there alone.

        Raises:
            ValueError: on all ranks, where `action` raises ValueError or OSError.
        """
        error: Exception | None = None
        result: object = None
        if self.is_first:
            try:
                result = action()
            except (ValueError, OSError) as caught:
                error = caught
        self.raise_together(error)
        return self.texts(str(result or ""))[0]


def weights_digest(model: nn.Module) -> str:
    """A sum over the bits of all weights: one flipped bit changes it. Ranks that train together have the same."""
    total = torch.zeros((), dtype=torch.int64)
    for parameter in model.parameters():
        total = 31 * total.to(parameter.device) + parameter.detach().view(torch.int32).sum(dtype=torch.int64)
    return str(int(total))
