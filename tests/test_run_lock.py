"""One process at a time holds a run, and its death frees it."""
import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from mmbert.run_lock import hold_run

HOLD = """
import os, sys
from contextlib import ExitStack
from pathlib import Path
from mmbert.run_lock import hold_run, sole_writer
held = ExitStack()
held.enter_context(sole_writer(Path(sys.argv[1])))
{then}
print("held", flush=True)
sys.stdin.readline()
held.close()
print("released", flush=True)
sys.stdin.readline()
"""
FORK = """
import time
child = os.fork()
if child == 0:
    time.sleep(60)
print(child)
"""
TRY_IN_A_FORK = """
child = os.fork()
if child == 0:
    try:
        hold_run(Path(sys.argv[1]))
    except ValueError:
        os._exit(7)
    os._exit(0)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@contextmanager
def holder(folder: Path, then: str = "") -> Iterator[tuple[subprocess.Popen[str], list[str]]]:
    """Another process that holds `folder`, and what it printed before."""
    command = [sys.executable, "-c", HOLD.format(then=then), str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        try:
            printed = list(iter(process.stdout.readline, "held\n"))
            assert "" not in printed, "it could not hold the run"
            yield process, printed
        finally:
            process.kill()


@pytest.mark.fault(17)
def test_a_second_process_is_refused_and_told_who_holds_the_run(tmp_path: Path) -> None:
    with holder(tmp_path) as (process, _):
        said = json.loads((tmp_path / "lock").read_text())
        assert said.keys() == {"host", "pid", "since"}
        for _ in range(2):  # being refused frees nothing
            with pytest.raises(ValueError) as refusal:
                hold_run(tmp_path)
            message = str(refusal.value)
            holds = f"process {process.pid} on host {os.uname().nodename} since {said['since']}"
            assert message == f"{tmp_path} is being written by {holds}; wait for it, or stop it"


@pytest.mark.fault(17)
def test_a_killed_holder_frees_the_run_at_once_though_its_child_lives(tmp_path: Path) -> None:
    with holder(tmp_path, FORK) as (process, printed):
        process.kill()
        process.wait(timeout=60)
        lock = hold_run(tmp_path)
        os.kill(int(printed[0]), signal.SIGKILL)  # it is still there
        assert json.loads((tmp_path / "lock").read_text())["pid"] == os.getpid()
        os.close(lock)


def test_what_an_earlier_holder_left_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "lock").write_text(json.dumps({"host": "there" * 100, "pid": 1, "since": "then"}))
    lock = hold_run(tmp_path)
    with (tmp_path / "lock").open() as file:  # closing it ends the lock, which nobody here needs any more
        assert json.load(file)["pid"] == os.getpid()
    os.close(lock)


@pytest.mark.fault(17)
def test_a_child_neither_shares_the_lock_nor_ends_it(tmp_path: Path) -> None:
    with holder(tmp_path, TRY_IN_A_FORK) as (process, printed):
        assert printed == ["7\n"]
        with pytest.raises(ValueError, match=f"process {process.pid} "):
            hold_run(tmp_path)


def test_a_released_run_is_free_while_its_holder_lives(tmp_path: Path) -> None:
    with holder(tmp_path) as (process, _):
        assert process.stdin
        assert process.stdout
        process.stdin.write("\n")
        process.stdin.flush()
        assert process.stdout.readline() == "released\n"
        assert (tmp_path / "lock").read_bytes() == b""
        lock = hold_run(tmp_path)
        assert process.poll() is None
        os.close(lock)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\xfe",
        b"[]",
        b"[" * 100_000,
        b'{"host": "here", "pid": 1}',
        b'{"host": "here", "pid": "1", "since": "now"}',
        b'{"host": "two\\nlines", "pid": 1, "since": "now"}',
    ],
    ids=lambda content: content[:20].decode(errors="replace"),
)
def test_a_broken_lock_file_still_gives_one_clear_line(tmp_path: Path, content: bytes) -> None:
    with holder(tmp_path):
        (tmp_path / "lock").write_bytes(content)
        with pytest.raises(ValueError, match=r"^[^\n]* is being written by another process, [^\n]*; wait for it, or"):
            hold_run(tmp_path)


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no-such-run"):
        hold_run(tmp_path / "no-such-run")


def test_a_file_system_without_locks_is_refused_not_ignored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def lockf(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "lockf", lockf)
    with pytest.raises(OSError, match="lock cannot be locked: No locks available; run_root must lie"):
        hold_run(tmp_path)


def test_a_full_disk_is_told_and_the_run_stays_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def pwrite(*arguments: Any) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(os, "pwrite", pwrite)
        with pytest.raises(OSError, match="lock cannot be written: No space left"):
            hold_run(tmp_path)
    with holder(tmp_path):
        pass


def test_a_lock_that_is_a_link_does_not_empty_what_it_points_to(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("content")
    (tmp_path / "lock").symlink_to("precious")
    with pytest.raises(OSError, match="lock"):
        hold_run(tmp_path)
    assert (tmp_path / "precious").read_text() == "content"
