"""One process at a time writes into a folder: a lock that its holder's death frees, however it dies."""
import errno
import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

from mmbert.atomic import make_folder

NAME = "lock"
MOST_BYTES = 1024  # of the file's content, far more than hold_run writes


def hold_run(run_folder: Path) -> int:
    """Lock an existing run folder for this process, until it dies or closes the descriptor that it gets.

    A POSIX record lock on run_folder/lock: the kernel frees it when the process is gone, children do not inherit it,
    and it holds across machines on NFS. It also ends when this process closes any other descriptor of that file, so
    nothing else may open it; and it does not keep the same process from calling this twice.

    Raises:
        ValueError: another process holds it; names the process, its host and since when.
        OSError: the folder is missing or not writable, or its file system has no locks.
    """
    path = run_folder / NAME
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
    try:
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EACCES):  # POSIX allows either for "held"
                remedy = "run_root must lie on a file system with locks (Lustre: mounted with flock)"
                raise OSError(f"{path} cannot be locked: {error.strerror}; {remedy}") from error
            holder = _holder(os.pread(descriptor, MOST_BYTES, 0))
            raise ValueError(f"{run_folder} is being written by {holder}; wait for it, or stop it") from None
        _sign(descriptor, path)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


@contextmanager
def sole_writer(folder: Path) -> Iterator[None]:
    """Around what writes into a folder, which is made; see `hold_run`.

    The lock's file stays, empty: to unlink it would let two processes lock two files of one name.
    """
    make_folder(folder)
    descriptor = hold_run(folder)
    try:
        yield
    finally:
        os.ftruncate(descriptor, 0)
        os.close(descriptor)


def _sign(descriptor: int, path: Path) -> None:
    """Write who holds the lock, for people and for the message to the next process."""
    since = datetime.now().astimezone().isoformat(timespec="seconds")
    content = json.dumps({"host": os.uname().nodename, "pid": os.getpid(), "since": since}) + "\n"
    try:
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, content.encode(), 0)
        os.fsync(descriptor)
    except OSError as error:
        raise OSError(f"{path} cannot be written: {error.strerror}") from error


def _holder(content: bytes) -> str:
    """Who the content of the lock file says holds it; a person may have edited it, so nothing in it is trusted."""
    with suppress(ValueError, KeyError, TypeError, RecursionError):
        values = json.loads(content)
        host, pid, since = values["host"], values["pid"], values["since"]
        if type(pid) is int and all(isinstance(text, str) and text.isprintable() for text in (host, since)):
            return f"process {pid} on host {host} since {since}"
    return f"another process, which {NAME} does not name"
