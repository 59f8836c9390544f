"""ModernBERT's own training code as a peer of `step`: FlexBertForMaskedLM, set up as mmBERT's recipe sets it up.

It is imported from a checkout, as it is, and only when asked for: PYTHONPATH=<checkout of ModernBERT>. The unpadded
path over packed rows, its compiled parts, Triton's rotation and cross-entropy from flash_attn, head on masked tokens.

T tokens of a microbatch, N documents.
"""

from dataclasses import dataclass
from importlib import import_module
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmbert.benchmark.candidates import Candidate, send
from mmbert.benchmark.documents import NOT_MASKED, PAD, Documents
from mmbert.config import ModelConfig
from mmbert.data import Batch, Microbatches
from mmbert.model import MmBertForMaskedLM


@dataclass(frozen=True)
class FlexBertPeer:
    """As TransformersPeer; `sizes` are packed rows of a microbatch."""

    sizes: tuple[int, ...]
    unit: ClassVar[str] = "rows a microbatch"
    compiled: ClassVar[bool] = True
    needs_flash_attn: ClassVar[bool] = True

    def build(self, encoder: MmBertForMaskedLM, device: torch.device) -> nn.Module:
        """Its model with the weights of `encoder`, in training mode.

        Raises:
            ValueError: it cannot be imported.
        """
        try:
            model = import_module("src.bert_layers.model")
        except ModuleNotFoundError as error:
            raise ValueError(
                f"--peers flexbert: {error}; set PYTHONPATH=<checkout of ModernBERT> and install einops and flash_attn"
            ) from None
        flexbert = model.FlexBertForMaskedLM(model.FlexBertConfig(**settings(encoder.config)))
        flexbert.load_state_dict({flexbert_name(name): tensor for name, tensor in encoder.state_dict().items()})
        return flexbert.to(device).train()

    def candidate(self, model: nn.Module, documents: Documents, rows: int, precision: str) -> Candidate:
        """Microbatches of `rows` of our packed rows, without padding."""
        device, num_masked = next(model.parameters()).device, documents.num_masked
        cut = [send(packed_batch(microbatch), device) for microbatch in Microbatches()(documents.rows, rows)]

        def forward(batch: dict[str, Any]) -> Tensor:
            with torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "amp_bf16"):
                return model(**batch, return_dict=True).loss / num_masked

        note = f"{len(cut)} microbatches of {rows} rows, unpadded, ModernBERT's own code, compiled"
        return Candidate(model, cut, forward, 1.0, f"{note}, head on masked tokens only")


def flexbert_name(name: str) -> str:
    """What ModernBERT calls a parameter of ours."""
    return name.replace("model.layers.", "model.encoder.layers.").replace("model.", "bert.")


def settings(config: ModelConfig) -> dict[str, Any]:
    """Our model in FlexBertConfig's words; all that it has not from `config` is mmBERT's, but for dropout.

    Source:
        configs/mmBERT-base.yaml of JHU-CLSP/mmBERT, `model_config`.
    """
    return {
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_hidden_layers,
        "num_attention_heads": config.num_attention_heads,
        "rotary_emb_base": config.global_rope_theta,
        "local_attn_rotary_emb_base": config.local_rope_theta,
        "sliding_window": config.local_attention,
        "global_attn_every_n_layers": config.global_attn_every_n_layers,
        "norm_kwargs": {"eps": config.norm_eps, "bias": False},
        "pad_token_id": PAD,
        "tie_word_embeddings": True,
        "padding": "unpadded",
        "unpad_embeddings": True,
        "attention_layer": "rope",
        "embedding_layer": "sans_pos",
        "bert_layer": "prenorm",
        "mlp_layer": "glu",
        "normalization": "layernorm",
        "embed_norm": True,
        "skip_first_prenorm": True,
        "final_norm": True,
        "hidden_act": "gelu",
        "head_pred_act": "gelu",
        "compile_model": True,
        "masked_prediction": True,
        "loss_function": "fa_cross_entropy",
        "loss_kwargs": {"reduction": "sum"},  # the mean in the recipe; here over all microbatches
    }


def packed_batch(microbatch: Batch) -> dict[str, Any]:
    """What ModernBERT's split_packed_batch would hand on of the same rows.

    Returns:
        input_ids, labels and attention_mask, (T,) int64; cu_seqlens (N + 1,) int32, and max_seqlen.
    """
    input_ids, lengths = microbatch["input_ids"].long(), torch.tensor(microbatch["lengths"], dtype=torch.int32)
    labels = torch.full_like(input_ids, NOT_MASKED)
    labels[microbatch["masked"]] = microbatch["targets"]
    return {
        "input_ids": input_ids,
        "labels": labels,
        "attention_mask": torch.ones_like(input_ids),
        "cu_seqlens": F.pad(lengths.cumsum(0, dtype=torch.int32), (1, 0)),
        "max_seqlen": int(lengths.max()),
    }
