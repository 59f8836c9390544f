"""Writes the run's ledger: what every step read, and at which rates."""
import logging
from math import isfinite
from time import time
from typing import Any

from composer import Callback, Logger, State

from callbacks.finite_steps import FiniteSteps
from callbacks.language_temperature import LanguageTemperature
from mmbert.ledger import Ledger, StepRecord
from mmbert.trainer import Phase

log = logging.getLogger(__name__)


class RunLedger(Callback):
    """One line a step, from rank 0; on disk every few steps, and for good with every checkpoint."""

    def __init__(self, phase: Phase, mixture: LanguageTemperature, finite: FiniteSteps) -> None:
        self.phase, self.config, self.mixture, self.finite = phase, phase.config, mixture, finite
        self.ledger = Ledger(phase.config.run_folder) if phase.ranks.is_first else None

    def event(self, name: str, values: dict[str, Any]) -> None:
        """Note what is no step, and when it was, in seconds since 1970."""
        if self.ledger:
            self.ledger.event(name, {**values, "time": round(time(), 1)})

    def fit_start(self, state: State, logger: Logger) -> None:
        """Note where this attempt begins."""
        clock = state.timestamp
        world_size = self.phase.ranks.world_size
        self.event("start", {"step": int(clock.batch), "tokens": int(clock.token), "world_size": world_size})

    def batch_end(self, state: State, logger: Logger) -> None:
        """Note the step that is done."""
        if not self.ledger:
            return
        before, now = state.previous_timestamp, state.timestamp
        assert before is not None
        batch, loss = state.batch, float(state.total_loss_dict["loss/train/total"])
        names, tokens = self.mixture.names, batch["stream_tokens"]
        record = StepRecord(
            attempt=self.ledger.attempt,
            step=int(now.batch),
            first_row=int(before.sample),
            num_rows=int(now.sample) - int(before.sample),
            tokens=int(now.token),
            digest=batch["digest"],
            streams={names[stream]: int(tokens[stream]) for stream in tokens.nonzero()[0]},
            mask_rate=self.config.mask_rate.value(int(before.token), self.config.duration),
            taus=self.mixture.taus(),
            learning_rate=state.optimizers[0].param_groups[0]["lr"],
            loss=loss if isfinite(loss) else None,
            skipped=self.finite.reason,
        )
        self.ledger.step(record)
        if record.step % self.config.logging.interval_batches == 0:
            self.write()

    def write(self) -> None:
        """Write what is known; a full disk is not worth stopping for, the lines are kept for the next time."""
        assert self.ledger
        try:
            self.ledger.flush(durable=False)
        except OSError as error:
            log.warning("the ledger of %s cannot be written now: %s", self.config.name, error)

    def flush(self) -> None:
        """Have every line on disk for good.

        Raises:
            OSError: the disk is full, say; nothing is lost.
        """
        if self.ledger:
            self.ledger.flush(durable=True)
