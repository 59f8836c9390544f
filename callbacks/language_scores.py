"""Loss and accuracy of every language and source in training."""
from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch
from composer import Callback, Logger, State

from callbacks.finite_steps import FiniteSteps
from callbacks.language_temperature import LanguageTemperature
from callbacks.run_ledger import RunLedger
from mmbert.linear_cross_entropy import Losses
from mmbert.scores import PARTS, Score, add_scores, from_scores, no_scores, summed_up, to_scores
from mmbert.trainer import Phase


class LanguageScores(Callback):
    """Adds up what became of each masked token, on the device; tells the ledger and the loggers at an interval.

    A step that was skipped does not count: its losses may be no numbers. What was added up since the ledger was told is
    in the checkpoint.
    """

    def __init__(self, phase: Phase, mixture: LanguageTemperature, finite: FiniteSteps, ledger: RunLedger) -> None:
        self.config, self.ranks, self.names = phase.config, phase.ranks, phase.data.names
        self.mixture, self.finite, self.ledger = mixture, finite, ledger
        self.of_step = no_scores(len(self.names))  # of the step that is being done
        self.sums = no_scores(len(self.names))  # of the steps since, on this rank
        self.since: dict[str, Any] | None = None  # the clock when the sums began

    def fit_start(self, state: State, logger: Logger) -> None:
        """Move to the device."""
        self.of_step, self.sums = (state.device.tensor_to_device(sums) for sums in (self.of_step, self.sums))
        self.since = self.since or clock(state)

    def after_loss(self, state: State, logger: Logger) -> None:
        """Add a microbatch."""
        assert isinstance(state.outputs, Losses)
        add_scores(self.of_step, state.batch["label_streams"], state.outputs)

    def batch_end(self, state: State, logger: Logger) -> None:
        """Add the step; tell every `scores_interval_batches` steps and at the end of the phase."""
        if self.finite.reason is None:
            self.sums += self.of_step
        self.of_step.zero_()
        step, is_last = int(state.timestamp.batch), int(state.timestamp.token) >= self.config.duration
        if step % self.config.logging.scores_interval_batches == 0 or is_last:
            self.tell(state, logger)

    def tell(self, state: State, logger: Logger) -> None:
        """Write what the steps since the last time did, from rank 0, and begin anew."""
        assert self.since is not None
        self.gather()
        now, since = clock(state), self.since
        if self.ranks.is_first:
            scores = self.scores()
            event = {"step": now["step"], "from_step": since["step"], "streams": as_lists(scores)}
            event |= {key: now[key] - since[key] for key in ("tokens", "seconds")}
            self.ledger.event("scores", event)
            tokens = dict(zip(self.names, self.mixture.tokens.tolist(), strict=True))
            logger.log_metrics(metrics(scores, tokens))
        self.sums.zero_()
        self.since = now

    def gather(self) -> None:
        """Move the sums of all ranks to the first; all must call it. It waits for the device."""
        total = torch.from_numpy(self.ranks.sum(self.sums.cpu().numpy()))
        self.sums.copy_(total if self.ranks.is_first else torch.zeros_like(total))

    def scores(self) -> dict[str, Score]:
        """By stream; of all ranks on the first, behind `gather`."""
        return to_scores(self.names, self.sums.cpu().numpy())

    def state_dict(self) -> dict[str, Any]:
        """What was added up and is not told yet; behind `gather`, on the first rank."""
        return {"since": self.since, "streams": as_lists(self.scores())}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on adding."""
        self.since = dict(state["since"])
        if self.ranks.is_first:
            self.sums = from_scores(self.names, {name: Score(*sums) for name, sums in state["streams"].items()})


def clock(state: State) -> dict[str, Any]:
    """Steps, tokens and seconds of the phase up to now."""
    now = state.timestamp
    seconds = now.total_wct.total_seconds() if now.total_wct else 0.0
    return {"step": int(now.batch), "tokens": int(now.token), "seconds": seconds}


def as_lists(scores: Mapping[str, Score]) -> dict[str, list[float]]:
    """For JSON: name -> labels, loss, correct."""
    return {name: [score.labels, score.loss, score.correct] for name, score in scores.items()}


def metrics(scores: Mapping[str, Score], tokens: Mapping[str, int]) -> dict[str, float]:
    """What the loggers get of each part, a language, say.

    Args:
        scores: by stream.
        tokens: that each stream had in the phase so far.
    """
    found: dict[str, float] = {}
    for part, key in PARTS.items():
        tokens_of: Counter[str] = Counter()
        for stream, count in tokens.items():
            tokens_of[key(stream)] += count
        for name, score in summed_up(scores, key).items():
            found[f"loss/train/{part}/{name}"] = score.loss / score.labels
            found[f"accuracy/train/{part}/{name}"] = score.correct / score.labels
            found[f"tokens/train/{part}/{name}"] = tokens_of[name]
    return found
