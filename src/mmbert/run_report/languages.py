"""Scores and validations by language, and what a table of them says. B moments, L languages."""
from dataclasses import dataclass

import numpy as np

from mmbert.mixture import Floats
from mmbert.run_report.curves import Scores, Validations, by_part
from mmbert.streams import language_of

LAST = 0.9  # "lately" is what follows this part of the tokens so far


@dataclass(frozen=True)
class PerLanguage:
    """Two sums by language at some moments; what is of interest is their quotient.

    Attributes:
        names: of the languages, sorted.
        tokens: (B,) the clock.
        weights: (B, L) denominators: masked tokens, or bytes.
    """

    names: list[str]
    tokens: Floats
    weights: Floats

    def largest(self, number: int) -> list[int]:
        """Columns of the languages with the largest weights."""
        return [int(column) for column in np.argsort(-self.weights.sum(axis=0), kind="stable")[:number]]

    def quotient(self, sums: Floats) -> Floats:
        """sums / weights (B, L); nan where a language has no weight."""
        return np.where(self.weights > 0, sums / np.where(self.weights > 0, self.weights, 1.0), np.nan)

    def lately(self, sums: Floats) -> dict[str, float]:
        """Language -> the quotient over the last stretch of the run, for those that have one."""
        late = self.tokens > LAST * self.tokens[-1]
        weights, totals = self.weights[late].sum(axis=0), sums[late].sum(axis=0)
        return {name: float(totals[i] / weights[i]) for i, name in enumerate(self.names) if weights[i] > 0}


def columns_of(names: list[str]) -> tuple[list[str], list[str]]:
    """Language of each stream, and all languages, sorted."""
    parts = [language_of(name) for name in names]
    return parts, sorted(set(parts))


@dataclass(frozen=True)
class LanguageScores:
    """`scores` by language: loss in nats, and right predictions, both (B, L) sums over masked tokens."""

    of: PerLanguage
    loss_sum: Floats
    correct: Floats

    @classmethod
    def add_up(cls, scores: Scores) -> "LanguageScores":
        """Add the sources of each language."""
        parts, names = columns_of(list(scores.names))
        all_sums = (scores.labels, scores.loss_sum, scores.correct)
        labels, loss, correct = (by_part(names, parts, sums) for sums in all_sums)
        trained = labels.sum(axis=0) > 0
        names = [name for name, has in zip(names, trained, strict=True) if has]
        of = PerLanguage(names, scores.ends, labels[:, trained])
        return cls(of, loss[:, trained], correct[:, trained])


@dataclass(frozen=True)
class LanguageBits:
    """`validation` by language: bits (B, L); the weights are bytes of held-out text."""

    of: PerLanguage
    bits: Floats

    @classmethod
    def add_up(cls, validations: Validations) -> "LanguageBits":
        """Add the sources of each language."""
        parts, names = columns_of(list(validations.names))
        of = PerLanguage(names, validations.tokens, by_part(names, parts, validations.bytes))
        return cls(of, by_part(names, parts, validations.bits))

    def ends(self) -> dict[str, tuple[float, float]]:
        """Language -> bits per byte the first and the last time."""
        values = self.of.quotient(self.bits)
        found = {}
        for column, name in enumerate(self.of.names):
            known = values[~np.isnan(values[:, column]), column]
            if len(known):
                found[name] = (float(known[0]), float(known[-1]))
        return found
