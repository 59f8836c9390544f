"""What a published folder may say, in the words of transformers 4 and 5, and what is refused."""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForMaskedLM, ModernBertConfig, ModernBertForMaskedLM

from mmbert import import_from_hf
from mmbert.model import MmBertForMaskedLM
from mmbert.published_model import CARRIED, model_config, read_config
from tests.published_models import (
    EMBEDDINGS,
    INDEX,
    PUBLISHED,
    change_json,
    change_weights,
    config_of,
    publish,
    refused,
    take,
    weights_of,
)
from tests.test_checkpoint_files import EVIL, watched


# ------------------------------------------------------------------------------------------------------------- config
def newer(folder: Path, full: float, sliding: float, every: int | None = None) -> None:
    """Spell config.json as transformers 5 does."""
    path = folder / "config.json"
    config = json.loads(path.read_text())
    distance = every or config["global_attn_every_n_layers"]
    kinds = ["sliding_attention" if i % distance else "full_attention" for i in range(config["num_hidden_layers"])]
    change_json(
        path,
        {
            "global_rope_theta": ...,
            "local_rope_theta": ...,
            "global_attn_every_n_layers": config["global_attn_every_n_layers"] if every is None else ...,
            "layer_types": kinds,
            "rope_parameters": {
                "full_attention": {"rope_theta": full, "rope_type": "default"},
                "sliding_attention": {"rope_theta": sliding, "rope_type": "default"},
            },
            "transformers_version": "5.0.0",
        },
    )


@pytest.mark.parametrize("every", [None, 1, 2, 3], ids=str)
@pytest.mark.parametrize("layers", [1, 3, 4])
def test_transformers_5_spells_the_same_model_otherwise(
    tmp_path: Path, corpus: Any, layers: int, every: int | None
) -> None:
    """Older keys of the same folder say what transformers 4 reads; the logits of both are compared by the import."""
    folder = publish(
        tmp_path, num_hidden_layers=layers, global_attn_every_n_layers=every or 3, local_rope_theta=20_000.0
    )
    older = model_config(read_config(folder / "config.json"), folder / "config.json")
    newer(folder, full=160_000, sliding=20_000, every=every)
    config = config_of(take(folder, corpus.tokenizer))
    kinds = [[i % read.global_attn_every_n_layers == 0 for i in range(layers)] for read in (config, older)]
    assert kinds[0] == kinds[1]
    assert replace(config, global_attn_every_n_layers=older.global_attn_every_n_layers) == older


@pytest.mark.parametrize("written, used", [(None, 160_000.0), (..., 10_000.0), (20_000.0, 20_000.0)], ids=str)
def test_a_local_theta_that_is_null_or_missing_is_what_transformers_then_uses(
    tmp_path: Path, corpus: Any, written: Any, used: float
) -> None:
    folder = publish(tmp_path)
    change_json(folder / "config.json", {"local_rope_theta": written})
    theirs = AutoModelForMaskedLM.from_pretrained(folder, attn_implementation="sdpa").model.layers[1].attn
    torch.testing.assert_close(theirs.rotary_emb.inv_freq, used ** -(torch.arange(0, 16, 2) / 16))
    assert config_of(take(folder, corpus.tokenizer)).local_rope_theta == used


def test_what_config_does_not_say_is_what_transformers_then_uses(tmp_path: Path, corpus: Any) -> None:
    folder = publish(tmp_path, norm_eps=1e-5, max_position_embeddings=8192)
    before = config_of(take(folder, corpus.tokenizer))
    shutil.rmtree(folder.parent / "runs")
    missing = ("norm_eps", "max_position_embeddings", "local_attention", "global_attn_every_n_layers", "mlp_bias",
               "global_rope_theta", "hidden_activation", "attention_dropout", "decoder_bias",
               "pad_token_id")  # fmt: skip
    change_json(folder / "config.json", {**dict.fromkeys(missing, ...), "initializer_cutoff_factor": None})
    assert config_of(take(folder, corpus.tokenizer)) == replace(before, initializer_cutoff_factor=3.0)


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_published_models_have_our_tensors_name_by_name(tmp_path: Path, name: str) -> None:
    """By config alone, without memory for weights. 307,786,240 numbers of 4 bytes are mmBERT-base's file on the hub."""
    written, num_parameters = PUBLISHED[name]
    (tmp_path / "config.json").write_text(json.dumps(written))
    config = model_config(read_config(tmp_path / "config.json"), tmp_path / "config.json")
    assert asdict(config).items() >= {key: written[key] for key in CARRIED}.items()
    with torch.device("meta"):
        ours, theirs = MmBertForMaskedLM(config), ModernBertForMaskedLM(ModernBertConfig(**written))
    shapes = [{n: p.shape for n, p in model.named_parameters()} for model in (ours, theirs)]
    assert shapes[0] == shapes[1]
    assert sum(shape.numel() for shape in shapes[0].values()) == num_parameters


