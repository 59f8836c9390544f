"""What computes a training step, this repository's program for one, and how the fastest of several is found.

Every candidate adds up the same scalar over its microbatches: the sum of the cross-entropies at its masked tokens over
the masked tokens of all. So the loss, and the gradients that pile up, are those of the whole batch at once.
"""

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mmbert.benchmark.documents import PAD, Documents
from mmbert.data import Microbatches
from mmbert.mlm import MaskedLM
from mmbert.model import MmBertForMaskedLM


@dataclass(eq=False)
class Candidate:
    """A step: forward and backward over all microbatches.

    Attributes:
        model: its parameters have the same values in every candidate and, but in ModernBERT's own, the same names.
        microbatches: on the device already.
        forward: a microbatch -> its share of the loss, a scalar.
        fill: real tokens over the positions that are computed.
        note: what was chosen, for the page.
    """

    model: nn.Module
    microbatches: Sequence[dict[str, Any]]
    forward: Callable[[dict[str, Any]], Tensor]
    fill: float
    note: str

    def backward(self) -> Tensor:
        """The loss of the whole batch; the gradients are left in the parameters."""
        self.model.zero_grad(set_to_none=True)
        losses = []
        for microbatch in self.microbatches:
            loss = self.forward(microbatch)
            loss.backward()
            losses.append(loss.detach())
        return torch.stack(losses).sum()

    def step(self) -> None:
        """What is timed. Leaves no gradients, or all candidates' would lie in a GPU's memory at once."""
        self.backward()
        self.model.zero_grad(set_to_none=True)


TRIALS = 3
"""Timed steps of each batch size that is tried; the best of fewer went wrong on a busy machine."""
HOPELESS = 2.0
"""A size whose best of two timed steps took so many times the fastest's gets no other."""


def our_candidate(
    encoder: MmBertForMaskedLM, documents: Documents, rows: int, precision: str, device: torch.device
) -> Candidate:
    """Microbatches of `rows` packed rows, cut and computed by the modules that training uses.

    On a GPU every microbatch is filled up to one shape, as in training.
    """
    seq = encoder.config.max_position_embeddings
    microbatches = Microbatches() if device.type == "cpu" else Microbatches(rows * seq, PAD, seq)
    cut = [send(microbatch, device) for microbatch in microbatches(documents.rows, rows)]
    shell, num_masked = MaskedLM(encoder, precision), documents.num_masked
    fill = documents.num_tokens / sum(len(microbatch["input_ids"]) for microbatch in cut)
    note = f"{len(cut)} microbatches of {rows} rows; {len(documents.rows['row_tokens'])} rows in all"
    return Candidate(encoder, cut, lambda microbatch: shell(microbatch).total / num_masked, fill, note)


def fastest(candidates: dict[int, Candidate], device: torch.device) -> tuple[int, dict[int, float]]:
    """The batch size whose step is fastest, by the best of TRIALS steps after one that does not count.

    The sizes take turns, as the candidates do later. A size that does not fit into a GPU's memory is passed over.

    Returns:
        The size, and the seconds of those that ran.

    Raises:
        ValueError: no size fits.
    """
    best: dict[int, float] = {}
    for turn in range(1 + TRIALS):
        for size, candidate in candidates.items():
            if turn > 0 and size not in best:
                continue
            if turn > 2 and best[size] > HOPELESS * min(best.values()):
                continue
            with suppress(torch.cuda.OutOfMemoryError):
                seconds = _seconds(candidate, device)
                best[size] = seconds if turn <= 1 else min(best[size], seconds)
            candidate.model.zero_grad(set_to_none=True)
    if not best:
        raise ValueError(f"no batch size of {', '.join(map(str, candidates))} fits into memory; lower --tokens")
    return min(best, key=best.__getitem__), best


def _seconds(candidate: Candidate, device: torch.device) -> float:
    began = time.perf_counter()
    candidate.backward()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began


def send(microbatch: dict[str, Any], device: torch.device) -> dict[str, Any]:
    return {key: value.to(device) if isinstance(value, Tensor) else value for key, value in microbatch.items()}
