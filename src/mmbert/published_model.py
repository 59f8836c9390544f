"""Reads a published ModernBERT: config.json and safetensors, which may be of another model, broken or hostile.

What this encoder cannot compute is refused with file, key and value. Both spellings of config.json are read: that of
transformers 4 and that of transformers 5.
"""

import re
import reprlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tokenizers
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import ModernBertConfig

from mmbert.checkpoint_files import read_json
from mmbert.config import ModelConfig
from mmbert.file_contents import seen_from, sha256_of
from mmbert.model import MmBertForMaskedLM
from mmbert.tokenizer import Tokenizer
from mmbert.typed import build

CARRIED = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "max_position_embeddings", "global_rope_theta", "local_rope_theta", "global_attn_every_n_layers",
    "local_attention", "norm_eps", "initializer_range", "initializer_cutoff_factor",
)  # fmt: skip
"""Keys of config.json that become the model section."""

FIXED = {
    "model_type": "modernbert",
    "hidden_activation": "gelu",
    "classifier_activation": "gelu",  # of the prediction head, too
    "attention_bias": False,
    "mlp_bias": False,
    "norm_bias": False,
    "classifier_bias": False,  # of the prediction head, too
    "decoder_bias": True,
}
"""What this encoder is built with, and has no choice of."""

DROPOUTS = ("attention_dropout", "embedding_dropout", "mlp_dropout")

FOREIGN = ("rope_theta", "rope_scaling", "head_dim", "partial_rotary_factor", "pruned_heads", "quantization_config",
           "auto_map")  # fmt: skip
"""Keys that ModernBertConfig does not have; where one is set, the weights are meant for other code."""

THETAS = {"full_attention": "global_rope_theta", "sliding_attention": "local_rope_theta"}
"""Kind of layer, in transformers 5's words -> the key of transformers 4."""

TOKEN_IDS = ("pad_token_id", "eos_token_id", "bos_token_id", "unk_token_id", "mask_token_id")

DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
EMBEDDINGS, DECODER = "model.embeddings.tok_embeddings.weight", "decoder.weight"
VOCABULARY = "vocabulary.json"  # in a folder of change_vocabulary: what it did, and of which model


SHORT = reprlib.Repr()  # of what a file says, which may be of any length
SHORT.maxstring = SHORT.maxother = SHORT.maxlong = 160


@dataclass(frozen=True)
class Stored:
    """A tensor in a file, not read yet; `dtype` in safetensors' words."""

    path: Path
    dtype: str
    shape: tuple[int, ...]


