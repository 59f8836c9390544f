"""A run folder that is finished and has trained on nothing: its weights were imported or merged.

`parent` in a YAML names it as it names a phase; the moments start at zero.
"""
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn

from mmbert.atomic import partial_folder, publish_folder
from mmbert.checkpoint import save_checkpoint
from mmbert.config import OptimizerConfig
from mmbert.optim import build_optimizer


@contextmanager
def untrained_run(output: Path, model: nn.Module, state: dict[str, Any]) -> Iterator[Path]:
    """Give a folder with the model's checkpoint, which becomes the run `output` at the end, whole or not at all.

    Args:
        model: on the CPU.
        state: see `first_state`.

    Raises:
        OSError, ValueError: see `save_checkpoint`.
    """
    optimizer = build_optimizer(model, OptimizerConfig(1.0, (0.9, 0.95), 1e-8, 0.0), on_gpu=False)
    with partial_folder(output) as partial:
        save_checkpoint(partial, 0, model, optimizer, state)
        yield partial
        publish_folder(partial, output)


def first_state(model: dict[str, Any], tokenizer: str, tokenizer_digest: str) -> dict[str, Any]:
    """What its state.json says.

    Args:
        model: the model section, as plain values.
        tokenizer: folder.
    """
    return {
        "step": 0,
        "rows": 0,
        "tokens": 0,
        "seconds": 0.0,
        "finished": True,
        "callbacks": {},
        "tokens_per_stream": {},
        "config": {"model": model, "tokenizer": tokenizer, "duration": 0},
        "identity": {"tokenizer.digest": tokenizer_digest},
    }
