"""What programs share: how they fail, how they import what takes long, and some of their arguments."""
import gc
import sys
from argparse import ArgumentTypeError
from collections.abc import Iterator, Sequence
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


@contextmanager
def lasting_imports() -> Iterator[None]:
    """Around imports that take seconds. Python's collector leaves alone what they make, for it stays to the end.

    It would go through those million objects again and again while they grow, in the run, and twice at exit.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def yamls_and_overrides(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """What a chain of phases is named by: its YAMLs, and `key.sub=value` for all of them."""
    return [text for text in arguments if "=" not in text], [text for text in arguments if "=" in text]


def local_folder(text: str) -> Path:
    """Type of an argument that no object store can stand for: a program lists, or replaces, what is in it."""
    if "://" in text:
        raise ArgumentTypeError(f"{text} lies in an object store: name a folder, and copy from or to it")
    return Path(text)
