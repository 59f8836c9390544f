"""What all programs share: how they fail."""
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def errors_in_one_line() -> Iterator[None]:
    """Around a program, or the part of it that reads what a user wrote; also a decorator.

    ValueError and OSError are what a user can get wrong: one line on stderr and exit status 1. Anything else is a bug
    and keeps its traceback.
    """
    try:
        yield
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
