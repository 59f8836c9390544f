"""The checkpoints that a merge reads: found, checked, and compared with those that an older merge was made from."""
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from mmbert.checkpoint import step_folders, why_invalid
from mmbert.checkpoint_files import check_tensors_fit, read_json, read_state, step_of
from mmbert.config import MERGED, ModelConfig
from mmbert.file_contents import sha256_of
from mmbert.finished import check_parent
from mmbert.ledger import read_ledger
from mmbert.merge_config import MergeConfig, TiesConfig, run_of
from mmbert.merging import exponential_weights
from mmbert.model import MmBertForMaskedLM
from mmbert.typed import build

MEANINGLESS = {"attention", "attn_out_dropout", "initializer_range", "initializer_cutoff_factor"}
"""Keys of a model section that change nothing of what trained weights mean: the kernel, and what training begins with
or does. The result has the first input's."""


@dataclass(frozen=True)
class Input:
    """One checkpoint of a merge.

    Attributes:
        key: of the YAML, that names it.
        weight: None for a base.
    """

    key: str
    checkpoint: Path
    weight: float | None

    @property
    def name(self) -> str:
        """`run/step-0000000123`."""
        return f"{self.checkpoint.parent.name}/{self.checkpoint.name}"

    def record(self) -> dict[str, Any]:
        """What merge.json says of it, and by what it is known again."""
        return {
            "checkpoint": self.name,
            "step": int(self.checkpoint.name.removeprefix("step-")),
            "manifest_sha256": sha256_of(self.checkpoint / "manifest.json"),
            "weight": self.weight,
        }


# ---------------------------------------------------------------------------------------------------------------- found
def find_inputs(config: MergeConfig) -> list[Input]:
    """The checkpoints that the YAML means now: a base first, then runs by name, or one run's from the oldest on.

    Of the files, only where they lie and whether a run is finished is looked at, so this takes no time.

    Raises:
        FileNotFoundError, ValueError: one is not there, its run is unfinished, or there are not two to merge.
    """
    root, method = Path(config.run_root), config.method
    if isinstance(method, TiesConfig):
        base = Input("ties.base", find_checkpoint(root, "ties.base", method.base), None)
        runs = [
            Input("ties.runs", find_checkpoint(root, "ties.runs", entry), weight)
            for entry, weight in sorted(method.runs.items())
        ]
        found = [base, *runs]
    else:
        folders = checkpoints_of_mean(find_checkpoint(root, "exponential.run", method.run))
        if len(folders) < 2:
            raise ValueError(
                f"exponential.run = {method.run} holds one checkpoint that counts, one of each checkpoint.interval, "
                "and a mean needs two or more; train it again with a smaller interval or a larger checkpoint.keep"
            )
        weights = exponential_weights(len(folders), method.ratio)
        found = [Input("exponential.run", *pair) for pair in zip(folders, weights, strict=True)]
    names = [each.name for each in found]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"{found[-1].key} names {twice[0]} twice; take one out")
    return found


def checkpoints_of_mean(newest: Path) -> list[Path]:
    """The checkpoints of a run that a mean is of, the oldest first: one for each `checkpoint.interval`, and the newest.

    Others were saved by a stop, and the mean would depend on when the run was stopped; or they are of a loss spike that
    the run went back from.

    Raises:
        FileNotFoundError, ValueError: a state.json is broken; or the run has gone back, and its ledger, which says from
            where, is missing or broken.
    """
    folders, state = step_folders(newest.parent)[::-1], read_state(newest)
    if state["callbacks"].get("SpikeRollback", {}).get("num_rollbacks"):  # else no look at gigabytes of ledger
        rollbacks = read_ledger(newest.parent).standing("rolled_back")
        undone = [range(event.values["to_step"] + 1, event.step) for event in rollbacks]
        folders = [each for each in folders if not any(step_of(each) in steps for steps in undone)]
    found, intervals = [], 0
    for each in folders[:-1]:
        before, intervals = intervals, read_state(each)["tokens"] // state["config"]["checkpoint"]["interval"]
        if intervals > before:
            found.append(each)
    return [*found, newest]


def find_checkpoint(root: Path, key: str, entry: str) -> Path:
    """The newest checkpoint of a finished run, or the one that the entry names.

    Raises:
        FileNotFoundError: there is no such run or checkpoint.
        ValueError: the run is unfinished.
    """
    run, _, step = entry.partition("/")
    folders = {folder.name: folder for folder in step_folders(root / run)}
    if not folders:
        near = ", ".join(sorted({path.parent.name for path in root.glob("*/step-*")}))
        raise FileNotFoundError(
            f"{key}: {root / run} is no run with a checkpoint; {f'there are {near}' if near else 'train it first'}"
        )
    if step and step not in folders:
        raise FileNotFoundError(f"{key}: {root / entry} is not there; there are {', '.join(sorted(folders))}")
    if step:
        return folders[step]
    newest = next(iter(folders.values()))
    state = read_state(newest)
    if not state["finished"]:
        raise ValueError(
            f"{key}: {run} is unfinished: {state['tokens']:,} of {state['config']['duration']:,} tokens; run it to its "
            f"end first, or name this checkpoint: {run}/{newest.name}"
        )
    return newest


