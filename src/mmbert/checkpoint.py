"""Checkpoints: a folder of safetensors and JSON that appears whole or not at all, and no pickle.

`run_folder/step-0000000123/` holds `model.safetensors` (Hugging Face's names), `optimizer.safetensors` (the moments
by parameter name), `state.json` (clock, configuration, data) and `manifest.json` (sha256 and bytes of the three). A
folder without a manifest that fits is no checkpoint; the newest that fits wins. With a file `pinned` in it, it stays.
"""
import json
import logging
import os
import reprlib
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from mmbert.atomic import fsync, partial_folder, publish_folder, remove, remove_leftovers, restore_folders
from mmbert.checkpoint_files import (
    not_finite,
    plain_size,
    read_json,
    read_state,
    read_tensors,
    step_of,
    write_tensors,
)
from mmbert.file_contents import sha256_of

log = logging.getLogger(__name__)

FILES = ("model.safetensors", "optimizer.safetensors", "state.json")
MOMENTS = ("exp_avg", "exp_avg_sq")


def save_checkpoint(
    run_folder: Path, step: int, model: nn.Module, optimizer: Optimizer, state: dict[str, Any]
) -> Path:
    """Write one checkpoint.

    Args:
        model: its parameters are saved under their own names; tied weights once.
        state: JSON values, all that `checkpoint_files.STATE` names but optimizer_steps.

    Raises:
        OSError: the disk is full or not writable; older checkpoints are untouched.
        ValueError: a weight or a moment is not finite; nothing is written.
    """
    target = run_folder / f"step-{step:010d}"
    weights = {name: parameter.detach() for name, parameter in model.named_parameters()}
    moments = moments_of(model, optimizer)
    if (bad := not_finite(weights) or not_finite(moments)) is not None:
        raise ValueError(
            f"{target} is not written: {bad} holds NaN or infinity; the same command goes on from the checkpoint "
            "before, and if that ends here again, lower optimizer.lr"
        )
    steps = {str(i): int(group["step"]) if "step" in group else 0 for i, group in enumerate(optimizer.param_groups)}
    with partial_folder(target) as partial:
        write_tensors(partial / "model.safetensors", weights)
        write_tensors(partial / "optimizer.safetensors", moments)
        (partial / "state.json").write_text(json.dumps({**state, "optimizer_steps": steps}, indent=1))
        written = read_state(partial)  # what could not be read back is not published
        assert written["step"] == step
        manifest = {name: {"sha256": sha256_of(partial / name), "bytes": plain_size(partial / name)} for name in FILES}
        (partial / "manifest.json").write_text(json.dumps(manifest, indent=1))
        if (target / "pinned").exists():
            (partial / "pinned").touch()
        publish_folder(partial, target)
    return target


def moments_of(model: nn.Module, optimizer: Optimizer) -> dict[str, Tensor]:
    """Both moments of every parameter, by name; zeros where the optimizer has made no step yet."""
    return {
        f"{key}.{name}": optimizer.state[parameter][key]
        if parameter in optimizer.state
        else torch.zeros_like(parameter, requires_grad=False)
        for name, parameter in model.named_parameters()
        for key in MOMENTS
    }


def checkpoint_bytes(model: nn.Module) -> int:
    """Bytes of a checkpoint's tensors, weights and two moments; headers and state.json add about a megabyte."""
    return (1 + len(MOMENTS)) * sum(parameter.nbytes for parameter in model.parameters())


def why_invalid(checkpoint: Path) -> str:
    """What keeps a folder from being a checkpoint, in words, or "" when all files are as they were written.

    Raises:
        PermissionError: this user may not read it. That says nothing of it; to go on from an older one would be wrong.
    """
    try:
        manifest = read_json(checkpoint / "manifest.json")
        if set(manifest) != set(FILES) or any(
            not isinstance(entry, dict) or set(entry) != {"sha256", "bytes"} for entry in manifest.values()
        ):
            return f"{checkpoint / 'manifest.json'} does not give sha256 and bytes of {', '.join(FILES)}"
        for name in FILES:
            if (size := plain_size(checkpoint / name)) != (written := manifest[name]["bytes"]):
                return f"{checkpoint / name} holds {size} bytes, but {reprlib.repr(written)} were written"
        for name in FILES:
            if sha256_of(checkpoint / name) != manifest[name]["sha256"]:
                return f"{checkpoint / name} was changed after it was written: its sha256 does not fit"
    except PermissionError:
        raise
    except (OSError, ValueError) as error:
        return str(error)
    return ""


def weights_sha256(run_folder: Path) -> str | None:
    """sha256 of the weights of a run's newest checkpoint, as its manifest has it; None where there is none."""
    for newest in step_folders(run_folder)[:1]:
        with suppress(OSError, ValueError):
            entry = read_json(newest / "manifest.json").get("model.safetensors")
            return entry.get("sha256") if isinstance(entry, dict) else None
    return None


def is_valid(checkpoint: Path) -> bool:
    """Whether every file is a plain one with the size and the sha256 that the manifest gives."""
    return not why_invalid(checkpoint)


def step_folders(run_folder: Path) -> list[Path]:
    """What is named as a checkpoint, newest first; broken ones too, so that no run with any starts anew."""
    return sorted((path for path in run_folder.glob("step-*") if step_of(path) is not None), reverse=True)


def find_newest(run_folder: Path) -> tuple[Path | None, dict[Path, str]]:
    """The newest valid checkpoint, if there is any, and the broken ones that are newer: folder -> what is wrong.

    Raises:
        ValueError: there are some, all broken.
    """
    broken: dict[Path, str] = {}
    for folder in step_folders(run_folder):
        if not (reason := why_invalid(folder)):
            return folder, broken
        broken[folder] = reason
    if broken:
        raise ValueError(
            f"{run_folder}: none of its {len(broken)} checkpoints is whole ({next(iter(broken.values()))}); "
            "move it away to start anew"
        )
    return None, broken


