"""What a run did, step by step: a file that is only ever appended to and outlives kills, restarts and full disks.

    python -m mmbert.ledger runs/mine/phase1 [--csv steps.csv]      audits it (mmbert/ledger_audit.py)

`run_folder/ledger.jsonl` holds one JSON object a line: a step (the fields of `StepRecord`) or an event, as in
{"event": "start", "attempt": 2, "step": 120, ...}. Rank 0 writes it, under the run's lock; anybody reads it. A restart
goes on from a checkpoint as the next attempt, so a step may stand there more than once: the latest attempt counts.
"""
import json
import logging
import os
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from sys import intern
from typing import Any, NoReturn

from mmbert.atomic import fsync

log = logging.getLogger(__name__)

FILE = "ledger.jsonl"
REMEDY = "restore the file from a copy, or take the line out: the audit then names what it held"
TAIL = 1 << 16  # bytes read at first to find the last line

NUMBER, NOTHING = (float, int), type(None)
STEP_KEYS: dict[str, tuple[type, ...]] = {
    "attempt": (int,),
    "step": (int,),
    "first_row": (int,),
    "num_rows": (int,),
    "tokens": (int,),
    "digest": (int,),
    "streams": (dict,),
    "mask_rate": NUMBER,
    "taus": (dict,),
    "learning_rate": NUMBER,
    "loss": (*NUMBER, NOTHING),
    "skipped": (str, NOTHING),
}
EVENT_KEYS: dict[str, tuple[type, ...]] = {"event": (str,), "attempt": (int,), "step": (int,)}


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(name)


DECODER = json.JSONDecoder(parse_constant=_refuse_constant)  # JSON has neither NaN nor Infinity, Python's does


@dataclass(frozen=True, slots=True)
class StepRecord:
    """One step.

    Attributes:
        attempt: which start of the run did it, from 1 on.
        step: its number, from 1 on.
        first_row, num_rows: its global batch is the rows at positions [first_row, first_row + num_rows) of the phase.
        tokens: the phase's clock after the step.
        digest: sum modulo 2^64 of `row_order.row_hashes` of the global batch.
        streams: tokens of the step by stream, of those that have any.
        taus: by group of the mixture.
        loss: None when it is not finite.
        skipped: why no optimizer step was made; None when one was.
    """

    attempt: int
    step: int
    first_row: int
    num_rows: int
    tokens: int
    digest: int
    streams: dict[str, int]
    mask_rate: float
    taus: dict[str, float]
    learning_rate: float
    loss: float | None
    skipped: str | None

    @property
    def last_row(self) -> int:
        """Position after its last row."""
        return self.first_row + self.num_rows


@dataclass(frozen=True)
class Event:
    """What happened after `step`: start, saved, rolled_back (steps (to_step, step] were undone) and others.

    Attributes:
        values: all other keys of the line.
    """

    name: str
    attempt: int
    step: int
    values: dict[str, Any]


@dataclass(frozen=True)
class RunHistory:
    """A whole ledger; `records` and `events` in the order in which they were written."""

    records: list[StepRecord]
    events: list[Event]

    @cached_property
    def attempts(self) -> list[int]:
        """Numbers of all attempts that left a line, ascending."""
        return sorted({record.attempt for record in self.records} | {event.attempt for event in self.events})

    @cached_property
    def steps(self) -> list[StepRecord]:
        """Every step once, in order: the record of the latest attempt that did it."""
        latest: dict[int, StepRecord] = {}
        for record in self.records:
            if record.step not in latest or latest[record.step].attempt <= record.attempt:
                latest[record.step] = record
        return [latest[step] for step in sorted(latest)]

    @cached_property
    def repeated(self) -> list[tuple[StepRecord, StepRecord]]:
        """Every record that a later one took the place of, and that later one."""
        kept = {record.step: record for record in self.steps}
        return [(record, kept[record.step]) for record in self.records if record is not kept[record.step]]


