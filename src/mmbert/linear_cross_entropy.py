"""The loss of the language-model head without its logits: a chunk of them at a time, gradients with it.

At 256,000 entries the logits are the largest tensor of a step by far: 14,746 masked tokens are 15 GB of fp32, and
torch's cross-entropy keeps up to three such tensors. Here one chunk of logits exists at a time, and the gradients with
respect to hidden states and weights are formed while it does.

Shapes: M masked tokens, D hidden size, V vocabulary size, C rows of a chunk.
"""
from typing import Any

import torch
from torch import Tensor

CHUNK_ROWS = 128
"""Logits of 256,000 entries: 131 MB in fp32. Larger chunks are hardly faster, smaller ones starve the product."""


def linear_cross_entropy(
    hidden: Tensor, weight: Tensor, bias: Tensor, targets: Tensor, chunk_rows: int = CHUNK_ROWS
) -> Tensor:
    """Sum over M of -log softmax(hidden @ weight.T + bias)[target], in fp32.

    The products run in autocast's dtype where autocast is on; softmax, sums and the gradient of the weights in fp32.

    Args:
        hidden: (M, D).
        weight, bias: (V, D) and (V,).
        targets: (M,) in [0, V).
        chunk_rows: C; changes memory and speed, not the result.
    """
    device = hidden.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
    wants_gradient = torch.is_grad_enabled() and any(x.requires_grad for x in (hidden, weight, bias))
    with torch.autocast(device, enabled=False):
        if wants_gradient:
            return _LinearCrossEntropy.apply(hidden, weight, bias, targets, dtype, chunk_rows)
        return _forward(hidden, weight, bias, targets, dtype, chunk_rows, None)


class _LinearCrossEntropy(torch.autograd.Function):
    """Forms the gradients in `forward`, where the logits are, and scales them in `backward`."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor, targets: Tensor, dtype: torch.dtype, chunk_rows: int
    ) -> Tensor:
        gradients = (torch.empty_like(hidden), torch.zeros_like(weight), torch.zeros_like(bias))
        ctx.save_for_backward(*gradients)
        return _forward(hidden, weight, bias, targets, dtype, chunk_rows, gradients)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        d_hidden, d_weight, d_bias = ctx.saved_tensors
        scale = gradients[0]
        return d_hidden.mul_(scale), d_weight.mul_(scale), d_bias.mul_(scale), None, None, None


def _forward(
    hidden: Tensor, weight: Tensor, bias: Tensor, targets: Tensor, dtype: torch.dtype, chunk_rows: int,
    gradients: tuple[Tensor, Tensor, Tensor] | None,
) -> Tensor:  # fmt: skip
    """The loss; adds to `gradients` of hidden (which is overwritten), weight and bias, where they are given."""
    wide = torch.promote_types(torch.float32, dtype)  # float64 in tests
    inputs, matrix = hidden.to(dtype), weight.to(dtype)
    loss = torch.zeros((), dtype=wide, device=hidden.device)
    for start in range(0, len(hidden), chunk_rows):
        rows, goals = inputs[start : start + chunk_rows], targets[start : start + chunk_rows]
        logits = (rows @ matrix.T).to(wide).add_(bias)  # (C, V)
        loss += _losses(logits, goals)
        if gradients is not None:
            d_hidden, d_weight, d_bias = gradients
            # the logits have become probabilities; minus one at the target they are the gradient
            logits.scatter_add_(1, goals.unsqueeze(1), logits.new_full((len(goals), 1), -1.0))
            d_bias += logits.sum(dim=0)
            d_logits = logits.to(dtype)
            d_hidden[start : start + chunk_rows] = d_logits @ matrix
            if dtype == d_weight.dtype:
                d_weight.addmm_(d_logits.T, rows)
            else:
                d_weight += d_logits.T @ rows
    return loss


def _losses(logits: Tensor, targets: Tensor) -> Tensor:
    """Sum of the rows' losses; `logits` (C, V) become probabilities in place."""
    logits -= logits.amax(dim=1, keepdim=True)
    chosen = logits.gather(1, targets.unsqueeze(1)).sum()
    sums = logits.exp_().sum(dim=1, keepdim=True)  # (C, 1)
    logits /= sums
    return sums.log().sum() - chosen
