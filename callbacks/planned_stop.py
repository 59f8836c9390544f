"""Ends a run after the current step when a person or a scheduler asks for it."""
import signal
from types import FrameType

import torch
from composer import Callback, Logger, State
from composer.utils import dist

ASKED_BY = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


class PlannedStop(Callback):
    """SIGTERM, SIGINT or SIGUSR1, to any rank, stops all ranks after the step that they are in.

    The step is finished and saved (callbacks/checkpointing.py saves whenever the loop ends), so nothing is lost; and a
    second signal changes nothing, for launchers pass on what the ranks have received already.
    """

    def __init__(self) -> None:
        self.is_asked = False

    def fit_start(self, state: State, logger: Logger) -> None:
        """Listen from here on: before the first step there is nothing to save."""
        for number in ASKED_BY:
            signal.signal(number, self.ask)

    def ask(self, number: int, frame: FrameType | None) -> None:
        """Note the request; a handler must not do more."""
        self.is_asked = True

    def batch_end(self, state: State, logger: Logger) -> None:
        """Let all ranks agree, so that they stop after the same step."""
        asked = state.device.tensor_to_device(torch.tensor([int(self.is_asked)]))
        dist.all_reduce(asked, reduce_operation="MAX")
        if asked.item():
            state.stop_training()
