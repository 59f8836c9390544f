"""What programs share: how they fail, how they import what takes long, and some of their arguments."""
import errno
import gc
import os
import select
import signal
import sys
from argparse import ArgumentTypeError
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

NO_RIGHT = "give this user the right to it, or name another path"
NO_FOLDER = "that, or a part of it, is no folder: remove it, or name another path"
NO_SPACE = "free space there, and run the same command again"
REMEDIES = {
    errno.EACCES: NO_RIGHT, errno.EPERM: NO_RIGHT, errno.EROFS: NO_RIGHT,
    errno.ENOSPC: NO_SPACE, errno.EDQUOT: NO_SPACE,
    errno.ENOTDIR: NO_FOLDER, errno.EEXIST: NO_FOLDER, errno.EFBIG: "ulimit -f says how large a file may be: raise it",
}  # fmt: skip
"""What to do about errors of the system, which say what and where alone."""


@contextmanager
def errors_in_one_line() -> Iterator[None]:
    """Around a program, or the part of it that reads what a user wrote; also a decorator.

    ValueError and OSError are what a user can get wrong: one line on stderr and exit status 1. Anything else is a bug
    and keeps its traceback. Where the reader of stdout has had enough, as `head` has, the program ends without a word.
    """
    try:
        yield
        sys.stdout.flush()  # or Python does at its end, where nothing catches what comes of it
    except (ValueError, OSError) as error:
        if isinstance(error, BrokenPipeError) and nobody_reads():
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what Python writes at its end
            sys.exit(128 + signal.SIGPIPE)
        sys.exit(f"error: {with_remedy(error)}")


def nobody_reads() -> bool:
    """Whether stdout is a pipe whose reader has ended."""
    poll = select.poll()
    poll.register(sys.stdout, 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))


def with_remedy(error: Exception) -> str:
    """What an error says, and what to do where the system raised it; ours say that themselves, and have no number."""
    remedy = REMEDIES.get(error.errno or 0) if isinstance(error, OSError) else None
    return f"{error}; {remedy}" if remedy else str(error)


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


def refuse_existing(output: Path) -> None:
    """For a program that replaces nothing.

    Raises:
        FileExistsError: there is something, be it a dangling link.
    """
    if os.path.lexists(output):
        raise FileExistsError(f"--output {output} exists; remove it, or name another folder")
