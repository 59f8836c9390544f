"""What a ledger says over tokens: of every step, and of every language where the run noted it.

N steps, B moments of the phase, L languages.
"""
from collections.abc import Sequence
from dataclasses import dataclass
from math import inf

import numpy as np

from mmbert.ledger import Event, RunHistory
from mmbert.mixture import Floats, Integers
from mmbert.run_report.languages import PerLanguage
from mmbert.streams import language_of

STRETCHES = 200  # into which a phase is cut for what is known of each language, so that memory is bounded


@dataclass(frozen=True)
class Steps:
    """Numbers of every step, each (N,).

    Attributes:
        before, tokens: the clock before and after the step.
        loss: nan where it was not finite.
        taus: by group.
    """

    before: Integers
    tokens: Integers
    loss: Floats
    learning_rate: Floats
    mask_rate: Floats
    taus: dict[str, Floats]

    @classmethod
    def of(cls, history: RunHistory) -> "Steps":
        """Each step once."""
        steps = history.steps
        tokens = np.array([record.tokens for record in steps], dtype=np.int64)
        groups = sorted({group for record in steps for group in record.taus})
        return cls(
            before=tokens - np.array([record.stream_tokens for record in steps], dtype=np.int64),
            tokens=tokens,
            loss=np.array([np.nan if record.loss is None else record.loss for record in steps], dtype=np.float64),
            learning_rate=np.array([record.learning_rate for record in steps], dtype=np.float64),
            mask_rate=np.array([record.mask_rate for record in steps], dtype=np.float64),
            taus={
                group: np.array([record.taus.get(group, np.nan) for record in steps], dtype=np.float64)
                for group in groups
            },
        )


def smooth(values: Floats, window: int) -> Floats:
    """Mean over the last `window` values, fewer at the start; nan counts for nothing."""
    known = ~np.isnan(values)
    sums = np.concatenate([[0.0], np.cumsum(np.where(known, values, 0.0))])
    counts = np.concatenate([[0], np.cumsum(known)])
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(ends - window, 0)
    number = counts[ends] - counts[starts]
    return np.where(number > 0, (sums[ends] - sums[starts]) / np.maximum(number, 1), np.nan)


@dataclass(frozen=True)
class Scores:
    """Sums of the `scores` events over stretches of the phase, equal in tokens.

    Attributes:
        of: the languages with masked tokens, whose numbers are the weights, and the clock at the end of each stretch.
        loss_sum, correct: (B, L) the tokens' cross-entropies in nats, and how many were predicted right.
        tokens, seconds: (B,) real tokens, and the wall time that they took.
    """

    of: PerLanguage
    loss_sum: Floats
    correct: Floats
    tokens: Floats
    seconds: Floats


def triple(history: RunHistory, event: Event, name: str, values: object) -> tuple[float, float, float]:
    """The three numbers that an event has of a stream.

    Raises:
        ValueError: it has something else.
    """
    if isinstance(values, list) and len(values) == 3 and all(type(value) in (int, float) for value in values):
        return values[0], values[1], values[2]
    raise ValueError(f"{history.path}, byte {event.place}: {event.name} of {name} = {values!r} must be three numbers")


def number(history: RunHistory, event: Event, key: str) -> float:
    """A number of an event.

    Raises:
        ValueError: there is none.
    """
    value = event.values.get(key)
    if type(value) in (int, float):
        return float(value)  # type: ignore[arg-type]
    raise ValueError(f"{history.path}, byte {event.place}: {event.name}.{key} = {value!r} must be a number")


def read_scores(history: RunHistory, stretches: int = STRETCHES) -> Scores | None:
    """Add up the `scores` events; None where there are none.

    Raises:
        ValueError: an event is not what it must be.
    """
    events = history.standing("scores")
    if not events or not history.steps:
        return None
    clock = {record.step: record.tokens for record in history.steps}
    names = sorted({language_of(name) for name in history.written_tokens})
    index = {name: place for place, name in enumerate(names)}
    last = history.steps[-1].tokens
    sums = np.zeros((3, stretches, len(names)))
    tokens, seconds = np.zeros(stretches), np.zeros(stretches)
    for event in events:
        if event.step not in clock:
            continue  # its step's line is lost, which the audit tells
        place = min(stretches - 1, (clock[event.step] - 1) * stretches // last)
        tokens[place] += number(history, event, "tokens")
        seconds[place] += number(history, event, "seconds")
        for name, values in history.streams_of(event).items():
            if name not in history.written_tokens:
                raise ValueError(f"{history.path}, byte {event.place}: no step has any token of {name}")
            sums[:, place, index[language_of(name)]] += triple(history, event, name, values)
    ends = last * np.arange(1, stretches + 1) / stretches
    used, trained = tokens > 0, sums[0].any(axis=0)
    labels, loss_sum, correct = sums[:, used][:, :, trained]
    of = PerLanguage([name for name, has in zip(names, trained, strict=True) if has], ends[used], labels)
    return Scores(of, loss_sum, correct, tokens[used], seconds[used])


@dataclass(frozen=True)
class Validations:
    """The `validation` events: bits (B, L) of held-out text, whose bytes are the weights."""

    of: PerLanguage
    bits: Floats


def read_validations(history: RunHistory) -> Validations | None:
    """Read the `validation` events; None where there are none.

    Raises:
        ValueError: an event is not what it must be.
    """
    latest = {event.step: event for event in history.standing("validation")}  # after a restart one may be made again
    events = [latest[step] for step in sorted(latest)]
    if not events:
        return None
    found = [history.streams_of(event) for event in events]
    names = sorted({language_of(name) for streams in found for name in streams})
    index = {name: place for place, name in enumerate(names)}
    sums = np.zeros((2, len(events), len(names)))
    for place, (event, streams) in enumerate(zip(events, found, strict=True)):
        for name, values in streams.items():
            sums[:, place, index[language_of(name)]] += triple(history, event, name, values)[:2]
    bits, text_bytes = sums
    tokens = np.array([number(history, event, "tokens") for event in events])
    return Validations(PerLanguage(names, tokens, text_bytes), bits)


def seconds_lost(events: Sequence[Event]) -> float | None:
    """Wall time between the saves that attempts go on from and their starts; None if not known of any.

    An attempt that begins at step 0 lost all since the run's first start. Both what was done again and what passed
    until the restart are in it. What several attempts lost, as from one save, counts once.
    """
    lost: list[tuple[float, float]] = []
    moments: dict[int, float] = {}  # step -> when it was saved
    for event in events:
        time = event.values.get("time")
        if type(time) not in (int, float):
            continue
        if event.name == "start" and event.step in moments:
            lost.append((moments[event.step], float(time)))  # type: ignore[arg-type]
        if event.name == "saved" or (event.name == "start" and not event.step and not moments):
            moments[event.step] = float(time)  # type: ignore[arg-type]
    total, counted = 0.0, -inf
    for begin, end in sorted(lost):
        total += max(0.0, end - max(begin, counted))
        counted = max(counted, end)
    return total if lost else None
