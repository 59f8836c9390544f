"""Convert a checkpoint to a plain Hugging Face folder, and prove that it gives the same logits.

    python -m mmbert.convert_to_hf --checkpoint runs/demo/phase3 --output runs/demo/phase3/hf --prompt "born <mask> and"

The folder loads with AutoModelForMaskedLM and AutoTokenizer, without code of ours. Nothing is renamed: the checkpoint
has transformers' names. Before the folder takes its place, transformers loads it, and its logits for fixed documents,
one at a time, are compared with this repository's for the same documents packed; conversion.json keeps the result.
"""

import argparse
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from glob import escape
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForMaskedLM, AutoTokenizer, ModernBertConfig

from mmbert.atomic import partial_folder, publish_folder, remove_leftovers, restore_folders
from mmbert.attention import Packing
from mmbert.checkpoint import is_valid, load_weights, newest_checkpoint, read_state
from mmbert.checkpoint_files import write_tensors
from mmbert.command import errors_in_one_line, local_folder
from mmbert.config import ModelConfig
from mmbert.evaluation.run_records import CONVERTED, is_whole
from mmbert.file_contents import sha256_of
from mmbert.json_files import read_json
from mmbert.model import MmBertForMaskedLM
from mmbert.model_card import model_card
from mmbert.published_model import CARRIED
from mmbert.tokenizer import Tokenizer, load_tokenizer
from mmbert.typed import build

MAX_LOGIT_DIFFERENCE = 1e-9
"""In float64, where rounding hides nothing: two right implementations differ by 3e-14 on the demo's model. A wrong
theta, a window one token too narrow, another norm_eps or another gelu differ by 5e-7 or more, even untrained."""

DOCUMENT_LENGTHS = (1, 63, 64, 65, 129, 300)
"""Tokens of the compared documents: both sides of the 64 keys that a local layer sees each way, and beyond."""

RECORD, CARD = "conversion.json", "README.md"
FORMAT = "4.57.2"
"""transformers' version whose form config.json has. Of a local folder that names one from 4.57.3 to 4.57.6 those
releases say that its tokenizer is a broken one of Mistral's, whatever it is."""


def find_checkpoint(path: Path) -> Path:
    """`path` itself when it is a checkpoint, else the newest one of the run in it.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is not whole.
    """
    if not path.is_dir():
        raise FileNotFoundError(f"--checkpoint {path}: no such folder; give a run's folder or one of its checkpoints")
    if not (path / "state.json").is_file():
        return newest_checkpoint(path)
    if not is_valid(path):
        raise ValueError(f"{path} is incomplete or changed after it was written; convert another checkpoint")
    return path


@contextmanager
def that_may_go(checkpoint: Path) -> Iterator[None]:
    """Around what reads a checkpoint, which a run that goes on may remove meanwhile.

    Raises:
        FileNotFoundError: it did.
    """
    try:
        yield
    except FileNotFoundError:
        if (checkpoint / "manifest.json").is_file():
            raise
        raise FileNotFoundError(
            f"{checkpoint} was removed while it was read, as a run that goes on removes older ones; run this again, or "
            "pin one first: an empty file `pinned` in it"
        ) from None


def carried_fields(config: ModelConfig) -> dict[str, Any]:
    """The fields that ModelConfig and transformers' ModernBertConfig both have."""
    return {key: getattr(config, key) for key in CARRIED}


def huggingface_config(config: ModelConfig, tokenizer: Tokenizer) -> ModernBertConfig:
    """The same encoder in transformers' words.

    Both thetas are written out: where local_rope_theta is left to a default, local layers silently turn at another
    speed than in training. attention_dropout is 0, as in the published models, because transformers applies it to the
    attention probabilities too. `reference_compile` cannot be set: ModernBertConfig drops it when it is saved.
    """
    return ModernBertConfig(
        architectures=["ModernBertForMaskedLM"],
        dtype="float32",
        **carried_fields(config),
        attention_dropout=0.0,
        classifier_pooling="mean",
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        cls_token_id=tokenizer.bos_token_id,
        sep_token_id=tokenizer.eos_token_id,
    )


