"""What a model made of each stream's masked tokens: how many there were, their loss, and how many it got right.

Sums are whole numbers, the loss in units of 2^-20 nats. So they are the same in whatever order, on however many ranks
and over however many restarts they are added up.

S streams, M masked tokens.
"""
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from mmbert.languages import script_of
from mmbert.linear_cross_entropy import Losses
from mmbert.mixture import Integers
from mmbert.streams import language_of, source_of

UNITS = 2**20
"""Of a nat. A loss is off by 5e-7 nats at most, and 2^63 units are nine trillion nats."""


@dataclass(frozen=True)
class Score:
    """Sums over masked tokens.

    Attributes:
        labels: how many.
        loss: their cross-entropies together, in nats.
        correct: of how many the likeliest prediction is right.
    """

    labels: int
    loss: float
    correct: int

    def __add__(self, other: "Score") -> "Score":
        return Score(self.labels + other.labels, self.loss + other.loss, self.correct + other.correct)


def no_scores(num_streams: int) -> Tensor:
    """Sums to begin with: labels, units of loss and correct predictions of each stream, (S, 3) int64."""
    return torch.zeros(num_streams, 3, dtype=torch.int64)


def add_scores(sums: Tensor, streams: Tensor, losses: Losses) -> None:
    """Add a microbatch to `sums` (S, 3), without waiting for the device; `streams` (M,) are those of its tokens."""
    units = (losses.each * UNITS).round().long()  # a power of two: exact
    sums.index_add_(0, streams, torch.stack([torch.ones_like(units), units, losses.correct.long()], dim=1))


def to_scores(names: tuple[str, ...], sums: Integers) -> dict[str, Score]:
    """By name of the stream, of those that have any label."""
    rows = zip(names, sums.tolist(), strict=True)
    return {name: Score(labels, units / UNITS, correct) for name, (labels, units, correct) in rows if labels}


def from_scores(names: tuple[str, ...], scores: Mapping[str, Score]) -> Tensor:
    """The sums (S, 3) that `to_scores` was given."""
    found = [scores.get(name, Score(0, 0.0, 0)) for name in names]
    return torch.tensor([[score.labels, round(score.loss * UNITS), score.correct] for score in found])


PARTS: dict[str, Callable[[str], str]] = {
    "source": source_of,
    "language": language_of,
    "script": lambda name: script_of(language_of(name)),
}
"""What streams are summed up by: the kind of a sum -> which of them a stream belongs to."""


def summed_up(scores: Mapping[str, Score], key: Callable[[str], str]) -> dict[str, Score]:
    """By what `key` makes of a stream's name."""
    sums: dict[str, Score] = {}
    for name, score in scores.items():
        sums[key(name)] = sums.get(key(name), Score(0, 0.0, 0)) + score
    return sums
