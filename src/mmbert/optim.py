"""StableAdamW as mmBERT uses it: fully decoupled weight decay, none on biases and norms."""
from collections.abc import Callable
from typing import Any

import optimi
from torch import Tensor, nn

from mmbert.config import OptimizerConfig


class StableAdamW(optimi.StableAdamW):
    """torch-optimi's, whose next step can be called off: neither weights, moments nor the step count change."""

    is_called_off = False

    def call_off(self) -> None:
        """Skip the next step."""
        self.is_called_off = True

    def step(self, closure: Callable | None = None, param: Tensor | None = None) -> Tensor | None:
        """Update the weights, unless called off; in Composer the gradients come, and call off, in `closure`."""
        loss = closure() if closure else None
        if self.is_called_off:
            self.is_called_off = False
        else:
            super().step(param=param)
        return loss


def decay_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Two parameter groups: matrices, embeddings included, decay; 1-d parameters (norms, biases) do not."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]


def build_optimizer(model: nn.Module, config: OptimizerConfig, on_gpu: bool) -> StableAdamW:
    """The optimizer over `model`'s parameters.

    Each tensor's update is clipped by its own root mean square instead of clipping gradients (Wortsman et al. 2023,
    arXiv:2304.13013).
    """
    return StableAdamW(
        decay_groups(model, config.weight_decay),
        lr=config.lr,
        betas=config.betas,
        eps=config.eps,
        decouple_lr=True,
        max_lr=config.lr,
        # Not optimi's Triton kernels: they add up a tensor's mean square by atomics, in an order that differs from GPU
        # to GPU, so that the weights of the ranks would drift apart.
        triton=False,
        foreach=on_gpu,
    )
