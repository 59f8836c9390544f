"""Masked-language modelling as a Composer model: a thin shell around the encoder and its loss."""
from typing import Any

import torch
from composer.models import ComposerModel
from torch import Tensor

from mmbert.attention import Packing
from mmbert.linear_cross_entropy import Losses
from mmbert.model import MmBertForMaskedLM


class MaskedLM(ComposerModel):
    """Mean cross-entropy over the masked tokens of a batch.

    Mixed precision is switched on here rather than by Composer, which has none on the CPU: weights stay fp32, and
    `amp_bf16` runs matrix products in bfloat16 on either device.
    """

    def __init__(self, encoder: MmBertForMaskedLM, precision: str) -> None:
        super().__init__()
        self.encoder = encoder
        self.precision = precision

    def forward(self, batch: dict[str, Any]) -> Losses:
        """Cross-entropies at the M masked tokens. Here and not in `loss`, where DDP sees no gradients."""
        input_ids = batch["input_ids"]
        packing = Packing.from_lengths(batch["lengths"], input_ids.device, batch["max_seqlen"])
        with torch.autocast(input_ids.device.type, dtype=torch.bfloat16, enabled=self.precision == "amp_bf16"):
            return self.encoder.loss(input_ids, packing, batch["masked"], batch["targets"])

    def loss(self, outputs: Losses, batch: dict[str, Any]) -> Tensor:
        """Mean over the M masked tokens; 0 where there are none.

        Composer weighs each microbatch by its masked tokens, so the sum over microbatches and ranks is the mean over
        all masked tokens of the global batch.
        """
        return outputs.total / max(1, batch["num_labels"])
