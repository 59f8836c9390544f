"""Where a run computes: on the CPU, or on the GPUs that torch sees, and what these take besides."""
import os
import shutil
import sysconfig
from pathlib import Path
from typing import Literal

import torch

from mmbert.config import RunConfig

DEVICE_FILES = Path("/dev")
HIDDEN = ("", "-1", "NoDevFiles")  # values of CUDA_VISIBLE_DEVICES that show no GPU; the last one is Slurm's


def device_of(config: RunConfig) -> Literal["cpu", "gpu"]:
    """`auto` is the GPU where torch sees one."""
    if config.device != "auto":
        return config.device
    return "gpu" if torch.cuda.is_available() else "cpu"


def check_device(config: RunConfig) -> None:
    """Refuse a GPU that torch does not see, and the CPU where a GPU lies idle because torch does not see it.

    Raises:
        ValueError: says why torch does not, and what to do.
    """
    remedy = "write device: cpu"
    if config.device == "gpu" and not torch.cuda.is_available():
        raise ValueError(f"device = gpu, but {no_gpu(remedy)}")
    if config.device == "auto":
        check_no_gpu_idles("device = auto: ", remedy)


def check_no_gpu_idles(asked: str, remedy: str) -> None:
    """Refuse to compute on the CPU where a GPU lies idle because torch does not see it.

    Args:
        asked: what leaves the choice to this machine, for the error; may be empty.
        remedy: what chooses the CPU.

    Raises:
        ValueError: says why torch does not, and what to do.
    """
    files = sorted(path.name for path in DEVICE_FILES.glob("nvidia[0-9]*"))
    if files and not torch.cuda.is_available() and os.environ.get("CUDA_VISIBLE_DEVICES") not in HIDDEN:
        raise ValueError(f"{asked}this machine has NVIDIA GPUs ({', '.join(files)}), but {no_gpu(remedy)}")


def no_gpu(remedy: str) -> str:
    """That torch finds none, why, and what to do."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return f"torch finds no GPU here: {why_no_gpu()} (CUDA_VISIBLE_DEVICES is {visible!r}); mend that, or {remedy}"


def why_no_gpu() -> str:
    """Why torch sees none."""
    if torch.version.cuda is None and torch.version.hip is None:
        return (
            f"torch {torch.__version__} was built without CUDA, as PyPI's before 2.11 is for ARM; another one is "
            'installed as docs/operations.md has it, "A newer torch"'
        )
    try:
        torch.cuda.init()
    except RuntimeError as error:
        return str(error).splitlines()[0].rstrip(".")
    return "it does not say why"


def check_c_compiler() -> None:
    """Triton, which builds a launcher for each of its kernels in C, will find a compiler and this Python's headers.

    Raises:
        FileNotFoundError: names what is missing, and the remedy.
    """
    if not (os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")):
        raise FileNotFoundError(
            "no C compiler is found, with which Triton builds launchers for a GPU: install gcc, load it as a module, "
            "or name one in CC"
        )
    header = Path(sysconfig.get_path("include", "posix_prefix")) / "Python.h"
    if not header.is_file():
        raise FileNotFoundError(
            f"{header} is missing, with which Triton builds launchers for a GPU: install Python's headers (Debian: "
            "python3-dev), or make .venv with a Python that has them"
        )
