"""The programs that compute a training step: this repository's, transformers' in several settings, ModernBERT's own.

Every candidate adds up the same scalar over its microbatches: the sum of the cross-entropies at its masked tokens over
the masked tokens of all. So the loss, and the gradients that pile up, are those of the whole batch at once.
"""

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import ModernBertConfig, ModernBertForMaskedLM

from mmbert.benchmark.documents import BOS, EOS, PAD, Documents, padded_batches
from mmbert.convert_to_hf import carried_fields
from mmbert.data import Microbatches
from mmbert.mlm import MaskedLM
from mmbert.model import MmBertForMaskedLM


@dataclass(eq=False)
class Candidate:
    """A step: forward and backward over all microbatches, and the optimizer's step where there is one.

    Attributes:
        model: its parameters have the same values in every candidate and, but in ModernBERT's own, the same names.
        microbatches: on the device already.
        forward: a microbatch -> its share of the loss, a scalar.
        fill: real tokens over the positions that are computed.
        note: what was chosen, for the page.
        optimizer: shared by the candidates of one model.
    """

    model: nn.Module
    microbatches: Sequence[dict[str, Any]]
    forward: Callable[[dict[str, Any]], Tensor]
    fill: float
    note: str
    optimizer: torch.optim.Optimizer | None = None

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
        if self.optimizer is not None:
            self.optimizer.step()
        self.model.zero_grad(set_to_none=True)


@dataclass(frozen=True)
class Peer:
    """A way to use transformers' ModernBertForMaskedLM or, where it is `packed`, ModernBERT's own training code.

    Attributes:
        attention: its `attn_implementation`; flash_attention_2 takes the padding out, and back in at the end.
        sparse: only masked tokens reach its head (`sparse_prediction`).
        by_length: batches of like lengths; otherwise in random order.
        sizes: documents of a batch, or packed rows; of several the fastest is found by trial.
        compiled: with transformers' own torch.compile (`reference_compile`), on a GPU only.
        packed: see `flexbert.py`.
    """

    attention: str
    sparse: bool
    by_length: bool
    sizes: tuple[int, ...]
    compiled: bool = False
    packed: bool = False


ON_GPU = (8, 16, 32, 64, 128)
ROWS = (48, 96, 64, 32, 16, 8, 6, 4)
"""mmBERT's own first, at 1,024 tokens: torch.compile tunes ModernBERT's kernels for the first shape that they meet."""
PEERS = {
    "hf": Peer("sdpa", sparse=False, by_length=False, sizes=(16,)),
    "hf-sparse": Peer("sdpa", sparse=True, by_length=False, sizes=(16,)),
    "hf-tuned": Peer("sdpa", sparse=True, by_length=True, sizes=(1, 4, 8, 16)),
    "hf-sdpa": Peer("sdpa", sparse=True, by_length=True, sizes=ON_GPU, compiled=True),
    "hf-fa2": Peer("flash_attention_2", sparse=True, by_length=True, sizes=ON_GPU, compiled=True),
    "flexbert": Peer("flash_attention_2", sparse=True, by_length=False, sizes=ROWS, compiled=True, packed=True),
}
TRIALS = 3
"""Timed steps of each batch size that is tried; the best of fewer went wrong on a busy machine."""
HOPELESS = 2.0
"""A size whose first timed step took so many times the fastest's gets no other."""


def check_peers_run(names: Sequence[str], device: torch.device, precision: str) -> None:
    """Refuse peers that cannot run here.

    Raises:
        ValueError: names the peer and the remedy.
    """
    for name in names:
        if name not in PEERS:
            raise ValueError(f"--peers {name}: no such peer, choose from {', '.join(PEERS)}")
        if PEERS[name].compiled and device.type != "cuda":
            raise ValueError(f"--peers {name} needs --device gpu; on the CPU take hf-tuned, hf-sparse, hf")
        if PEERS[name].attention == "flash_attention_2":
            if find_spec("flash_attn") is None:
                raise ValueError(f"--peers {name}: flash_attn is not installed; take hf-sdpa, or install it")
            if precision != "amp_bf16":
                raise ValueError(f"--peers {name} needs --precision amp_bf16: its kernel has no {precision}")


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


def huggingface_model(encoder: MmBertForMaskedLM, peer: Peer, device: torch.device) -> ModernBertForMaskedLM:
    """transformers' model with the weights of `encoder`, in training mode without dropout."""
    reference = ModernBertForMaskedLM(
        ModernBertConfig(
            **carried_fields(encoder.config),
            attention_dropout=0.0,
            pad_token_id=PAD,
            bos_token_id=BOS,
            eos_token_id=EOS,
            cls_token_id=BOS,
            sep_token_id=EOS,
            attn_implementation=peer.attention,
            reference_compile=peer.compiled,
        )
    )
    reference.load_state_dict(encoder.state_dict())
    reference.to(device)  # type: ignore[arg-type]  # transformers wraps it without its types
    return reference.train()


def peer_candidate(
    reference: ModernBertForMaskedLM, peer: Peer, documents: Documents, size: int, precision: str
) -> Candidate:
    """Batches of `size` documents for transformers, its own loss."""
    device, num_masked = reference.device, documents.num_masked
    order = np.random.default_rng(1).permutation(len(documents.alone))
    if peer.by_length:
        order = np.argsort(documents.lengths, kind="stable")
    arrays = padded_batches(documents.alone, order.tolist(), size)
    batches = [{key: torch.from_numpy(array).to(device) for key, array in batch.items()} for batch in arrays]

    def forward(batch: dict[str, Any]) -> Tensor:
        reference.sparse_prediction = peer.sparse  # several peers share one model
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "amp_bf16"):
            return reference(**batch, num_items_in_batch=num_masked).loss

    unpads = peer.attention == "flash_attention_2"
    fill = documents.num_tokens / sum(batch["input_ids"].numel() for batch in batches)
    note = f"{len(batches)} batches of {size} documents, {'sorted by length' if peer.by_length else 'random order'}"
    note += ", head on masked tokens only" if peer.sparse else ", logits of all tokens"
    note += f", padding taken out (fill of the batches {fill:.3f})" if unpads else ""
    note += ", compiled" if peer.compiled else ""
    return Candidate(reference, batches, forward, 1.0 if unpads else fill, note)


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
            if turn > 1 and best[size] > HOPELESS * min(best.values()):
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
