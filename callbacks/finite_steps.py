"""No optimizer step is made with a loss or gradient that is not finite."""
from typing import Any

import torch
from composer import Callback, Logger, State
from torch.nn.utils import get_total_norm

from mmbert.optim import StableAdamW
from mmbert.trainer import Phase

MOST, AMONG = 3, 100  # a run in which more than 3 of 100 steps are skipped has another fault than a freak batch


class FiniteSteps(Callback):
    """Skips such a batch on all ranks, and stops the run when that happens again and again."""

    def __init__(self, phase: Phase) -> None:
        self.ranks, self.names, self.run_folder = phase.ranks, phase.data.names, phase.config.run_folder
        self.skipped: list[int] = []  # the last steps that were skipped
        self.reason: str | None = None  # why the current step is skipped
        self.is_finite: torch.Tensor | None = None

    def after_loss(self, state: State, logger: Logger) -> None:
        """Look at the loss of a microbatch, without waiting for the device."""
        assert isinstance(state.loss, torch.Tensor)
        finite = state.loss.detach().isfinite().all()
        self.is_finite = finite if self.is_finite is None else self.is_finite & finite

    def after_train_batch(self, state: State, logger: Logger) -> None:
        """Call the optimizer's step off where this rank's loss or gradient, or another's, is not finite.

        Raises:
            ValueError: it is the fourth within 100 steps; names this batch's rows.
        """
        assert self.is_finite is not None
        optimizer = state.optimizers[0]
        assert isinstance(optimizer, StableAdamW)
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        # Together, for each wait of the host leaves the device idle.
        found = torch.stack((self.is_finite, get_total_norm(gradients).isfinite()))
        loss_is_finite, gradient_is_finite = found.tolist()
        self.is_finite, self.reason = None, None
        if not self.ranks.any(not (loss_is_finite and gradient_is_finite)):
            return
        self.reason = "gradient is not finite" if loss_is_finite else "loss is not finite"
        optimizer.call_off()
        step = int(state.timestamp.batch) + 1
        self.skipped = [*(past for past in self.skipped if past > step - AMONG), step]
        if len(self.skipped) > MOST:
            raise ValueError(
                f"step {step}: {self.reason}, and so it was at steps {', '.join(map(str, self.skipped[:-1]))}; nothing "
                f"of it reached the weights. This step's rows: {self.rows(state.batch)}. Look at them, python -m "
                f"mmbert.show_rows {self.run_folder} {state.batch['row_positions'][0]} …, or lower optimizer.lr"
            )

    def rows(self, batch: dict[str, Any]) -> str:
        """The first rows of a batch, as stream and position in the phase."""
        rows = list(zip(batch["row_streams"], batch["row_positions"], strict=True))
        shown = ", ".join(f"{self.names[stream]} at position {position}" for stream, position in rows[:8])
        return shown + (f" and {len(rows) - 8} more" if len(rows) > 8 else "")

    def state_dict(self) -> dict[str, Any]:
        """The last skipped steps."""
        return {"skipped": self.skipped}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on counting."""
        self.skipped = list(state["skipped"])
