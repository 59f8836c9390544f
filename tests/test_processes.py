"""Children end with their parent, seen from outside: real processes, tiny scripts."""
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from mmbert.processes import die_with_parent
from tests.waiting import wait_until

CHILD = """
import signal, sys, time
from pathlib import Path
from mmbert.processes import die_with_parent
signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(Path(sys.argv[1]).write_text("told")))
die_with_parent(signal.SIGTERM)
Path(sys.argv[1]).write_text("ready")
time.sleep(60)
"""
PARENT = "import subprocess, sys; subprocess.run([sys.executable, *sys.argv[1:]])"


def run(script: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)


@pytest.mark.fault(17)
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGUSR1], ids=str)
def test_a_child_is_told_when_its_parent_ends_however_it_ends(tmp_path: Path, number: signal.Signals) -> None:
    word = tmp_path / "word"
    parent = subprocess.Popen([sys.executable, "-c", PARENT, "-c", CHILD, str(word)])
    wait_until(lambda: word.exists() and word.read_text() == "ready")
    parent.send_signal(number)
    assert parent.wait(timeout=60) == -number
    wait_until(lambda: word.read_text() == "told")


def test_a_child_of_a_parent_that_lives_goes_on() -> None:
    ended = run("import os; from mmbert.processes import die_with_parent; die_with_parent(15, os.getppid()); print(1)")
    assert (ended.returncode, ended.stdout) == (0, "1\n")


def test_a_child_that_comes_too_late_ends_at_once() -> None:
    """The parent that it was started by is not its parent any more."""
    script = f"from mmbert.processes import die_with_parent; die_with_parent(15, {os.getpid()} + 1); print('lives')"
    ended = run(script)
    assert (ended.returncode, ended.stdout) == (-signal.SIGTERM, "")


def test_a_parent_that_ends_during_the_call_is_noticed() -> None:
    script = "import os; from mmbert.processes import die_with_parent; answers = iter([7, 1]);"
    ended = run(script + "os.getppid = lambda: next(answers); die_with_parent(15); print('lives')")
    assert (ended.returncode, ended.stdout) == (-signal.SIGTERM, "")


def test_what_is_no_signal_is_refused() -> None:
    with pytest.raises(OSError, match="signal 4711"):
        die_with_parent(4711)


def test_off_linux_nothing_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    die_with_parent(4711)


def test_no_child_outlives_an_error_even_one_that_ignores_sigterm() -> None:
    """Python's own exit sends SIGTERM and waits: this program would hang."""
    code = """
import multiprocessing, signal, time
from mmbert.processes import no_child_outlives
def ignore():
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    ready.set()
    time.sleep(1000)
ready = multiprocessing.get_context("fork").Event()
with no_child_outlives():
    multiprocessing.get_context("fork").Process(target=ignore, daemon=True).start()
    ready.wait()
    raise KeyError("unexpected")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "KeyError: 'unexpected'" in done.stderr


def test_a_loader_whose_worker_was_killed_with_a_lock_does_not_wait_for_it() -> None:
    """The lock of the event with which torch tells workers to end; each of them takes it once a batch."""
    code = """
import multiprocessing.synchronize, signal, time
from torch.utils.data import DataLoader
from mmbert.processes import no_child_outlives
def take_and_keep(event):
    event._cond.acquire()
    time.sleep(1000)
def is_held(lock):
    return not (lock.acquire(False) and lock.release() is None)
multiprocessing.synchronize.Event.is_set = take_and_keep
try:
    with no_child_outlives():
        batches = iter(DataLoader(range(4), num_workers=1))
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # as `RankBatches` does
        while not is_held(batches._workers_done_event._cond):
            time.sleep(0.01)
        raise KeyError("unexpected")
except KeyError:
    del batches
print("ended")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "ended\n"), done.stderr


@pytest.mark.parametrize(
    ("soft", "hard", "enough", "allowed"),
    [(64, 128, 999, 128), (128, 128, 999, 128), (64, 128, 99, 99), (120, 128, 99, 120)],
)
def test_the_soft_limit_of_open_files_is_raised_as_far_as_it_helps(
    soft: int, hard: int, enough: int, allowed: int
) -> None:
    script = f"""
import os, resource, mmbert.processes
from mmbert.processes import open_files_allowed
mmbert.processes.ENOUGH_FILES = {enough}
resource.setrlimit(resource.RLIMIT_NOFILE, ({soft}, {hard}))
print(open_files_allowed(), open_files_allowed(), *resource.getrlimit(resource.RLIMIT_NOFILE), flush=True)
if not os.fork():
    print(*resource.getrlimit(resource.RLIMIT_NOFILE))
"""
    ended = run(script)
    assert ended.stdout.split() == [str(number) for number in (allowed, allowed, allowed, hard, allowed, hard)]


def test_a_run_and_its_shards_go_by_what_the_limit_can_be_raised_to() -> None:
    script = """
import resource
from types import SimpleNamespace
from mmbert.shards import most_open
from mmbert.trainer import check_open_files
resource.setrlimit(resource.RLIMIT_NOFILE, (40, 100))
check_open_files(SimpleNamespace(data=SimpleNamespace(num_workers=2)))  # 48 are needed
resource.setrlimit(resource.RLIMIT_NOFILE, (40, 100))
print(most_open())
"""
    ended = run(script)
    assert (ended.stdout, ended.stderr) == ("25\n", "")
