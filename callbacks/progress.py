"""How far a phase is and how fast it goes, on the console and in the loggers."""
from dataclasses import dataclass
from datetime import timedelta
from time import monotonic

import torch
from composer import Callback, Logger, State

from mmbert.device import device_of
from mmbert.device_peaks import peak_flops
from mmbert.flops import training_flops
from mmbert.trainer import Phase


@dataclass
class Stretch:
    """What one device did since the last report.

    Attributes:
        seconds: how long it took.
        tokens: of all devices.
        flops: of this device, see `training_flops`.
        seconds_waited: for rows that a loader, of any rank, did not have ready.
    """

    seconds: float = 0.0
    tokens: int = 0
    flops: int = 0
    seconds_waited: float = 0.0

    def rates(self, world_size: int, peak: float | None) -> dict[str, float]:
        """Tokens a second, of all devices and of each; FLOP/s of one, and of its peak; share of time without rows."""
        seconds = max(self.seconds, 1e-9)
        rates = {
            "throughput/tokens_per_second": self.tokens / seconds,
            "throughput/tokens_per_second_per_device": self.tokens / seconds / world_size,
            "throughput/flops_per_second_per_device": self.flops / seconds,
            "throughput/data_wait_share": self.seconds_waited / seconds,
        }
        return rates | ({"throughput/mfu": self.flops / seconds / peak} if peak else {})


class Progress(Callback):
    """Prints tokens, loss, rates, speed and the time that is left, from rank 0.

    MFU, model FLOP utilisation, counts what the model needs, only masked tokens in the head, against the peak of the
    GPU's data sheet.
    """

    def __init__(self, phase: Phase) -> None:
        self.config, self.ranks = phase.config, phase.ranks
        on_gpu = device_of(phase.config) == "gpu"
        self.peak = peak_flops(torch.cuda.get_device_name()) if on_gpu else None
        self.since, self.stretch = monotonic(), Stretch()

    def fit_start(self, state: State, logger: Logger) -> None:
        """Start the clock."""
        self.since = monotonic()

    def batch_end(self, state: State, logger: Logger) -> None:
        """Count the step; report every `interval_batches` steps and at the end."""
        batch, tokens = state.batch, int(state.timestamp.token)
        self.stretch.tokens += int(batch["stream_tokens"].sum())
        self.stretch.flops += training_flops(self.config.model, batch["lengths"], batch["num_labels"])
        self.stretch.seconds_waited += batch["seconds_waited"]
        if int(state.timestamp.batch) % self.config.logging.interval_batches and tokens < self.config.duration:
            return
        self.stretch.seconds = monotonic() - self.since
        rates = self.stretch.rates(self.ranks.world_size, self.peak)
        self.since, self.stretch = monotonic(), Stretch()
        left = max(0, self.config.duration - tokens) / max(rates["throughput/tokens_per_second"], 1e-9)
        logger.log_metrics({**rates, "throughput/seconds_left": left})
        if self.ranks.is_first:
            print(self.line(state, rates, left), flush=True)

    def line(self, state: State, rates: dict[str, float], left: float) -> str:
        """The report for people: loss, learning rate and mask rate are the last step's."""
        assert state.previous_timestamp is not None
        tokens, duration = int(state.timestamp.token), self.config.duration
        loss, rate = float(state.total_loss_dict["loss/train/total"]), state.optimizers[0].param_groups[0]["lr"]
        mask_rate = self.config.mask_rate.value(int(state.previous_timestamp.token), duration)
        mfu = f"  MFU {rates['throughput/mfu']:.1%}" if "throughput/mfu" in rates else ""
        return (
            f"{self.config.name}  {min(1.0, tokens / duration):4.0%}  {tokens:,} of {duration:,} tokens  "
            f"loss {loss:.3f}  lr {rate:.1e}  mask {mask_rate:.0%}  "
            f"{rates['throughput/tokens_per_second']:,.0f} tokens/s{mfu}  "
            f"waiting {rates['throughput/data_wait_share']:.1%}  {timedelta(seconds=round(left))} left"
        )
