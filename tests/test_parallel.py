"""Worker processes of data preparation: results in order, errors and killed workers told, nobody left behind."""
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from data_prep import clean, count, repack, train_tokenizer, verify
from data_prep.parallel import spread
from tests.conftest import Corpus
from tests.data_prep.programs import call
from tests.waiting import wait_until

# Workers that say who they are and wait.
PROGRAM = """
import os, sys, time
from pathlib import Path
from data_prep.parallel import spread
def wait(number):
    (Path(sys.argv[1]) / str(number)).write_text(str(os.getpid()))
    time.sleep(60)
list(spread(wait, [0, 1], 2, "wait"))
"""


def is_gone(process: str) -> bool:
    """A zombie, which its new parent may leave, has no command line."""
    try:
        return not Path(f"/proc/{process}/cmdline").read_bytes()
    except OSError:
        return True


def slow_if_first(number: int) -> tuple[int, int]:
    time.sleep(0.2 * (number == 0))
    return number, os.getpid()


def kill_the_third(number: int) -> int:
    if number == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def refuse_the_third(number: int) -> int:
    if number == 2:
        raise ValueError("2 is wrong")
    return number


@pytest.mark.parametrize("workers", [1, 2, 9])
def test_results_come_in_the_order_of_the_tasks(workers: int) -> None:
    results = list(spread(slow_if_first, range(5), workers, "wait"))
    assert [number for number, _ in results] == list(range(5))
    assert ({process for _, process in results} == {os.getpid()}) == (workers == 1)
    assert list(spread(slow_if_first, [], workers, "wait")) == []


def test_no_workers_are_refused_by_the_programs_that_ask_for_some(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shards, text = corpus.shards[64], ["--input", tmp_path / "text", "--language", "fao"]
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a.txt").write_text("one\n")
    new, own = ["--output", tmp_path / "new"], ["--tokenizer", corpus.tokenizer]
    programs: list[tuple[Callable[[], None], list[object]]] = [
        (verify.main, [shards]),
        (repack.main, ["--input", shards, "--row-length", 128, *new]),
        (count.main, [*text, *own, *new]),
        (train_tokenizer.main, [*text, "--vocab-size", 300, *new]),
        (clean.main, [*text, "--minhash", "--output", tmp_path / "clean"]),
    ]
    for main, arguments in programs:
        with pytest.raises(SystemExit, match="error: --workers 0: must be at least 1"):
            call(monkeypatch, main, *arguments, "--workers", 0)


def test_a_killed_worker_is_an_error_that_says_what_to_do() -> None:
    with pytest.raises(OSError, match=r"a worker process was killed, .* again, with fewer --workers"):
        list(spread(kill_the_third, range(5), 2, "kill"))


@pytest.mark.parametrize("workers", [1, 2])
def test_an_error_of_a_task_ends_it(workers: int) -> None:
    results = spread(refuse_the_third, range(5), workers, "refuse")
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(ValueError, match="2 is wrong"):
        next(results)


@pytest.mark.skipif(sys.platform != "linux", reason="other kernels send no such signal")
def test_workers_end_with_a_killed_program(tmp_path: Path) -> None:
    program = subprocess.Popen([sys.executable, "-c", PROGRAM, str(tmp_path)], stderr=subprocess.DEVNULL)
    wait_until(lambda: len(list(tmp_path.iterdir())) == 2)
    wait_until(lambda: all(path.read_text() for path in tmp_path.iterdir()))
    program.kill()
    program.wait()
    wait_until(lambda: all(is_gone(path.read_text()) for path in tmp_path.iterdir()))
