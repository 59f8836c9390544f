"""The loader, from MDS shards to masked microbatches, against ModernBERT's packer and Hugging Face's collator.

Ours is the real path on worker processes: `build_data`, then `mask_batch` and `Microbatches` as in training. It is
timed with all shards checked, as they are for most of a run: `ours` has the largest number of streams of --streams,
`ours-N` has N. `ours-N-fresh` starts its workers anew in every run, and they check every shard they meet. All hold the
same rows; the peers read the same documents, one a sample, from one folder, without worker processes. Processor time
counts this process, its living workers and those that ended. A batch of ours has as many microbatches as a step of the
recipe accumulates on each of eight GPUs; with --microbatches 1 what a batch costs whatever its size weighs most.

Two hardware threads of one core slow each other, and ours alone runs on several. So the wall time of a run on all of
them says how fast the loader is, and the processor time of one with --one-cpu how much it takes.
"""
import argparse
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from functools import partial
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from mmbert.benchmark.checkout import load_module
from mmbert.benchmark.loader_costs import PERIOD_ROWS, costs_by_part, row_order_seconds, start_up
from mmbert.benchmark.loader_ours import MaskedBatch, Ours, gates_of_ours, processor_seconds, run_through
from mmbert.benchmark.loader_peers import HUGGING_FACE, PACKER, Peers
from mmbert.benchmark.result import OURS, check_gates, check_peers, document
from mmbert.benchmark.synthetic_rows import (
    MASK_RATE,
    Shape,
    documents_of,
    make_rows,
    make_tokenizer,
    write_documents,
    write_streams,
)
from mmbert.benchmark.timing import Sample, measure
from mmbert.packing import Row
from mmbert.processes import no_child_outlives

STEP_TOKENS_PER_SECOND = 847_000.0
"""Of mmBERT-small at 1,024 tokens and 40 % of one H100's peak: the fastest step that the loader must feed."""
WAIT_BATCHES = 12


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--row-length", type=int, default=1024, help="most tokens in a row (default: 1024)")
    parser.add_argument("--rows", type=int, default=48, help="rows of a microbatch (default: 48)")
    parser.add_argument("--microbatches", type=int, default=12, help="of a batch of ours (default: 12)")
    parser.add_argument("--batches", type=int, default=192, help="microbatches of a pass over all rows (default: 192)")
    parser.add_argument("--workers", type=int, default=2, help="loader processes of ours (default: 2)")
    parser.add_argument("--one-cpu", action="store_true", help="run all on one hardware thread")
    parser.add_argument("--streams", default="10,1833", help="numbers of streams, ascending (default: 10,1833)")
    parser.add_argument("--vocab-size", type=int, default=256_000, help="of the tokenizer (default: 256000)")
    parser.add_argument("--modernbert", type=Path, metavar="PATH", help="checkout of ModernBERT (default: left out)")


def parse_streams(text: str) -> list[int]:
    """`10,1833`, ascending."""
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if not numbers or numbers != sorted(set(numbers)) or numbers[0] < 1:
        raise ValueError(f"--streams {text!r} must be ascending numbers from 1 on, as in 10,1833")
    return numbers


def check_options(options: argparse.Namespace) -> tuple[Shape, list[int]]:
    """What is to be read, and from how many streams.

    Raises:
        ValueError: names the option, its value and the remedy.
    """
    least = {"row_length": 16, "rows": 1, "microbatches": 1, "batches": 2, "workers": 0, "vocab_size": 64}
    for name, number in least.items():
        if getattr(options, name) < number:
            raise ValueError(f"--{name.replace('_', '-')} {getattr(options, name)} must be at least {number}")
    if options.batches % options.microbatches:
        raise ValueError(f"--batches {options.batches} must be a multiple of --microbatches {options.microbatches}")
    streams = parse_streams(options.streams)
    shape = Shape(options.row_length, options.rows, options.batches, options.vocab_size, options.microbatches)
    if shape.total_rows < streams[-1]:
        raise ValueError(f"--streams {streams[-1]}: only {shape.total_rows} rows; raise --batches or --rows")
    return shape, streams


