"""A process that hangs ends, and tells where it hung; in processes of their own."""
import os
import signal
import socket
import subprocess
import sys
from math import inf, nan
from typing import Any

import pytest

from mmbert.watchdog import HUNG, Watchdog

HANG = """
import time
from mmbert.watchdog import Watchdog
def read_batch():
    time.sleep(60)  # line 5
dog = Watchdog(0.3)
dog.start()
dog.beat("the batch of step 7")
read_batch()
"""
HANG_IN_A_WORKER = """
import multiprocessing, time
from mmbert.watchdog import Watchdog, dump_on_request
def read_shard(ready):
    dump_on_request()
    ready.set()
    time.sleep(60)  # line 7
context = multiprocessing.get_context("fork")
ready = context.Event()
for number in range(2):
    ready.clear()
    context.Process(target=read_shard, args=(ready,), name=f"loader-{number}", daemon=True).start()
    ready.wait()
dog = Watchdog(0.3)
dog.start()
time.sleep(60)
"""
KEEP_THE_INTERPRETER = """
import re
from mmbert.watchdog import Watchdog
def backtrack():
    re.match("(a+)+$", "a" * 50 + "b")  # line 5: hours, without letting another thread run
dog = Watchdog(0.2, dump_seconds=0.2)
dog.start()
backtrack()
"""
BEAT = """
import time
from mmbert.watchdog import Watchdog
dog = Watchdog(1.0, dump_seconds=0.0)
dog.start()
for step in range(90):
    dog.beat(f"step {step}")
    time.sleep(0.02)
print("lives")
"""
STOP = """
import time
from mmbert.watchdog import Watchdog
dog = Watchdog(0.2, dump_seconds=0.0)
dog.stop()
dog.start()
dog.stop()
dog.beat("nothing any more")
dog.stop()
time.sleep(0.6)
print("lives")
"""
FORK = """
import multiprocessing
from mmbert.watchdog import Watchdog, dump_on_request
dog = Watchdog(30)
def work():
    dump_on_request()
    dog.beat("a batch in the child")
    dog.stop()
dog.start()
child = multiprocessing.get_context("fork").Process(target=work)
child.start()
child.join()
dog.stop()
print(child.exitcode)
"""
ASK = """
import os, signal
from mmbert.watchdog import dump_on_request
dump_on_request()
def work():
    os.kill(os.getpid(), signal.SIGUSR2)  # line 6
work()
print("lives")
"""


def run(script: str, **streams: Any) -> subprocess.CompletedProcess[str]:
    """Run it to its end, and until no child of it has its streams open; a minute is for ever."""
    streams = streams or {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.run([sys.executable, "-c", script], text=True, timeout=60, **streams)


@pytest.mark.fault(16)
def test_a_process_that_hangs_tells_where_and_ends_with_86() -> None:
    ended = run(HANG)
    assert ended.returncode == HUNG == 86
    first, *stacks = ended.stderr.splitlines()
    assert first.startswith("watchdog: process ")
    assert first.endswith(" hangs: 0.3 s without progress in: the batch of step 7")
    assert '  File "<string>", line 5 in read_batch' in stacks


@pytest.mark.fault(16)
def test_its_children_tell_where_they_hang_and_are_gone() -> None:
    ended = run(HANG_IN_A_WORKER)
    assert ended.returncode == HUNG
    assert "without progress in: starting\n" in ended.stderr
    _, *children = ended.stderr.split("watchdog: its child ")
    assert [child.partition(",")[0] for child in children] == ["loader-0", "loader-1"]
    for child in children:
        assert '  File "<string>", line 7 in read_shard' in child.splitlines()


@pytest.mark.fault(16)
def test_c_code_that_keeps_the_interpreter_to_itself_is_ended_too() -> None:
    ended = run(KEEP_THE_INTERPRETER)
    assert ended.returncode == 1
    assert ended.stderr.startswith("Timeout (0:00:00.5")
    assert '  File "<string>", line 5 in backtrack' in ended.stderr.splitlines()


@pytest.mark.fault(16)
def test_an_stderr_that_takes_nothing_does_not_keep_it_alive() -> None:
    """The reader of its pipe has stopped reading, which may be what it hangs at."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    for size in (4096, 1):
        try:
            while True:
                os.write(writer, b"x" * size)
        except BlockingIOError:
            pass
    os.set_blocking(writer, True)
    ended = run(HANG.replace("Watchdog(0.3)", "Watchdog(0.3, dump_seconds=0.3)"), stderr=writer)
    os.close(writer)
    os.close(reader)
    assert ended.returncode == -signal.SIGALRM


def test_stacks_are_written_in_one_piece_for_several_ranks_write_theirs_at_once() -> None:
    reader, writer = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)  # every write is a message
    with reader, writer:
        assert run(HANG, stderr=writer).returncode == HUNG
        message = reader.recv(1 << 16).decode()
    assert message.startswith("watchdog: ")
    assert "line 5 in read_batch" in message


def test_a_process_that_beats_lives() -> None:
    """For longer than either limit."""
    ended = run(BEAT)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "lives\n", "")


def test_a_stopped_watchdog_ends_nothing() -> None:
    ended = run(STOP)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "lives\n", "")


def test_a_fork_of_a_watched_process_is_not_watched_and_ends_well() -> None:
    ended = run(FORK)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "0\n", "")


def test_stacks_can_be_asked_for_and_the_process_goes_on() -> None:
    ended = run(ASK)
    assert (ended.returncode, ended.stdout) == (0, "lives\n")
    assert '  File "<string>", line 6 in work' in ended.stderr.splitlines()


@pytest.mark.parametrize("limit", [0.0, -1.0, inf, nan])
def test_a_limit_that_is_none_is_refused(limit: float) -> None:
    with pytest.raises(ValueError, match=f"limit is {limit} seconds"):
        Watchdog(limit)