# -------------------------------------------------------------------------------------------------------------- checked
def check_inputs(config: MergeConfig, inputs: Sequence[Input]) -> ModelConfig:
    """Refuse checkpoints that are damaged, or do not belong together. Reads every byte of them.

    Returns:
        The model section that all have in common, but for MEANINGLESS keys.

    Raises:
        FileNotFoundError, ValueError: names the checkpoint, what is wrong, and the remedy.
    """
    for each in inputs:
        if reason := why_invalid(each.checkpoint):
            raise ValueError(
                f"{each.key}: {each.name} is not whole: {reason}; bring it back from a copy, or rename its folder to "
                "merge without it"
            )
    states = [read_state(each.checkpoint) for each in inputs]
    first = inputs[0]
    for each, state in zip(inputs, states, strict=True):
        if state["identity"]["tokenizer.digest"] != states[0]["identity"]["tokenizer.digest"]:
            raise ValueError(
                f"{each.key}: {each.name} has another tokenizer than {first.name}, so the rows of their embeddings are "
                "other tokens; merge runs of one tokenizer"
            )
        if odd := other_keys(state["config"]["model"], states[0]["config"]["model"]):
            raise ValueError(
                f"{each.key}: {each.name} is another model than {first.name}: {odd}; merge runs of one model section"
            )
    source = f"{first.checkpoint / 'state.json'}: config.model"
    model = replace(build(ModelConfig, states[0]["config"]["model"], source), attention="cpu")
    with torch.device("meta"):
        wanted = dict(MmBertForMaskedLM(model).named_parameters())
    for each in inputs:
        check_tensors_fit(each.checkpoint / "model.safetensors", wanted)
    if isinstance(config.method, TiesConfig):
        for each in inputs[1:]:
            check_descent(each, inputs[0])
    return model


def other_keys(model: dict[str, Any], first: dict[str, Any]) -> str:
    """In which keys two model sections differ, in words, or ""; MEANINGLESS ones do not count."""
    keys = sorted((model.keys() | first.keys()) - MEANINGLESS)
    return "; ".join(
        f"model.{key} is {model.get(key)!r} there and {first.get(key)!r} here"
        for key in keys
        if model.get(key) != first.get(key)
    )


def check_descent(run: Input, base: Input) -> None:
    """Refuse a run that is known not to go back to the base: what it changed would be counted from elsewhere.

    An imported or merged run says nothing of where it comes from, and passes.

    Raises:
        FileNotFoundError, ValueError: names the run's own parents, and which of them is gone or was trained anew.
    """
    root, folder = run.checkpoint.parents[1], run.checkpoint.parent
    line, checkpoint, state = [folder.name], run.checkpoint, read_state(run.checkpoint)
    while folder.name != base.checkpoint.parent.name and "parent" in (saved := state["config"]):
        line.append(str(saved["parent"]))
        folder = root / line[-1]
        if saved["parent"] is None or line.count(line[-1]) > 1:  # or it was trained anew from a run that it began
            raise ValueError(
                f"ties.runs: {run.name} does not go back to ties.base = {run_of(base.name)}: its parents are "
                f"{', '.join(line[1:])}; name the run that all of ties.runs began from as ties.base"
            )
        if not step_folders(folder):
            raise FileNotFoundError(
                f"ties.runs: whether {run.name} goes back to ties.base = {run_of(base.name)} is not known: its parents "
                f"are {', '.join(line[1:])}, and {folder} holds no checkpoint; bring one back"
            )
        check_parent(checkpoint, state, saved["parent"])
        checkpoint = step_folders(folder)[0]
        state = read_state(checkpoint)


# ------------------------------------------------------------------------------------------------------------- compared
def made_from(config: MergeConfig, inputs: Sequence[Input]) -> dict[str, Any]:
    """What the result follows from: the same again gives the same weights."""
    method = config.method
    if isinstance(method, TiesConfig):
        name, settings = "ties", {"density": method.density, "scale": method.scale}
    else:
        name, settings = "exponential", {"ratio": method.ratio}
    return {"method": name, "settings": settings, "inputs": [each.record() for each in inputs]}


def is_merged(config: MergeConfig) -> bool:
    """Whether the merge is there, with these settings and from these checkpoints; hashes their manifests alone.

    Raises:
        FileExistsError, ValueError: see `check_unchanged`.
    """
    if not config.run_folder.exists():
        return False
    try:
        now = made_from(config, find_inputs(config))
    except (OSError, ValueError):
        return False  # whoever merges will say what is missing
    check_unchanged(config, now)
    return True


def check_unchanged(config: MergeConfig, now: dict[str, Any]) -> None:
    """Refuse a run folder that is there already, unless it is what the same inputs and settings give.

    Args:
        now: see `made_from`.

    Raises:
        FileExistsError, ValueError: it is something else.
    """
    path = config.run_folder / MERGED
    if not path.is_file():
        raise FileExistsError(f"{config.run_folder} exists and is no merge; give this merge another `name`")
    if odd := difference(read_json(path), now):
        raise ValueError(
            f"{config.run_folder} was merged from other inputs or settings: {odd}; give this merge another `name`, or "
            "move that folder away"
        )


def difference(record: dict[str, Any], now: dict[str, Any]) -> str:
    """What a merge.json and `made_from` differ in, in words, or ""."""
    for key in ("method", "settings"):
        if record.get(key) != now[key]:
            return f"{key} was {record.get(key)!r}, is {now[key]!r}"
    before, after = record.get("inputs", []), now["inputs"]
    if before == after:
        return ""
    odd = next((each for each in after if each not in before), None) or next(e for e in before if e not in after)
    same = [each["checkpoint"] == odd["checkpoint"] for each in before]
    what = "was changed" if any(same) and odd in after else "is new" if odd in after else "is no longer there"
    return f"{odd['checkpoint']} {what}"
