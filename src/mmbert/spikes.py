"""When a loss curve spikes. Pure functions of numbers."""
from statistics import fmean, pstdev


def count_high(loss: float, calm: list[float], num_high: int, sigma: float, window: int) -> tuple[list[float], int]:
    """Follow a loss by one step.

    It is high when it exceeds the mean of calm steps by more than `sigma` of their standard deviations.

    Args:
        calm: losses of the last calm steps, at most `window`.
        num_high: high steps in a row, up to here.

    Returns:
        Both after this step. No step is high before `window` calm ones are known.
    """
    if len(calm) == window and loss > fmean(calm) + sigma * pstdev(calm):
        return calm, num_high + 1
    return [*calm, loss][-window:], 0
