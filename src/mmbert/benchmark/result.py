"""The common shape of a benchmark's result: gates before the timing, figures after it, one table, one JSON document."""

from argparse import Namespace
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from mmbert.benchmark.timing import Sample, Spread, ratio

OURS = "ours"
"""Name of our own candidate; all others are peers."""


@dataclass(frozen=True)
class Gate:
    """A condition without which no time is taken.

    Attributes:
        name: what was compared with what.
        value: how far it is off.
        limit: the most that passes; NaN never does.
    """

    name: str
    value: float
    limit: float

    @property
    def passed(self) -> bool:
        """Whether `value` is within `limit`."""
        return self.value <= self.limit


@dataclass(frozen=True)
class Demand:
    """What the user asks of a figure; looked at after everything was printed and written."""

    name: str
    value: float
    at_least: float


def check_gates(gates: Sequence[Gate]) -> None:
    """Raise ValueError if any gate is not passed; nothing may be timed then."""
    failed = [f"{gate.name}: {gate.value:.2e}, more than {gate.limit:g}" for gate in gates if not gate.passed]
    if failed:
        raise ValueError(f"gate not passed, nothing was timed: {'; '.join(failed)}")


def parse_min_ratio(text: str) -> tuple[str, float]:
    """`hf-tuned=1.5`: the peer, and the least that ours must be against it.

    Raises:
        ValueError: it is not of this form.
    """
    peer, _, number = text.partition("=")
    try:
        least = float(number)
    except ValueError:
        least = -1.0
    if not peer or not least > 0.0:
        raise ValueError(f"--min-ratio {text!r} must name a peer and a number above 0: --min-ratio hf-tuned=1.5")
    return peer, least


def check_peers(options: Namespace, peers: Iterable[str]) -> None:
    """Raise ValueError if --min-ratio or --min-cpu-ratio names a peer that does not run; before anything is timed."""
    known = list(peers)
    for option, wanted in (("--min-ratio", options.min_ratio), ("--min-cpu-ratio", options.min_cpu_ratio)):
        for peer, least in wanted:
            if peer not in known:
                raise ValueError(f"{option} {peer}={least:g}: no such peer here, choose from {', '.join(known)}")


def document(
    kind: str,
    samples: Mapping[str, Sequence[Sample]],
    tokens: int | Mapping[str, int],
    gates: Sequence[Gate],
    facts: Mapping[str, Any],
    candidate_facts: Mapping[str, Mapping[str, Any]] | None = None,
) -> dict[str, Any]:
    """The JSON document of one benchmark, but for command, date and machine, which `__main__` adds.

    Args:
        kind: name of the subcommand.
        samples: candidate -> its runs, OURS among them.
        tokens: what a run gets through; by candidate where they differ.
        gates: all of them, passed.
        facts: what holds for all candidates (shapes, precision, FLOPs).
        candidate_facts: candidate -> what holds for it alone: `fill`, `peak_bytes`, `mfu`, anything.
    """
    speeds = {name: throughput(runs, _of(tokens, name)) for name, runs in samples.items()}
    by_cpu = {name: [_of(tokens, name) / max(run.cpu, 1e-6) for run in runs] for name, runs in samples.items()}
    peers = [name for name in samples if name != OURS]
    return {
        "kind": kind,
        "facts": dict(facts),
        "gates": [asdict(gate) for gate in gates],
        "candidates": {
            name: {**figures(runs, _of(tokens, name)), **(candidate_facts or {}).get(name, {})}
            for name, runs in samples.items()
        },
        "ratios": {peer: asdict(ratio(speeds[OURS], speeds[peer])) for peer in peers},
        "cpu_ratios": {peer: asdict(ratio(by_cpu[OURS], by_cpu[peer])) for peer in peers},
        "demands": [],
    }


def _of(tokens: int | Mapping[str, int], name: str) -> int:
    return tokens if isinstance(tokens, int) else tokens[name]


def throughput(samples: Sequence[Sample], tokens: int) -> list[float]:
    """Tokens per second on the clock, of each run."""
    return [tokens / sample.wall for sample in samples]


def figures(samples: Sequence[Sample], tokens: int) -> dict[str, Any]:
    """What the runs of one candidate give; seconds, and tokens per median second."""
    wall, cpu = [sample.wall for sample in samples], [sample.cpu for sample in samples]
    on_clock, on_cpu = Spread.of(wall), Spread.of(cpu)
    return {
        "tokens": tokens,
        "wall_seconds": wall,
        "cpu_seconds": cpu,
        "wall": asdict(on_clock),
        "cpu": asdict(on_cpu),
        "tokens_per_second": tokens / on_clock.median,
        "tokens_per_cpu_second": tokens / max(on_cpu.median, 1e-6),
    }