def write_config(config: ModernBertConfig, folder: Path) -> None:
    """As transformers does, but for the version that is named."""
    fields = {**config.to_diff_dict(), "transformers_version": FORMAT}
    (folder / "config.json").write_text(json.dumps(fields, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def write_tokenizer(tokenizer: Tokenizer, folder: Path, model_max_length: int) -> None:
    """Copy the tokenizer's files, and say how much the model reads, so that `truncation=True` cuts there."""
    for name in ("tokenizer.json", "special_tokens_map.json"):
        (folder / name).write_bytes((tokenizer.folder / name).read_bytes())
    settings = json.loads((tokenizer.folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    settings["model_max_length"] = model_max_length
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def fixed_documents(tokenizer: Tokenizer) -> list[Tensor]:
    """The compared documents: ids drawn from the whole vocabulary by a fixed seed, each (its length,)."""
    generator = torch.Generator().manual_seed(0)
    input_ids = torch.randint(tokenizer.vocab_size, (sum(DOCUMENT_LENGTHS),), generator=generator)
    return list(input_ids.split(DOCUMENT_LENGTHS))


@torch.no_grad()
def hf_max_logit_difference(model: MmBertForMaskedLM, folder: Path, documents: list[Tensor]) -> float:
    """Largest absolute difference of any logit: all documents packed here, one at a time in transformers.

    Args:
        model: ours, in evaluation mode, on the CPU; it is float64 afterwards.
        folder: the converted folder.
        documents: input_ids, each (its length,).

    Returns:
        The difference; NaN when a logit is not finite.
    """
    reference = AutoModelForMaskedLM.from_pretrained(
        folder, dtype=torch.float64, attn_implementation="sdpa", local_files_only=True
    ).eval()
    model.double()
    lengths = [len(document) for document in documents]
    logits = model(torch.cat(documents), Packing.from_lengths(lengths, torch.device("cpu")))  # (T, V)
    differences = []
    for ours, document in zip(logits.split(lengths), documents, strict=True):
        input_ids = document.unsqueeze(0)
        theirs = reference(input_ids, attention_mask=torch.ones_like(input_ids)).logits.squeeze(0)
        differences.append((ours - theirs).abs().max())
    return torch.stack(differences).max().item()


def check_logits(model: MmBertForMaskedLM, folder: Path, tokenizer: Tokenizer, source: Path, output: Path) -> float:
    """hf_max_logit_difference over the fixed documents.

    Args:
        source, output: what is turned into what, for the error.

    Raises:
        ValueError: it is above MAX_LOGIT_DIFFERENCE, or NaN.
    """
    difference = hf_max_logit_difference(model, folder, fixed_documents(tokenizer))
    if not difference <= MAX_LOGIT_DIFFERENCE:
        raise ValueError(
            f"{source}: transformers' logits differ by {difference:.2e}, more than {MAX_LOGIT_DIFFERENCE:g}; {output} "
            "was not written. Check the weights for NaN and the versions of torch and transformers against "
            "requirements.txt"
        )
    return difference


def load_checkpoint(checkpoint: Path, tokenizer_folder: Path | None) -> tuple[MmBertForMaskedLM, Tokenizer]:
    """The trained model, ready to be compared on any machine's CPU, and the tokenizer it was trained with.

    Raises:
        FileNotFoundError, ValueError: the tokenizer is not there, or is another one.
    """
    state = read_state(checkpoint)
    try:
        tokenizer = load_tokenizer(tokenizer_folder or Path(state["config"]["tokenizer"]))
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{error}; name the tokenizer of the run with --tokenizer") from None
    if tokenizer.digest != state["identity"]["tokenizer.digest"]:
        raise ValueError(f"{checkpoint} was trained with another tokenizer than {tokenizer.folder}; give --tokenizer")
    config = build(ModelConfig, state["config"]["model"], f"{checkpoint / 'state.json'}: config.model")
    model = MmBertForMaskedLM(replace(config, attention="cpu")).eval()
    load_weights(checkpoint, model)
    return model, tokenizer


def read_record(output: Path) -> dict[str, Any]:
    """What an older conversion said of itself; empty where that is missing or broken."""
    try:
        return read_json(output / RECORD, "mmbert.convert_to_hf")
    except (OSError, ValueError):
        return {}


def is_up_to_date(checkpoint: Path, output: Path) -> bool:
    """Whether `output` was converted from this very checkpoint, is whole, and its weights are as they were written."""
    if not is_whole(output):
        return False
    record, model_sha256 = read_record(output), sha256_of(output / "model.safetensors")
    inputs = (record.get("checkpoint_sha256"), record.get("model_sha256"))
    return inputs == (sha256_of(checkpoint / "manifest.json"), model_sha256)


def check_replaceable(output: Path) -> None:
    """Refuse a folder that this program did not write, or that holds somebody's work: another file, a changed card.

    Raises:
        ValueError: says which, and the remedy.
    """
    if not output.exists():
        return
    if not (output / RECORD).is_file():
        raise ValueError(f"--output {output} exists and holds no {RECORD}: not written by this program; name another")
    if added := sorted({path.name for path in output.iterdir()} - {*CONVERTED, RECORD, CARD}):
        raise ValueError(
            f"{output / added[0]} was not written by this program, and would be removed; move it away, or give another "
            "--output"
        )
    card = output / CARD
    if card.is_file() and sha256_of(card) != read_record(output).get("card_sha256"):
        raise ValueError(f"{card} was changed, and would be replaced; move it away, or give another --output")


def convert(checkpoint: Path, output: Path, tokenizer_folder: Path | None = None) -> float:
    """Write the Hugging Face folder `output`, whole or not at all.

    Args:
        checkpoint: folder of a checkpoint.
        output: a new folder, or one that this program wrote, which is replaced.
        tokenizer_folder: the run's tokenizer, where it no longer lies at the path in the checkpoint.

    Returns:
        The largest difference of a logit, see hf_max_logit_difference.

    Raises:
        OSError, ValueError: an input is missing or unfit, `output` is something else, the logits differ, or the disk is
            full.
    """
    check_replaceable(output)
    model, tokenizer = load_checkpoint(checkpoint, tokenizer_folder)
    with partial_folder(output) as partial:
        write_config(huggingface_config(model.config, tokenizer), partial)
        write_tensors(partial / "model.safetensors", dict(model.named_parameters()))
        write_tokenizer(tokenizer, partial, model.config.max_position_embeddings)
        difference = check_logits(model, partial, tokenizer, checkpoint, output)
        mask_token = tokenizer.backend.id_to_token(tokenizer.mask_token_id)
        card = model_card(checkpoint, model.config, mask_token, output.name)
        (partial / CARD).write_text(card, encoding="utf-8")
        record = {
            "hf_max_logit_difference": difference,
            "checkpoint": str(checkpoint),
            "checkpoint_sha256": sha256_of(checkpoint / "manifest.json"),
            "model_sha256": sha256_of(partial / "model.safetensors"),
            "card_sha256": sha256_of(partial / CARD),
            "tokens": read_state(checkpoint)["tokens"],
        }
        (partial / RECORD).write_text(json.dumps(record, indent=2) + "\n")
        publish_folder(partial, output)
    return difference


def bring_up_to_date(checkpoint: Path, output: Path, tokenizer_folder: Path | None) -> str:
    """Convert, unless that is done; what there is to say of it. See `convert`. What a kill left is mended or goes."""
    name = escape(output.name)
    restore_folders(output.parent, name)
    remove_leftovers(output.parent, name)
    if tokenizer_folder is None and is_up_to_date(checkpoint, output):
        return f"{output} is up to date with {checkpoint}"
    difference = convert(checkpoint, output, tokenizer_folder)
    return f"{output}: {checkpoint} for Hugging Face, largest difference of a logit {difference:.2e}"


@torch.no_grad()
def fill_mask(folder: Path, prompt: str, top_k: int) -> list[tuple[str, float]]:
    """The likeliest tokens for the one mask of `prompt`, with their probabilities, likeliest first.

    Raises:
        ValueError: the prompt has no mask, spelled as the tokenizer does it, or several.
    """
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    inputs = tokenizer(prompt, return_tensors="pt")
    masked = inputs["input_ids"][0] == tokenizer.mask_token_id
    if masked.sum() != 1:
        raise ValueError(f"--prompt {prompt!r} has {masked.sum()} times {tokenizer.mask_token}; write it once")
    # Left to itself, transformers takes flash-attn where that is installed, which cannot compute on a CPU.
    model = AutoModelForMaskedLM.from_pretrained(folder, attn_implementation="sdpa", local_files_only=True).eval()
    probabilities, ids = model(**inputs).logits[0, masked].softmax(dim=-1).squeeze(0).topk(top_k)  # (top_k,) each
    return [(tokenizer.decode(id_), float(probability)) for id_, probability in zip(ids, probabilities, strict=True)]


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Command line of the program."""
    parser = argparse.ArgumentParser(
        prog="python -m mmbert.convert_to_hf", description="Convert a checkpoint to a Hugging Face folder."
    )
    parser.add_argument("--checkpoint", type=Path, required=True, help="a checkpoint, or a run: its newest one")
    parser.add_argument("--output", type=local_folder, required=True, help="folder to write, or one of this program")
    parser.add_argument("--tokenizer", type=Path, help="the run's tokenizer, if it was moved")
    parser.add_argument("--prompt", help="text with one <mask>, or what the tokenizer calls it: print 5 likely tokens")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the program; a mistake of the user ends it with one line and exit code 1."""
    options = parse_arguments(arguments)
    with errors_in_one_line():
        checkpoint = find_checkpoint(options.checkpoint)
        with that_may_go(checkpoint):
            print(bring_up_to_date(checkpoint, options.output, options.tokenizer))
        if options.prompt is not None:
            for token, probability in fill_mask(options.output, options.prompt, top_k=5):
                print(f"{probability:7.2%}  {token}")


if __name__ == "__main__":
    main()