def data_wait(loaded: Iterator[MaskedBatch], step_seconds: float) -> float:
    """Share of the time in which a step of so many seconds, during which this process sleeps, waits for data."""
    waited, began = 0.0, time.perf_counter()
    for batch, _ in islice(loaded, WAIT_BATCHES):
        waited += batch["seconds_waited"]
        time.sleep(step_seconds)
    return waited / (time.perf_counter() - began)


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Write the rows, pass the gates, measure."""
    shape, streams = check_options(options)
    if options.one_cpu:
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    names = names_of(streams, options.modernbert is not None)
    check_peers(options, names)
    packer = load_module(options.modernbert, "sequence_packer") if options.modernbert else None
    with TemporaryDirectory(prefix="mmbert-benchmark-") as temporary, no_child_outlives():
        folder = Path(temporary)
        tokenizer = make_tokenizer(folder / "tokenizer", shape.vocab_size)
        rows = make_rows(shape, tokenizer)
        write_documents(folder / "documents", documents_of(rows))
        ours = {}
        for number in streams:
            root = folder / f"streams-{number}"
            write_streams(root, rows, number, shape, tokenizer)
            ours[number] = Ours.over(root, number, shape, tokenizer, options.workers)
        peers = Peers(folder / "documents", tokenizer, shape, packer)
        tokens = sum(len(row.input_ids) for row in rows)
        gates = [gate for n in streams for gate in gates_of_ours(ours[n], n, rows, shape.steps)]
        gates += peers.gates(tokens)
        check_gates(gates)
        samples, wait = measure_all(options, shape, ours, peers)
        facts = {**facts_of(shape, rows), "workers": options.workers, **wait, **costs(ours, shape)}
        every = {name: peers.tokens.get(name, tokens) for name in samples}
        every |= {name: tokens * shape.microbatches for name in samples if name in lasting_names(streams)}
        return document("data", samples, every, gates, facts, peers.facts)


def lasting_names(streams: Sequence[int]) -> list[str]:
    """Candidates whose workers live on between runs: a run makes many passes.

    For at its end some batches are on their way, which the next run finds ready: they must be few among its batches.
    """
    return [OURS, *(f"{OURS}-{number}" for number in reversed(streams[:-1]))]


def names_of(streams: Sequence[int], with_packer: bool) -> list[str]:
    """All candidates but OURS itself, which has the most streams."""
    ours = [*lasting_names(streams)[1:], f"{OURS}-{streams[0]}-fresh"]
    return [*ours, *([PACKER] if with_packer else []), *HUGGING_FACE]


def measure_all(
    options: argparse.Namespace, shape: Shape, ours: Mapping[int, Ours], peers: Peers
) -> tuple[dict[str, list[Sample]], dict[str, float]]:
    """The data wait beside a step, and the timed rounds."""
    candidates: dict[str, Callable[[], object]] = {}
    with ExitStack() as stack:
        for number in sorted(ours, reverse=True):
            loaded = stack.enter_context(closing(ours[number].with_period(PERIOD_ROWS).batches(checked=True)))
            next(loaded)
            name = OURS if number == max(ours) else f"{OURS}-{number}"
            candidates[name] = partial(run_through, loaded, shape.batches)
            if name == OURS:
                step = shape.rows * shape.microbatches * shape.row_length / STEP_TOKENS_PER_SECOND
                wait = {"step_seconds": step, "data_wait_share": data_wait(loaded, step)}
        fresh = ours[min(ours)].with_period(PERIOD_ROWS)
        candidates[f"{OURS}-{min(ours)}-fresh"] = partial(fresh.whole_pass, shape.steps)
        candidates |= peers.candidates()
        assert list(candidates) == [OURS, *names_of(sorted(ours), peers.packer is not None)]
        return measure(candidates, options.repetitions, options.warmup, cpu=processor_seconds), wait


def facts_of(shape: Shape, rows: Sequence[Row]) -> dict[str, Any]:
    """What was read."""
    tokens = sum(len(row.input_ids) for row in rows)
    return {
        "rows": shape.total_rows,
        "row_length": shape.row_length,
        "rows_of_a_microbatch": shape.rows,
        "microbatches_of_a_batch": shape.microbatches,
        "documents": sum(len(row.lengths) for row in rows),
        "row_fill": tokens / (shape.total_rows * shape.row_length),
        "vocab_size": shape.vocab_size,
        "mask_rate": MASK_RATE,
    }


def costs(ours: Mapping[int, Ours], shape: Shape) -> dict[str, Any]:
    """Where our time goes: nanoseconds a token of every part, and seconds of the start."""
    seconds = {f"{number} streams": costs_by_part(ours[number], shape.steps) for number in ours}
    parts = next(iter(seconds.values()))
    many = max(ours)
    starting = start_up(ours[many].with_period(PERIOD_ROWS))
    return {
        "ns_per_token": {part: {at: 1e9 * by_part[part] for at, by_part in seconds.items()} for part in parts},
        **{f"start_up_{part}_seconds": value for part, value in starting.items()},
        "full_period_order_seconds": row_order_seconds(many, shape.row_length),
    }
