"""Whether a run read every row of its plan once: its ledger against the plan, computed anew from its newest checkpoint.

    python -m mmbert.ledger runs/mine/phase1 [--csv steps.csv] [--data-root data/shards-1024]

Prints a table, and a line for whatever does not fit; then the exit status is 1.
"""
import argparse
import csv
import io
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmbert.atomic import write_file
from mmbert.checkpoint import newest_checkpoint, read_state
from mmbert.clock import batch_sizes
from mmbert.command import errors_in_one_line
from mmbert.config import RunConfig
from mmbert.data import PhaseData
from mmbert.ledger import RunHistory, Step, read_ledger
from mmbert.masking import UInt64
from mmbert.mixture import Group, Integers
from mmbert.row_order import RowOrder, row_hashes
from mmbert.schedules import BatchSizes
from mmbert.typed import build

SAME = ("first_row", "num_rows", "tokens", "digest")  # of a step, however often it is done
SHOWN = 5  # faults of one kind


@dataclass(frozen=True)
class Saved:
    """The newest checkpoint of a run.

    Attributes:
        state: its state.json.
        config: the run's, as the checkpoint holds it.
    """

    checkpoint: Path
    state: dict[str, Any]
    config: RunConfig

    @classmethod
    def open(cls, folder: Path) -> "Saved":
        """Find and read it.

        Raises:
            FileNotFoundError, ValueError: there is none, all are broken, or the run was imported or merged.
        """
        checkpoint = newest_checkpoint(folder)
        state = read_state(checkpoint)
        if "name" not in state["config"]:  # untrained_run.first_state
            raise ValueError(f"{folder} was imported or merged: it read no rows; name a run that was trained")
        return cls(checkpoint, state, build(RunConfig, state["config"]))


@dataclass(frozen=True)
class Planned:
    """The plan that a checkpoint's configuration and the manifests of its streams give."""

    data: PhaseData
    order: RowOrder
    sizes: BatchSizes

    @classmethod
    def open(cls, saved: Saved, data_root: str | None) -> "Planned":
        """Read the manifests; neither the shards beside them nor the tokenizer need be there any more.

        Args:
            data_root: where the manifests are now, if not where the run read them.

        Raises:
            FileNotFoundError, ValueError: they are not there, or not those of the shards that the run read.
        """
        config, state = saved.config, saved.state
        if data_root is not None:
            config = replace(config, data=config.data.moved_to(data_root), validation=None)
        data = PhaseData.open(config, tokenizer=None)
        for name, digest in data.digests().items():
            if state["identity"].get(f"shards.{name}") != digest:
                raise ValueError(
                    f"data.root = {config.data.root}: {name} is not what {saved.checkpoint} was trained on, so there "
                    "is no plan to compare with; name the folder of those shards with --data-root"
                )
        return cls(data, data.row_order(config), batch_sizes(config))


@dataclass(frozen=True)
class Replay:
    """What the plan gives up to some positions.

    Attributes:
        places: (N, 2) first row and the position after the last, of the steps asked for.
        digests: (N,) of the rows between them.
        seen: (S,) rows of each stream up to the last of the places.
        planned_tokens: by the end of the period in which that lies.
    """

    places: Integers
    digests: UInt64
    seen: Integers
    planned_tokens: int


@dataclass(frozen=True)
class Audit:
    """What an audit found.

    Attributes:
        table: lines for a person, `key  value`.
        faults: empty when nothing is lost or extra.
        lost, doubled: rows in no step up to the checkpoint's last, and in more than one.
        strange: steps with other rows than the plan's; None where they were not compared.
        stream_rows: rows of each stream by the plan, up to the last step; None where it was not looked at.
    """

    table: list[tuple[str, str]]
    faults: list[str]
    lost: int
    doubled: int
    strange: int | None
    stream_rows: dict[str, int] | None


