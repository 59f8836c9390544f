"""Numbers by language over a run, and what a table of them says. B moments, L languages."""
from dataclasses import dataclass

import numpy as np

from mmbert.mixture import Floats

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

    def ends(self, sums: Floats) -> dict[str, tuple[float, float]]:
        """Language -> the quotient at its first moment and at its last."""
        values = self.quotient(sums)
        known = {name: column[~np.isnan(column)] for name, column in zip(self.names, values.T, strict=True)}
        return {name: (float(column[0]), float(column[-1])) for name, column in known.items() if len(column)}
