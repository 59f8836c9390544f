"""One line of a run's ledger: a step or an event, and what it may hold."""
import json
from dataclasses import dataclass, field
from typing import Any, NoReturn

REMEDY = "restore the file from a copy, or take the line out: the audit then names what it held"

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
class StepNumbers:
    """What is told of a step but for its streams.

    Attributes:
        attempt: which start of the run did it, from 1 on.
        step: its number, from 1 on.
        first_row, num_rows: its global batch is the rows at positions [first_row, first_row + num_rows) of the phase.
        tokens: the phase's clock after the step.
        digest: sum modulo 2^64 of `row_order.row_hashes` of the global batch.
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
    mask_rate: float
    taus: dict[str, float]
    learning_rate: float
    loss: float | None
    skipped: str | None

    @property
    def last_row(self) -> int:
        """Position after its last row."""
        return self.first_row + self.num_rows


@dataclass(frozen=True, slots=True)
class StepRecord(StepNumbers):
    """One step, as its line has it.

    Attributes:
        streams: tokens of the step by stream, of those that have any.
    """

    streams: dict[str, int]


@dataclass(frozen=True)
class Event:
    """What happened after `step`: start, saved, rolled_back (steps (to_step, step] were undone) and others.

    Attributes:
        values: all other keys of the line, but for `streams` where it was read by `read_ledger`.
        place: of its line in the file, in bytes.
    """

    name: str
    attempt: int
    step: int
    values: dict[str, Any]
    place: int = field(default=-1, compare=False)


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
        return StepRecord(**values)
    others = {key: value for key, value in values.items() if key not in EVENT_KEYS}
    _check({key: values[key] for key in EVENT_KEYS if key in values}, EVENT_KEYS, place)
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
            items, allowed = value.values(), {int} if key == "streams" else {int, float}
            fits = set(map(type, items)) <= allowed and 0 <= min(items, default=0) <= max(items, default=0) < 1 << 62
        if not fits:
            raise ValueError(f"{place}: {key} = {repr(value)[:60]} cannot be; {REMEDY}")
