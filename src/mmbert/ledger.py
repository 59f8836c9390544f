"""What a run did, step by step: a file that is only ever appended to and outlives kills, restarts and full disks.

    python -m mmbert.ledger runs/mine/phase1 [--csv steps.csv]      audits it (mmbert/ledger_audit.py)

`run_folder/ledger.jsonl` holds one JSON object a line: a step (the fields of `StepRecord`) or an event, as in
{"event": "start", "attempt": 2, "step": 120, ...}. Rank 0 writes it, under the run's lock; anybody reads it. A restart
goes on from a checkpoint as the next attempt, so a step may stand there more than once: the latest attempt counts.

The file grows to gigabytes, mostly what each step had of every stream. So it is read a line at a time, and what is kept
of a line leaves its streams in the file (`Step`, `Event`, `RunHistory.streams_of`).
"""
import json
import logging
import os
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from mmbert.atomic import fsync
from mmbert.ledger_lines import STEP_KEYS, Event, StepNumbers, StepRecord, parse

log = logging.getLogger(__name__)

FILE = "ledger.jsonl"
TAIL = 1 << 16  # bytes read at first to find the last line


@dataclass(frozen=True, slots=True)
class Step(StepNumbers):
    """What is kept of a step in memory.

    Attributes:
        stream_tokens: sum over its streams.
        place: of its line in the file, in bytes.
    """

    stream_tokens: int
    place: int = field(default=-1, compare=False)

    @classmethod
    def of(cls, record: StepRecord, place: int = -1) -> "Step":
        """Sum up a record's streams."""
        same: dict[str, Any] = {key: getattr(record, key) for key in STEP_KEYS if key != "streams"}
        return cls(**same, stream_tokens=sum(record.streams.values()), place=place)


@dataclass(frozen=True)
class RunHistory:
    """A whole ledger but for its streams; `records` and `events` in the order in which they were written.

    Attributes:
        written_tokens: of every stream, summed over all lines, also those of steps that were done again.
        path: of the file.
    """

    records: list[Step]
    events: list[Event]
    written_tokens: dict[str, int] = field(default_factory=dict, compare=False)
    path: Path = field(default=Path(FILE), compare=False)

    @cached_property
    def attempts(self) -> list[int]:
        """Numbers of all attempts that left a line, ascending."""
        return sorted({record.attempt for record in self.records} | {event.attempt for event in self.events})

    @cached_property
    def steps(self) -> list[Step]:
        """Every step once, in order: the record of the latest attempt that did it, up to where the last attempt is.

        What an earlier one did beyond that is lost, and will be done again.
        """
        entries: list[Step | Event] = [*self.records, *self.events]
        reached = max((entry.step for entry in entries if entry.attempt == self.attempts[-1]), default=0)
        latest: dict[int, Step] = {}
        for record in self.records:
            if record.step not in latest or latest[record.step].attempt <= record.attempt:
                latest[record.step] = record
        return [latest[step] for step in sorted(latest) if step <= reached]

    @cached_property
    def repeated(self) -> list[tuple[Step, Step]]:
        """Every record that a later one took the place of, and that later one."""
        kept = {record.step: record for record in self.steps}
        pairs = [(record, kept[record.step]) for record in self.records if record.step in kept]
        return [(record, later) for record, later in pairs if record is not later]

    def standing(self, name: str) -> list[Event]:
        """The events of this name, without those that a later attempt, which began before them, made void."""
        starts = [event for event in self.events if event.name == "start"]
        voided = {attempt: [s.step for s in starts if s.attempt > attempt] for attempt in self.attempts}
        return [
            event
            for event in self.events
            if event.name == name and event.step <= min(voided[event.attempt], default=event.step)
        ]

    def streams_of(self, entry: Step | Event) -> dict[str, Any]:
        """What the line says of each stream; read again from the file."""
        with self.path.open("rb") as file:
            file.seek(entry.place)
            found = parse(file.readline(), f"{self.path}, byte {entry.place}")
        streams: dict[str, Any] = found.streams if isinstance(found, StepRecord) else found.values["streams"]
        return streams

    def tokens_per_stream(self, last_step: int | None = None) -> dict[str, int]:
        """Tokens of each stream over the steps up to `last_step`, or over all, each step counted once."""
        sums = dict(self.written_tokens)
        counted = {record.step: record for record in self.steps if last_step is None or record.step <= last_step}
        for record in self.records:
            if counted.get(record.step) is not record:
                for name, tokens in self.streams_of(record).items():
                    sums[name] -= tokens
        return {name: tokens for name, tokens in sums.items() if tokens}


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
        self._note({key: getattr(record, key) for key in STEP_KEYS})

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


def last_line(path: Path, before: int | None = None) -> tuple[bytes, int]:
    """The last whole line of a file ("" if there is none) and the position after it; reads the file's tail only.

    A line is whole when a newline ends it. NUL bytes are blocks that a power cut kept from the disk: what follows them
    was never synced, and counts as torn too.

    Args:
        before: position where the file is taken to end; None for its end.
    """
    with path.open("rb") as file:
        size, length = file.seek(0, os.SEEK_END) if before is None else before, TAIL
        while True:
            start = max(0, size - length)
            file.seek(start)
            tail = file.read(size - start).partition(b"\0")[0]
            end = tail.rfind(b"\n") + 1
            begin = tail.rfind(b"\n", 0, max(0, end - 1)) + 1
            if begin or not start:
                return tail[begin:end], start + end
            length *= 4


def last_step(folder: Path) -> StepRecord | None:
    """The last step that a ledger has, None without any; reads the end of the file only."""
    path = folder / FILE
    line, end = last_line(path) if path.is_file() else (b"", 0)
    while line:
        if isinstance(entry := parse(line, str(path)), StepRecord):
            return entry
        line, end = last_line(path, end - len(line))
    return None


def entries(folder: Path) -> Iterator[tuple[int, StepRecord | Event]]:
    """Every line of a run's ledger and its place in the file, one at a time.

    A last line that is not finished, or being written just now, is passed over.

    Raises:
        FileNotFoundError: the run has no ledger.
        ValueError: another line is broken; names the file and the line.
    """
    path = folder / FILE
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: {folder} is no folder of a run, or its training has not begun")
    place = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.endswith(b"\n"):
                break
            yield place, parse(line, f"{path} line {number}")
            place += len(line)


def read_ledger(folder: Path) -> RunHistory:
    """Read the ledger of a run.

    Raises:
        FileNotFoundError, ValueError: see `entries`.
    """
    records: list[Step] = []
    events: list[Event] = []
    tokens: defaultdict[str, int] = defaultdict(int)
    taus: dict[str, float] = {}
    for place, entry in entries(folder):
        if isinstance(entry, Event):
            values = {key: value for key, value in entry.values.items() if key != "streams"}
            events.append(replace(entry, values=values, place=place))
            continue
        for name, number in entry.streams.items():
            tokens[name] += number
        taus = taus if taus == entry.taus else entry.taus  # one object for all steps with the same
        records.append(Step.of(replace(entry, taus=taus), place))
    return RunHistory(records, events, dict(tokens), folder / FILE)


def last_saved_step(folder: Path) -> int | None:
    """The newest step that was saved, by the ledger of a run; None if it has no ledger or nothing was saved.

    Raises:
        ValueError: a line is broken.
    """
    if not (folder / FILE).is_file():
        return None
    found = (entry for _, entry in entries(folder))
    return max((one.step for one in found if isinstance(one, Event) and one.name == "saved"), default=None)


if __name__ == "__main__":
    from mmbert.ledger_audit import main  # here, because the audit imports this module

    main()
