"""Ends a process that hangs, after telling where: idle GPUs cost as much as busy ones."""
import contextlib
import faulthandler
import multiprocessing
import os
import signal
import threading
import time
from math import isfinite

HUNG = 86  # exit status of a process that the watchdog ended
WORKER_SECONDS = 1.0  # for the stacks of all children together
STDERR = 2  # the descriptor: sys.stderr may be wrapped, or locked by the thread that hangs


def dump_on_request() -> None:
    """Write the stacks of all threads of this process to stderr at SIGUSR2, and go on.

    Loader workers call it, so that the watchdog of their rank can tell where they hang.
    """
    faulthandler.register(signal.SIGUSR2, file=STDERR, all_threads=True, chain=False)


class Watchdog:
    """Ends this process with status 86 when it has not called `beat` for `limit_seconds`.

    First it writes to stderr what the process was doing, the stacks of its threads and those of its multiprocessing
    children. Two more guards stand behind it, for what a Python thread cannot survive. One writes the stacks and exits
    with status 1 when a C extension keeps the interpreter's lock. One ends by SIGALRM when stderr takes nothing more.
    Time in which the process is suspended counts.
    """

    def __init__(self, limit_seconds: float, dump_seconds: float = 5.0) -> None:
        """Set the limits.

        Args:
            limit_seconds: longest time between two beats.
            dump_seconds: longest time that writing the stacks may take.

        Raises:
            ValueError: `limit_seconds` is not positive and finite.
        """
        if not (isfinite(limit_seconds) and limit_seconds > 0):
            raise ValueError(f"the watchdog's limit is {limit_seconds} seconds; it must be positive and finite")
        self.limit_seconds, self.dump_seconds = limit_seconds, dump_seconds
        self._last = (time.monotonic(), "")
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def start(self) -> None:
        """Watch from here on; once."""
        self._last = (time.monotonic(), "starting")
        self._thread.start()
        self.beat("starting")

    def beat(self, doing: str) -> None:
        """Say what this process does next; the limit runs anew. Costs about 0.1 ms, for a thread is made anew."""
        self._last = (time.monotonic(), doing)
        if self._thread.is_alive():  # not after `stop`, nor in a fork, where faulthandler waits for a lost thread
            faulthandler.dump_traceback_later(self.limit_seconds * 1.5 + self.dump_seconds, exit=True, file=STDERR)

    def stop(self) -> None:
        """Watch no longer."""
        if self._thread.is_alive():
            faulthandler.cancel_dump_traceback_later()
            self._stopped.set()
            self._thread.join()

    def _watch(self) -> None:
        remaining = self.limit_seconds
        while not self._stopped.wait(remaining):
            since, doing = self._last
            remaining = since + self.limit_seconds - time.monotonic()
            if remaining <= 0:
                self._end(doing)

    def _end(self, doing: str) -> None:
        try:
            signal.setitimer(signal.ITIMER_REAL, self.dump_seconds)  # its default action needs nobody's help
            text = f"watchdog: process {os.getpid()} hangs: {self.limit_seconds:g} s without progress in: {doing}\n"
            _write(text.encode() + _stacks())
            _ask_children()
        finally:
            os._exit(HUNG)  # not sys.exit, which would wait for the thread that hangs


def _write(content: bytes) -> None:
    with open(STDERR, "wb", closefd=False) as stderr:
        stderr.write(content)


def _stacks() -> bytes:
    """The stacks of all threads, in one piece: faulthandler writes words, and other ranks may be writing theirs."""
    descriptor = os.memfd_create("stacks")
    faulthandler.dump_traceback(file=descriptor, all_threads=True)
    return os.pread(descriptor, os.fstat(descriptor).st_size, 0)


def _ask_children() -> None:
    """Have each child write its stacks, one after the other, and end it."""
    children = sorted(multiprocessing.active_children(), key=lambda child: child.name)
    for child in children:
        assert child.pid is not None  # it was started
        _write(f"watchdog: its child {child.name}, process {child.pid}:\n".encode())
        with contextlib.suppress(ProcessLookupError):
            os.kill(child.pid, signal.SIGUSR2)
            time.sleep(WORKER_SECONDS / len(children))
    for child in children:
        child.kill()
