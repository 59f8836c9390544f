"""Masked-language modelling as a Composer model: a thin shell around the encoder and its loss."""
from typing import Any

import torch
import torch.nn.functional as F
from composer.models import ComposerModel
from torch import Tensor

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

    def forward(self, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """Logits (M, V) and targets (M,) of the M masked tokens."""
        device = batch["input_ids"].device.type
        with torch.autocast(device, dtype=torch.bfloat16, enabled=self.precision == "amp_bf16"):
            return self.encoder(batch["input_ids"], batch["cu_seqlens"], batch["max_seqlen"], batch["labels"])

    def loss(self, outputs: tuple[Tensor, Tensor], batch: dict[str, Any]) -> Tensor:
        """Mean over the M masked tokens, in fp32; 0 where there are none.

        Composer weighs each microbatch by its masked tokens, so the sum over microbatches and ranks is the mean over
        all masked tokens of the global batch.
        """
        logits, targets = outputs
        return F.cross_entropy(logits.float(), targets, reduction="sum") / max(1, batch["num_labels"])
