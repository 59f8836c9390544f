"""Triton builds a launcher for each of its kernels on the machine with the GPU, in C."""
import os
import shutil
import sysconfig
from pathlib import Path


def check_c_compiler() -> None:
    """Triton will find what it takes: a compiler, and the headers of this Python.

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
