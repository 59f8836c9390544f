"""Pytest plugin of the fault suite: collects what its tests find, and lets several processes share them.

Each process claims a test file before it runs it, so that none is run twice; `tests.faults.run` starts them.
"""
import json
from collections.abc import Generator, Iterator
from dataclasses import asdict, dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest

from tests.faults.table import FAULTS

FIGURES = pytest.StashKey[dict[str, float]]()


@dataclass
class Result:
    """What one test found.

    Attributes:
        name: its id without parameters.
        harm: first line of its docstring, if it is a control.
    """

    name: str
    rows: tuple[int, ...]
    is_control: bool
    harm: str
    outcome: str = "passed"  # or failed, skipped
    reason: str = ""
    seconds: float = 0.0
    figures: dict[str, float] = field(default_factory=dict)


class Reliability:
    """One result for each test that a `fault` marks.

    Attributes:
        shared: folder of the processes that share the tests; None when there is one.
    """

    def __init__(self, shared: str | None) -> None:
        self.shared = Path(shared) if shared else None
        self.claimed: set[Path] = set()
        self.results: dict[str, Result] = {}

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool | None:
        """Run the test files that no other process has claimed."""
        if self.shared is None or session.config.option.collectonly or session.testsfailed:
            return None
        own = self.claim(session.items)
        item = next(own, None)
        while item is not None:
            following = next(own, None)
            item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
            item = following
        return True

    def claim(self, items: list[pytest.Item]) -> Iterator[pytest.Item]:
        """Tests of the files that are claimed for this process, when their turn comes."""
        assert self.shared
        for path, of_file in groupby(items, key=lambda item: item.path):
            if path not in self.claimed:
                try:
                    (self.shared / f"{path.name}.claimed").touch(exist_ok=False)
                    self.claimed.add(path)
                except FileExistsError:
                    continue
            yield from of_file

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item, call: pytest.CallInfo[None]) -> Generator[None, Any, Any]:
        """Note the outcome of set-up, call and tear-down."""
        report = yield
        if marks := list(item.iter_markers("fault")):
            result = self.results.setdefault(item.nodeid, new_result(item, marks))
            result.seconds += report.duration
            result.figures = item.stash.get(FIGURES, {})
            if not report.passed and result.outcome == "passed":
                result.outcome = report.outcome
                result.reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else ""
        return report

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Hand on the results."""
        if self.shared:
            content = {"tests": session.testscollected, "results": [asdict(result) for result in self.results.values()]}
            (self.shared / f"{session.config.option.process}.json").write_text(json.dumps(content))


def read_results(shared: Path) -> tuple[list[Result], int]:
    """What all processes found, and how many tests they had to run together."""
    found = [json.loads(path.read_text()) for path in sorted(shared.glob("*.json"))]
    results = [Result(**{**values, "rows": tuple(values["rows"])}) for one in found for values in one["results"]]
    return results, max((one["tests"] for one in found), default=0)


def new_result(item: pytest.Item, marks: list[pytest.Mark]) -> Result:
    """A result without an outcome."""
    rows = tuple(sorted({int(row) for mark in marks for row in mark.args}))
    assert rows, f"{item.nodeid}: a fault mark names at least one row"
    assert set(rows) <= FAULTS.keys(), f"{item.nodeid}: faults {rows}, the table ends at {max(FAULTS)}"
    is_control = any(mark.kwargs.get("control", False) for mark in marks)
    words = (getattr(item, "obj", None).__doc__ or "").strip().splitlines()
    assert words or not is_control, f"{item.nodeid}: a control says in its docstring which harm it sees"
    name = item.nodeid.partition("[")[0].removeprefix("tests/")
    return Result(name, rows, is_control, words[0].rstrip(".") if is_control else "")
