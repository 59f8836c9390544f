"""Held-out bits per byte of every language with fixed masks: numbers that compare across phases and models.

    python -m mmbert.evaluation.bits_per_byte --model runs/demo/phase1/hf --shards data/demo --source udhr \\
        --output runs/demo/phase1/bits_per_byte.json

Reads a converted Hugging Face folder and nothing else of the run. For a language,

    bits per byte = (sum of NLL over masked tokens / masked tokens) * maskable tokens / text bytes / ln 2

where NLL is in nats, maskable tokens are all tokens of the held-out text but the special ones, each counted once,
and text bytes are UTF-8. Masks depend on language and document alone. The file is left as it is when it was computed
from the same model, shards and rows. A GPU is taken where torch sees one; where the machine has one that torch does not
see, CUDA_VISIBLE_DEVICES= before the command says that the CPU is meant.
"""
import argparse
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForMaskedLM, ModernBertConfig, ModernBertForMaskedLM

from mmbert.command import errors_in_one_line, local_folder
from mmbert.device import check_no_gpu_idles
from mmbert.evaluation.scoring import LanguageScore, score_languages
from mmbert.file_contents import sha256_of
from mmbert.heldout import check_heldout, listed, read_heldout
from mmbert.json_files import read_json, write_json
from mmbert.manifest import Manifest
from mmbert.published_model import headers
from mmbert.tokenizer import Tokenizer, load_tokenizer

MODEL_FILES = ("config.json", "model.safetensors", "tokenizer.json")


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Command line of the program."""
    parser = argparse.ArgumentParser(
        prog="python -m mmbert.evaluation.bits_per_byte", description="Held-out bits per byte of every language."
    )
    parser.add_argument("--model", type=Path, required=True, help="converted Hugging Face folder")
    parser.add_argument("--shards", type=local_folder, required=True, help="root of the shards, above heldout/")
    parser.add_argument("--source", required=True, help="source of the held-out text, a folder below heldout/")
    parser.add_argument("--output", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--rows", type=int, help="the first so many of each language (default: all)")
    parser.add_argument("--batch-tokens", type=int, default=2048, help="tokens of a batch, padding included")
    return parser.parse_args(arguments)


def check_model_folder(folder: Path) -> None:
    """Refuse a folder that is no converted model.

    Raises:
        FileNotFoundError: names the file that it lacks.
    """
    for name in MODEL_FILES:
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder / name} is missing; --model wants what mmbert.convert_to_hf wrote")


def describe_inputs(folder: Path, manifests: list[Manifest], rows: int | None) -> dict[str, Any]:
    """Everything the numbers depend on; equal descriptions mean equal numbers."""
    return {
        "model": {name: sha256_of(folder / name) for name in MODEL_FILES},
        "shards": {manifest.language: manifest.digest for manifest in manifests},
        "rows": rows,
    }


def load_model(folder: Path, tokenizer: Tokenizer) -> ModernBertForMaskedLM:
    """Load in float32, so that the numbers do not depend on the precision the weights were saved in.

    Raises:
        ValueError: the folder holds another architecture, its file of weights is broken or lacks some, or its tokenizer
            has ids beyond the model's vocabulary.
    """
    # HF's `reference_compile` is off: compiling for every padded length costs more than it gains.
    config = AutoConfig.from_pretrained(folder, local_files_only=True, reference_compile=False)
    if not isinstance(config, ModernBertConfig):
        raise ValueError(f"{folder} holds a model of type {config.model_type}; only modernbert can be evaluated")
    if tokenizer.vocab_size > config.vocab_size:
        raise ValueError(
            f"{folder}: the tokenizer has {tokenizer.vocab_size} tokens, the model's vocab_size is "
            f"{config.vocab_size}; convert it with the tokenizer it was trained with"
        )
    weights = folder / "model.safetensors"
    headers(weights)  # of a broken file transformers gives a traceback
    model, found = AutoModelForMaskedLM.from_pretrained(
        folder, config=config, dtype=torch.float32, attn_implementation="sdpa", local_files_only=True,
        output_loading_info=True,
    )  # fmt: skip
    if missing := sorted(found["missing_keys"]):
        raise ValueError(
            f"{weights} lacks {missing[0]}, which transformers would draw at random; --model wants a "
            "ModernBertForMaskedLM, as mmbert.convert_to_hf writes it"
        )
    return model.to("cuda" if torch.cuda.is_available() else "cpu")


def evaluation_of(
    folder: Path, source: str, scores: dict[str, LanguageScore], inputs: dict[str, Any]
) -> dict[str, Any]:
    """Content of the JSON file."""
    return {
        "model": str(folder),
        "source": source,
        "languages": {
            language: {
                "bits_per_byte": score.bits_per_byte,
                "accuracy": score.accuracy,
                "masked_tokens": score.masked_tokens,
                "maskable_tokens": score.maskable_tokens,
                "text_bytes": score.text_bytes,
            }
            for language, score in scores.items()
        },
        "inputs": inputs,
    }


def evaluate(options: argparse.Namespace) -> str:
    """Evaluate, write the file, and return a line that says what was done."""
    if options.rows is not None and options.rows < 1:
        raise ValueError(f"--rows {options.rows} must be at least 1")
    if options.output.is_dir():
        raise ValueError(f"--output {options.output} is a folder; name a file in it, bits_per_byte.json say")
    check_model_folder(options.model)
    tokenizer = load_tokenizer(options.model)
    manifests = check_heldout(options.shards, options.source, tokenizer)
    inputs = describe_inputs(options.model, manifests, options.rows)
    if options.output.exists() and read_json(options.output, "this program").get("inputs") == inputs:
        return f"{options.output} is up to date: same model and shards"
    options.output.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryFile(dir=options.output.parent):  # or say now, not after hours, that nothing can be written there
        pass
    check_no_gpu_idles("", "put CUDA_VISIBLE_DEVICES= before the command to measure on the CPU")
    languages = [read_heldout(options.shards, manifest, options.rows) for manifest in manifests]
    model = load_model(options.model, tokenizer)
    scores = score_languages(model, languages, tokenizer, options.batch_tokens)
    write_json(options.output, evaluation_of(options.model, options.source, scores, inputs))
    mean = sum(score.bits_per_byte for score in scores.values()) / len(scores)
    each = listed({language: (score.bits_per_byte, score.masked_tokens) for language, score in scores.items()})
    found = f"{mean:.4f} bits per byte, mean over {len(scores)} languages{each}"
    return f"{options.output}: {found}, on {model.device.type}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the program; a mistake of the user ends it with one line and exit code 1."""
    with errors_in_one_line():
        print(evaluate(parse_arguments(arguments)))


if __name__ == "__main__":
    main()
