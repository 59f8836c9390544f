"""Requests to stop: when they end a process at once, and when they are only noted."""
import signal
import subprocess
import sys

import pytest

from mmbert.stop_request import ASKED_BY, StopRequest


def run(body: str) -> subprocess.CompletedProcess[str]:
    """A small program around a StopRequest."""
    head = "import os, signal\nfrom mmbert.stop_request import StopRequest\ndef ask(): os.kill(os.getpid(), {})\n"
    return subprocess.run([sys.executable, "-c", head.format("signal.SIGTERM") + body], capture_output=True, text=True)


@pytest.mark.fault(1)
def test_a_signal_before_there_is_anything_to_save_ends_the_process_with_85() -> None:
    done = run("with StopRequest() as request:\n  request.listen()\n  ask()\n  print('went on')\n")
    assert done.returncode == 85
    assert "went on" not in done.stdout
    assert "before the first step" in done.stderr


@pytest.mark.fault(1)
def test_a_signal_during_the_imports_waits_for_listen_whatever_handlers_they_install() -> None:
    done = run(
        "with StopRequest() as request:\n  ask()\n  signal.signal(signal.SIGTERM, lambda *_: os._exit(143))\n"
        "  print('imported', flush=True)\n  request.listen()\n  print('went on')\n"
    )
    assert done.returncode == 85
    assert done.stdout == "imported\n"


@pytest.mark.fault(1)
def test_a_deferred_signal_is_noted_and_a_second_changes_nothing() -> None:
    done = run(
        "with StopRequest() as request:\n  request.listen()\n  request.defer()\n  ask()\n  ask()\n"
        "  print(request.is_asked)\n"
    )
    assert (done.returncode, done.stdout) == (0, "True\n")


@pytest.mark.parametrize("number", ASKED_BY, ids=str)
def test_handlers_and_mask_are_put_back(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with StopRequest() as request:
        request.listen()
        assert signal.getsignal(number) != before
    assert signal.getsignal(number) == before
    assert number not in signal.pthread_sigmask(signal.SIG_BLOCK, [])
