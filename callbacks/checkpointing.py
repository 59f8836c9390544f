"""Saves a checkpoint every so many tokens, at the end of the phase, and when the run is asked to stop."""
from typing import Any

from composer import Callback, Logger, State
from composer.utils import dist

from callbacks.language_temperature import LanguageTemperature
from mmbert.checkpoint import keep_newest, save_checkpoint
from mmbert.mlm import MaskedLM
from mmbert.trainer import Phase


class Checkpointing(Callback):
    """Writes through `mmbert.checkpoint`, from rank 0; Composer's own saving is not atomic."""

    def __init__(self, phase: Phase) -> None:
        self.phase, self.config = phase, phase.config

    def batch_checkpoint(self, state: State, logger: Logger) -> None:
        """Save when this step crossed a multiple of the interval, or is the last."""
        assert state.previous_timestamp is not None
        assert state.max_duration is not None
        interval = self.config.checkpoint.interval
        before, now = int(state.previous_timestamp.token), int(state.timestamp.token)
        if state.timestamp < state.max_duration and before // interval == now // interval:
            return
        if dist.get_global_rank() == 0:
            step = int(state.timestamp.batch)
            model = getattr(state.model, "module", state.model)  # DDP wraps it
            assert isinstance(model, MaskedLM)
            save_checkpoint(self.config.run_folder, step, model.encoder, state.optimizers[0], self.describe(state))
            keep_newest(self.config.run_folder, self.config.checkpoint.keep)
        dist.barrier()

    def describe(self, state: State) -> dict[str, Any]:
        """What state.json holds: the clock, the recipe, and what the report reads."""
        mixture = next(callback for callback in state.callbacks if isinstance(callback, LanguageTemperature))
        counts = mixture.state_dict()
        tokens = int(state.timestamp.token)
        planned = sum(counts["planned"].values())
        return {
            "name": self.config.name,
            "step": int(state.timestamp.batch),
            "rows": int(state.timestamp.sample),
            "tokens": tokens,
            "seconds": state.timestamp.total_wct.total_seconds() if state.timestamp.total_wct else 0.0,
            "finished": tokens >= self.config.duration,
            "languages": list(mixture.names),
            "tau": mixture.tau(),
            "mask_rate": self.config.mask_rate.value(tokens, self.config.duration),
            "planned_share": {name: value / planned for name, value in counts["planned"].items()},
            "tokens_per_stream": counts["tokens"],
            "callbacks": {"LanguageTemperature": counts},
            "config": self.config.as_dict(),
            "identity": self.phase.identity(),
        }
