"""Measure against the peers: python -m mmbert.benchmark step|head|data|startup [options]; `page` writes the page.

First the gate: without equal results no time is taken. Then all candidates run in turn in one process, and the table is
printed and, with --json, written. A subcommand is a module with `add_options(parser)` and `run(options) -> dict`, the
document of `mmbert.benchmark.result`; the options below are common to all.
"""

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from mmbert.benchmark import environment, page
from mmbert.benchmark.result import (
    as_text,
    demands,
    fact_line,
    fact_tables,
    gate_lines,
    parse_min_ratio,
    table,
    unmet,
)
from mmbert.command import errors_in_one_line
from mmbert.json_files import write_json

PROGRAM = "python -m mmbert.benchmark"
SUBCOMMANDS = {
    "step": "mmbert.benchmark.step",
    "head": "mmbert.benchmark.head",
    "data": "mmbert.benchmark.loader",
    "startup": "mmbert.benchmark.startup",
    "page": "mmbert.benchmark.page",
}
"""Imported only when called: transformers alone takes seconds."""


def parse_arguments(
    arguments: Sequence[str], program: str = PROGRAM, subcommands: Mapping[str, str] = SUBCOMMANDS
) -> tuple[str, argparse.Namespace]:
    """Name of the subcommand, and its options with the common ones."""
    chooser = argparse.ArgumentParser(prog=program, description=__doc__)
    chooser.add_argument("subcommand", choices=list(subcommands), help="what to measure; each has --help")
    name = chooser.parse_args(arguments[:1]).subcommand
    module = import_module(subcommands[name])
    parser = argparse.ArgumentParser(prog=f"{program} {name}", description=module.__doc__, allow_abbrev=False)
    module.add_options(parser)
    if name != "page":
        add_common_options(parser)
        parser.set_defaults(run=module.run)
    return name, parser.parse_args(arguments[1:])


def add_common_options(parser: argparse.ArgumentParser) -> None:
    """What every measurement has."""
    parser.add_argument("--repetitions", type=int, default=5, help="timed rounds (default: 5)")
    parser.add_argument("--warmup", type=int, default=1, help="rounds before them (default: 1)")
    parser.add_argument("--threads", type=int, help="threads of torch (default: what it takes)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything here")
    parser.add_argument(
        "--min-ratio", action="append", default=[], metavar="PEER=X", help="exit status 1 if ours is not so much faster"
    )
    parser.add_argument(
        "--min-cpu-ratio", action="append", default=[], metavar="PEER=X", help="as --min-ratio, by processor time"
    )


def check_common_options(options: argparse.Namespace) -> None:
    """Refuse what cannot be, and read --min-ratio and --min-cpu-ratio.

    Raises:
        ValueError: names the option, its value and the remedy.
    """
    for name, least in (("repetitions", 1), ("warmup", 0), ("threads", 1)):
        value = getattr(options, name)
        if value is not None and value < least:
            raise ValueError(f"--{name} {value} must be at least {least}")
    options.min_ratio = [parse_min_ratio(text) for text in options.min_ratio]
    options.min_cpu_ratio = [parse_min_ratio(text) for text in options.min_cpu_ratio]


def measure(options: argparse.Namespace, arguments: Sequence[str], program: str = PROGRAM) -> dict[str, Any]:
    """Run the subcommand; its document, completed."""
    check_common_options(options)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    surroundings = environment.describe(arguments, program)  # before the run: the load is the others'
    document = options.run(options)
    surroundings["cpus"] = len(os.sched_getaffinity(0))  # a run may confine itself
    asked = [asdict(demand) for demand in demands(document, options)]
    return {**document, "demands": [*document["demands"], *asked], "environment": surroundings}


def main(
    arguments: Sequence[str] | None = None, program: str = PROGRAM, subcommands: Mapping[str, str] = SUBCOMMANDS
) -> None:
    """Run the program; a mistake of the user, a gate or an unmet demand ends it with one line and exit status 1."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    name, options = parse_arguments(words, program, subcommands)
    with errors_in_one_line():
        if name == "page":
            page.run(options)
            return
        document = measure(options, words, program)
        print(fact_line(document), *gate_lines(document), sep="\n")
        for rows in (*fact_tables(document), table(document)):
            print("", as_text(rows), sep="\n")
        if options.json is not None:
            write_json(options.json, document)
            print(f"Written: {options.json}")
        if sentences := unmet(document):
            raise ValueError("; ".join(sentences))


if __name__ == "__main__":
    main()
