"""Several processes of pytest share the test files: each claims one before it runs it, so that none is run twice."""
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path

import pytest

PROCESSES = 2  # a run of the trainer keeps one core busy, and who tests it waits


def pytest_addoption(parser: pytest.Parser) -> None:
    """This module is a plugin of pytest, in processes that `run_shared` starts."""
    parser.addoption("--shared", type=Path, required=True, help="folder of the processes that share the test files")
    parser.addoption("--process", type=int, required=True, help="number of this process among them")


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(SharedFiles(config.option.shared, config.option.process))


class SharedFiles:
    """What one of the processes does.

    Args:
        folder: where the processes leave their claims, and what became of their tests.
        process: number of this one.
    """

    def __init__(self, folder: Path, process: int) -> None:
        self.folder, self.process = folder, process
        self.outcomes: dict[str, str] = {}

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool | None:
        """Run the test files that no other process has claimed."""
        if session.config.option.collectonly or session.testsfailed:
            return None
        own = self.claim(session.items)
        item = next(own, None)
        while item is not None:
            following = next(own, None)
            item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
            if session.shouldfail:
                raise session.Failed(session.shouldfail)
            item = following
        return True

    def claim(self, items: list[pytest.Item]) -> Iterator[pytest.Item]:
        """Tests of the files that are claimed for this process, when their turn comes."""
        for path, of_file in groupby(items, key=lambda item: item.nodeid.partition("::")[0]):
            try:
                (self.folder / f"{path.replace('/', '.')}.claimed").touch(exist_ok=False)
            except FileExistsError:
                continue
            yield from of_file

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Note the worst of set-up, call and tear-down."""
        self.outcomes.setdefault(report.nodeid, "passed")
        if report.failed or (report.skipped and self.outcomes[report.nodeid] == "passed"):
            self.outcomes[report.nodeid] = report.outcome

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Leave what was found."""
        content = {"tests": session.testscollected, "outcomes": Counter(self.outcomes.values())}
        (self.folder / f"{self.process}.outcomes.json").write_text(json.dumps(content))


def run_shared(folder: Path, arguments: Sequence[str]) -> bool:
    """Run pytest in PROCESSES processes and print how many tests passed, failed and were skipped.

    Args:
        folder: empty; also for the tests' own files.
        arguments: of pytest.

    Returns:
        Whether every test was run, and none failed.
    """
    command = [sys.executable, "-m", "pytest", "-p", "tests.sharing", f"--shared={folder}", "-p", "no:cacheprovider"]
    command += arguments
    own = [[f"--process={number}", f"--basetemp={folder}/runs-{number}"] for number in range(PROCESSES)]
    processes = [subprocess.Popen([*command, *words]) for words in own]
    codes = [process.wait() for process in processes]
    found = [json.loads(path.read_text()) for path in sorted(folder.glob("*.outcomes.json"))]
    outcomes = sum((Counter(one["outcomes"]) for one in found), Counter[str]())
    left = max((one["tests"] for one in found), default=0) - outcomes.total()
    told = [f"{number:,} {outcome}" for outcome, number in sorted(outcomes.items())]
    print("in all:", ", ".join([*told, f"{left:,} not run"] if left else told), flush=True)
    return not any(codes) and left == 0
