"""What it costs to start: processor time of imports in fresh processes, ours against what they cannot do without."""
import argparse
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

from mmbert.benchmark.result import OURS, check_peers, document
from mmbert.benchmark.timing import measure

STARTS = {
    "composer": "import composer",
    OURS: "from mmbert.command import lasting_imports\nwith lasting_imports(): import callbacks, mmbert.trainer",
    "torch": "import torch",
    "transformers": "import transformers",
    "streaming": "import streaming",
    "convert_to_hf": "import mmbert.convert_to_hf",
    "bits_per_byte": "import mmbert.evaluation.bits_per_byte",
    "prepare": "import data_prep.prepare",
}
"""Name -> a program that imports and ends; OURS is what main.py does before it reads its YAML."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """None of its own."""


def start(program: str) -> None:
    """Run a program in a new process.

    Raises:
        CalledProcessError: it cannot.
    """
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Start a process for each of STARTS, in turn."""
    check_peers(options, [])
    calls: dict[str, Callable[[], object]] = {name: partial(start, each) for name, each in STARTS.items()}
    samples = measure(calls, options.repetitions, options.warmup)
    notes = {name: {"note": program.replace("\n", "; ")} for name, program in STARTS.items()}
    result = document("startup", samples, 1, [], {"each": "imports in a new process that then ends"}, notes)
    for figure in result["candidates"].values():
        del figure["tokens_per_second"], figure["tokens_per_cpu_second"]
    return {**result, "ratios": {}, "cpu_ratios": {}}  # they are no peers