# ------------------------------------------------------------------------------------------------------------ refusals
WRONG_CONFIG: dict[str, tuple[dict[str, Any], str]] = {
    "attention_bias": ({"attention_bias": True}, "attention_bias = True must be False"),
    "mlp_bias": ({"mlp_bias": True}, "mlp_bias = True must be False"),
    "norm_bias": ({"norm_bias": True}, "norm_bias = True must be False"),
    "head bias": ({"classifier_bias": True}, "classifier_bias = True must be False"),
    "decoder_bias": ({"decoder_bias": False}, "decoder_bias = False must be True"),
    "activation": ({"hidden_activation": "silu"}, "hidden_activation = 'silu' must be 'gelu'"),
    "tanh gelu": ({"hidden_activation": "gelu_pytorch_tanh"}, "hidden_activation = .* must be 'gelu'"),
    "head activation": ({"classifier_activation": "relu"}, "classifier_activation = 'relu' must be 'gelu'"),
    "mlp_dropout": ({"mlp_dropout": 0.1}, "mlp_dropout = 0.1 must be 0.0.*write 0.0"),
    "attention_dropout": ({"attention_dropout": 0.1}, "attention_dropout = 0.1 must be 0.0"),
    "another model": ({"model_type": "bert"}, "model_type = 'bert' must be 'modernbert'"),
    "no type": ({"model_type": ...}, "model_type = None must be 'modernbert'"),
    "classifier": (
        {"architectures": ["ModernBertForSequenceClassification"]},
        r"architectures = \['ModernBertForSequenceClassification'\] must be",
    ),
    "no head": ({"architectures": ["ModernBertModel"]}, r"architectures = \['ModernBertModel'\] must be"),
    "no architecture": ({"architectures": ...}, "architectures = None must be"),
    "code": ({"auto_map": {"AutoModel": "x--y.Z"}}, "auto_map = .* is nothing that this encoder does"),
    "quantised": ({"quantization_config": {"bits": 4}}, "quantization_config = .* is nothing"),
    "yarn": ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "rope_scaling = .* is nothing"),
    "one theta": ({"rope_theta": 5e5}, "rope_theta = 500000.0 is nothing"),
    "tie": ({"tie_word_embeddings": "yes"}, "tie_word_embeddings must be true or false"),
    "theta -1": ({"local_rope_theta": -1}, "local_rope_theta = -1 must be a number above 0"),
    "theta NaN": ({"global_rope_theta": float("nan")}, "global_rope_theta = nan must be a number above 0"),
    "eps infinite": ({"norm_eps": float("inf")}, "norm_eps = inf must be a number above 0"),
    "text": ({"hidden_size": "32"}, "hidden_size = '32' must be a number above 0"),
    "true": ({"num_hidden_layers": True}, "num_hidden_layers = True must be a number above 0"),
    "no heads": ({"num_attention_heads": 0}, "num_attention_heads = 0 must be a number above 0"),
    "fraction": ({"hidden_size": 32.5}, "hidden_size = 32.5 must be of type int"),
    "odd heads": ({"num_attention_heads": 3}, "num_attention_heads 3 must be an even number"),
    "odd window": ({"local_attention": 127}, "local_attention = 127 must be even"),
    "width": ({"hidden_size": 64}, rf"{EMBEDDINGS} is \(520, 32\), must be \(520, 64\)"),
    "immense": ({"hidden_size": 2 * 10**8}, rf"{EMBEDDINGS} is \(520, 32\), must be \(520, 200000000\)"),
    "endless": ({"num_hidden_layers": 10**8}, "layers.99999999.mlp.Wo.weight is missing, must be"),
    "fewer layers": ({"num_hidden_layers": 3}, "'model.layers.3.*is no tensor of this encoder"),
    "more layers": ({"num_hidden_layers": 5}, "layers.4.mlp.Wo.weight is missing"),
    "two thetas": (
        {"rope_parameters": {k: {"rope_type": "default", "rope_theta": 1e4}
                             for k in ("full_attention", "sliding_attention")}},
        "global_rope_theta = 160000.0, but rope_parameters says 10000.0",
    ),
    "new dynamic rope": (
        {"rope_parameters": {k: {"rope_type": "dynamic", "rope_theta": 160000.0}
                             for k in ("full_attention", "sliding_attention")}},
        "rope_parameters = .* of rope_type default",
    ),
    "new yarn": (
        {"rope_parameters": {k: {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0}
                             for k in ("full_attention", "sliding_attention")}},
        "rope_parameters = .* of rope_type default",
    ),
    "flat rope": ({"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}}, "rope_parameters = .* must give"),
    "half a rope": ({"rope_parameters": {"full_attention": {"rope_theta": 1.0, "rope_type": "default"}}},
                    "rope_parameters = .* must give"),
    "new null theta": (
        {"rope_parameters": {k: {"rope_type": "default", "rope_theta": None}
                             for k in ("full_attention", "sliding_attention")}},
        "rope_parameters = .* must give",
    ),
    "irregular layers": (
        {"layer_types": ["full_attention", "full_attention", "sliding_attention", "full_attention"]},
        "layer_types = .* every n-th",
    ),
    "local first": ({"layer_types": ["sliding_attention"] * 4}, "layer_types = .* every n-th"),
    "too few layer types": ({"layer_types": ["full_attention"] * 3}, "layer_types = .* every n-th"),
    "layer types of text": ({"layer_types": "full_attention"}, "layer_types = .* every n-th"),
    "other layers": ({"layer_types": ["full_attention"] * 4}, "global_attn_every_n_layers = 3, but layer_types says 1"),
    "special ids": ({"mask_token_id": 50284}, "mask_token_id = 50284 is 4 in tokenizer.*--tokenizer"),
    "padding id": ({"pad_token_id": 3}, "pad_token_id = 3 is 0 in tokenizer.*--tokenizer"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG_CONFIG)
def test_a_config_that_is_not_of_our_encoder_is_refused(tmp_path: Path, corpus: Any, case: str) -> None:
    changes, message = WRONG_CONFIG[case]
    folder = publish(tmp_path)
    change_json(folder / "config.json", changes)
    refused(folder, corpus.tokenizer, message)


WRONG_TENSORS: dict[str, tuple[dict[str, Any], str]] = {
    "classifier": ({"classifier.weight": torch.ones(2, 32)}, "'classifier.weight' is no tensor of this encoder"),
    "bias": ({"head.dense.bias": torch.ones(32)}, "'head.dense.bias' is no tensor"),
    "missing": ({"head.norm.weight": ...}, r"head.norm.weight is missing, must be \(32,\)"),
    "no embeddings": ({EMBEDDINGS: ...}, f"{EMBEDDINGS} is missing"),
    "shape": ({"head.dense.weight": torch.ones(32, 31)}, r"head.dense.weight is \(32, 31\), must be \(32, 32\)"),
    "float64": ({"head.dense.weight": torch.ones(32, 32).double()}, "head.dense.weight is F64, must be one of F32, BF"),
    "int8": ({"head.dense.weight": torch.ones(32, 32, dtype=torch.int8)}, "head.dense.weight is I8, must be one of"),
    "float8": ({"head.norm.weight": torch.ones(32).to(torch.float8_e4m3fn)}, "head.norm.weight is F8_E4M3, must be"),
    "NaN": (
        {"head.norm.weight": torch.full((32,), torch.nan)},
        r"s: head.norm.weight holds NaN or infinity; take",
    ),
    "overflow": (
        {"head.norm.weight": torch.full((32,), 1e6).half()},
        r"s: head.norm.weight holds NaN or infinity; take",
    ),
    "own decoder": ({"decoder.weight": torch.ones(520, 32)}, "decoder.weight differs from"),
    "narrow decoder": ({"decoder.weight": torch.ones(512, 32)}, r"decoder.weight is \(512, 32\), must be \(520, 32\)"),
    "a name of many lines": ({"a\n\x1b[31m" * 1000: torch.ones(2)}, "is no tensor of this encoder"),
}


@pytest.mark.parametrize("is_tied", [True, False])
@pytest.mark.parametrize("case", WRONG_TENSORS)
def test_tensors_that_are_not_of_our_encoder_are_refused(tmp_path: Path, corpus: Any, case: str, is_tied: bool) -> None:
    changes, message = WRONG_TENSORS[case]
    folder = publish(tmp_path)
    if not is_tied:
        change_weights(folder, {"decoder.weight": load_file(folder / "model.safetensors")[EMBEDDINGS].clone()})
        change_json(folder / "config.json", {"tie_word_embeddings": False})
    change_weights(folder, changes)
    refused(folder, corpus.tokenizer, message)


def test_an_untied_decoder_must_be_there_and_equal_the_embeddings(tmp_path: Path, corpus: Any) -> None:
    folder = publish(tmp_path)
    change_json(folder / "config.json", {"tie_word_embeddings": False})
    refused(folder, corpus.tokenizer, r"decoder.weight is missing, must be \(520, 32\)")
    embeddings = load_file(folder / "model.safetensors")[EMBEDDINGS]
    other = embeddings.clone()
    other[519, 31] += 1e-6
    change_weights(folder, {"decoder.weight": other})
    refused(folder, corpus.tokenizer, f"decoder.weight differs from {EMBEDDINGS}.*tie_word_embeddings true")
    change_weights(folder, {"decoder.weight": embeddings.clone()})
    take(folder, corpus.tokenizer)


def test_a_tied_decoder_that_was_saved_too_is_fine(tmp_path: Path, corpus: Any) -> None:
    folder = publish(tmp_path)
    change_weights(folder, {"decoder.weight": load_file(folder / "model.safetensors")[EMBEDDINGS].clone()})
    take(folder, corpus.tokenizer)


def test_a_pickle_is_never_opened_and_the_remedy_works(tmp_path: Path, corpus: Any) -> None:
    folder = publish(tmp_path)
    published = weights_of(folder)
    torch.save(published, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    refused(
        folder,
        corpus.tokenizer,
        r"pytorch_model.bin is a pickle.*from_pretrained\('.*hub'\).save_pretrained\('other'\)",
    )
    AutoModelForMaskedLM.from_pretrained(folder).save_pretrained(tmp_path / "other")
    assert weights_of(tmp_path / "other").keys() == published.keys()
    take(tmp_path / "other", corpus.tokenizer)


def test_what_is_not_there_is_named(tmp_path: Path, corpus: Any) -> None:
    folder = publish(tmp_path)
    (folder / "model.safetensors").unlink()
    refused(folder, corpus.tokenizer, "model.safetensors is missing; --model must be a folder")
    (folder / "config.json").unlink()
    refused(folder, corpus.tokenizer, "config.json is missing; --model must be a folder")
    refused(tmp_path / "hubb", corpus.tokenizer, "hubb/config.json is missing")
    refused(tmp_path / "hubb", corpus.tokenizer, "hf download OWNER/NAME --local-dir FOLDER$")
    refused(publish(tmp_path), tmp_path / "nowhere", "tokenizer folder .*nowhere does not exist")


def test_files_of_another_framework_are_refused(tmp_path: Path, corpus: Any) -> None:
    folder = publish(tmp_path)
    path = folder / "model.safetensors"
    for metadata, shown in (({"format": "mlx"}, "'mlx'"), ({"made by": "hand"}, "None")):
        save_file(load_file(path), path, metadata=metadata)
        refused(folder, corpus.tokenizer, f"format = {shown} in its header must be 'pt'")
    save_file(load_file(path), path)  # none at all is PyTorch's
    take(folder, corpus.tokenizer)


# ----------------------------------------------------------------------------------------------------------- tokenizer
@pytest.mark.parametrize("rows, fits", [(511, False), (512, True), (639, True), (640, False), (50368, False)])
def test_embeddings_have_the_rows_of_the_tokenizer_and_a_little_padding(
    tmp_path: Path, corpus: Any, rows: int, fits: bool
) -> None:
    folder = publish(tmp_path, vocab_size=rows)
    if fits:
        take(folder, corpus.tokenizer)
    else:
        refused(
            folder, corpus.tokenizer, f"vocab_size = {rows} must be the 512 ids of tokenizer .*, or less than 128 more"
        )


def test_the_tokenizer_must_be_the_one_of_the_model_if_that_has_one(tmp_path: Path, corpus: Any) -> None:
    """What wraps a text may differ, as it does between Gemma 2's and the one that was adopted from it; ids may not."""
    folder = publish(tmp_path)
    spec = json.loads((corpus.tokenizer / "tokenizer.json").read_text())
    (folder / "tokenizer.json").write_text(json.dumps({**spec, "post_processor": None}))
    shutil.rmtree(take(folder, corpus.tokenizer))
    vocabulary = spec["model"]["vocab"]
    one, other = (token for token, id_ in vocabulary.items() if id_ in (300, 301))
    vocabulary[one], vocabulary[other] = vocabulary[other], vocabulary[one]
    (folder / "tokenizer.json").write_text(json.dumps(spec))
    refused(folder, corpus.tokenizer, r"tokenizer.json: .* is 30[01] there and 30[01] in tokenizer .*--tokenizer")


# -------------------------------------------------------------------------------------------------------------- shards
def weight_map(folder: Path) -> dict[str, str]:
    return json.loads((folder / INDEX).read_text())["weight_map"]


BAD_MAPS: dict[str, tuple[Callable[[dict[str, str]], Any], str]] = {
    "climbs": (lambda places: {**places, "head.norm.weight": "../hub/model.safetensors"}, "weight_map must give"),
    "absolute": (lambda places: {**places, "head.norm.weight": "/x.safetensors"}, "weight_map must give"),
    "pickle": (lambda places: {**places, "head.norm.weight": "pytorch_model.bin"}, "weight_map must give"),
    "no text": (lambda places: {**places, "head.norm.weight": 3}, "weight_map must give"),
    "list": (list, "weight_map must give"),
    "nothing": (lambda places: {}, f"{EMBEDDINGS} is missing"),
    "no such file": (lambda places: {**places, "more": "z.safetensors"}, "z.safetensors is missing; copy"),
    "elsewhere": (
        lambda places: {**places, "head.norm.weight": places[EMBEDDINGS]},
        "(holds|lacks) 'head.norm.weight', against",
    ),
    "forgotten": (
        lambda places: {name: file for name, file in places.items() if name != "head.norm.weight"},
        "(holds|lacks) 'head.norm.weight', against",
    ),
}


@pytest.mark.parametrize("case", BAD_MAPS)
def test_an_index_that_is_not_true_is_refused(tmp_path: Path, corpus: Any, case: str) -> None:
    change, message = BAD_MAPS[case]
    folder = publish(tmp_path, max_shard_size="20KB")
    change_json(folder / INDEX, {"weight_map": change(weight_map(folder))})
    refused(folder, corpus.tokenizer, message)


def test_a_tensor_in_two_files_is_refused(tmp_path: Path, corpus: Any) -> None:
    folder = publish(tmp_path, max_shard_size="20KB")
    places = weight_map(folder)
    file = next(file for file in places.values() if file != places["head.norm.weight"])
    save_file({**load_file(folder / file), "head.norm.weight": torch.ones(32)}, folder / file, {"format": "pt"})
    refused(folder, corpus.tokenizer, "(holds|lacks) 'head.norm.weight', against")


# ------------------------------------------------------------------------------------------------------------- hostile
@pytest.mark.parametrize("case", EVIL)
def test_a_hostile_file_is_refused_by_name_and_runs_and_writes_nothing(tmp_path: Path, corpus: Any, case: str) -> None:
    """In the place of each file that is read; nothing that would run or write is tried before all is checked."""
    whole = publish(tmp_path)
    places = ("config.json", "model.safetensors", "tokenizer.json", INDEX, "shard.safetensors")
    for number, name in enumerate(places):
        folder = shutil.copytree(whole, tmp_path / str(number))
        if name in (INDEX, "shard.safetensors"):
            (folder / "model.safetensors").unlink()
            (folder / INDEX).write_text(json.dumps({"weight_map": {"x": "shard.safetensors"}}))
        (folder / name).write_bytes(EVIL[case])

    def try_all() -> list[str]:
        said = []
        for number in range(len(places)):
            try:
                import_from_hf.import_model(tmp_path / str(number), corpus.tokenizer, tmp_path / "run")
                said.append("")
            except (ValueError, OSError) as error:
                said.append(str(error))
        return said

    outcome = watched(tmp_path, try_all)
    assert outcome["status"] == 0
    assert outcome["events"] == []
    for number, (name, message) in enumerate(zip(places, outcome["result"], strict=True)):
        is_whole = case in ("a dtype of half bytes", "a name of many lines") and name.startswith("model")
        assert str(tmp_path / str(number) / ("" if is_whole else name)) in message  # its tensors are not ours, then
        assert message.isprintable()
        assert len(message) < 1000
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "shard.safetensors"])
def test_what_is_no_file_is_not_waited_for(tmp_path: Path, corpus: Any, name: str) -> None:
    """Opening a pipe waits for a writer: the child would be ended by its alarm."""
    folder = publish(tmp_path)
    if name == "shard.safetensors":
        (folder / "model.safetensors").unlink()
        (folder / INDEX).write_text(json.dumps({"weight_map": {"x": name}}))
    (folder / name).unlink(missing_ok=True)
    os.mkfifo(folder / name)

    def refusal() -> str:
        with pytest.raises(FileNotFoundError) as error:
            import_from_hf.import_model(folder, corpus.tokenizer, tmp_path / "run")
        return str(error.value)

    outcome = watched(tmp_path, refusal)
    assert outcome["status"] == 0
    assert f"{folder / name} is missing" in outcome["result"]
