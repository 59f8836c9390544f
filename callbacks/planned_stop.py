"""Ends a run after the current step when a person, a scheduler or the time limit asks for it."""
import os
from time import time

from composer import Callback, Logger, State

from callbacks.checkpointing import Checkpointing
from mmbert.stop_request import StopRequest
from mmbert.trainer import Phase

SLURM_MARGIN = 30.0  # seconds for what follows the last save


class PlannedStop(Callback):
    """A request to any rank stops all ranks after the step that they are in; `Checkpointing` then saves it.

    Slurm's time limit needs no signal: a run stops when two of its longest steps and saves would not fit any more.
    """

    def __init__(self, phase: Phase, request: StopRequest, checkpointing: Checkpointing) -> None:
        self.request, self.ranks, self.checkpointing = request, phase.ranks, checkpointing
        minutes = phase.config.max_minutes
        self.own_end = time() + 60 * minutes if minutes else float("inf")
        self.slurm_end = float(os.environ.get("SLURM_JOB_END_TIME", "inf"))
        self.step_began = time()
        self.longest_step = 0.0

    def fit_start(self, state: State, logger: Logger) -> None:
        """From here on a step is finished and saved before the process ends."""
        self.request.defer()

    def batch_start(self, state: State, logger: Logger) -> None:
        """Time the step."""
        self.step_began = time()

    def batch_end(self, state: State, logger: Logger) -> None:
        """Let all ranks agree, so that they stop after the same step."""
        self.longest_step = max(self.longest_step, time() - self.step_began)
        if self.ranks.any(self.is_wanted()):
            state.stop_training()

    def is_wanted(self) -> bool:
        """Whether this rank was asked to stop, or its time is up."""
        return self.request.is_asked or time() >= self.own_end or self.is_slurm_near()

    def is_slurm_near(self) -> bool:
        """Whether the job's time would not be enough for two more steps and saves."""
        return time() + SLURM_MARGIN + 2 * (self.longest_step + self.checkpointing.seconds) >= self.slurm_end
