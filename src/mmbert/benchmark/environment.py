"""What a figure depends on besides the code: machine, versions, settings."""

import os
import platform
import shlex
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

PACKAGES = (
    "mmbert", "torch", "transformers", "numpy", "mosaicml", "mosaicml-streaming", "flash-attn",
    "triton", "tokenizers", "gigatoken", "datatrove", "datasets",
)  # fmt: skip
SETTINGS = (
    "MALLOC_", "GOMP_", "OMP_", "MKL_", "KMP_", "ONEDNN_", "DNNL_", "LD_PRELOAD", "TOKENIZERS_PARALLELISM", "PYTORCH_",
    "CUDA_", "TORCHDYNAMO_", "TORCHINDUCTOR_MAX_AUTOTUNE",
)  # fmt: skip
"""Beginnings of the environment variables that change speed or memory."""
FEATURES = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")


def describe(arguments: Sequence[str], program: str) -> dict[str, Any]:
    """Command line, date and machine, in JSON's types.

    Args:
        arguments: the words after `program`.
    """
    name, features = processor()
    return {
        "command": shlex.join([*program.split(), *arguments]),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "cpu": name,
        "cpu_features": features,
        "cpus": len(os.sched_getaffinity(0)),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "threads": torch.get_num_threads(),
        "load_average_1_minute": os.getloadavg()[0],
        "versions": {"commit": commit(), "python": platform.python_version(), **installed(PACKAGES)},
        "settings": {name: value for name, value in sorted(os.environ.items()) if name.startswith(SETTINGS)},
    }


def processor(cpuinfo: Path = Path("/proc/cpuinfo")) -> tuple[str, list[str]]:
    """Name of the processor and those of FEATURES that it has."""
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    fields = {key.strip(): value.strip() for key, colon, value in (line.partition(":") for line in lines) if colon}
    flags = fields.get("flags", "").split()
    return fields.get("model name", platform.processor()), [feature for feature in FEATURES if feature in flags]


def commit(root: Path = Path(__file__).parent.parent.parent.parent) -> str:
    """The commit of the code that runs, and whether it was changed since; `unknown` outside a checkout."""
    try:
        git = ("git", "-C", str(root))
        head = subprocess.run([*git, "rev-parse", "--short=10", "HEAD"], capture_output=True, text=True, check=True)
        code = [*git, "status", "--porcelain", "--", "src", "data_prep"]
        changed = subprocess.run(code, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return head.stdout.strip() + ("-changed" if changed else "")


def installed(packages: Sequence[str]) -> dict[str, str]:
    """Versions of those packages that are there."""
    found = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
