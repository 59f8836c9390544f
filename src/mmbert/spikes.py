"""When a loss curve spikes. Pure functions of numbers."""
from collections.abc import Sequence
from statistics import fmean, pstdev


def is_high(loss: float, calm: Sequence[float], sigma: float) -> bool:
    """Whether a loss exceeds the mean of calm steps by more than `sigma` of their standard deviations."""
    return loss > fmean(calm) + sigma * pstdev(calm)


def count_high(loss: float, calm: list[float], num_high: int, sigma: float, window: int) -> tuple[list[float], int]:
    """Follow a loss by one step.

    Args:
        calm: losses of the last calm steps, at most `window`.
        num_high: high steps in a row, up to here.

    Returns:
        Both after this step. No step is high before `window` calm ones are known.
    """
    if len(calm) == window and is_high(loss, calm, sigma):
        return calm, num_high + 1
    return [*calm, loss][-window:], 0