def planned_places(sizes: BatchSizes, steps: Integers) -> Integers:
    """(N, 2) first row and the position after the last of these steps (N,), numbered from 1 on."""
    starts, rows = np.array(sizes.starts, dtype=np.int64), np.array(sizes.sizes, dtype=np.int64)
    before = np.concatenate([[0], np.cumsum(np.diff(starts) // rows[:-1])])  # steps before each size begins
    stage = np.searchsorted(before, steps - 1, side="right") - 1
    first = starts[stage] + (steps - 1 - before[stage]) * rows[stage]
    return np.stack([first, first + rows[stage]], axis=1)


def replay(order: RowOrder, places: Integers) -> Replay:
    """Walk through the plan once, a period at a time."""
    edges = np.unique(places)
    sums = np.zeros(len(edges), dtype=np.uint64)  # of all rows' hashes before each edge
    total = np.zeros(1, dtype=np.uint64)
    plan, end = order.plan, int(edges[-1]) if len(edges) else 0
    seen = np.zeros(len(plan.rows), dtype=np.int64)
    planned_tokens = 0
    for period in plan.periods():
        start, planned_tokens = period.index * plan.period_rows, period.start_tokens
        if start >= end:
            break
        streams, rows = order.rows_of(period)
        hashes = row_hashes(start + np.arange(plan.period_rows), streams.astype(np.int64), rows)
        before = np.concatenate([total, total + np.cumsum(hashes)])  # (period_rows + 1,)
        inside = slice(*np.searchsorted(edges, [start, start + plan.period_rows + 1]))
        sums[inside] = before[edges[inside] - start]
        total = before[-1:]
        seen += np.bincount(streams[: end - start], minlength=len(seen))
    first, last = sums[np.searchsorted(edges, places)].T
    return Replay(places, last - first, seen, planned_tokens)


def few(faults: Iterable[str]) -> list[str]:
    """The first of many faults of one kind, and how many there are."""
    found = list(faults)
    more = [f"... and {len(found) - SHOWN:,} more like the last one"] if len(found) > SHOWN else []
    return found[:SHOWN] + more


def order_faults(history: RunHistory) -> Iterable[str]:
    """Attempts are 1, 2, ...; each does step after step from where it started."""
    starts = {event.attempt: event.step for event in history.events if event.name == "start"}
    for attempt in history.attempts:
        if attempt not in starts:
            yield f"attempt {attempt}: the line of its start is missing"
    if history.attempts != list(range(1, len(history.attempts) + 1)):
        yield f"attempts 1 to {history.attempts[-1]}: only {len(history.attempts)} of them left a line"
    attempt, step = 0, 0
    for record in history.records:
        if record.attempt < attempt:
            yield f"attempt {record.attempt} goes on after attempt {attempt} began: two processes wrote the ledger"
        if record.attempt != attempt:
            attempt, step = record.attempt, starts.get(record.attempt, record.step - 1)
        if record.step != step + 1:
            yield f"attempt {attempt}: step {record.step} follows on step {step}"
        step = record.step


def missing_steps(steps: Integers, saved: int) -> Iterable[str]:
    """Every step up to the last, and to the checkpoint's, is there; `steps` (N,) ascending."""
    ends = np.concatenate([[0], steps, [max([saved, *steps[-1:]]) + 1]])
    for i in np.flatnonzero(np.diff(ends) > 1):
        first, last = ends[i] + 1, ends[i + 1] - 1
        yield f"step {first} is missing" if first == last else f"steps {first} to {last} are missing"


def coverage(steps: Sequence[Step], end: int) -> tuple[int, int]:
    """How many of the rows before `end` were in no step, and how many rows were in more than one."""
    first = np.array([record.first_row for record in steps], dtype=np.int64)
    last = np.array([record.last_row for record in steps], dtype=np.int64)
    edges, change = np.unique(np.concatenate([first, last, [0, end]]), return_inverse=True)
    times = np.zeros(len(edges), dtype=np.int64)
    np.add.at(times, change[: len(first)], 1)
    np.add.at(times, change[len(first) : 2 * len(first)], -1)
    times, lengths = np.cumsum(times)[:-1], np.diff(edges)
    return int(lengths[times == 0].sum()), int(lengths[times > 1].sum())


def place_faults(steps: Sequence[Step], again: Replay) -> Iterable[str]:
    """Every step has the rows that the plan gives it."""
    for record, (first, last), digest in zip(steps, again.places, again.digests, strict=True):
        if (record.first_row, record.last_row) != (first, last):
            yield f"step {record.step} read rows [{record.first_row}, {record.last_row}), its plan is [{first}, {last})"
        elif record.digest != int(digest):
            yield f"step {record.step} read other rows than those that the plan puts at [{first}, {last})"


def differences(history: RunHistory, one: Step, other: Step) -> dict[str, tuple[Any, Any]]:
    """What differs between two records of a step and must not: key -> its two values."""
    values = {key: (getattr(one, key), getattr(other, key)) for key in SAME}
    values["streams"] = (history.streams_of(one), history.streams_of(other))
    return {key: pair for key, pair in values.items() if pair[0] != pair[1]}


def repeat_faults(history: RunHistory) -> Iterable[str]:
    """A step that was done again had the same rows and tokens."""
    for earlier, kept in history.repeated:
        if unlike := differences(history, earlier, kept):
            values = " and ".join(str(value)[:60] for value in next(iter(unlike.values())))
            attempts = f"attempts {earlier.attempt} and {kept.attempt}"
            yield f"step {kept.step}: {attempts} differ in {', '.join(unlike)}: {values}"


def clock_faults(steps: Sequence[Step], saved: Saved) -> Iterable[str]:
    """Every step moves the clock by its own tokens, and at the checkpoint it shows the checkpoint's."""
    tokens, step = 0, 0
    for record in steps:
        moved, own = record.tokens - tokens, record.stream_tokens
        if record.step == step + 1 and moved != own:
            yield f"step {record.step}: the clock moved by {moved:,} tokens, its streams have {own:,}"
        if record.step == saved.state["step"]:
            for key, value in (("tokens", record.tokens), ("rows", record.last_row)):
                if value != saved.state[key]:
                    yield f"step {record.step}: {value:,} {key} so far, {saved.checkpoint} has {saved.state[key]:,}"
        tokens, step = record.tokens, record.step


def stream_faults(history: RunHistory, saved: Saved) -> Iterable[str]:
    """The tokens of each stream sum to the checkpoint's."""
    sums, kept = history.tokens_per_stream(saved.state["step"]), saved.state["tokens_per_stream"]
    for name in sorted(sums.keys() | kept.keys()):
        if sums.get(name, 0) != kept.get(name, 0):
            yield f"{name}: its steps sum to {sums.get(name, 0):,} tokens, {saved.checkpoint} has {kept.get(name, 0):,}"


def extra_rows(group: Group, rows: Integers, seen: Integers, overshoot: float) -> Integers:
    """(members,) rows seen more often than `max_repeats` allows: so many passes over a language's rows, or 1.2 of them.

    Rounding to rows may give one more, and the last step, which ends after the phase's duration, its part.

    Args:
        overshoot: planned tokens / duration.
    """
    if group.max_repeats is None:
        return np.zeros(len(group.members), dtype=np.int64)
    allowed = np.ceil(group.max_repeats * rows[group.members] * max(1.0, overshoot)).astype(np.int64) + 1
    return np.maximum(seen[group.members] - allowed, 0)


def extra_faults(planned: Planned, again: Replay) -> Iterable[str]:
    """No stream is read more often than its group allows."""
    plan = planned.order.plan
    for group in plan.groups:
        extra = extra_rows(group, plan.rows, again.seen, again.planned_tokens / plan.duration)
        for stream, rows in zip(group.members, extra, strict=True):
            if rows:
                yield f"{planned.data.names[stream]}: {rows:,} rows more than max_repeats = {group.max_repeats} allows"


def rolled_back(history: RunHistory) -> NDArray[np.bool_]:
    """(steps,) whether the step was undone by a rollback that stands: no later attempt began before it."""
    steps = np.array([record.step for record in history.steps], dtype=np.int64)
    undone = np.zeros(len(steps), dtype=bool)
    for event in history.standing("rolled_back"):
        undone |= (steps > event.values["to_step"]) & (steps <= event.step)
    return undone


def describe_repeats(history: RunHistory) -> str:
    """How many steps were done again, and how like their first time."""
    again = len({kept.step for _, kept in history.repeated})
    unlike = len({kept.step for earlier, kept in history.repeated if differences(history, earlier, kept)})
    losses = [(one.loss, kept.loss) for one, kept in history.repeated if one.loss != kept.loss]
    largest = max((abs(one - kept) for one, kept in losses if one is not None and kept is not None), default=0.0)
    rows = f"{unlike:,} with other rows or tokens" if unlike else "with the same rows and tokens"
    last_bits = f", by {largest:.2g} at most" if losses else ""
    return f"{again:,}" + (f", {rows}; losses that differ: {len(losses):,}{last_bits}" if again else "")


def audit(folder: Path, data_root: str | None = None) -> Audit:
    """Compare a run's ledger with its plan and its newest checkpoint.

    Args:
        data_root: where the shards are now, if not where the run read them.

    Raises:
        FileNotFoundError, ValueError: the ledger, a checkpoint or the shards are missing, broken, or of another run.
    """
    saved = Saved.open(folder)
    planned = Planned.open(saved, data_root)
    history = read_ledger(folder)  # after the checkpoint: a run that goes on writes its ledger before each checkpoint
    return compare(history, saved, planned)


def compare(history: RunHistory, saved: Saved, planned: Planned | None) -> Audit:
    """Compare a ledger with a checkpoint of its run, and with the plan where that is known."""
    steps = np.array([record.step for record in history.steps], dtype=np.int64)
    lost, doubled = coverage(history.steps, saved.state["rows"])
    faults = [
        *few(order_faults(history)),
        *few(missing_steps(steps, saved.state["step"])),
        *few(repeat_faults(history)),
        *few(clock_faults(history.steps, saved)),
        *few(stream_faults(history, saved)),
    ]
    skipped = Counter(record.skipped for record in history.steps if record.skipped is not None)
    reasons = "".join(f"; {number:,} {reason}" for reason, number in skipped.most_common())
    table = [
        ("attempts", f"{len(history.attempts):,}"),
        ("steps", f"{len(steps):,}, the checkpoint after step {saved.state['step']:,}"),
        ("rows", f"{sum(record.num_rows for record in history.steps):,}"),
        ("steps done more than once", describe_repeats(history)),
        ("rows lost", f"{lost:,}"),
        ("rows seen more often than planned", f"{doubled:,}"),
        ("steps without an update", f"{sum(skipped.values()):,}{reasons}"),
        ("steps rolled back", f"{int(rolled_back(history).sum()):,}"),
    ]
    if planned is None:  # which would name the steps
        counts = ((lost, "are in no step"), (doubled, "were read more than once"))
        faults += [f"{number:,} rows {what}" for number, what in counts if number]
        return Audit(table, faults, lost, doubled, None, None)
    # Steps beyond stand behind missing ones; the plan is not walked to a number that a broken disk made.
    near = steps[steps <= saved.state["step"] + len(steps)]
    again = replay(planned.order, planned_places(planned.sizes, near))
    strange = list(place_faults(history.steps[: len(near)], again))
    faults += [*few(strange), *few(extra_faults(planned, again))]
    table += [("steps with other rows than planned", f"{len(strange):,}"), *repeat_lines(planned, again)]
    stream_rows = dict(zip(planned.data.names, again.seen.tolist(), strict=True))
    return Audit(table, faults, lost, doubled, len(strange), stream_rows)


def repeat_lines(planned: Planned, again: Replay) -> Iterable[tuple[str, str]]:
    """A line for each group: its most repeated language."""
    for group in planned.data.groups:
        times = again.seen[group.members] / planned.order.plan.rows[group.members]
        stream = group.members[times.argmax()]
        limit = "no limit" if group.max_repeats is None else f"max_repeats {group.max_repeats:g}"
        yield f"largest repeats of {group.name}", f"{times.max():.2f} of {planned.data.names[stream]}, {limit}"


def write_csv(history: RunHistory, path: Path) -> None:
    """Write the metrics, one line a step, in order."""
    groups = sorted({name for record in history.steps for name in record.taus})
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    columns = ("step", "attempt", "first_row", "num_rows", "tokens", "loss", "learning_rate", "mask_rate", "skipped")
    writer.writerow([*columns, "rolled_back", *(f"tau/{group}" for group in groups)])
    for record, undone in zip(history.steps, rolled_back(history), strict=True):
        taus = [record.taus.get(group) for group in groups]
        writer.writerow([*(getattr(record, column) for column in columns), int(undone), *taus])
    path.parent.mkdir(parents=True, exist_ok=True)
    write_file(path, text.getvalue().encode())


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the program."""
    parser = argparse.ArgumentParser(
        prog="python -m mmbert.ledger", description="Check that a run lost no row and read none twice."
    )
    parser.add_argument("run_folder", type=Path, help="folder of a run: run_root/name")
    parser.add_argument("--csv", type=Path, help="file to write: the metrics, one line a step")
    parser.add_argument("--data-root", help="folder of the shards, if they were moved")
    options = parser.parse_args(arguments)
    with errors_in_one_line():
        if options.csv is not None:
            write_csv(read_ledger(options.run_folder), options.csv)
        found = audit(options.run_folder, options.data_root)
    width = max(len(key) for key, _ in found.table)
    for key, value in found.table:
        print(f"{key:<{width}}  {value}")
    for fault in found.faults:
        print(f"fault: {fault}")
    if found.faults:
        sys.exit(1)
    print("nothing lost, nothing extra")