# ---------------------------------------------------------------------------------------------------------- config.json
def read_config(path: Path) -> dict[str, Any]:
    """A published config.json in transformers 4's words, as written; nothing in it that this encoder cannot compute.

    Raises:
        FileNotFoundError, ValueError: it is missing, broken, or of another model.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is missing{seen_from(path)}; --model must be a folder that save_pretrained wrote. One of the hub "
            "is fetched first: hf download OWNER/NAME --local-dir FOLDER"
        )
    config = read_json(path.resolve())  # in Hugging Face's cache it is a link
    check_is_ours(config, path)
    older = {key: value for key, value in config.items() if key not in ("rope_parameters", "layer_types")}
    found: dict[str, Any] = {}
    if config.get("rope_parameters") is not None:
        found |= thetas(config["rope_parameters"], path)
    if config.get("layer_types") is not None:
        found["global_attn_every_n_layers"] = global_every(config, path)
    for key, value in found.items():
        if key in older and older[key] != value:
            newer = "layer_types" if key == "global_attn_every_n_layers" else "rope_parameters"
            raise ValueError(
                f"{path}: {key} = {SHORT.repr(older[key])}, but {newer} says {value}; remove the one that is wrong"
            )
    return {**older, **found}


def check_is_ours(config: dict[str, Any], path: Path) -> None:
    """Refuse all but a ModernBERT for masked language modelling as this encoder computes it.

    Raises:
        ValueError: names the key, its value and the one that it must have.
    """
    merged = {**ModernBertConfig().to_dict(), "model_type": None, **config}
    for key, wanted in FIXED.items():
        if merged[key] != wanted:
            raise ValueError(
                f"{path}: {key} = {SHORT.repr(merged[key])} must be {wanted!r}, for this encoder has nothing else; "
                "take another model"
            )
    if merged["architectures"] != ["ModernBertForMaskedLM"]:
        raise ValueError(
            f"{path}: architectures = {SHORT.repr(merged['architectures'])} must be ['ModernBertForMaskedLM']; take "
            "the model from before its prediction head was removed or replaced by a classifier's"
        )
    for key in FOREIGN:
        if config.get(key):
            raise ValueError(
                f"{path}: {key} = {SHORT.repr(config[key])} is nothing that this encoder does; take a model without"
            )
    for key in DROPOUTS:
        if merged[key] != 0:
            raise ValueError(
                f"{path}: {key} = {SHORT.repr(merged[key])} must be 0.0, for the only dropout here is "
                "model.attn_out_dropout; write 0.0: it changes no weight"
            )
    if not isinstance(merged["tie_word_embeddings"], bool):
        raise ValueError(f"{path}: tie_word_embeddings must be true or false; write true")


def thetas(rope_parameters: Any, path: Path) -> dict[str, Any]:
    """Both thetas of transformers 5's rope_parameters, under transformers 4's keys.

    Raises:
        ValueError: the section has another form, or stretches positions.
    """
    fits = isinstance(rope_parameters, dict) and rope_parameters.keys() == THETAS.keys()
    for entry in rope_parameters.values() if fits else ():
        fits &= isinstance(entry, dict) and entry.keys() == {"rope_type", "rope_theta"}
        fits = fits and entry["rope_type"] == "default" and type(entry["rope_theta"]) in (int, float)
    if not fits:
        raise ValueError(
            f"{path}: rope_parameters = {SHORT.repr(rope_parameters)} must give a rope_theta of rope_type default "
            "for full_attention and for sliding_attention, and no more; take a model whose positions are not stretched"
        )
    return {key: rope_parameters[kind]["rope_theta"] for kind, key in THETAS.items()}


def global_every(config: dict[str, Any], path: Path) -> int:
    """global_attn_every_n_layers of transformers 5's layer_types.

    Raises:
        ValueError: the global layers do not follow one another at one distance from layer 0 on.
    """
    kinds = config["layer_types"]
    full, sliding = THETAS
    if isinstance(kinds, list) and kinds:
        later = [layer for layer, kind in enumerate(kinds) if layer and kind == full]
        written = config.get("global_attn_every_n_layers")
        # With one global layer any distance fits that reaches beyond the last layer.
        alone = written if type(written) is int and written >= len(kinds) else len(kinds)
        every: int = later[0] if later else alone
        pattern = [sliding if layer % every else full for layer in range(len(kinds))]
        if kinds == pattern and len(kinds) == config.get("num_hidden_layers"):
            return every
    raise ValueError(
        f"{path}: layer_types = {SHORT.repr(kinds)} must name num_hidden_layers layers, every n-th of them from the "
        "first on full_attention and the others sliding_attention; take another model"
    )


def model_config(written: dict[str, Any], path: Path) -> ModelConfig:
    """The model section; what config.json does not say is transformers' default.

    A local_rope_theta that is null is the global one, in ModernBertAttention; one that is not there is 10,000, in
    ModernBertConfig. An initializer_cutoff_factor that is null is 3, in ModernBertPreTrainedModel.

    Raises:
        ValueError: names the key and its value.
    """
    merged = {**ModernBertConfig().to_dict(), **written}
    values = {key: merged[key] for key in CARRIED}
    if values["local_rope_theta"] is None:
        values["local_rope_theta"] = values["global_rope_theta"]
    if values["initializer_cutoff_factor"] is None:
        values["initializer_cutoff_factor"] = 3.0
    for key, value in values.items():
        if type(value) not in (int, float) or not 0 < value < 1e9:  # neither NaN nor infinity lies between
            raise ValueError(f"{path}: {key} = {SHORT.repr(value)} must be a number above 0; take another model")
    try:
        return build(ModelConfig, values)
    except ValueError as error:
        raise ValueError(f"{path}: {error}; take another model") from None


def check_tokenizer(written: dict[str, Any], config: ModelConfig, tokenizer: Tokenizer, folder: Path) -> None:
    """Refuse a tokenizer whose ids mean other tokens than the rows of the embeddings.

    Raises:
        ValueError: says where they differ.
    """
    path = folder / "config.json"
    remedy = "prepare the data with the model's own tokenizer, and name that one with --tokenizer"
    if tokenizer.folder == folder:
        remedy = "take config.json and tokenizer of one model"
    tokenizer.check_vocabulary(f"{path}: vocab_size", config.vocab_size, remedy)
    for key in TOKEN_IDS:
        if written.get(key) is not None and written[key] != getattr(tokenizer, key):
            raise ValueError(
                f"{path}: {key} = {SHORT.repr(written[key])} is {getattr(tokenizer, key)} in tokenizer "
                f"{tokenizer.folder}; {remedy}"
            )
    own = folder / "tokenizer.json"
    if not own.is_file():
        return
    try:
        theirs = tokenizers.Tokenizer.from_file(str(own)).get_vocab(with_added_tokens=True)
    except Exception as error:  # tokenizers raises the bare class
        raise ValueError(f"{own} is no tokenizer: {SHORT.repr(str(error))}; copy the folder again") from None
    ours = tokenizer.backend.get_vocab(with_added_tokens=True)
    if theirs != ours:
        token, _ = min(theirs.items() ^ ours.items(), key=lambda item: item[1])
        raise ValueError(
            f"{own}: {SHORT.repr(token)} is {theirs.get(token)} there and {ours.get(token)} in tokenizer "
            f"{tokenizer.folder}; {remedy}"
        )


# -------------------------------------------------------------------------------------------------------------- tensors
def stored_tensors(folder: Path) -> dict[str, Stored]:
    """Name -> tensor of model.safetensors or, where there is none, of the files that its index names.

    Raises:
        FileNotFoundError, ValueError: there are no such files, or one is broken.
    """
    whole, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if whole.is_file():
        return headers(whole)
    if index.is_file():
        return sharded(index)
    pickles = sorted(folder.glob("pytorch_model*.bin"))
    if pickles:
        raise ValueError(
            f"{pickles[0]} is a pickle, which can run code, and is not read; if you trust where it comes from, let "
            f"transformers write safetensors: AutoModelForMaskedLM.from_pretrained('{folder}').save_pretrained('other')"
        )
    raise FileNotFoundError(f"{whole} is missing; --model must be a folder that save_pretrained wrote")


def sharded(index: Path) -> dict[str, Stored]:
    """Name -> tensor of the files that an index names, each exactly where the index has it.

    Raises:
        FileNotFoundError, ValueError: the index is broken, or a file is missing, broken, or not as the index says.
    """
    places = read_json(index.resolve()).get("weight_map")
    if not isinstance(places, dict) or not all(
        isinstance(file, str) and re.fullmatch(r"[\w-][\w.-]*\.safetensors", file) for file in places.values()
    ):
        raise ValueError(f"{index}: weight_map must give the name of a .safetensors file beside it for each tensor; "
                         "copy the folder again")  # fmt: skip
    stored: dict[str, Stored] = {}
    for file in sorted(set(places.values())):
        part = headers(index.parent / file)
        if odd := part.keys() ^ {name for name, place in places.items() if place == file}:
            raise ValueError(
                f"{index.parent / file} {'holds' if min(odd) in part else 'lacks'} {SHORT.repr(min(odd))}, against "
                f"{index.name}; copy the folder again"
            )
        stored |= part
    return stored


def headers(path: Path) -> dict[str, Stored]:
    """Name -> tensor of one safetensors file.

    Raises:
        FileNotFoundError, ValueError: the file is missing, broken, or written by another framework.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; copy the folder again")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata()
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
            stored = {name: Stored(path, part.get_dtype(), tuple(part.get_shape())) for name, part in slices.items()}
    except SafetensorError as error:
        raise ValueError(f"{path} is no safetensors file: {SHORT.repr(str(error))}; copy it again") from None
    if metadata is not None and metadata.get("format") != "pt":
        raise ValueError(f"{path}: format = {SHORT.repr(metadata.get('format'))} in its header must be 'pt'; save "
                         "the model from PyTorch")  # fmt: skip
    return stored


