"""transformers' ModernBertForMaskedLM as a peer of `step`, in several settings."""
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from transformers import ModernBertConfig, ModernBertForMaskedLM

from mmbert.benchmark.candidates import Candidate
from mmbert.benchmark.documents import BOS, EOS, PAD, Documents, padded_batches
from mmbert.convert_to_hf import carried_fields
from mmbert.model import MmBertForMaskedLM


@dataclass(frozen=True)
class TransformersPeer:
    """A careful way to use it: batches of like lengths, only masked tokens in the head.

    Attributes:
        attention: its `attn_implementation`; flash_attention_2 takes the padding out, and back in at the end.
        sizes: documents of a batch; the fastest is found by trial.
        compiled: with its own torch.compile (`reference_compile`), on a GPU only.
        unit: what `sizes` counts, for the page.
    """

    attention: str
    sizes: tuple[int, ...]
    compiled: bool = False
    unit: ClassVar[str] = "documents a batch"

    @property
    def needs_flash_attn(self) -> bool:
        """Whether that package computes its attention, in half precision only."""
        return self.attention == "flash_attention_2"

    def build(self, encoder: MmBertForMaskedLM, device: torch.device) -> ModernBertForMaskedLM:
        """Its model with the weights of `encoder`, in training mode without dropout."""
        reference = ModernBertForMaskedLM(
            ModernBertConfig(
                **carried_fields(encoder.config),
                attention_dropout=0.0,
                pad_token_id=PAD,
                bos_token_id=BOS,
                eos_token_id=EOS,
                cls_token_id=BOS,
                sep_token_id=EOS,
                attn_implementation=self.attention,
                reference_compile=self.compiled,
                sparse_prediction=True,
            )
        )
        reference.load_state_dict(encoder.state_dict())
        reference.to(device)  # type: ignore[arg-type]  # transformers wraps it without its types
        return reference.train()

    def candidate(self, model: nn.Module, documents: Documents, size: int, precision: str) -> Candidate:
        """Batches of `size` documents, its own loss."""
        assert isinstance(model, ModernBertForMaskedLM)
        device, num_masked = model.device, documents.num_masked
        order = np.argsort(documents.lengths, kind="stable")
        arrays = padded_batches(documents.alone, order.tolist(), size)
        batches = [{key: torch.from_numpy(array).to(device) for key, array in batch.items()} for batch in arrays]

        def forward(batch: dict[str, Any]) -> Tensor:
            with torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "amp_bf16"):
                return model(**batch, num_items_in_batch=num_masked).loss

        unpads = self.needs_flash_attn
        fill = documents.num_tokens / sum(batch["input_ids"].numel() for batch in batches)
        note = f"{len(batches)} batches of {size} documents, sorted by length, head on masked tokens only"
        note += f", padding taken out (fill of the batches {fill:.3f})" if unpads else ""
        note += ", compiled" if self.compiled else ""
        return Candidate(model, batches, forward, 1.0 if unpads else fill, note)
