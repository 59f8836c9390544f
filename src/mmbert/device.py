"""Where a run computes: on the CPU, or on the GPUs that torch sees."""
import os
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
    if torch.cuda.is_available():
        return
    if config.device == "gpu":
        raise ValueError(f"device = gpu, but torch finds no GPU here: {why_no_gpu()}, or write device: cpu")
    files = sorted(path.name for path in DEVICE_FILES.glob("nvidia[0-9]*"))
    if config.device == "auto" and files and os.environ.get("CUDA_VISIBLE_DEVICES") not in HIDDEN:
        raise ValueError(
            f"device = auto: this machine has NVIDIA GPUs ({', '.join(files)}), but torch finds none: {why_no_gpu()}, "
            "or write device: cpu"
        )


def why_no_gpu() -> str:
    """Why torch sees none, and the remedy."""
    if torch.version.cuda is None and torch.version.hip is None:
        return (
            f"torch {torch.__version__} was built without CUDA, as PyPI's before 2.11 is for ARM; install another "
            '(docs/operations.md, "A newer torch")'
        )
    try:
        torch.cuda.init()
    except RuntimeError as error:
        return f"{str(error).splitlines()[0].rstrip('.')}; mend that"
    return f"CUDA_VISIBLE_DEVICES is {os.environ.get('CUDA_VISIBLE_DEVICES')!r}; let it name one"
