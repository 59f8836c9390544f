"""What each rank found, and what follows from all of it together."""
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

CLOCK_SECONDS = 10.0  # most that two clocks may differ; a run stops 30 s before Slurm's limit


@dataclass(frozen=True)
class Report:
    """What one rank found.

    Attributes:
        node: name of its machine.
        faults: one line each.
        versions: of everything that must be the same everywhere.
        clock: seconds since 1970, read by all ranks at the same time.
    """

    node: str
    faults: list[str] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)
    clock: float = 0.0


def judge(reports: Sequence[Report]) -> list[str]:
    """Everything that is wrong, one line each; empty if the ranks may train together."""
    lines = [f"{report.node}: {fault}" for report in reports for fault in report.faults]
    for name in sorted({name for report in reports for name in report.versions}):
        nodes = defaultdict(set)
        for report in reports:
            nodes[report.versions.get(name, "missing")].add(report.node)
        if len(nodes) > 1:
            shown = ", ".join(f"{value} on {', '.join(sorted(where))}" for value, where in sorted(nodes.items()))
            lines.append(f"{name} differs: {shown}; give all nodes the same environment and the same checkout")
    first, last = min(reports, key=lambda report: report.clock), max(reports, key=lambda report: report.clock)
    if last.clock - first.clock > CLOCK_SECONDS:
        lines.append(
            f"the clock of {last.node} is {last.clock - first.clock:.0f} s ahead of that of {first.node}, more than "
            f"{CLOCK_SECONDS:g} s: have the site set them by NTP"
        )
    return list(dict.fromkeys(lines))  # the ranks of a node say the same
