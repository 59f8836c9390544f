"""Pytest plugin of the fault suite: collects what its tests find."""
import json
from collections.abc import Generator
from dataclasses import asdict, dataclass, field
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

    Args:
        shared: folder of the processes that share the tests (tests/sharing.py); None when there is one.
        process: number of this one.
    """

    def __init__(self, shared: Path | None, process: int) -> None:
        self.shared, self.process = shared, process
        self.results: dict[str, Result] = {}

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

    def pytest_sessionfinish(self) -> None:
        """Hand on the results."""
        if self.shared:
            content = [asdict(result) for result in self.results.values()]
            (self.shared / f"{self.process}.faults.json").write_text(json.dumps(content))


def read_results(shared: Path) -> list[Result]:
    """What all processes found."""
    found = [json.loads(path.read_text()) for path in sorted(shared.glob("*.faults.json"))]
    return [Result(**{**values, "rows": tuple(values["rows"])}) for one in found for values in one]


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
