"""The gated activation of the MLP. Shapes: N rows, I intermediate size."""
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable


def geglu(x: Tensor) -> Tensor:
    """GELU of the first half of the channels times the second: (N, 2 I) -> (N, I).

    Source:
        Shazeer 2020, arXiv:2002.05202.
    """
    if x.device.type == "cpu" and not torch.compiler.is_compiling():
        return _GeGlu.apply(x)
    activated, gate = x.chunk(2, dim=-1)
    return F.gelu(activated) * gate


class _GeGlu(torch.autograd.Function):
    """The same numbers, where no compiler joins the passes over memory: gradients of both halves are written where
    they belong, instead of being put together in a pass of its own.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        activated, gate = x.chunk(2, dim=-1)
        active = F.gelu(activated)
        ctx.save_for_backward(x, active)
        return active * gate

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        x, active = ctx.saved_tensors
        activated, gate = x.chunk(2, dim=-1)
        grad_x = torch.empty_like(x)
        grad_activated, grad_gate = grad_x.chunk(2, dim=-1)
        torch.mul(grad, active, out=grad_gate)
        torch.mul(grad, gate, out=grad_activated)
        torch.ops.aten.gelu_backward.grad_input(grad_activated, activated, grad_input=grad_activated)
        return grad_x
