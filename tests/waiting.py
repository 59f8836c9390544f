"""Waits for what other processes do."""
import time
from collections.abc import Callable


def wait_until(claim: Callable[[], bool], seconds: float = 60.0, pause: float = 0.01) -> None:
    """Return as soon as it holds; a minute is for ever. `pause` seconds between two looks."""
    end = time.monotonic() + seconds
    while not claim():
        assert time.monotonic() < end, "it never came true"
        time.sleep(pause)