def demands(document: Mapping[str, Any], options: Namespace) -> list[Demand]:
    """What --min-ratio and --min-cpu-ratio ask of a finished document."""
    asked = [
        ("throughput of ours", document["ratios"], options.min_ratio),
        ("tokens per CPU second, ours", document["cpu_ratios"], options.min_cpu_ratio),
    ]
    return [Demand(f"{what} / {peer}", ratios[peer]["median"], x) for what, ratios, least in asked for peer, x in least]


def unmet(document: Mapping[str, Any]) -> list[str]:
    """A sentence for each demand that the figures do not meet."""
    return [
        f"{demand['name']} is {demand['value']:.3f}, below {demand['at_least']:g}"
        for demand in document["demands"]
        if not demand["value"] >= demand["at_least"]
    ]


def table(document: Mapping[str, Any]) -> list[list[str]]:
    """The figures as cells, a line of headings first; columns that no candidate has are left out."""
    columns = {
        "candidate": lambda name, _: name,
        "wall s": lambda _, figure: spread(figure["wall"], "{:.3f}"),
        "CPU s": lambda _, figure: spread(figure["cpu"], "{:.3f}"),
        "tokens/s": lambda _, figure: f"{figure['tokens_per_second']:,.0f}",
        "tokens/CPU s": lambda _, figure: f"{figure['tokens_per_cpu_second']:,.0f}",
        "CPU s/MB": lambda _, figure: f"{figure['cpu']['median'] / figure['megabytes']:.3f}",
        "fill": lambda _, figure: f"{figure['fill']:.3f}",
        "GFLOP/s": lambda _, figure: f"{figure['flops_per_second'] / 1e9:,.1f}",
        "MFU": lambda _, figure: f"{figure['mfu']:.1%}",
        "peak MB": lambda _, figure: f"{figure['peak_bytes'] / 1e6:,.0f}",
        "ours is faster by": lambda name, _: spread(document["ratios"][name], "{:.2f}x"),
        "by CPU time": lambda name, _: spread(document["cpu_ratios"][name], "{:.2f}x"),
    }

    def cell(name: str, figure: Mapping[str, Any], column: str) -> str:
        try:
            return columns[column](name, figure)
        except KeyError:  # a figure that this candidate, or this kind of benchmark, does not have
            return ""

    rows = [[cell(name, figure, column) for column in columns] for name, figure in document["candidates"].items()]
    kept = [index for index in range(len(columns)) if any(row[index] for row in rows)]
    return [[list(columns)[index] for index in kept], *([row[index] for index in kept] for row in rows)]


def spread(found: Mapping[str, float], form: str) -> str:
    """The median, and in brackets the least and the most."""
    least, middle, most = (form.format(found[key]) for key in ("min", "median", "max"))
    return f"{middle} ({least} to {most})"


def as_text(rows: Sequence[Sequence[str]]) -> str:
    """The table for a terminal, columns aligned."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join("  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in rows)


def as_markdown(rows: Sequence[Sequence[str]]) -> str:
    """The table for a page."""
    lines = [rows[0], ["---"] * len(rows[0]), *rows[1:]]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def gate_lines(document: Mapping[str, Any]) -> list[str]:
    """A line for each gate."""
    return [f"{gate['name']}: {gate['value']:.1e}, at most {gate['limit']:g}" for gate in document["gates"]]


def fact_line(document: Mapping[str, Any]) -> str:
    """What holds for all candidates, in one line, but for what takes a table."""
    plain = {key: value for key, value in document["facts"].items() if not isinstance(value, Mapping)}
    return ", ".join(f"{_words(key)} {_plain(value)}" for key, value in plain.items())


def fact_tables(document: Mapping[str, Any]) -> list[list[list[str]]]:
    """A table for each fact that is a mapping of mappings: a line for each outer key, a column for each inner one."""
    return [
        [[_words(key), *next(iter(rows.values()))], *([name, *map(_plain, row.values())] for name, row in rows.items())]
        for key, rows in document["facts"].items()
        if isinstance(rows, Mapping)
    ]


def _words(key: str) -> str:
    return key.replace("_", " ")


def _plain(value: object) -> str:
    return f"{value:,.6g}" if isinstance(value, float) else f"{value:,}" if type(value) is int else str(value)
