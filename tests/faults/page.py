"""Writes docs/reliability.md from what the tests of the fault suite found."""
import os
import platform
from collections import Counter
from datetime import date
from importlib.metadata import version
from pathlib import Path

from tests.faults.reliability import Result
from tests.faults.table import FAULTS

HEAD = """# Reliability: what goes wrong in long runs, and what a run does then

Written by `make faults`, which makes each fault happen to real runs of the trainer on toy data and looks at what comes
of it; no figure below is typed by hand. A *control* is the same fault with its guard taken out, or met by plain
Composer or Streaming: it passes only if the harm is seen, so no guard is believed without proof that it is needed.
The tests of row 9 are those with `@pytest.mark.fault(9)`: `grep -rnE "fault\\(.*\\b9\\b" tests`.

`make faults KILLS=1000` kills more runs than the 60 by default; `make test` runs a short form with all other tests.
"""


def is_decided(results: list[Result]) -> bool:
    """Whether a row has a test and a control, and none failed."""
    passed = {result.is_control for result in results if result.outcome == "passed"}
    return passed == {True, False} and all(result.outcome != "failed" for result in results)


def undecided(results: list[Result]) -> list[int]:
    """Rows without a test and a control that pass, or with one that fails."""
    return [number for number in FAULTS if not is_decided([result for result in results if number in result.rows])]


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
    words = []
    for name, value in figures.items():
        number = f"{value:,.0f}" if value == int(value) else f"{value:,.3g}"
        most = " at most" if name.startswith("most ") else ""
        words.append(f"{number} {name.removeprefix('most ')}{most}")
    return ", ".join(words)


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
    lines += ["| # | Fault | What a run does | Tests | Without the guard | Figures |", "|" + "---|" * 6]
    decided = 0
    for number, fault in FAULTS.items():
        own = [result for result in results if number in result.rows]
        decided += is_decided(own)
        cells = [str(number), fault.name, fault.answer, verdict(own, False), verdict(own, True)]
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
        f"{kills:,.0f} SIGKILLs, a run may get several; {recoveries:,.0f} killed runs were started again to their end, "
        "which was the uninterrupted run's to the bit; "
        f"{seconds:,.0f} seconds in all.",
        "",
    ]
    return "\n".join(lines)