def newest_checkpoint(run_folder: Path) -> Path:
    """The newest valid checkpoint of a run; broken ones are passed over and named in the log.

    Raises:
        FileNotFoundError: the run has no checkpoint.
        ValueError: it has some, all broken.
    """
    newest, broken = find_newest(run_folder)
    for folder, reason in broken.items():
        log.warning("passing over %s: %s", folder, reason)
    if newest is None:
        runs = ", ".join(sorted({path.parent.name for path in run_folder.glob("*/step-*")}))
        remedy = f"name one of the runs in it: {runs}" if runs else "train that phase first"
        raise FileNotFoundError(f"{run_folder} holds no checkpoint; {remedy}")
    return newest


def tidy(run_folder: Path) -> Path | None:
    """Make a run's folder ready to go on: nobody else may use it meanwhile.

    What kills left unfinished goes, what they left moved aside comes back, and broken checkpoints that are newer than
    the newest whole one are renamed to broken-step-…, so that they are never counted as kept.

    Returns:
        The newest whole checkpoint; None when the run has none yet.

    Raises:
        ValueError: all checkpoints are broken; none is renamed.
    """
    restore_folders(run_folder, "step-*")
    newest, broken = find_newest(run_folder)
    for folder, reason in broken.items():
        set_aside(folder, reason)
    remove_leftovers(run_folder, "step-*")
    return newest


def set_aside(folder: Path, reason: str) -> None:
    """Rename a broken checkpoint to a free name that no reader takes for one."""
    target, number = folder.with_name(f"broken-{folder.name}"), 1
    while os.path.lexists(target):
        number += 1
        target = folder.with_name(f"broken-{folder.name}-{number}")
    folder.rename(target)
    fsync(target.parent)
    log.warning("%s is broken and now called %s: %s", folder, target.name, reason)


def prune(run_folder: Path, keep: int, keep_every: int | None = None) -> None:
    """Remove the checkpoints that need not stay, judged from the folder alone, so that restarts leave none behind.

    What stays: the newest `keep`, the pinned ones, and the first at or after each multiple of `keep_every` tokens.
    """
    lasting = milestones(run_folder, keep_every) if keep_every is not None else set()
    folders = step_folders(run_folder)
    whole = [folder for folder in folders if (folder / "manifest.json").exists()]  # else half removed when a kill came
    for folder in folders:
        if whole and folder < whole[0] and folder not in {*whole[:keep], *lasting} and not is_pinned(folder):
            if folder.is_dir() and not folder.is_symlink():
                (folder / "manifest.json").unlink(missing_ok=True)  # no checkpoint from here on, wherever a kill falls
            remove(folder)


def is_pinned(folder: Path) -> bool:
    """Whether somebody asked for this checkpoint to stay: `touch runs/x/phase1/step-0000000123/pinned`."""
    return (folder / "pinned").exists()


def milestones(run_folder: Path, keep_every: int) -> set[Path]:
    """The first checkpoint at or after each multiple of `keep_every` tokens; 0 is none.

    The first of all that were ever saved is the first of those that are there, since none before it was kept as one.
    """
    firsts, before = set(), 0
    for folder in reversed(step_folders(run_folder)):
        if not (folder / "manifest.json").exists():
            continue
        try:
            tokens = read_state(folder)["tokens"]
        except (FileNotFoundError, ValueError) as error:
            set_aside(folder, str(error))
            continue
        if tokens // keep_every > before // keep_every:
            firsts.add(folder)
        before = tokens
    return firsts


def load_weights(checkpoint: Path, model: nn.Module) -> None:
    """Copy the saved weights into `model`.

    Raises:
        FileNotFoundError, ValueError: see `read_tensors`; the model is as it was.
    """
    parameters = dict(model.named_parameters())
    saved = read_tensors(checkpoint / "model.safetensors", parameters)
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(saved[name])


def load_moments(checkpoint: Path, model: nn.Module, optimizer: Optimizer) -> None:
    """Give the optimizer the saved moments and step counts, and none of the saved hyper-parameters.

    Raises:
        FileNotFoundError, ValueError: see `read_tensors` and `read_state`; model and optimizer are as they were.
    """
    parameters = dict(model.named_parameters())
    wanted = {f"{key}.{name}": parameter for name, parameter in parameters.items() for key in MOMENTS}
    saved = read_tensors(checkpoint / "optimizer.safetensors", wanted)
    steps = read_state(checkpoint)["optimizer_steps"]
    if set(steps) != {str(i) for i in range(len(optimizer.param_groups))}:
        raise ValueError(
            f"{checkpoint / 'state.json'}: optimizer_steps has {len(steps)} keys, must have one for each of the "
            f"optimizer's {len(optimizer.param_groups)} groups, 0 first; take another checkpoint"
        )
    if any(parameter not in optimizer.state for parameter in parameters.values()):
        make_state(optimizer, parameters.values())
    for i, group in enumerate(optimizer.param_groups):
        group["step"].fill_(steps[str(i)])
    for name, parameter in parameters.items():
        for key in MOMENTS:
            optimizer.state[parameter][key].copy_(saved[f"{key}.{name}"])


def make_state(optimizer: Optimizer, parameters: Collection[nn.Parameter]) -> None:
    """Let the optimizer make its own state, whatever kernel it runs, by a step of length zero.

    Never on an optimizer that has stepped: 0 times a moment that is NaN is NaN.
    """
    rates = [group["lr"] for group in optimizer.param_groups]
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    optimizer.step()
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    for parameter in parameters:
        parameter.grad = None
