"""Checkpoints: a folder of safetensors and JSON that appears whole or not at all, and no pickle.

`run_folder/step-0000000123/` holds `model.safetensors` (Hugging Face's names), `optimizer.safetensors` (the moments
by parameter name), `state.json` (clock, configuration, data) and `manifest.json` (sha256 of the three). A folder
without a manifest that fits is no checkpoint; the newest that fits wins.
"""
import hashlib
import json
import logging
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from mmbert.atomic import partial_folder, publish_folder

log = logging.getLogger(__name__)

FILES = ("model.safetensors", "optimizer.safetensors", "state.json")
MOMENTS = ("exp_avg", "exp_avg_sq")


def save_checkpoint(
    run_folder: Path, step: int, model: nn.Module, optimizer: Optimizer, state: dict[str, Any]
) -> Path:
    """Write one checkpoint.

    Args:
        model: its parameters are saved under their own names; tied weights once.
        state: JSON values.

    Raises:
        OSError: the disk is full or not writable; older checkpoints are untouched.
    """
    target = run_folder / f"step-{step:010d}"
    names = parameter_names(model)
    moments = {
        f"{key}.{name}": optimizer.state[parameter][key].cpu().contiguous()
        for parameter, name in names.items()
        if parameter in optimizer.state  # empty before the first step
        for key in MOMENTS
    }
    weights = {name: parameter.detach().cpu().contiguous() for parameter, name in names.items()}
    steps = {str(i): int(group["step"]) for i, group in enumerate(optimizer.param_groups)}
    with partial_folder(target) as partial:
        save_file(weights, partial / "model.safetensors", metadata={"format": "pt"})
        save_file(moments, partial / "optimizer.safetensors")
        (partial / "state.json").write_text(json.dumps({**state, "optimizer_steps": steps}, indent=1))
        hashes = {name: sha256_of(partial / name) for name in FILES}
        (partial / "manifest.json").write_text(json.dumps(hashes, indent=1))
        publish_folder(partial, target)
    return target


def parameter_names(model: nn.Module) -> dict[nn.Parameter, str]:
    """Each parameter's first name; a tied weight has one."""
    names: dict[nn.Parameter, str] = {}
    for name, parameter in model.named_parameters():
        names.setdefault(parameter, name)
    return names


def sha256_of(path: Path) -> str:
    """sha256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_valid(checkpoint: Path) -> bool:
    """Whether every file is there with the sha256 that the manifest gives."""
    try:
        hashes = json.loads((checkpoint / "manifest.json").read_text())
        return set(hashes) == set(FILES) and all(sha256_of(checkpoint / name) == hashes[name] for name in FILES)
    except (OSError, ValueError, TypeError):
        return False


def step_folders(run_folder: Path) -> list[Path]:
    """Folders named as checkpoints, newest first."""
    return sorted(run_folder.glob("step-??????????"), reverse=True)


def newest_checkpoint(run_folder: Path) -> Path:
    """The newest valid checkpoint of a run; broken ones are passed over and named in the log.

    Raises:
        FileNotFoundError: the run has no checkpoint.
        ValueError: it has some, all broken.
    """
    folders = step_folders(run_folder)
    for folder in folders:
        if is_valid(folder):
            return folder
        log.warning("passing over %s: incomplete or changed after it was written", folder)
    if folders:
        raise ValueError(f"{run_folder}: none of its {len(folders)} checkpoints is whole; move it away to start anew")
    raise FileNotFoundError(f"{run_folder} holds no checkpoint; train that phase first")


def read_state(checkpoint: Path) -> dict[str, Any]:
    """The checkpoint's state.json."""
    return json.loads((checkpoint / "state.json").read_text())


def keep_newest(run_folder: Path, keep: int) -> None:
    """Remove all but the newest `keep` checkpoints, counted from the folder, so that restarts leave none behind."""
    for folder in step_folders(run_folder)[keep:]:
        (folder / "manifest.json").unlink(missing_ok=True)  # from here on it is no checkpoint, wherever a kill falls
        shutil.rmtree(folder)


def load_weights(checkpoint: Path, model: nn.Module) -> None:
    """Copy the saved weights into `model`.

    Raises:
        ValueError: names or shapes differ.
    """
    saved = load_file(checkpoint / "model.safetensors")
    names = parameter_names(model)
    wanted = {name: tuple(parameter.shape) for parameter, name in names.items()}
    found = {name: tuple(tensor.shape) for name, tensor in saved.items()}
    if wanted != found:
        name = sorted(set(wanted.items()) ^ set(found.items()))[0][0]
        raise ValueError(
            f"{checkpoint} does not fit the model: {name} is {found.get(name, 'missing')} there and "
            f"{wanted.get(name, 'missing')} here; give the model section the checkpoint's numbers"
        )
    with torch.no_grad():
        for parameter, name in names.items():
            parameter.copy_(saved[name])


def load_moments(checkpoint: Path, model: nn.Module, optimizer: Optimizer) -> None:
    """Give the optimizer the saved moments and step counts, and none of the saved hyper-parameters.

    The optimizer makes its own state by a step of length zero (no gradient, learning rate 0), whatever kernel it
    runs; then the moments are filled in.
    """
    saved: dict[str, Tensor] = load_file(checkpoint / "optimizer.safetensors")
    steps = read_state(checkpoint)["optimizer_steps"]
    rates = [group["lr"] for group in optimizer.param_groups]
    names = parameter_names(model)
    for parameter in names:
        parameter.grad = torch.zeros_like(parameter)
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    optimizer.step()
    for group, rate, step in zip(optimizer.param_groups, rates, steps.values(), strict=True):
        group["lr"] = rate
        group["step"].fill_(step)
    for parameter, name in names.items():
        parameter.grad = None
        for key in MOMENTS:
            optimizer.state[parameter][key].copy_(saved[f"{key}.{name}"])
