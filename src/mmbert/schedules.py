"""Schedules over tokens: the learning rate, any scalar within a phase, and the batch size. Pure functions."""
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import ceil, cos, pi, sqrt
from typing import Literal


@dataclass(frozen=True)
class Schedule:
    """A scalar over one phase: mask rate or tau.

    Attributes:
        kind: `constant` stays at `start`; `step` jumps to `end` at `at` tokens; `linear` and `cosine` move from
            `start` at the phase's first token to `end` at its last.
        at: tokens since the phase began; `step` only.
    """

    start: float
    kind: Literal["constant", "step", "linear", "cosine"] = "constant"
    end: float | None = None
    at: int | None = None

    def __post_init__(self) -> None:
        if (self.end is None) != (self.kind == "constant"):
            raise ValueError(f"a {self.kind} schedule {'has no' if self.kind == 'constant' else 'needs an'} `end`")
        if (self.at is None) == (self.kind == "step"):
            raise ValueError(f"a {self.kind} schedule {'needs' if self.kind == 'step' else 'has no'} `at` (tokens)")

    def value(self, tokens: int, duration: int) -> float:
        """The scalar after `tokens` of a phase that lasts `duration` tokens; it keeps its last value after that."""
        if self.kind == "constant" or self.end is None:
            return self.start
        if self.at is not None:
            return self.start if tokens < self.at else self.end
        done = min(1.0, tokens / duration)
        if self.kind == "cosine":
            done = (1.0 - cos(pi * done)) / 2.0
        return self.start + (self.end - self.start) * done

    def values(self) -> tuple[float, ...]:
        """The extreme values, for range checks."""
        return (self.start,) if self.end is None else (self.start, self.end)


def warmup_stable_decay(tokens: int, duration: int, warmup: int, decay: int, floor: float) -> float:
    """Learning-rate multiplier: linear from 0 to 1 over `warmup`, flat, then linear to `floor` over the last `decay`.

    Args:
        tokens: tokens since the phase began. Past `duration` the last value holds: the last step may overshoot it.
        duration, warmup, decay: tokens.
        floor: multiplier at the end, in [0, 1].

    Source:
        Hu et al. 2024, arXiv:2404.06395; `warmup_stable_decay` of mmBERT's configs.
    """
    if tokens < warmup:
        return tokens / warmup
    if tokens < duration - decay or decay == 0:
        return 1.0
    done = min(1.0, (tokens - (duration - decay)) / decay)
    return 1.0 - (1.0 - floor) * done


def one_minus_sqrt(tokens: int, duration: int, floor: float) -> float:
    """Learning-rate multiplier of the decay phase: 1 - sqrt(progress), stretched to end at `floor`.

    Args:
        tokens: tokens since the decay began. Past `duration` the floor holds.
        duration: tokens the decay lasts.
        floor: multiplier at the end, in [0, 1].

    Source:
        Haegele et al. 2024, arXiv:2405.18392; mmBERT's base decay config, arXiv:2509.06888.
    """
    return floor + (1.0 - floor) * (1.0 - sqrt(min(1.0, tokens / duration)))


@dataclass(frozen=True)
class BatchSizes:
    """Global batch size, in rows, as a function of the rows consumed.

    During a warm-up the size grows by `start` at a time up to `final`, with the same number of steps at each size
    (mmBERT's rule), so that the warm-up ends once `warmup_rows` rows are consumed.

    Attributes:
        starts: rows consumed when each size begins, ascending, first 0.
        sizes: rows of a global batch from there on.
    """

    starts: Sequence[int]
    sizes: Sequence[int]

    @classmethod
    def build(cls, final: int, start: int, warmup_rows: int) -> "BatchSizes":
        """Sizes start, 2 start, ... final, a multiple of `start`; each lasts the same number of whole steps."""
        sizes = range(start, final + start, start)
        steps = ceil(warmup_rows / max(1, sum(sizes[:-1])))
        return cls(list(accumulate((size * steps for size in sizes[:-1]), initial=0)), list(sizes))

    def at(self, row: int) -> int:
        """Rows of the global batch that begins after `row` rows."""
        return self.sizes[bisect_right(self.starts, row) - 1]
