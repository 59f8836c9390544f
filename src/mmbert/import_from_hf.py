"""Turn a published ModernBERT into a finished run, from which training continues, and prove that it is the same model.

    python -m mmbert.import_from_hf --model FOLDER --tokenizer data/tokenizer --output runs/mmbert-base/published

`parent: published` in a YAML continues from it; the lines that it needs are printed. Nothing is renamed, and float16
and bfloat16 become float32, which holds each of their numbers: `mmbert.convert_to_hf` gives the same tensors back, bit
for bit. Before the run takes its place, the logits of fixed documents are compared with those of transformers, which
reads the published files itself; import.json keeps the result.
"""

import argparse
import json
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from mmbert.checkpoint_files import read_json
from mmbert.command import errors_in_one_line, local_folder, refuse_existing
from mmbert.config import IMPORTED, ModelConfig
from mmbert.convert_to_hf import carried_fields, check_logits
from mmbert.model import MmBertForMaskedLM
from mmbert.published_model import (
    CARRIED,
    DROPOUTS,
    FIXED,
    VOCABULARY,
    Stored,
    check_tensors,
    check_tokenizer,
    digests_of,
    load_stored,
    model_config,
    read_config,
    stored_tensors,
)
from mmbert.tokenizer import Tokenizer, load_tokenizer
from mmbert.untrained_run import first_state, untrained_run

BEGINNING = """\
# A beginning for 500M tokens behind a model that has decayed, not measured; common.yaml's 8e-4 is for random weights:
optimizer: {lr: 1.0e-4}
learning_rate: {shape: warmup_stable_decay, warmup: 25M, decay: 250M, floor: 0.02}
"""


@contextmanager
def reference_folder(written: dict[str, Any], stored: dict[str, Stored], tokenizer: Tokenizer) -> Iterator[Path]:
    """A folder for transformers: its own words of config.json and its own files, and nothing else that may lie there.

    The thetas stand, or are missing, as they were published: what that means is transformers' to say.
    """
    keys = (*CARRIED, *FIXED, *DROPOUTS, "architectures", "tie_word_embeddings")
    config = {key: written[key] for key in keys if key in written} | {"pad_token_id": tokenizer.pad_token_id}
    places = {name: entry.path.name for name, entry in stored.items()}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "config.json").write_text(json.dumps(config))
        for path in {entry.path for entry in stored.values()}:
            (folder / path.name).symlink_to(path.resolve())
        if not (folder / "model.safetensors").exists():
            index = {"metadata": {}, "weight_map": places}
            (folder / "model.safetensors.index.json").write_text(json.dumps(index))
        yield folder


def read_model(
    folder: Path, written: dict[str, Any], tokenizer: Tokenizer
) -> tuple[dict[str, Stored], MmBertForMaskedLM]:
    """The tensors in a folder's files, and the model that they are, in float32.

    Args:
        written: its config.json, from read_config.

    Raises:
        OSError, ValueError: a file is missing or unfit, or `tokenizer` is not the model's.
    """
    config = model_config(written, folder / "config.json")
    check_tokenizer(written, config, tokenizer, folder)
    stored = stored_tensors(folder)
    check_tensors(stored, config, written.get("tie_word_embeddings", True), folder)
    model = MmBertForMaskedLM(config).eval()
    load_stored(stored, model)
    return stored, model


def import_model(folder: Path, tokenizer_folder: Path, output: Path) -> tuple[ModelConfig, float]:
    """Write the finished run `output`, whole or not at all.

    Args:
        folder: config.json and safetensors of a ModernBertForMaskedLM.
        tokenizer_folder: the tokenizer that the training data were prepared with.
        output: a new folder.

    Returns:
        The model section, and the largest difference of a logit, see hf_max_logit_difference.

    Raises:
        OSError, ValueError: an input is missing or unfit, `output` exists, or the logits differ.
    """
    refuse_existing(output)
    tokenizer = load_tokenizer(tokenizer_folder)
    written = read_config(folder / "config.json")
    stored, model = read_model(folder, written, tokenizer)
    state = first_state(asdict(model.config), str(tokenizer.folder), tokenizer.digest)
    with untrained_run(output, model, state) as partial:
        with reference_folder(written, stored, tokenizer) as reference:
            difference = check_logits(model, reference, tokenizer, folder, output)
        record: dict[str, Any] = {
            "hf_max_logit_difference": difference,
            "model": str(folder),
            "model_sha256": digests_of(stored),
            "tokenizer_digest": tokenizer.digest,
        }
        if (changed := folder / VOCABULARY).is_file():
            record["changed_vocabulary_of"] = read_json(changed).get("model")
        (partial / IMPORTED).write_text(json.dumps(record, indent=2) + "\n")
    return model.config, difference


def yaml_lines(config: ModelConfig, tokenizer_folder: Path, output: Path) -> str:
    """What a YAML must say to continue from `output`, and a rate to begin with."""
    run = {"run_root": str(output.parent), "parent": output.name, "tokenizer": str(tokenizer_folder)}
    return OmegaConf.to_yaml({**run, "model": carried_fields(config)}) + BEGINNING


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Command line of the program."""
    parser = argparse.ArgumentParser(
        prog="python -m mmbert.import_from_hf", description="Turn a published ModernBERT into a finished run."
    )
    parser.add_argument("--model", type=Path, required=True, help="folder with config.json and model.safetensors")
    parser.add_argument("--tokenizer", type=Path, required=True, help="tokenizer of the training data")
    parser.add_argument("--output", type=local_folder, required=True, help="run folder to write, RUN_ROOT/NAME")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the program; a mistake of the user ends it with one line and exit code 1."""
    options = parse_arguments(arguments)
    with errors_in_one_line():
        config, difference = import_model(options.model, options.tokenizer, options.output)
    print(f"# {options.output}: {options.model}, largest difference of a logit {difference:.2e}")
    print("# Continue from it with these lines in a YAML; the optimizer starts anew, so keep a warmup.")
    print(yaml_lines(config, options.tokenizer, options.output), end="")


if __name__ == "__main__":
    main()
