"""The peers of `step` by name: transformers' model in several settings, ModernBERT's own training code."""
from collections.abc import Sequence
from dataclasses import replace
from importlib.util import find_spec

import torch

from mmbert.benchmark.candidates import Candidate, fastest
from mmbert.benchmark.documents import Documents
from mmbert.benchmark.flexbert import FlexBertPeer
from mmbert.benchmark.transformers_peer import TransformersPeer
from mmbert.model import MmBertForMaskedLM

ON_GPU = (8, 16, 32, 64, 128)
ROWS = (48, 96, 64, 32, 16, 8, 6, 4)
"""mmBERT's own first, at 1,024 tokens: torch.compile tunes ModernBERT's kernels for the first shape that they meet."""
PEERS: dict[str, TransformersPeer | FlexBertPeer] = {
    "hf-tuned": TransformersPeer("sdpa", sizes=(1, 2, 4, 8, 16)),
    "hf-sdpa": TransformersPeer("sdpa", sizes=ON_GPU, compiled=True),
    "hf-fa2": TransformersPeer("flash_attention_2", sizes=ON_GPU, compiled=True),
    "flexbert": FlexBertPeer(ROWS),
}


def check_peers_run(names: Sequence[str], device: torch.device, precision: str) -> None:
    """Refuse peers that cannot run here.

    Raises:
        ValueError: names the peer and the remedy.
    """
    for name in names:
        if name not in PEERS:
            raise ValueError(f"--peers {name}: no such peer, choose from {', '.join(PEERS)}")
        if PEERS[name].compiled and device.type != "cuda":
            raise ValueError(f"--peers {name} needs --device gpu; on the CPU take hf-tuned")
        if PEERS[name].needs_flash_attn:
            if find_spec("flash_attn") is None:
                raise ValueError(f"--peers {name}: flash_attn is not installed; take hf-sdpa, or install it")
            if precision != "amp_bf16":
                raise ValueError(f"--peers {name} needs --precision amp_bf16: its kernel has no {precision}")


def build_peers(
    encoder: MmBertForMaskedLM, documents: Documents, names: list[str], precision: str, device: torch.device
) -> dict[str, Candidate]:
    """The peers, each at its fastest batch size.

    Of the sizes that hold all documents, or rows, only one is tried.
    """
    peers = {}
    for name in names:
        peer = PEERS[name]
        model = peer.build(encoder, device)
        tried: dict[int, Candidate] = {}
        for size in peer.sizes:
            if not any(smaller < size and len(other.microbatches) == 1 for smaller, other in tried.items()):
                tried[size] = peer.candidate(model, documents, size, precision)
        size, seconds = fastest(tried, device)
        trial = ", ".join(f"{tried_size}: {value:.2f} s" for tried_size, value in seconds.items())
        peers[name] = replace(tried[size], note=f"{tried[size].note}; the best of a trial, {peer.unit} {trial}")
    for name, candidate in peers.items():
        print(f"{name}: {candidate.note}, fill {candidate.fill:.3f}", flush=True)
    return peers
