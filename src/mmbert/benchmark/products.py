"""The matrix products of a training step and nothing else: what no program that computes them can beat."""
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from mmbert.head_chunks import rows_of_a_chunk
from mmbert.linear import linear
from mmbert.model import MmBertForMaskedLM

NAME = "products"
NOTE = "no peer: the products of all linear layers and the head, forward and backward, on numbers of the same shapes"


def bare_products(
    encoder: MmBertForMaskedLM, microbatches: Sequence[dict[str, Any]], dtype: torch.dtype
) -> Callable[[], None]:
    """Calls the products of one step.

    Args:
        microbatches: of ours; `input_ids` (T,) and `targets` (M,) give the rows.
    """
    parts = {name: part for name, part in encoder.model.named_modules() if isinstance(part, nn.Linear)}
    behind = tuple(f"layers.{len(encoder.model.layers) - 1}.{part}" for part in ("attn.Wo", "mlp.Wi", "mlp.Wo"))
    of_all = [part for name, part in parts.items() if name not in behind]
    of_masked = [*(parts[name] for name in behind), encoder.head.dense]
    vocabulary = encoder.decoder.weight
    device = vocabulary.device

    @cache
    def numbers(rows: int, width: int) -> Tensor:
        return torch.randn(rows, width, dtype=dtype, device=device)

    def operands(weight: Tensor, rows: int) -> tuple[Tensor, Tensor, Tensor]:
        """Inputs (rows, in), weight (out, in) and gradients of the outputs (rows, out)."""
        return numbers(rows, weight.shape[1]), weight.detach().to(dtype), numbers(rows, weight.shape[0])

    work: list[tuple[Tensor, Tensor, Tensor]] = []
    for microbatch in microbatches:
        num_tokens, num_masked = len(microbatch["input_ids"]), len(microbatch["targets"])
        work += [operands(part.weight, num_tokens) for part in of_all]
        work += [operands(part.weight, num_masked) for part in of_masked]
        chunk = rows_of_a_chunk(num_masked, len(vocabulary), device.type)
        work += [operands(vocabulary, min(chunk, num_masked - start)) for start in range(0, num_masked, chunk)]

    def step() -> None:
        for x, weight, gradient in work:
            linear(x, weight)  # the result is not wanted
            linear(gradient, weight.T)
            gradient.T @ x

    return step
