"""Collects what the tests of the fault suite found, and writes docs/reliability.md from it."""
import os
import platform
from collections import Counter
from collections.abc import Generator
from dataclasses import dataclass, field
from datetime import date
from importlib.metadata import version
from pathlib import Path
from time import monotonic
from typing import Any

import pytest

from tests.faults.table import FAULTS

FIGURES = pytest.StashKey[dict[str, float]]()
HEAD = """# Reliability: what goes wrong in long runs, and what a run does then

Written by `make faults`, which makes each fault happen to real runs of the trainer on toy data and looks at what comes
of it; no figure below is typed by hand. A *control* is the same fault with its guard taken out, or met by plain
Composer or Streaming: it passes only if the harm is seen, so no guard is believed without proof that it is needed.

`make faults KILLS=1000` kills more runs than the 60 by default; `make test` runs a short form with all other tests.
"""


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
    """Pytest plugin: one result for each test that a `fault` marks, and the page at the end."""

    def __init__(self, page: str | None) -> None:
        self.page = Path(page) if page else None
        self.results: dict[str, Result] = {}
        self.began = monotonic()

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
        """Write the page; a row without a proof fails the session."""
        if self.page is None or session.config.option.collectonly:
            return
        self.page.write_text(write_page(list(self.results.values()), monotonic() - self.began))
        if any(not is_decided(self.of_row(number)) for number in FAULTS) and session.exitstatus == 0:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def of_row(self, number: int) -> list[Result]:
        """The results that decide a row."""
        return [result for result in self.results.values() if number in result.rows]


def new_result(item: pytest.Item, marks: list[pytest.Mark]) -> Result:
    """A result without an outcome."""
    rows = tuple(sorted({int(row) for mark in marks for row in mark.args}))
    assert set(rows) <= FAULTS.keys(), f"{item.nodeid}: faults {rows}, the table ends at {max(FAULTS)}"
    is_control = any(mark.kwargs.get("control", False) for mark in marks)
    words = (getattr(item, "obj", None).__doc__ or "").strip().splitlines()
    assert words or not is_control, f"{item.nodeid}: a control says in its docstring which harm it sees"
    name = item.nodeid.partition("[")[0].removeprefix("tests/")
    return Result(name, rows, is_control, words[0].rstrip(".") if is_control else "")


def is_decided(results: list[Result]) -> bool:
    """Whether a row has a test and a control, and none failed."""
    passed = {result.is_control for result in results if result.outcome == "passed"}
    return passed == {True, False} and all(result.outcome != "failed" for result in results)


def verdict(results: list[Result], is_control: bool) -> str:
    """The words of one cell: what became of a row's tests, or of its controls."""
    own = [result for result in results if result.is_control == is_control]
    failed = sorted({result.name.rpartition("::")[2] for result in own if result.outcome == "failed"})
    skipped = sorted({result.reason for result in own if result.outcome == "skipped"})
    if failed:
        return "**FAILED**: " + ", ".join(f"`{name}`" for name in failed)
    if all(result.outcome == "skipped" for result in own):
        return f"**not run**: {'; '.join(skipped)}" if own else "**no control**" if is_control else "**no test**"
    words = f"{sum(result.outcome == 'passed' for result in own)} passed"
    if is_control:
        words = "harm seen: " + "; ".join(dict.fromkeys(result.harm for result in own))
    return words + (f" ({'; '.join(skipped)})" if skipped else "")


def test_names(results: list[Result]) -> str:
    """The tests of a row, each once, with the number of its cases."""
    names = Counter(result.name.rpartition("/")[2] for result in results if not result.is_control)
    return ", ".join(f"`{name}`" + (f" x {number}" if number > 1 else "") for name, number in names.items())


def add_figures(results: list[Result]) -> dict[str, float]:
    """Sums of the counts of several tests; figures whose name begins with "most " are maxima."""
    totals: dict[str, float] = {}
    for result in results:
        for name, value in result.figures.items():
            kept = totals.get(name, 0.0)
            totals[name] = max(kept, value) if name.startswith("most ") else kept + value
    return totals


def shown(figures: dict[str, float]) -> str:
    """Figures in words."""
    rounded = ((name, f"{value:,.0f}" if value == int(value) else f"{value:,.3g}") for name, value in figures.items())
    return ", ".join(f"{value} {name}" for name, value in rounded)


def machine() -> str:
    """The processor, and the versions that matter."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "mosaicml", "mosaicml-streaming"))
    processor = models[0] if models else platform.machine()
    return f"{os.cpu_count()} cores of {processor}; Python {platform.python_version()}, {packages}"


def write_page(results: list[Result], seconds: float) -> str:
    """The page, as Markdown."""
    lines = [HEAD, f"Last run on {date.today().isoformat()}, {machine()}.", ""]
    lines += ["| # | Fault | What a run does | Tests | Result | Without the guard | Figures |", "|" + "---|" * 7]
    decided = 0
    for number, fault in FAULTS.items():
        own = [result for result in results if number in result.rows]
        decided += is_decided(own)
        cells = [str(number), fault.name, fault.answer, test_names(own), verdict(own, False), verdict(own, True)]
        spent = sum(result.seconds for result in own)
        figures = {**add_figures(own), "s": round(spent)}
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in [*cells, shown(figures)]) + " |")
    counts = Counter(result.outcome for result in results)
    totals = add_figures(results)
    kills, recoveries = totals.get("kills", 0), totals.get("recoveries", 0)
    lines += [
        "",
        f"{decided} of {len(FAULTS)} faults decided by {len(results)} tests, {sum(r.is_control for r in results)} of "
        "them controls: " + ", ".join(f"{number} {outcome}" for outcome, number in counts.items()) + ".",
        f"{kills:,.0f} runs killed, {recoveries:,.0f} recovered by the same command to the same bits, "
        f"{seconds:,.0f} seconds in all.",
        "",
    ]
    return "\n".join(lines)
