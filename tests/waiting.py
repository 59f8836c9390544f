"""Waits for what other processes do."""
import time
from collections.abc import Callable


def wait_until(claim: Callable[[], bool], seconds: float = 60.0) -> None:
    """Return as soon as it holds; a minute is for ever."""
    end = time.monotonic() + seconds
    while not claim():
        assert time.monotonic() < end, "it never came true"
        time.sleep(0.01)
