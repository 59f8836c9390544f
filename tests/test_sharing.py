"""Processes that share the test files run each test once, and none that fails or is lost passes for one that passed."""
from pathlib import Path

import pytest

from tests.sharing import run_shared

NOTE = "from pathlib import Path\nimport os, pytest, signal\ndef note(name): open({ran!r}, 'a').write(name + ' ')\n"
GOOD = "def test_one(): note('one')\n@pytest.mark.parametrize('n', '23')\ndef test_more(n): note(n)\n"
SKIPPED = "@pytest.mark.skip\ndef test_skipped(): note('skipped')\n"
BAD = "def test_bad(): note('bad'); assert False\n"
UNREADY = "@pytest.fixture\ndef broken(): raise OSError\ndef test_unready(broken): pass\n"
LOST = "def test_lost(): os.kill(os.getpid(), signal.SIGKILL)\ndef test_after(): note('after')\n"


@pytest.mark.parametrize(
    "files, last, ran",
    [
        ({"a": GOOD, "b": SKIPPED, "more/a": GOOD}, "in all: 6 passed, 1 skipped", "2 2 3 3 one one"),
        ({"a": GOOD, "b": BAD}, "in all: 1 failed, 3 passed", "2 3 bad one"),
        ({"a": GOOD, "b": UNREADY}, "in all: 1 failed, 3 passed", "2 3 one"),
    ],
    ids=["good", "bad", "unready"],
)
def test_outcomes_add_up(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], files: dict[str, str], last: str, ran: str
) -> None:
    assert run(tmp_path, files) is ("failed" not in last)
    assert capfd.readouterr().out.splitlines()[-1] == last
    assert sorted((tmp_path / "ran").read_text().split()) == ran.split()


def test_a_process_that_dies_leaves_tests_that_were_not_run(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path, {"a": LOST}) is False
    assert capfd.readouterr().out.splitlines()[-1] == "in all: 2 not run"


def test_a_file_that_nobody_runs_is_missed(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Both processes end well, and each believes that the other has it."""
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared" / "tests.test_a.py.claimed").touch()
    assert run(tmp_path, {"a": GOOD, "b": SKIPPED}) is False
    assert capfd.readouterr().out.splitlines()[-1] == "in all: 1 skipped, 3 not run"


def run(folder: Path, files: dict[str, str]) -> bool:
    """The processes over these test files, each of which may note that a test ran."""
    for name, text in files.items():
        path = folder / "tests" / Path(name).parent / f"test_{Path(name).name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(NOTE.format(ran=str(folder / "ran")) + text)
    (folder / "shared").mkdir(exist_ok=True)
    options = [f"--rootdir={folder}", "--import-mode=importlib"]  # else a test's name depends on where this runs
    return run_shared(folder / "shared", [*options, str(folder / "tests")])
