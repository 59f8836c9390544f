"""Held-out bits per byte of every language while a phase trains."""
from collections.abc import Callable, Mapping
from time import monotonic
from typing import Any

import numpy as np
import torch
from composer import Callback, Logger, State

from callbacks.checkpointing import model_of
from callbacks.liveness import Liveness
from callbacks.planned_stop import PlannedStop
from callbacks.run_ledger import RunLedger
from mmbert.heldout import listed
from mmbert.mixture import Integers
from mmbert.scores import add_scores, no_scores
from mmbert.streams import language_of
from mmbert.trainer import Phase, microbatches
from mmbert.validation import HeldoutSet, LanguageBits


class Validation(Callback):
    """Validates when a step crosses a multiple of `validation.interval` tokens, and at the end of the phase.

    Where it goes on from a parent also before its first step: what it improves is compared with that.

    Before the step's checkpoint, so that a run goes on from one only if its validation is done. A run that is asked to
    stop does not wait for it: it is done when the run goes on; but at the end of a phase, which nothing goes on from.
    Then `max_minutes` does not cut it off, or a run whose minutes it needs would begin with it for ever.

    Attributes:
        is_due: this step's validation is not done.
    """

    def __init__(self, phase: Phase, stop: PlannedStop, liveness: Liveness, ledger: RunLedger) -> None:
        self.phase, self.config, self.ranks = phase, phase.config, phase.ranks
        self.stop, self.liveness, self.ledger = stop, liveness, ledger
        self.heldout: HeldoutSet | None = None
        self.is_due = False

    def fit_start(self, state: State, logger: Logger) -> None:
        """Read the held-out text now, when an error costs no step; validate what the last attempt did not.

        Raises:
            ValueError: on all ranks, where any cannot read it, or a Slurm job is too short for the validation.
        """
        phase = self.phase
        if self.config.validation is None:
            return
        self.heldout = self.ranks.together(
            lambda: HeldoutSet.read(self.config, phase.heldout, phase.tokenizer, self.ranks, microbatches(phase))
        )
        self.is_due |= self.config.parent is not None and int(state.timestamp.batch) == 0
        if self.is_due:
            self.validate(state, logger, lambda: self.stop.request.is_asked or self.stop.is_slurm_near())
        if self.ranks.any(self.is_due and self.stop.is_slurm_near()):
            raise ValueError(
                "validation: the one that is due takes longer than a whole job of Slurm; lower validation.rows, or "
                "give the job more time"
            )

    def batch_checkpoint(self, state: State, logger: Logger) -> None:
        """Validate where this step is one of the schedule."""
        if self.config.validation is None:
            return
        assert state.previous_timestamp is not None
        assert state.max_duration is not None
        interval = self.config.validation.interval
        before, now = int(state.previous_timestamp.token), int(state.timestamp.token)
        is_last = now >= self.config.duration
        self.is_due |= is_last or before // interval != now // interval
        if self.is_due and (is_last or state.timestamp < state.max_duration):
            self.validate(state, logger, (lambda: False) if is_last else self.stop.is_wanted)

    def validate(self, state: State, logger: Logger, is_cut_off: Callable[[], bool]) -> None:
        """Tell bits per byte to the ledger, the loggers and the console; or stop the run, if it is cut off."""
        began = monotonic()
        sums = self.score(state, is_cut_off)
        if sums is None:
            state.stop_training()
            return
        self.is_due = False
        if not self.ranks.is_first:
            return
        assert self.heldout is not None
        bits = self.heldout.bits(sums)
        step, tokens = int(state.timestamp.batch), int(state.timestamp.token)
        streams = {name: [found.bits, found.text_bytes, found.labels] for name, found in bits.items()}
        self.ledger.event("validation", {"step": step, "tokens": tokens, "streams": streams})
        values = metrics(bits)
        logger.log_metrics(values)
        mean = f"{values['validation/mean_bits_per_byte']:.3f} bits per byte, mean over {len(bits)} languages"
        mean += listed({language_of(name): (one.bits / one.text_bytes, one.labels) for name, one in bits.items()})
        print(f"{self.config.name}  validated after {tokens:,} tokens: {mean}  {monotonic() - began:.1f} s", flush=True)

    def score(self, state: State, is_cut_off: Callable[[], bool]) -> Integers | None:
        """Sums of all ranks; None when it is cut off on one of them. Changes nothing that training depends on."""
        assert self.heldout is not None
        own, model = self.heldout.microbatches, model_of(state)
        sums = state.device.tensor_to_device(no_scores(len(self.heldout.names)))
        was_training = model.training
        model.eval()
        try:
            with torch.no_grad():
                for number in range(self.most_microbatches()):
                    if self.ranks.any(is_cut_off()):
                        return None
                    self.liveness.validating(number)
                    if number < len(own):
                        batch = state.device.batch_to_device(own[number])
                        add_scores(sums, batch["label_streams"], model(batch))
        finally:
            model.train(was_training)
        return self.ranks.sum(sums.cpu().numpy())

    def most_microbatches(self) -> int:
        """Of the rank that has most; all must ask."""
        assert self.heldout is not None
        counts = np.zeros(self.ranks.world_size, dtype=np.int64)
        counts[self.ranks.rank] = len(self.heldout.microbatches)
        return int(self.ranks.sum(counts).max())

    def state_dict(self) -> dict[str, Any]:
        """Whether a stop came first."""
        return {"is_due": self.is_due}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up what is due."""
        self.is_due = bool(state["is_due"])


def metrics(bits: Mapping[str, LanguageBits]) -> dict[str, float]:
    """What the loggers get: bits per byte of each language, and their mean, in which every language counts alike."""
    each = {language_of(name): found.bits / found.text_bytes for name, found in bits.items()}
    mean = sum(each.values()) / len(each)
    return {f"validation/bits_per_byte/{name}": value for name, value in each.items()} | {
        "validation/mean_bits_per_byte": mean
    }
