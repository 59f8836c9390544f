"""Merge finished runs, or the checkpoints of one, into a finished run: TIES, or an exponentially weighted mean.

    python -m mmbert.merge yamls/merge.yaml [key.sub=value ...]

The result is the run folder run_root/name: `parent` may name it, it is converted and evaluated as a phase is, and its
moments are zero. merge.json in it says what it was made from, and how far the runs agree. The same command again does
nothing. One tensor of each model is in memory at a time, beside the merged model.
"""
import argparse
import json
import platform
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from importlib.metadata import version
from itertools import combinations
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from mmbert.checkpoint import newest_checkpoint
from mmbert.checkpoint_files import read_state, read_tensor
from mmbert.command import errors_in_one_line
from mmbert.config import MERGED, ModelConfig
from mmbert.merge_config import MergeConfig, TiesConfig, load_merge
from mmbert.merge_inputs import Input, check_inputs, check_unchanged, find_inputs, made_from
from mmbert.merging import Agreement, sign_agreement, ties, weighted_mean
from mmbert.model import MmBertForMaskedLM
from mmbert.untrained_run import first_state, untrained_run

PACKAGES = ("mmbert", "torch", "numpy", "safetensors")


def group_of(name: str) -> str:
    """Tensors of one kind, over all layers: `model.layers.3.attn.Wqkv.weight` -> `attn.Wqkv`."""
    return re.sub(r"^model\.(layers\.[0-9]+\.)?|\.weight$", "", name)


def merged_tensor(config: MergeConfig, inputs: Sequence[Input], name: str) -> tuple[Tensor, Agreement]:
    """One tensor of the result, and how far the runs agree on it; in a mean of one run, against its oldest checkpoint.

    Raises:
        ValueError: an input or the result is not finite.
    """
    tensors = [read_tensor(each.checkpoint / "model.safetensors", name) for each in inputs]
    weights = [each.weight for each in inputs if each.weight is not None]
    method = config.method
    if isinstance(method, TiesConfig):
        merged = ties(tensors[0], tensors[1:], weights, method.density, method.scale)
    else:
        merged = weighted_mean(tensors, weights)
    if not torch.isfinite(merged).all():
        raise ValueError(f"{name} of the merge holds NaN or infinity; nothing is written. Lower ties.scale")
    return merged, sign_agreement(tensors[0], tensors[1:])


@torch.no_grad()
def merge(config: MergeConfig, inputs: Sequence[Input]) -> dict[str, Any]:
    """Write the merged run, whole or not at all.

    Returns:
        What merge.json says.

    Raises:
        FileNotFoundError, OSError, ValueError: see `check_inputs` and `merged_tensor`; the disk is full.
    """
    made = made_from(config, inputs)
    section = check_inputs(config, inputs)
    model = MmBertForMaskedLM(section)
    agreements: dict[str, Agreement] = {}
    for name, parameter in tqdm(list(model.named_parameters()), "merge", unit="tensor", disable=None):
        merged, agreement = merged_tensor(config, inputs, name)
        parameter.copy_(merged)
        for group in ("all", group_of(name)):
            agreements[group] = agreements[group] + agreement if group in agreements else agreement
    record = {
        **made,
        "agreement": {group: as_json(agreement, inputs[1:]) for group, agreement in agreements.items()},
        "versions": {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
    }
    with untrained_run(config.run_folder, model, merged_state(section, inputs[0])) as partial:
        (partial / MERGED).write_text(json.dumps(record, indent=2) + "\n")
    return record


def merged_state(section: ModelConfig, first: Input) -> dict[str, Any]:
    """State of the merged run; its tokenizer lies where the first input's does."""
    state = read_state(first.checkpoint)
    tokenizer, digest = state["config"]["tokenizer"], state["identity"]["tokenizer.digest"]
    return first_state(asdict(section), tokenizer, digest)


def as_json(agreement: Agreement, compared: Sequence[Input]) -> dict[str, Any]:
    """What merge.json says of a group of tensors; the runs are the inputs without the one they are compared with."""
    pairs = combinations(range(len(compared)), 2)
    return {
        "num_changed": agreement.num_changed,
        "same_sign": agreement.same_sign,
        "cosine": {f"{compared[i].name} {compared[j].name}": agreement.cosine(i, j) for i, j in pairs},
    }


def summary(config: MergeConfig, record: dict[str, Any]) -> Iterator[str]:
    """What was done, and how far the runs agree, in lines."""
    settings = ", ".join(f"{key} {value}" for key, value in record["settings"].items())
    yield f"{config.run_folder}: {record['method']}, {settings}"
    for each in record["inputs"]:
        weight = "base" if each["weight"] is None else f"weight {each['weight']:.3g}"
        yield f"  {each['checkpoint']}: {weight}"
    found, num_compared = record["agreement"]["all"], len(record["inputs"]) - 1
    if num_compared < 2:
        return
    first = record["inputs"][0]["checkpoint"]
    share = "-" if found["same_sign"] is None else f"{found['same_sign']:.1%}"
    yield f"all changed a weight of {first} in the same direction: {share} ({2 / 2**num_compared:.1%} by chance)"
    for pair, cosine in found["cosine"].items():
        yield f"  cosine of what was changed, {pair}: {'-' if cosine is None else f'{cosine:.3f}'}"


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Command line of the program."""
    parser = argparse.ArgumentParser(prog="python -m mmbert.merge", description="Merge finished runs into one.")
    parser.add_argument("config", metavar="CONFIG", help="YAML of a merge")
    parser.add_argument("overrides", nargs="*", metavar="key.sub=value", help="applied last")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the program; a mistake of the user ends it with one line and exit code 1."""
    options = parse_arguments(arguments)
    with errors_in_one_line():
        config = load_merge(options.config, options.overrides)
        inputs = find_inputs(config)
        if config.run_folder.exists():
            check_unchanged(config, made_from(config, inputs))
            newest_checkpoint(config.run_folder)  # or say what is damaged
            print(f"{config.run_folder} is done")
            return
        begin = time.monotonic()
        record = merge(config, inputs)
    print(*summary(config, record), sep="\n")
    print(f"Written: {config.run_folder / MERGED}, after {time.monotonic() - begin:.0f} s")


if __name__ == "__main__":
    main()
