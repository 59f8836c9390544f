"""What programs have in common: help, errors in one line, outputs that none can write, imports left uncollected."""
import errno
import importlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from mmbert.command import errors_in_one_line

PROGRAM = """
import gc
from mmbert.command import lasting_imports
made = [[] for _ in range(1_000)]
try:
    with lasting_imports():
        assert not gc.isenabled()
        import no_such_module
except ImportError:
    print(gc.isenabled(), gc.get_freeze_count() > len(made), len(gc.get_objects()) < len(made))
"""

@pytest.mark.parametrize("folder", ["data_prep", "callbacks", "src/mmbert"])
def test_usage_names_the_command_that_was_run(folder: str) -> None:
    """argparse alone would say `repack.py`, which is no command."""
    texts = {path: path.read_text() for path in Path(folder).glob("*.py")}
    programs = [path for path, text in texts.items() if "ArgumentParser(" in text and '__name__ == "__main__"' in text]
    assert programs
    for path in programs:
        module = ".".join(path.with_suffix("").parts).removeprefix("src.")
        assert f'prog="python -m {module}"' in texts[path], path


PIPED = """
import sys
from mmbert.command import errors_in_one_line
with errors_in_one_line():
    print("the first line", flush=True)
    sys.stdin.read()
    for _ in range(int(sys.argv[1])):
        print("a line")
"""


@pytest.mark.parametrize("lines", [10, 100_000])  # one buffer of Python's, or many
def test_a_program_whose_reader_has_had_enough_ends_without_a_word(lines: int) -> None:
    """`python -m mmbert.show_rows runs/mine/phase1 0 1 2 | head`."""
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    program = subprocess.Popen([sys.executable, "-c", PIPED, str(lines)], env=environment, **pipes)
    assert program.stdin
    assert program.stdout
    assert program.stderr
    assert program.stdout.readline() == b"the first line\n"
    program.stdout.close()
    program.stdin.close()
    assert program.stderr.read() == b""
    assert program.wait(60) == 128 + signal.SIGPIPE


def test_another_pipe_that_breaks_is_an_error() -> None:
    script = "from mmbert.command import *\nwith errors_in_one_line():\n  raise BrokenPipeError(32, 'a')"
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stderr) == (1, "error: [Errno 32] a\n")


def test_a_run_has_a_help() -> None:
    ended = subprocess.run([sys.executable, "main.py", "--help"], capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert "composer main.py yamls/phase1.yaml [key.sub=value ...]" in ended.stdout


def test_what_was_imported_is_frozen_and_the_collector_goes_on() -> None:
    """In a process of its own: what this one holds must not be frozen."""
    ended = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=60, check=True)
    assert ended.stdout.split() == ["True"] * 3


def test_a_run_imports_in_this_way() -> None:
    script = """
import atexit, gc, main
atexit.register(lambda: print(gc.get_freeze_count()))
main.main(["no.yaml"])
"""
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300)
    assert "no such configuration" in ended.stderr
    assert int(ended.stdout) > 100_000


@pytest.mark.parametrize(
    "command",
    [
        "mmbert.convert_to_hf --checkpoint run",
        "mmbert.evaluation.report --run-root runs --phases phase1",
        "mmbert.run_report.__main__ run",
        "mmbert.plan.__main__ phase.yaml",
    ],
)
def test_an_object_store_is_no_output(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    module, *arguments = command.split()
    with pytest.raises(SystemExit):
        importlib.import_module(module).main([*arguments, "--output", "s3://bucket/out"])
    assert "s3://bucket/out lies in an object store: name a folder" in capsys.readouterr().err


@pytest.mark.parametrize("number, remedy", [
    (errno.EACCES, "give this user the right to it, or name another path"),
    (errno.EROFS, "give this user the right to it, or name another path"),
    (errno.ENOSPC, "free space there, and run the same command again"),
    (errno.EDQUOT, "free space there, and run the same command again"),
    (errno.EEXIST, "that, or a part of it, is no folder: remove it, or name another path"),
    (errno.EFBIG, "ulimit -f says how large a file may be: raise it"),
])  # fmt: skip
def test_an_error_of_the_system_has_a_remedy(number: int, remedy: str) -> None:
    with pytest.raises(SystemExit) as refusal, errors_in_one_line():
        raise OSError(number, os.strerror(number), "runs/x")
    assert str(refusal.value) == f"error: [Errno {number}] {os.strerror(number)}: 'runs/x'; {remedy}"


@pytest.mark.parametrize("error", [ValueError("a = 1 must be 2"), FileNotFoundError("a is missing; write it")])
def test_an_error_of_ours_is_told_as_it_is(error: Exception) -> None:
    with pytest.raises(SystemExit, match=f"^error: {error}$"), errors_in_one_line():
        raise error
