"""The learning rate of every step, from the tokens trained on so far."""
from composer import Callback, Logger, State

from mmbert.clock import learning_rate
from mmbert.trainer import Phase


class LearningRate(Callback):
    """Sets the rate before each step rather than after the last one.

    A Composer scheduler runs after a step, so the first step of a resumed or handed-over phase would use the old rate.
    """

    def __init__(self, phase: Phase) -> None:
        self.config = phase.config

    def batch_start(self, state: State, logger: Logger) -> None:
        """Give every parameter group this step's rate."""
        rate = learning_rate(self.config, int(state.timestamp.token))
        for optimizer in state.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
        logger.log_metrics({"learning_rate": rate})
