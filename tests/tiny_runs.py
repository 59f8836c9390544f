"""Runs of a small encoder, saved as training saves them but without any training: seconds for a dozen of them."""
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from mmbert.checkpoint import save_checkpoint
from mmbert.config import ModelConfig, OptimizerConfig
from mmbert.model import MmBertForMaskedLM
from mmbert.optim import build_optimizer
from mmbert.tokenizer import load_tokenizer

ENCODER = ModelConfig(
    vocab_size=520, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=2,
    max_position_embeddings=128, global_rope_theta=160_000.0, local_rope_theta=160_000.0,
)  # fmt: skip


def save_run(
    root: Path, name: str, seed: int, tokenizer: Path, steps: Sequence[int] = (8,), finished: bool = True,
    config: dict[str, Any] | None = None, model: dict[str, Any] | None = None,
) -> Path:  # fmt: skip
    """A run with a checkpoint at each of these steps, the weights of which follow from seed and step.

    Args:
        seed: 0 for a base; runs of other seeds lie near it, and near each other.
        config: more of what state.json says of the configuration: its parent, say.
        model: changes of the model section.
    """
    section = replace(ENCODER, **(model or {}))
    for step in steps:
        torch.manual_seed(0)
        encoder = MmBertForMaskedLM(section)
        torch.manual_seed(1000 * seed + step)
        with torch.no_grad():
            for parameter in encoder.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.01 if seed else 0.0)
        optimizer = build_optimizer(encoder, OptimizerConfig(1e-3, (0.9, 0.95), 1e-8, 0.0), on_gpu=False)
        state = {
            "step": step, "rows": 4 * step, "tokens": 100 * step, "seconds": 1.0,
            "finished": finished and step == max(steps), "callbacks": {}, "tokens_per_stream": {},
            "config": {
                "tokenizer": str(tokenizer), "model": asdict(section), "duration": 1000,
                "checkpoint": {"interval": 200}, **(config or {}),
            },
            "identity": {"tokenizer.digest": load_tokenizer(tokenizer).digest},
        }  # fmt: skip
        save_checkpoint(root / name, step, encoder, optimizer, state)
    return root / name
