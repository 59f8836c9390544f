"""Goes back to a good checkpoint when the loss stays high, and past the rows that were read since."""
import logging
from itertools import islice
from pathlib import Path
from typing import Any

from composer import Callback, Logger, State

from callbacks.checkpointing import Checkpointing, encoder_of
from callbacks.finite_steps import FiniteSteps
from callbacks.run_ledger import RunLedger
from mmbert.checkpoint import is_valid, load_moments, load_weights, step_folders
from mmbert.checkpoint_files import step_of
from mmbert.spikes import count_high
from mmbert.trainer import Phase

log = logging.getLogger(__name__)
MOST = 3  # rollbacks of one phase; whoever needs more has another fault


class SpikeRollback(Callback):
    """Weights and moments go back, the clock does not: what was read since is not read again.

    Only active where the configuration has `spikes`. When it goes back is in the checkpoint, so a restart in the middle
    of a spike decides the same; where to is the best that lies in the folder, and a stop may have left one more there.
    """

    def __init__(self, phase: Phase, finite: FiniteSteps, ledger: RunLedger, checkpointing: Checkpointing) -> None:
        self.config, self.run_folder, self.ranks = phase.config.spikes, phase.config.run_folder, phase.ranks
        self.finite, self.ledger, self.checkpointing = finite, ledger, checkpointing
        self.calm: list[float] = []
        self.num_high = self.num_rollbacks = 0

    def batch_end(self, state: State, logger: Logger) -> None:
        """Follow the loss of all ranks, and roll back when it has been high for `patience` steps."""
        if (config := self.config) is None:
            return
        if not self.finite.reason:
            loss = float(state.total_loss_dict["loss/train/total"])
            self.calm, self.num_high = count_high(loss, self.calm, self.num_high, config.sigma, config.window)
            if self.num_high == config.patience:
                self.roll_back(state)
        self.checkpointing.keeps_all = self.num_high > 0  # this may be a spike: what is from before must stay

    def roll_back(self, state: State) -> None:
        """Load the newest checkpoint from before the spike, and have that saved as this step's.

        Raises:
            ValueError: there is none, or it happened too often.
        """
        step = int(state.timestamp.batch)
        last_calm, first_high = self.begin(step)
        # To older weights the losses from just before the spike are no measure: a usual loss would count as high.
        self.calm, self.num_high, self.num_rollbacks = [], 0, self.num_rollbacks + 1
        target = Path(self.ranks.by_first(lambda: self.target(step, last_calm, first_high)))
        encoder = encoder_of(state)
        load_weights(target, encoder)
        load_moments(target, encoder, state.optimizers[0])
        to_step = step_of(target)
        log.warning("the loss has been high since step %d: back to the weights of step %d", first_high, to_step)
        self.ledger.event("rolled_back", {"step": step, "to_step": to_step})
        self.checkpointing.is_due = True

    def begin(self, step: int) -> tuple[int, int]:
        """The last step before the spike and its first; steps that were skipped are neither calm nor high."""
        seen = (past for past in range(step, 0, -1) if past not in self.finite.skipped)
        first_high = next(islice(seen, self.num_high - 1, None))
        return next(seen, 0), first_high

    def target(self, step: int, last_calm: int, first_high: int) -> Path:
        """The newest whole checkpoint whose weights gave a calm loss.

        The loss of a step is that of the weights before it, so those saved after the last calm step are the first that
        gave a high one. They may be what is wrong: they are taken only where there are no others.
        """
        if self.num_rollbacks > MOST:
            raise ValueError(f"step {step}: the loss spiked for the {self.num_rollbacks}th time; lower optimizer.lr")
        saved_at = {folder: step_of(folder) or 0 for folder in step_folders(self.run_folder)}
        before = [folder for folder, step in saved_at.items() if step < first_high]
        for folder in sorted(before, key=lambda folder: saved_at[folder] >= last_calm):  # stable: newest first
            if is_valid(folder):
                return folder
        raise ValueError(
            f"step {step}: the loss has been high since step {first_high}, and {self.run_folder} has no checkpoint "
            "from before; lower checkpoint.interval"
        )

    def state_dict(self) -> dict[str, Any]:
        """What the next decision goes by."""
        return {"calm": self.calm, "num_high": self.num_high, "num_rollbacks": self.num_rollbacks}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on watching."""
        self.calm = list(state["calm"])
        self.num_high, self.num_rollbacks = state["num_high"], state["num_rollbacks"]
