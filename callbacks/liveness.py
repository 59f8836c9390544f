"""Ends a run that hangs, and shows where."""
from composer import Callback, Logger, State

from mmbert.trainer import Phase
from mmbert.watchdog import Watchdog


class Liveness(Callback):
    """Keeps the watchdog quiet for as long as steps are finished within `hang_minutes`."""

    def __init__(self, phase: Phase) -> None:
        self.watchdog, self.rank = Watchdog(60 * phase.config.hang_minutes), phase.ranks.rank

    def fit_start(self, state: State, logger: Logger) -> None:
        """Start watching."""
        self.watchdog.start()

    def after_dataloader(self, state: State, logger: Logger) -> None:
        """There is a batch."""
        self.watchdog.beat(f"rank {self.rank}, computing step {int(state.timestamp.batch) + 1}")

    def batch_end(self, state: State, logger: Logger) -> None:
        """The step is done."""
        self.watchdog.beat(f"rank {self.rank}, saving or waiting for the batch after step {int(state.timestamp.batch)}")

    def validating(self, number: int) -> None:
        """The next microbatch of a validation."""
        self.watchdog.beat(f"rank {self.rank}, validating, microbatch {number + 1}")

    def fit_end(self, state: State, logger: Logger) -> None:
        """Nothing can hang any more."""
        self.watchdog.stop()