def check_tensors(stored: dict[str, Stored], config: ModelConfig, is_tied: bool, folder: Path) -> None:
    """Refuse all but the tensors that the model section needs, and a copy of the tied one.

    Raises:
        ValueError: names a tensor and what is wrong with it.
    """
    shapes = {name: entry.shape for name, entry in stored.items()}
    last = f"model.layers.{config.num_hidden_layers - 1}.mlp.Wo.weight"
    # First what bounds all others: a config alone must not decide how large a model is built.
    expected: dict[str, tuple[int, ...]] = {
        EMBEDDINGS: (config.vocab_size, config.hidden_size),
        last: (config.hidden_size, config.intermediate_size),
    }
    if all(shapes.get(name) == shape for name, shape in expected.items()):
        with torch.device("meta"):
            model = MmBertForMaskedLM(config)
        expected = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
        if DECODER in stored or not is_tied:
            expected[DECODER] = expected[EMBEDDINGS]
        if added := stored.keys() - expected.keys():
            raise ValueError(
                f"{stored[min(added)].path}: {SHORT.repr(min(added))} is no tensor of this encoder; save the "
                "ModernBertForMaskedLM alone, with nothing added"
            )
    for name, shape in expected.items():
        if shapes.get(name) != shape:
            raise ValueError(
                f"{stored[name].path if name in stored else folder}: {name} is {shapes.get(name, 'missing')}, must be "
                f"{shape} by config.json; take config and weights of one ModernBertForMaskedLM"
            )
    for name, entry in stored.items():
        if entry.dtype not in DTYPES:
            raise ValueError(f"{entry.path}: {name} is {entry.dtype}, must be one of {', '.join(DTYPES)}; take the "
                             "model from before it was quantised")  # fmt: skip


