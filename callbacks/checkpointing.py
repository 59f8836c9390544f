"""Saves a checkpoint every so many tokens, at the end of the phase, and when the run is asked to stop."""
import logging
from pathlib import Path
from time import monotonic, sleep
from typing import Any

from composer import Callback, Logger, State

from callbacks.language_scores import LanguageScores
from callbacks.language_temperature import LanguageTemperature
from callbacks.run_ledger import RunLedger
from mmbert.checkpoint import checkpoint_bytes, prune, save_checkpoint, weights_sha256
from mmbert.mlm import MaskedLM
from mmbert.model import MmBertForMaskedLM
from mmbert.ranks import weights_digest
from mmbert.trainer import Phase

log = logging.getLogger(__name__)
SLOW_DISK = 50e6  # bytes a second
RETRY_SECONDS = 30.0  # after a save that failed; an attempt writes gigabytes


def model_of(state: State) -> MaskedLM:
    """Composer's model, wrapped by DDP or not."""
    model = getattr(state.model, "module", state.model)
    assert isinstance(model, MaskedLM)
    return model


def encoder_of(state: State) -> MmBertForMaskedLM:
    """The encoder inside Composer's model."""
    return model_of(state).encoder


class Checkpointing(Callback):
    """Writes through `mmbert.checkpoint`, from rank 0; Composer's own saving is not atomic.

    When the disk is full the older checkpoints stay, training goes on, and the save is tried again until
    `checkpoint.give_up_minutes` have passed.

    Attributes:
        is_due: a save is wanted at the end of this step.
        keeps_all: none is removed for now.
        seconds: how long the longest save took; before any, how long a slow disk would.
    """

    def __init__(
        self, phase: Phase, mixture: LanguageTemperature, ledger: RunLedger, scores: LanguageScores
    ) -> None:
        self.phase, self.config, self.ranks = phase, phase.config, phase.ranks
        self.mixture, self.ledger, self.scores = mixture, ledger, scores
        self.is_due = self.keeps_all = False
        self.seconds = 0.0
        self.has_saved = False
        self.failed_at: float | None = None  # the first failure of a series
        self.next_try = 0.0
        self.parent_weights: str | None = None

    def state_dict(self) -> dict[str, Any]:
        """sha256 of the weights that the phase began with, if it has a parent."""
        return {"parent_weights": self.parent_weights} if self.parent_weights else {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore it; the parent may be gone by now, or be another."""
        self.parent_weights = state["parent_weights"]

    def fit_start(self, state: State, logger: Logger) -> None:
        """Note which weights the phase begins with, and how large a checkpoint is."""
        self.seconds = checkpoint_bytes(encoder_of(state)) / SLOW_DISK
        if self.parent_weights is None and self.config.parent is not None:
            self.parent_weights = weights_sha256(Path(self.config.run_root) / self.config.parent)

    def batch_checkpoint(self, state: State, logger: Logger) -> None:
        """Save when this step crossed a multiple of the interval, or is the last.

        Raises:
            ValueError: on all ranks: no checkpoint could be written for too long, or the ranks' weights differ.
        """
        assert state.previous_timestamp is not None
        assert state.max_duration is not None
        interval = self.config.checkpoint.interval
        before, now = int(state.previous_timestamp.token), int(state.timestamp.token)
        is_last = state.timestamp >= state.max_duration
        self.is_due |= is_last or before // interval != now // interval
        while self.is_due:
            self.check_ranks_agree(state)
            self.scores.gather()  # rank 0 alone describes them
            self.is_due = self.ranks.by_first(lambda: self.try_to_save(state)) != "saved"
            if not is_last:
                return
            if self.is_due:
                sleep(min(1.0, RETRY_SECONDS))

    def try_to_save(self, state: State) -> str:
        """"saved", or "later" after a failure.

        Raises:
            OSError: it has failed for `give_up_minutes`.
        """
        began = monotonic()
        if began < self.next_try:
            return "later"
        step = int(state.timestamp.batch)
        try:
            self.ledger.flush()
            description = self.describe(state)
            save_checkpoint(self.config.run_folder, step, encoder_of(state), state.optimizers[0], description)
            self.ledger.event("saved", {"step": step})
            self.ledger.flush()
        except OSError as error:
            self.failed_at = self.failed_at or began
            minutes = (monotonic() - self.failed_at) / 60
            if minutes >= self.config.checkpoint.give_up_minutes:
                raise OSError(
                    f"no checkpoint of {self.config.run_folder} could be written for {minutes:.0f} minutes: {error}; "
                    "the older ones are whole: free space, and run the same command again"
                ) from None
            log.warning("step %d could not be saved, training goes on: %s", step, error)
            self.next_try = monotonic() + RETRY_SECONDS
            return "later"
        try:
            if not self.keeps_all:
                prune(self.config.run_folder, self.config.checkpoint.keep, self.config.checkpoint.keep_every)
        except OSError as error:
            log.warning("an old checkpoint could not be removed, the next save tries again: %s", error)
        self.failed_at = None
        self.seconds = max(self.seconds if self.has_saved else 0.0, monotonic() - began)
        self.has_saved = True
        return "saved"

    def check_ranks_agree(self, state: State) -> None:
        """All ranks must hold the same weights, bit for bit: a flipped bit on one of them shows here.

        Raises:
            ValueError: names the ranks that differ from the first.
        """
        digests = self.ranks.texts(weights_digest(encoder_of(state)))
        odd = [rank for rank, digest in enumerate(digests) if digest != digests[0]]
        if odd:
            raise ValueError(
                f"step {int(state.timestamp.batch)}: the weights of rank {', '.join(map(str, odd))} differ from "
                "rank 0's, a fault of the machine; nothing is saved: run the same command again, elsewhere if it recurs"
            )

    def describe(self, state: State) -> dict[str, Any]:
        """What state.json holds: the clock, the recipe, and what the report reads."""
        own = [callback for callback in state.callbacks if type(callback).__module__.startswith("callbacks.")]
        counts = self.mixture.state_dict()
        tokens = int(state.timestamp.token)
        planned = sum(counts["planned"].values())
        return {
            "step": int(state.timestamp.batch),
            "rows": int(state.timestamp.sample),
            "tokens": tokens,
            "seconds": state.timestamp.total_wct.total_seconds() if state.timestamp.total_wct else 0.0,
            "finished": tokens >= self.config.duration,
            "tau": self.mixture.tau(),
            "mask_rate": self.config.mask_rate.value(tokens, self.config.duration),
            "planned_share": {name: value / planned for name, value in counts["planned"].items()},
            "tokens_per_stream": counts["tokens"],
            "callbacks": {type(callback).__name__: kept for callback in own if (kept := callback.state_dict())},
            "config": self.config.as_dict(),
            "identity": self.phase.identity(),
        }
