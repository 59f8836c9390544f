"""Requests to stop: when they end a process at once, and when they are only noted."""
import os
import signal
import subprocess
import sys

import pytest

from mmbert.stop_request import ASKED_BY, StopRequest


def run(body: str) -> subprocess.CompletedProcess[str]:
    """A small program around a StopRequest."""
    head = "import os, signal\nfrom mmbert.stop_request import StopRequest\n"
    head += "def ask(): os.kill(os.getpid(), signal.SIGTERM)\n"
    environment = {**os.environ, "OMP_NUM_THREADS": "2"}
    return subprocess.run([sys.executable, "-c", head + body], env=environment, capture_output=True, text=True)


@pytest.mark.fault(1)
def test_a_signal_before_there_is_anything_to_save_ends_the_process_with_85() -> None:
    done = run(
        "import ctypes\nwith StopRequest() as request:\n  request.listen()\n  ask()\n"
        "  ctypes.CDLL(None).sleep(60)\n  print('went on')\n"
    )  # in native code, where the main thread runs no handler
    assert done.returncode == 85
    assert "went on" not in done.stdout
    assert "before the first step" in done.stderr


@pytest.mark.fault(1)
def test_a_signal_during_the_imports_waits_for_listen_whatever_handlers_they_install() -> None:
    done = run(
        "with StopRequest() as request:\n  ask()\n  signal.signal(signal.SIGTERM, lambda *_: os._exit(143))\n"
        "  print('imported', flush=True)\n  request.listen()\n  signal.pause()\n  print('went on')\n"
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


@pytest.mark.fault(1)
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_no_thread_that_computes_takes_a_signal() -> None:
    """Not even for a moment: the frame of a handler would be written over what lies below oneDNN's buffer."""
    done = run(
        "with StopRequest() as request:\n"
        "  import torch\n  from tests.faults.oracle import takers_of\n  from tests.waiting import wait_until\n"
        "  torch.zeros(1 << 20).sum()\n  threads = len(os.listdir('/proc/self/task'))\n  request.listen()\n"
        "  wait_until(lambda: len(ender := takers_of(signal.SIGTERM, os.getpid())) == 1 and os.getpid() not in ender)\n"
        "  request.defer()\n  print(threads > 1, [takers_of(number, os.getpid()) for number in (2, 10, 15)])\n"
    )
    assert (done.stderr, done.stdout) == ("", "True [set(), set(), set()]\n")


def test_a_signal_that_came_is_over_with_the_block() -> None:
    done = run(
        "with StopRequest() as request:\n  request.listen()\n  request.defer()\n  ask()\n"
        "print(signal.sigpending(), signal.getsignal(signal.SIGTERM) == signal.SIG_DFL)\n"
    )
    assert (done.returncode, done.stdout) == (0, "set() True\n")


def test_a_thread_that_began_before_and_takes_signals_does_not_end_the_process() -> None:
    done = run(
        "import threading, time\nthreading.Thread(target=time.sleep, args=(2,)).start()\n"
        "with StopRequest() as request:\n  request.listen()\n  request.defer()\n  ask()\n  time.sleep(0.1)\n"
        "  print(request.is_asked, signal.sigpending())\n"
    )
    assert (done.returncode, done.stdout) == (0, "True set()\n")
