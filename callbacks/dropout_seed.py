"""Dropout that a resumed run draws again."""
import numpy as np
import torch
from composer import Callback, Logger, State

from mmbert.trainer import Phase


class DropoutSeed(Callback):
    """Seeds torch before each step from (seed, step, rank), so that no generator state needs saving."""

    def __init__(self, phase: Phase) -> None:
        self.seed, self.rank = phase.config.phase_seed, phase.ranks.rank

    def batch_start(self, state: State, logger: Logger) -> None:
        """Seed every device's generator."""
        key = [self.seed, int(state.timestamp.batch), self.rank]
        torch.manual_seed(int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0]))
