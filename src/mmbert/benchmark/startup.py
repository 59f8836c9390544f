"""What it costs to start: processor time of imports in fresh processes, ours against what they cannot do without."""
import argparse
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

from mmbert.benchmark.result import OURS, check_peers, document
from mmbert.benchmark.timing import measure

IMPORTS = {
    "composer": "composer",
    OURS: "callbacks, mmbert.trainer",
    "torch": "torch",
    "transformers": "transformers",
    "streaming": "streaming",
    "convert_to_hf": "mmbert.convert_to_hf",
    "bits_per_byte": "mmbert.evaluation.bits_per_byte",
    "prepare": "data_prep.prepare",
}
"""Name -> what is imported; OURS is what main.py does before it reads its YAML."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """None of its own."""


def start(modules: str) -> None:
    """Import modules in a new process.

    Raises:
        CalledProcessError: it cannot.
    """
    subprocess.run([sys.executable, "-c", f"import {modules}"], check=True, capture_output=True)


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Start a process for each of IMPORTS, in turn."""
    check_peers(options, [])
    calls: dict[str, Callable[[], object]] = {name: partial(start, modules) for name, modules in IMPORTS.items()}
    samples = measure(calls, options.repetitions, options.warmup)
    notes = {name: {"note": f"import {modules}"} for name, modules in IMPORTS.items()}
    result = document("startup", samples, 1, [], {"each": "imports in a new process"}, notes)
    for figure in result["candidates"].values():
        del figure["tokens_per_second"], figure["tokens_per_cpu_second"]
    return {**result, "ratios": {}, "cpu_ratios": {}}  # they are no peers