def read_tensor(stored: dict[str, Stored], name: str) -> Tensor:
    """A tensor, in float32.

    Raises:
        ValueError: it holds NaN or infinity.
    """
    path = stored[name].path
    with safe_open(path, framework="pt") as file:
        tensor = file.get_tensor(name).float()
    if not torch.isfinite(tensor).all():
        raise ValueError(f"{path}: {name} holds NaN or infinity; take another model")
    return tensor


def digests_of(stored: dict[str, Stored]) -> dict[str, str]:
    """sha256 of each file that the tensors lie in, by its name."""
    return {path.name: sha256_of(path) for path in sorted({entry.path for entry in stored.values()})}


@torch.no_grad()
def load_stored(stored: dict[str, Stored], model: MmBertForMaskedLM) -> None:
    """Copy the tensors into `model`; they were checked by check_tensors.

    Raises:
        ValueError: one is not finite, or the decoder has weights of its own.
    """
    for name, parameter in model.named_parameters():
        parameter.copy_(read_tensor(stored, name))
    if DECODER in stored and not torch.equal(read_tensor(stored, DECODER), model.decoder.weight):
        raise ValueError(
            f"{stored[DECODER].path}: {DECODER} differs from {EMBEDDINGS}, but here they are one; take a model with "
            "tie_word_embeddings true"
        )
