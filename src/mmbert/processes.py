"""What the processes of a run agree on: how a child ends with its parent, what an exit status says, open files."""
import ctypes
import multiprocessing
import os
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager

STOPPED = 85  # exit status ERESTART: asked to stop and saved; a scheduler may queue the same command again

PR_SET_PDEATHSIG = 1  # linux/prctl.h
ENOUGH_FILES = 16_384  # open at a time, for the shards of every language of the recipe and all else


def die_with_parent(number: int, parent: int | None = None) -> None:
    """Have the kernel send this process the signal `number` when its parent ends, however that ends.

    It survives exec, not fork. Off Linux it does nothing: there is no such request.

    Args:
        number: the signal; it is raised at once when the parent is gone already.
        parent: process id of the parent, where the caller knows it. Without it, only a parent that ends during the
            call is noticed: afterwards process 1 is the parent, but in a container that can be the launcher itself.

    Raises:
        OSError: the kernel refuses; `number` is no signal.
    """
    if sys.platform != "linux":
        return
    expected = os.getppid() if parent is None else parent
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_PDEATHSIG, ctypes.c_ulong(number), 0, 0, 0) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{os.strerror(code)}: signal {number} at the parent's end")
    if os.getppid() != expected:  # it ended before the request was made: the kernel sends nothing any more
        os.kill(os.getpid(), number)  # and not raise_signal: the main thread may leave signals to another


@contextmanager
def no_child_outlives() -> Iterator[None]:
    """Around what may fail while it has multiprocessing children, loader workers say, that write nothing.

    They ignore SIGTERM, with which Python would ask them to end when this process does, and wait for ever. One that is
    killed may hold a lock for ever: torch's loaders, which would take such locks to end their workers, are told that
    the program ends.
    """
    try:
        yield
    finally:
        children = multiprocessing.active_children()
        for child in children:
            child.kill()
        loaders = sys.modules.get("torch.utils.data._utils")
        if children and loaders:
            loaders._set_python_exit_flag()  # torch does so itself at exit, which is too late


def open_files_allowed() -> int:
    """How many files this process and children that it forks later may have open, once the limit is raised.

    Most systems start programs with a soft limit of 1,024, for those that use select(2), far below the hard one.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < (most := min(ENOUGH_FILES, hard)):
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
        return most
    return soft
