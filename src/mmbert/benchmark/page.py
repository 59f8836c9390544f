"""Write the page of all results from their JSON files; no figure on it is typed by hand."""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmbert.atomic import write_file
from mmbert.benchmark.result import OURS, as_markdown, fact_line, fact_tables, gate_lines, spread, table, unmet
from mmbert.json_files import read_json

HEAD = """# Benchmarks

Written by `python -m mmbert.benchmark page`, from the JSON files beside it; do not edit.

Before anything is timed, all candidates must give the same result on the same input with the same weights: the gates
(of the loader's peers, which mask by other random numbers, as many tokens). Then they take turns in one process, after
a warm-up. Seconds and ratios are medians, with the least and the most in brackets; the ratio of a round compares what
ran within it. Fill is real tokens over computed positions. CPU time counts all threads; a MB is a million bytes of
UTF-8 text. FLOPs are those of matrix products and attention that the real tokens need, so that padding earns nothing.
"""

NO_PEERS = """Not all are peers: `products` is the time of the matrix products alone, which no code for training can go
below; `ours-10` reads the same rows from 10 streams instead of 1,833, `-fresh` on new worker processes, which check
every shard; `one` is one process instead of two."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """The files, and where the page goes."""
    parser.add_argument("files", nargs="+", type=Path, help="what --json wrote")
    parser.add_argument("--output", type=Path, required=True, help="the page to write, Markdown")


def run(options: argparse.Namespace) -> None:
    """Write the page; sections in the order given."""
    documents = {path.stem: read_json(path, "python -m mmbert.benchmark") for path in options.files}
    sections = [section(name, document) for name, document in documents.items()]
    options.output.parent.mkdir(parents=True, exist_ok=True)
    write_file(options.output, "\n".join([HEAD, summary(documents), *sections]).encode())
    print(f"Written: {options.output}")


def summary(documents: Mapping[str, Mapping[str, Any]]) -> str:
    """All peers of all results, in one table: how much faster ours is."""
    rows = [["what", "on", "against", "ours is faster by", "by CPU time", "memory"]]
    for name, document in documents.items():
        machine = document["environment"]["gpu"] or document["environment"]["cpu"]
        peak = {peer: figure["peak_bytes"] for peer, figure in document["candidates"].items() if "peak_bytes" in figure}
        for peer, ratio in document["ratios"].items():
            memory = f"{peak[peer] / peak[OURS]:.1f}x less" if peer in peak else ""
            cells = [spread(ratio, "{:.2f}x"), spread(document["cpu_ratios"][peer], "{:.2f}x"), memory]
            rows.append([f"[{name}](#{name})", machine, peer, *cells])
    return f"## All at a glance\n\n{NO_PEERS}\n\n{as_markdown(rows)}\n"


def section(name: str, document: Mapping[str, Any]) -> str:
    """One result: command, machine, gates, ratios that were missed, table.

    Raises:
        ValueError: the document lacks a part.
    """
    try:
        surroundings = document["environment"]
        gates = [f"- {line}" for line in gate_lines(document)]
        missed = [f"- {sentence}" for sentence in unmet(document)]
        lines = [
            f"## {name}", "", "```", surroundings["command"], "```", "",
            machine_line(surroundings), "",
            f"All candidates: {fact_line(document)}.", "",
            *(["Gates passed:", "", *gates, ""] if gates else []),
            *(["**Asked for and missed:**", "", *missed, ""] if missed else []),
            *(line for rows in (*fact_tables(document), table(document)) for line in (as_markdown(rows), "")),
        ]  # fmt: skip
        lines += [f"- {line}" for line in candidate_lines(document)]
    except KeyError as error:
        raise ValueError(f"{name}.json has no {error}: measure it anew with this version") from None
    return "\n".join(lines) + "\n"


def machine_line(surroundings: Mapping[str, Any]) -> str:
    """Where, when and with what it was measured, in one sentence."""
    cpu = f"{surroundings['cpu']} ({', '.join(surroundings['cpu_features']) or 'no AVX2'})"
    machine = [f"{surroundings['cpus']} CPUs of {cpu}", f"{surroundings['threads']} threads"]
    if surroundings["gpu"]:
        machine.insert(0, surroundings["gpu"])
    versions = " ".join(f"{name} {version}" for name, version in surroundings["versions"].items())
    settings = " ".join(f"{name}={value}" for name, value in surroundings["settings"].items()) or "no settings"
    load = f"load {surroundings['load_average_1_minute']:.1f} before it began"
    return f"{surroundings['date'][:10]}, {', '.join(machine)}, {load}; {versions}; `{settings}`."


def candidate_lines(document: Mapping[str, Any]) -> list[str]:
    """What a candidate's `note` says about how it ran."""
    return [f"{name}: {figure['note']}" for name, figure in document["candidates"].items() if "note" in figure]
