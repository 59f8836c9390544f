"""Linear layers: torch's, with two of a CPU's three products computed by oneDNN.

For fp32 on an x86 CPU torch calls MKL, whose product with a transposed matrix is slow on AMD. oneDNN comes with torch
too. Two threads of an AMD EPYC, GFLOP/s of MKL and of oneDNN, taking turns, for 4,096 rows from 384 to 2,304 channels
and for 300 rows from 384 to 256,000: forward 132 and 156, 80 and 136; gradient of the rows 150 and 154, 129 and 132;
gradient of the weights 155 and 117, 97 and 92. So that is left to MKL.

Shapes: N rows, I channels in, O out.
"""
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

ONEDNN = torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()
"""Whether this torch has both. Where torch has another library than MKL, on ARM for one, it keeps that."""


def linear(x: Tensor, weight: Tensor) -> Tensor:
    """x @ weight.T with gradients; x (N, I), weight (O, I)."""
    return _Linear.apply(x, weight) if _onednn_serves(x, weight) else F.linear(x, weight)


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x @ weight.T + bias, without gradients of its own; x (N, I), weight (O, I), bias (O,).

    Operands may be transposed views of whole matrices. Slices of columns would be right, and 100 times slower.
    """
    if not _onednn_serves(x, weight):
        return F.linear(x, weight, bias)
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


class Linear(nn.Linear):
    """nn.Linear without a bias, over (N, I)."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(in_features, out_features, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return product(x.contiguous(), weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        grad = grad.contiguous()
        wants_x, wants_weight = ctx.needs_input_grad
        return product(grad, weight.T) if wants_x else None, grad.T @ x if wants_weight else None


def _onednn_serves(x: Tensor, weight: Tensor) -> bool:
    is_plain = x.dtype == weight.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
    return ONEDNN and x.device.type == "cpu" and is_plain
