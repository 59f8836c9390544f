"""What all programs share: how they fail."""
import sys
from argparse import ArgumentTypeError
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


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


def local_folder(text: str) -> Path:
    """Type of an argument that no object store can stand for: a program lists what is in it."""
    if "://" in text:
        raise ArgumentTypeError(f"{text} lies in an object store: copy it to a folder first")
    return Path(text)
