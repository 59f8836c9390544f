"""One line on the console every few steps."""
from time import monotonic

from composer import Callback, Logger, State

from mmbert.trainer import Phase


class Progress(Callback):
    """Prints tokens, loss, rates, speed and the time that is left, from rank 0."""

    def __init__(self, phase: Phase) -> None:
        self.name, self.duration = phase.config.name, phase.config.duration
        self.interval = phase.config.logging.interval_batches
        self.mask_rate = phase.config.mask_rate
        self.rank, self.since = phase.ranks.rank, (0.0, 0)

    def fit_start(self, state: State, logger: Logger) -> None:
        """Start the clock."""
        self.since = (monotonic(), int(state.timestamp.token))

    def batch_end(self, state: State, logger: Logger) -> None:
        """Print every `interval_batches` steps and at the end."""
        tokens = int(state.timestamp.token)
        if self.rank or (int(state.timestamp.batch) % self.interval and tokens < self.duration):
            return
        seconds = monotonic() - self.since[0]
        speed = (tokens - self.since[1]) / max(seconds, 1e-9)
        self.since = (monotonic(), tokens)
        loss = float(state.total_loss_dict["loss/train/total"])
        rate = state.optimizers[0].param_groups[0]["lr"]
        left = max(0, self.duration - tokens) / max(speed, 1e-9)
        print(
            f"{self.name}  {min(1.0, tokens / self.duration):4.0%}  {tokens:,} of {self.duration:,} tokens  "
            f"loss {loss:.3f}  lr {rate:.1e}  mask {self.mask_rate.value(tokens, self.duration):.0%}  "
            f"{speed:,.0f} tokens/s  {left:,.0f} s left",
            flush=True,
        )
        logger.log_metrics({"tokens_per_second": speed})
