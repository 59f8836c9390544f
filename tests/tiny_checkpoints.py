"""Checkpoints of a model with a few hundred bytes, and work in forked children, which may be killed."""
import os
import signal
import traceback
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mmbert.checkpoint import save_checkpoint
from mmbert.config import OptimizerConfig
from mmbert.optim import StableAdamW, build_optimizer


def tiny(seed: int, steps: int = 2) -> tuple[nn.Module, StableAdamW]:
    """A model of two layers and its optimizer, after so many steps."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    optimizer = build_optimizer(model, OptimizerConfig(1e-2, (0.9, 0.95), 1e-8, 1e-5), on_gpu=False)
    for _ in range(steps):
        model(torch.randn(5, 3)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    return model, optimizer


def state_at(step: int, tokens: int) -> dict[str, Any]:
    """What a state.json must hold."""
    return {
        "step": step, "rows": 4 * step, "tokens": tokens, "seconds": 1.5, "finished": False,
        "callbacks": {}, "config": {"tokenizer": "tokenizer", "model": {}, "duration": 1000},
        "identity": {"tokenizer.digest": "0"}, "tokens_per_stream": {"udhr/eng": tokens},
    }  # fmt: skip


def save_tiny(run: Path, step: int, seed: int | None = None, tokens: int | None = None) -> Path:
    """Save a checkpoint; its weights follow from the seed, which is the step unless it is given."""
    model, optimizer = tiny(step if seed is None else seed)
    return save_checkpoint(run, step, model, optimizer, state_at(step, 100 * step if tokens is None else tokens))


def content_of(folder: Path) -> dict[str, str]:
    """Every path below a folder and what it is: a folder, a link's target, or a file's sha256."""
    entries = {}
    for path in sorted(folder.rglob("*")):
        if path.is_symlink():
            entries[str(path.relative_to(folder))] = f"-> {os.readlink(path)}"
        elif path.is_file():
            entries[str(path.relative_to(folder))] = sha256(path.read_bytes()).hexdigest()
        else:
            entries[str(path.relative_to(folder))] = "folder" if path.is_dir() else "special"
    return entries


def in_child(work: Callable[[], None]) -> int:
    """`work` in a forked process: 0, 1 after an exception, or minus the signal that ended it; SIGALRM ends a hang."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            signal.alarm(60)
            work()
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
