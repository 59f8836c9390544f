"""Whether a person, a scheduler or a launcher has asked this process to stop."""
import os
import signal
from types import FrameType

from mmbert.processes import STOPPED

ASKED_BY = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


class StopRequest:
    """Notes SIGTERM, SIGINT and SIGUSR1 for as long as the `with` block lasts.

    Signals wait from the block's begin until `listen`: importing Composer takes seconds and installs handlers of its
    own. Until `defer` there is nothing to save and a signal ends the process at once; from then on it is only noted.
    A second signal changes nothing, for launchers pass on what the ranks have received already.
    """

    def __init__(self) -> None:
        self.is_asked = False
        self.is_deferred = False

    def __enter__(self) -> "StopRequest":
        self._handlers = [signal.getsignal(number) for number in ASKED_BY]
        self._mask = signal.pthread_sigmask(signal.SIG_BLOCK, ASKED_BY)
        return self

    def __exit__(self, *_: object) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, ASKED_BY)
        for number, handler in zip(ASKED_BY, self._handlers, strict=True):
            signal.signal(number, handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, self._mask)

    def listen(self) -> None:
        """Take the signals from here on, those that waited first."""
        for number in ASKED_BY:
            signal.signal(number, self._note)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, ASKED_BY)

    def defer(self) -> None:
        """From here on a step is to be finished and saved first."""
        self.is_deferred = True

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.is_asked = True
        if not self.is_deferred:
            os.write(2, b"asked to stop before the first step; the same command begins anew\n")
            os._exit(STOPPED)