class Ledger:
    """Appends to the ledger of a run. One process at a time: making one opens the file for writing.

    Nothing is written before `flush`, and a flush that fails can be tried again: its lines are kept.
    """

    def __init__(self, folder: Path) -> None:
        """Find the attempt's number in the file's tail, and cut off what a kill left of a last line.

        Raises:
            ValueError: the last whole line is broken.
        """
        self.path = folder / FILE
        self.attempt = 1
        self._size = 0  # bytes of whole lines; the file holds more only while a flush has failed
        self._failed = False
        self._lines: list[bytes] = []
        if self.path.exists():
            line, self._size = last_line(self.path)
            self.attempt += parse(line, f"{self.path}, last line").attempt if line else 0
            if torn := self.path.stat().st_size - self._size:
                log.warning("%s: cut off %d bytes of a line that was never finished", self.path, torn)
                os.truncate(self.path, self._size)

    def step(self, record: StepRecord) -> None:
        """Note a step of this attempt."""
        assert record.attempt == self.attempt
        self._note(asdict(record))

    def event(self, name: str, values: dict[str, Any]) -> None:
        """Note an event of this attempt.

        Args:
            values: JSON values; `step`, the number of steps done so far, must be among them.
        """
        self._note({"event": name, "attempt": self.attempt, **values})

    def _note(self, values: dict[str, Any]) -> None:
        line = json.dumps(values, separators=(",", ":"), allow_nan=False).encode()
        parse(line, "a new line")  # what could not be read again is never written
        self._lines.append(line + b"\n")

    def flush(self, durable: bool) -> None:
        """Append what was noted since the last flush; with `durable` it is on disk for good when this returns.

        Raises:
            OSError: the disk is full or not writable, or another process changed the file. Nothing of this flush stays
                in the file, everything stays noted.
        """
        content = b"".join(self._lines)
        descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            self._check_end(descriptor)
            self._failed = True  # until the last line of this block
            self._append(descriptor, content, durable)
        finally:
            os.close(descriptor)  # network file systems report a full disk only here
        self._failed = False
        self._size += len(content)
        self._lines.clear()

    def _check_end(self, descriptor: int) -> None:
        """The file must end where the last flush left it; what a failed flush left goes."""
        size = os.fstat(descriptor).st_size
        if self._failed and size > self._size:
            os.ftruncate(descriptor, self._size)
        elif size != self._size:
            raise OSError(
                f"{self.path} holds {size} bytes where this process left {self._size}: another process changed it; "
                "end that one, and start this run again"
            )

    def _append(self, descriptor: int, content: bytes, durable: bool) -> None:
        """Write all of `content`, or nothing."""
        try:
            left = memoryview(content)
            while left:
                left = left[os.write(descriptor, left) :]  # a disk that fills up takes a part and fails at the next
            if durable:
                os.fsync(descriptor)
                fsync(self.path.parent)
        except OSError:
            os.ftruncate(descriptor, self._size)
            raise


def last_line(path: Path) -> tuple[bytes, int]:
    """The last whole line of a file ("" if there is none) and the position after it; reads the file's tail only.

    A line is whole when a newline ends it. NUL bytes are blocks that a power cut kept from the disk: what follows them
    was never synced, and counts as torn too.
    """
    with path.open("rb") as file:
        size, length = file.seek(0, os.SEEK_END), TAIL
        while True:
            start = max(0, size - length)
            file.seek(start)
            tail = file.read(size - start).partition(b"\0")[0]
            end = tail.rfind(b"\n") + 1
            begin = tail.rfind(b"\n", 0, max(0, end - 1)) + 1
            if begin or not start:
                return tail[begin:end], start + end
            length *= 4


def read_ledger(folder: Path) -> RunHistory:
    """Read the ledger of a run; a last line that is not finished, or being written just now, is passed over.

    Raises:
        FileNotFoundError: the run has no ledger.
        ValueError: another line is broken; names the file and the line.
    """
    path = folder / FILE
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: {folder} is no folder of a run, or its training has not begun")
    history = RunHistory([], [])
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.endswith(b"\n"):
                break
            entry = parse(line, f"{path} line {number}")
            if isinstance(entry, StepRecord):
                history.records.append(entry)
            else:
                history.events.append(entry)
    return history


def last_saved_step(folder: Path) -> int | None:
    """The newest step that was saved, by the ledger of a run; None if it has no ledger or nothing was saved.

    Raises:
        ValueError: a line is broken.
    """
    events = read_ledger(folder).events if (folder / FILE).is_file() else []
    return max((event.step for event in events if event.name == "saved"), default=None)


def parse(line: bytes, place: str) -> StepRecord | Event:
    """Read one line.

    Args:
        place: what the error's message begins with.

    Raises:
        ValueError: the line holds something else.
    """
    try:
        values = DECODER.decode(line.decode())
    except (ValueError, RecursionError):
        raise ValueError(f"{place}: no JSON; {REMEDY}") from None
    if not isinstance(values, dict):
        raise ValueError(f"{place}: no JSON object; {REMEDY}")
    if "event" not in values:
        _check(values, STEP_KEYS, place)
        # each name once in memory, not in every step
        values["streams"] = {intern(name): tokens for name, tokens in values["streams"].items()}
        return StepRecord(**values)
    names = ("event", "attempt", "step")
    others = {key: value for key, value in values.items() if key not in names}
    _check({key: values[key] for key in names if key in values}, EVENT_KEYS, place)
    if values["event"] == "rolled_back":
        _check({"to_step": others.get("to_step")}, {"to_step": (int,)}, place)
    return Event(values["event"], values["attempt"], values["step"], others)


def _check(values: dict[str, Any], keys: dict[str, tuple[type, ...]], place: str) -> None:
    """The keys and their types, and that integers are counts: JSON's may be of any size and sign."""
    if values.keys() != keys.keys():
        unlike = ", ".join(sorted(values.keys() ^ keys.keys()))
        raise ValueError(f"{place}: the keys {unlike} are missing or unknown; {REMEDY}")
    for key, kinds in keys.items():
        value = values[key]
        fits = type(value) in kinds
        if fits and kinds == (int,):
            fits = 0 <= value < (1 << 64 if key == "digest" else 1 << 62)
        elif fits and kinds == (dict,):
            allowed = (int,) if key == "streams" else NUMBER
            fits = all(type(item) in allowed and 0 <= item < 1 << 62 for item in value.values())
        if not fits:
            raise ValueError(f"{place}: {key} = {repr(value)[:60]} cannot be; {REMEDY}")


if __name__ == "__main__":
    from mmbert.ledger_audit import main  # here, because the audit imports this module

    main()
