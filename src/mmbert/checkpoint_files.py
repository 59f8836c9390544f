"""Reads and writes the files of a checkpoint, and trusts none that it reads: one may be torn, made by hand or hostile.

Only JSON and safetensors are read, neither of which can hold code. What does not fit is refused with the file's name,
before anything is done with it.
"""
import os
import re
import reprlib
import stat
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from mmbert.file_contents import parse_object

MAX_JSON_BYTES = 32 * 2**20
"""State of 2,000 streams is about 1 MB; parsed JSON takes up to thirty times its bytes."""

DTYPES = {torch.float32: "F32", torch.float64: "F64", torch.bfloat16: "BF16", torch.float16: "F16"}


def is_count(value: Any, below: int = 2**63) -> bool:
    """Whether a JSON value is a whole number in [0, below)."""
    return type(value) is int and 0 <= value < below


STATE: dict[str, tuple[Callable[[Any], bool], str]] = {
    "step": (is_count, "a count"),
    "rows": (is_count, "a count"),
    "tokens": (is_count, "a count"),
    "seconds": (lambda value: type(value) in (int, float) and 0 <= value < 1e12, "a number of seconds"),
    "finished": (lambda value: isinstance(value, bool), "true or false"),
    "callbacks": (lambda value: isinstance(value, dict), "an object"),
    "config": (
        lambda value: isinstance(value, dict)
        and isinstance(value.get("tokenizer"), str)
        and isinstance(value.get("model"), dict)
        and is_count(value.get("duration")),
        "an object with tokenizer, model and duration",
    ),
    "identity": (
        lambda value: isinstance(value, dict) and isinstance(value.get("tokenizer.digest"), str),
        "an object with tokenizer.digest",
    ),
    "tokens_per_stream": (
        lambda value: isinstance(value, dict) and all(is_count(count) for count in value.values()),
        "an object of counts",
    ),
    "optimizer_steps": (
        # the optimizer counts in int32
        lambda value: isinstance(value, dict) and all(is_count(count, below=2**31) for count in value.values()),
        "an object of counts",
    ),
}
"""Keys that every state.json has, and what their values must be; it may have others."""


def step_of(folder: Path) -> int | None:
    """The step that a checkpoint's folder is named after; None for any other name."""
    name = re.fullmatch(r"step-([0-9]{10})", folder.name)
    return int(name[1]) if name else None


def plain_size(path: Path) -> int:
    """Bytes of a plain file.

    Raises:
        FileNotFoundError: it is missing.
        ValueError: it is a link, a folder, a pipe or a device: its content is not in the checkpoint.
    """
    try:
        status = path.lstat()
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} is missing") from None
    if not stat.S_ISREG(status.st_mode):
        raise ValueError(f"{path} is no plain file; copy the file itself to this place")
    return status.st_size


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        FileNotFoundError, ValueError: the file is missing, no plain file, too large, or holds no JSON object.
    """
    if (size := plain_size(path)) > MAX_JSON_BYTES:
        raise ValueError(f"{path} holds {size} bytes, more than the {MAX_JSON_BYTES} that a checkpoint's JSON may have")
    return parse_object(path.read_bytes(), path, "copy it anew, or take another")


def read_state(checkpoint: Path) -> dict[str, Any]:
    """The checkpoint's state.json.

    Raises:
        FileNotFoundError, ValueError: the file is missing, lacks a key, has a value of another kind, or is of another
            step than its folder.
    """
    path = checkpoint / "state.json"
    state = read_json(path)
    for key, (fits, kind) in STATE.items():
        if key not in state:
            raise ValueError(f"{path} has no key {key}, which must be {kind}")
        if not fits(state[key]):
            raise ValueError(f"{path}: {key} = {reprlib.repr(state[key])} must be {kind}")
    if step_of(checkpoint) not in (None, state["step"]):
        raise ValueError(f"{path} is of step {state['step']}: the folder was renamed; give it its name back")
    return state


def not_finite(tensors: dict[str, Tensor]) -> str | None:
    """Name of the first tensor that holds NaN or infinity."""
    return next((name for name, tensor in tensors.items() if not torch.isfinite(tensor).all()), None)


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write a safetensors file.

    Raises:
        OSError: with the system's number and words, which safetensors puts into an error of its own.
    """
    whole = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    path.touch()
    mode = path.stat().st_mode  # as the umask has it; safetensors puts a file here that nobody else may read
    try:
        save_file(whole, path, metadata={"format": "pt"})
        path.chmod(mode)
    except SafetensorError as error:
        number = re.search(r"os error ([0-9]+)", str(error))
        if number is None:
            raise OSError(f"{path} could not be written: {_in_one_line(str(error))}") from None
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from None


def check_tensors_fit(path: Path, wanted: Mapping[str, Tensor]) -> None:
    """Refuse a file that holds other tensors than `wanted`; only its header is read.

    Args:
        wanted: name -> a tensor of the shape and dtype that the file must have under this name.

    Raises:
        FileNotFoundError, ValueError: the file is missing, no plain file, no safetensors, or has other names, shapes
            or dtypes.
    """
    plain_size(path)
    expected = {name: (DTYPES[tensor.dtype], tuple(tensor.shape)) for name, tensor in wanted.items()}
    try:
        with safe_open(path, framework="pt") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
            found = {name: (part.get_dtype(), tuple(part.get_shape())) for name, part in slices.items()}
    except SafetensorError as error:
        raise ValueError(f"{path} is no safetensors file: {_in_one_line(str(error))}") from None
    if found != expected:
        name = sorted(set(expected.items()) ^ set(found.items()))[0][0]
        raise ValueError(
            f"{path} does not fit the model: {_in_one_line(name)} is {_shown(found, name)} there and "
            f"{_shown(expected, name)} here; give the model section the checkpoint's numbers"
        )


def read_tensor(path: Path, name: str) -> Tensor:
    """Read one tensor, on the CPU; the file was checked by `check_tensors_fit`.

    Raises:
        ValueError: the file is cut off, or the tensor holds NaN or infinity.
    """
    return _read(path, [name])[name]


def read_tensors(path: Path, wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Read exactly the tensors `wanted`, on the CPU.

    Raises:
        FileNotFoundError, ValueError: see `check_tensors_fit` and `read_tensor`.
    """
    check_tensors_fit(path, wanted)
    return _read(path, wanted)


def _read(path: Path, names: Iterable[str]) -> dict[str, Tensor]:
    """Tensors by name, all finite; the file is opened once."""
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in names}
    except SafetensorError as error:
        raise ValueError(f"{path} is no safetensors file: {_in_one_line(str(error))}") from None
    if (bad := not_finite(tensors)) is not None:
        raise ValueError(f"{path}: {bad} holds NaN or infinity; take another checkpoint")
    return tensors


def _shown(entries: dict[str, tuple[str, tuple[int, ...]]], name: str) -> str:
    return f"{entries[name][0]} {entries[name][1]}" if name in entries else "missing"


def _in_one_line(text: str) -> str:
    """What a file says of itself may be of any length and hold line breaks and colours of a terminal."""
    return "".join(letter if letter.isprintable() else " " for letter in text[:200])
