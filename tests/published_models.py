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
