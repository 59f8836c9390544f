"""Whether a person, a scheduler or a launcher has asked this process to stop."""
import os
import signal
from threading import Thread
from types import FrameType

from mmbert.processes import STOPPED

ASKED_BY = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
WAKE = signal.SIGURG  # for a thread of this class; nothing else sends it


class StopRequest:
    """Notes SIGTERM, SIGINT and SIGUSR1 for as long as the `with` block lasts.

    Until `defer` there is nothing to save, and from `listen` on a signal ends the process at once, one that came
    during the imports, too; after `defer` it is only noted. A second signal changes nothing, for launchers pass on what
    the ranks have received already.

    No handler interrupts a computation: threads begun in the block block the signals, as the main one does. A frame of
    a handler is written where the stack pointer is, and oneDNN's products of fp32 keep that in a buffer on the heap,
    some of them for 96 % of their time (its issue 4845; mended in 3.11.2, torch 2.7 has 3.7.1). What lay below was
    written over, and the process crashed after it: "corrupted size vs. prev_size", or a segmentation fault in autograd.
    """

    def __init__(self) -> None:
        self.is_deferred = False
        self._is_noted = False
        self._ender = Thread(target=self._end_when_asked, name="stop request", daemon=True)

    @property
    def is_asked(self) -> bool:
        """Whether any of the signals has come. They stay pending."""
        return self._is_noted or not signal.sigpending().isdisjoint(ASKED_BY)

    def __enter__(self) -> "StopRequest":
        self._handlers = [signal.getsignal(number) for number in ASKED_BY]
        self._mask = signal.pthread_sigmask(signal.SIG_BLOCK, {*ASKED_BY, WAKE})
        return self

    def __exit__(self, *_: object) -> None:
        self._dismiss_ender()
        for number in signal.sigpending().intersection(ASKED_BY):
            signal.sigwait({number})
        for number, handler in zip(ASKED_BY, self._handlers, strict=True):
            signal.signal(number, handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, self._mask)

    def listen(self) -> None:
        """From here on a signal ends the process."""
        for number in ASKED_BY:  # for threads that began before the block, a debugger's say, and do not block them
            signal.signal(number, self._note)
        self._ender.start()

    def defer(self) -> None:
        """From here on a step is to be finished and saved first."""
        self._dismiss_ender()
        self.is_deferred = True

    def _end_when_asked(self) -> None:
        if signal.sigwait({*ASKED_BY, WAKE}) != WAKE:
            self._end()

    def _dismiss_ender(self) -> None:
        if self._ender.ident and self._ender.is_alive():
            signal.pthread_kill(self._ender.ident, WAKE)
            self._ender.join()

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._is_noted = True
        if not self.is_deferred:
            self._end()

    def _end(self) -> None:
        os.write(2, b"asked to stop before the first step; the same command begins anew\n")
        os._exit(STOPPED)
