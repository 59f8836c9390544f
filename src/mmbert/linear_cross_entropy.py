"""The loss of the language-model head without its logits: a chunk of them at a time, gradients with it.

At 256,000 entries the logits are the largest tensor of a step by far: 14,746 masked tokens are 15 GB of fp32, and
torch's cross-entropy keeps up to three such tensors. Here one chunk of logits exists at a time, and the gradients with
respect to hidden states and weights are formed while it does.

Shapes: M masked tokens, D hidden size, V vocabulary size, C rows of a chunk.
"""
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mmbert.head_chunks import rows_of_a_chunk
from mmbert.linear import product

Gradients = tuple[Tensor, Tensor, Tensor]


class Losses(NamedTuple):
    """Of M tokens: the sum of their cross-entropies in nats, which alone has gradients, and each of them.

    Attributes:
        total: scalar.
        each: (M,).
        correct: (M,) bool, whether the target has the largest logit.
    """

    total: Tensor
    each: Tensor
    correct: Tensor


def linear_cross_entropy(
    hidden: Tensor, weight: Tensor, bias: Tensor, targets: Tensor, chunk_rows: int | None = None
) -> Losses:
    """-log softmax(hidden @ weight.T + bias)[target] of M tokens and their sum, in fp32.

    The products run in autocast's dtype where autocast is on; softmax and sums, also that of the weights' gradient over
    the chunks, in fp32.

    Args:
        hidden: (M, D).
        weight, bias: (V, D) and (V,).
        targets: (M,) in [0, V).
        chunk_rows: C; changes memory and speed, not the result; None takes what CHUNK_BYTES allows.
    """
    device = hidden.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
    chunk_rows = chunk_rows or rows_of_a_chunk(len(hidden), len(weight), device)
    wants_gradient = torch.is_grad_enabled() and any(x.requires_grad for x in (hidden, weight, bias))
    with torch.autocast(device, enabled=False):
        if wants_gradient:
            return Losses(*_LinearCrossEntropy.apply(hidden, weight, bias, targets, dtype, chunk_rows))
        return _forward(hidden, weight, bias, targets, dtype, chunk_rows, None)


class _LinearCrossEntropy(torch.autograd.Function):
    """Forms the gradients in `forward`, where the logits are, and scales them in `backward`."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor, targets: Tensor, dtype: torch.dtype, chunk_rows: int
    ) -> Losses:
        gradients = (torch.empty_like(hidden), torch.zeros_like(weight), torch.zeros_like(bias))
        ctx.save_for_backward(*gradients)
        losses = _forward(hidden, weight, bias, targets, dtype, chunk_rows, gradients)
        ctx.mark_non_differentiable(losses.each, losses.correct)
        return losses

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        d_hidden, d_weight, d_bias = ctx.saved_tensors
        scale = gradients[0]
        return d_hidden.mul_(scale), d_weight.mul_(scale), d_bias.mul_(scale), None, None, None


def _forward(
    hidden: Tensor, weight: Tensor, bias: Tensor, targets: Tensor, dtype: torch.dtype, chunk_rows: int,
    gradients: Gradients | None,
) -> Losses:  # fmt: skip
    """The losses; adds to `gradients` of hidden (which is overwritten), weight and bias, where they are given."""
    wide = torch.promote_types(torch.float32, dtype)  # float64 in tests
    inputs, matrix = hidden.to(dtype), weight.to(dtype)
    total = torch.zeros((), dtype=wide, device=hidden.device)
    each = torch.empty(len(hidden), dtype=wide, device=hidden.device)
    correct = torch.empty(len(hidden), dtype=torch.bool, device=hidden.device)
    for start in range(0, len(hidden), chunk_rows):
        chunk = slice(start, start + chunk_rows)
        rows, goals = inputs[chunk], targets[chunk]
        if gradients is None:
            losses = _losses(rows, matrix, bias, goals)
        else:
            d_hidden, d_weight, d_bias = gradients
            losses, d_logits, chunk_d_bias = _losses_and_gradients(rows, matrix, bias, goals)
            d_bias += chunk_d_bias
            d_hidden[chunk] = product(d_logits, matrix.T)
            if dtype == d_weight.dtype:
                d_weight.addmm_(d_logits.T, rows)
            else:
                d_weight += d_logits.T @ rows
            del d_logits  # or the next chunk's would come beside them
        total += losses.total
        each[chunk], correct[chunk] = losses.each, losses.correct
    return Losses(total, each, correct)


def _losses(rows: Tensor, weight: Tensor, bias: Tensor, targets: Tensor) -> Losses:
    """The losses of rows (C, D)."""
    if rows.is_cuda:
        return _of_kernel(rows @ weight.T, bias, targets, differentiate=False)
    return _become_probabilities(_scores(rows, weight, bias), targets)


def _losses_and_gradients(
    rows: Tensor, weight: Tensor, bias: Tensor, targets: Tensor
) -> tuple[Losses, Tensor, Tensor]:
    """The losses of rows (C, D), and the gradients of their sum with respect to logits (C, V) and bias (V,)."""
    if rows.is_cuda:  # where each operation below would read or write all of the logits
        logits = rows @ weight.T
        losses = _of_kernel(logits, bias, targets, differentiate=True)
        return losses, logits, logits.sum(dim=0, dtype=bias.dtype)
    scores = _scores(rows, weight, bias)
    losses = _become_probabilities(scores, targets)
    # minus one at the target they are the gradient
    scores.scatter_add_(1, targets.unsqueeze(1), scores.new_full((len(targets), 1), -1.0))
    return losses, scores.to(rows.dtype), scores.sum(dim=0)


def _scores(rows: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Logits (C, V), in fp32 at least; those of half precision are widened before the bias comes to them."""
    wide = torch.promote_types(torch.float32, rows.dtype)
    if rows.dtype == bias.dtype == wide:
        return product(rows, weight, bias)
    return product(rows, weight).to(wide).add_(bias)


def _of_kernel(logits: Tensor, bias: Tensor, targets: Tensor, differentiate: bool) -> Losses:
    from mmbert.head_kernel import losses_of  # Triton comes with torch for GPUs only

    each, correct = losses_of(logits, bias, targets, differentiate)
    return Losses(each.sum(), each, correct)


def _become_probabilities(scores: Tensor, targets: Tensor) -> Losses:
    """The rows' losses; `scores` (C, V) become probabilities in place.

    The largest probability of a row is 1 / sum(exp(score - largest score)): the log-sum-exp at no pass over the row.
    """
    largest, place = scores.max(dim=1, keepdim=True)  # (C, 1)
    chosen = scores.gather(1, targets.unsqueeze(1))
    torch.softmax(scores, dim=1, out=scores)
    each = largest - scores.gather(1, place).log() - chosen
    return Losses(each.sum(), each.squeeze(1), place.squeeze(1) == targets)
