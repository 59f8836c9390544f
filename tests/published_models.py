"""Published models of a few thousand weights, as transformers saves them, and their import."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import ModernBertConfig, ModernBertForMaskedLM

from mmbert.checkpoint import newest_checkpoint, read_state
from mmbert.config import ModelConfig
from mmbert.import_from_hf import main

EMBEDDINGS = "model.embeddings.tok_embeddings.weight"
INDEX = "model.safetensors.index.json"
TINY: dict[str, Any] = {
    "vocab_size": 520,  # the corpus' tokenizer has 512
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "max_position_embeddings": 512,
    "global_rope_theta": 160_000.0,
    "local_rope_theta": 160_000.0,
    "initializer_range": 0.15,
    "norm_eps": 1e-4,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "sep_token_id": 1,
    "bos_token_id": 2,
    "cls_token_id": 1,  # as mmBERT has it: what a classifier reads is not training's concern
}

MODERNBERT: dict[str, Any] = {  # config.json of answerdotai/ModernBERT-base
    "architectures": ["ModernBertForMaskedLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 50281,
    "classifier_activation": "gelu",
    "classifier_bias": False,
    "classifier_dropout": 0.0,
    "classifier_pooling": "mean",
    "cls_token_id": 50281,
    "decoder_bias": True,
    "deterministic_flash_attn": False,
    "embedding_dropout": 0.0,
    "eos_token_id": 50282,
    "global_attn_every_n_layers": 3,
    "global_rope_theta": 160000.0,
    "gradient_checkpointing": False,
    "hidden_activation": "gelu",
    "hidden_size": 768,
    "initializer_cutoff_factor": 2.0,
    "initializer_range": 0.02,
    "intermediate_size": 1152,
    "layer_norm_eps": 1e-05,
    "local_attention": 128,
    "local_rope_theta": 10000.0,
    "max_position_embeddings": 8192,
    "mlp_bias": False,
    "mlp_dropout": 0.0,
    "model_type": "modernbert",
    "norm_bias": False,
    "norm_eps": 1e-05,
    "num_attention_heads": 12,
    "num_hidden_layers": 22,
    "pad_token_id": 50283,
    "position_embedding_type": "absolute",
    "sep_token_id": 50282,
    "tie_word_embeddings": True,
    "torch_dtype": "float32",
    "transformers_version": "4.47.0.dev0",
    "vocab_size": 50368,
}
MMBERT = {
    **MODERNBERT,
    "vocab_size": 256000,
    "local_rope_theta": 160000.0,
    "position_embedding_type": "sans_pos",
    **{"pad_token_id": 0, "eos_token_id": 1, "sep_token_id": 1, "cls_token_id": 1, "bos_token_id": 2},
    "mask_token_id": 4,
}
PUBLISHED: dict[str, tuple[dict[str, Any], int]] = {
    "ModernBERT-base": (MODERNBERT, 149_655_232),
    "ModernBERT-large": (
        {**MODERNBERT, "hidden_size": 1024, "intermediate_size": 2624, "num_hidden_layers": 28,
         "num_attention_heads": 16},
        395_881_664,
    ),
    "mmBERT-base": (MMBERT, 307_786_240),
    "mmBERT-small": ({**MMBERT, "hidden_size": 384, "num_attention_heads": 6}, 140_897_536),
}  # fmt: skip
"""Of each model on the hub: config.json, and how many numbers its weights are."""


def publish(parent: Path, dtype: torch.dtype = torch.float32, max_shard_size: str = "5GB", **changes: Any) -> Path:
    """Let transformers save a random model, in which no weight is 0 or 1, to `parent`/hub."""
    torch.manual_seed(0)
    model = ModernBertForMaskedLM(ModernBertConfig(**{**TINY, **changes}))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter), alpha=0.3)
    torch.nn.Module.to(model, dtype).save_pretrained(parent / "hub", max_shard_size=max_shard_size)
    return parent / "hub"


def take(folder: Path, tokenizer: Path) -> Path:
    """Import `folder` as runs/published beside it."""
    output = folder.parent / "runs" / "published"
    main(["--model", str(folder), "--tokenizer", str(tokenizer), "--output", str(output)])
    return output


def refused(folder: Path, tokenizer: Path, message: str) -> None:
    """The import ends with this one line, and leaves nothing."""
    with pytest.raises(SystemExit, match=message) as refusal:
        take(folder, tokenizer)
    said = str(refusal.value)
    assert said.startswith("error: ")
    assert "\n" not in said
    assert len(said) < 600
    assert not list((folder.parent / "runs").glob("*"))


def weights_of(folder: Path) -> dict[str, Tensor]:
    """All tensors of a folder's safetensors files."""
    return {name: tensor for path in folder.glob("*.safetensors") for name, tensor in load_file(path).items()}


def change_json(path: Path, changes: dict[str, Any]) -> None:
    """Set keys of a JSON file; `...` removes one."""
    values = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in values.items() if value is not ...}))


def change_weights(folder: Path, changes: dict[str, Any]) -> None:
    """Replace tensors of model.safetensors; `...` removes one."""
    path = folder / "model.safetensors"
    weights = {**load_file(path), **changes}
    save_file({name: tensor for name, tensor in weights.items() if tensor is not ...}, path, metadata={"format": "pt"})


def config_of(run: Path) -> ModelConfig:
    return ModelConfig(**read_state(newest_checkpoint(run))["config"]["model"])
