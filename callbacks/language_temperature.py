"""The language-temperature schedule: logs tau, and counts what every language really got."""
from typing import Any

import numpy as np
from composer import Callback, Logger, State

from mmbert.mixture import Period, main_group
from mmbert.trainer import Phase


class LanguageTemperature(Callback):
    """Follows the phase's plan (`mmbert.mixture.Plan`), which the loader draws its rows from.

    The plan itself is a pure function of the configuration, so nothing is changed here from step to step: this
    counts tokens per stream, so that planned and realised shares can be compared, and logs tau.
    """

    def __init__(self, phase: Phase) -> None:
        self.names, self.groups = phase.data.names, phase.data.groups
        self.period_rows = phase.config.data.period_rows
        self.periods = phase.data.plan(phase.config).periods()
        self.period: Period = next(self.periods)
        self.tokens = np.zeros(len(self.names), dtype=np.int64)
        self.planned = np.zeros(len(self.names))  # tokens by plan, up to the current row

    def after_dataloader(self, state: State, logger: Logger) -> None:
        """Find the period that the batch begins in, and log its taus."""
        while self.period.index < int(state.timestamp.sample) // self.period_rows:
            self.period = next(self.periods)
        logger.log_metrics({f"tau/{name}": tau for name, tau in self.taus().items()})

    def batch_end(self, state: State, logger: Logger) -> None:
        """Add the global batch's tokens to its streams."""
        seen = state.batch["stream_tokens"]
        self.tokens += seen
        self.planned += self.period.token_shares * seen.sum()

    def taus(self) -> dict[str, float]:
        """The last period's, by group."""
        return dict(zip((group.name for group in self.groups), self.period.taus, strict=True))

    def tau(self) -> float:
        """Of the group that the paper speaks of."""
        return self.taus()[main_group(self.groups).name]

    def state_dict(self) -> dict[str, Any]:
        """Tokens of every stream so far, by name."""
        return {
            "tokens": dict(zip(self.names, self.tokens.tolist(), strict=True)),
            "planned": dict(zip(self.names, self.planned.tolist(), strict=True)),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on counting."""
        self.tokens = np.array([state["tokens"][name] for name in self.names], dtype=np.int64)
        self.planned = np.array([state["planned"][name] for name in self.names])
