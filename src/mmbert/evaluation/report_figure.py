"""The figure of a report: what each phase did for the languages, and whether it saw the mixture it planned."""
from typing import Any

import matplotlib.style
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from mmbert.evaluation.report_numbers import NEVER_ENTERED, Report, entry_phases, group_name
from mmbert.evaluation.run_records import PhaseRecord
from mmbert.page_style import COLOURS, MARKERS, STYLE, as_png

NEVER_COLOUR, NEVER_MARKER = "#777777", "x"


def group_label(report: Report, group: str) -> str:
    """Name of a group for readers, with its size."""
    count = len(report.groups[group])
    languages = "language" if count == 1 else "languages"
    if group == NEVER_ENTERED:
        return f"never trained on ({count} {languages})"
    return f"enter in {group.removeprefix('entered_')} ({count} {languages})"


def group_styles(report: Report) -> dict[str, tuple[str, str]]:
    """Group -> (colour, marker), the same in all panels."""
    entering = [group_name(phase.name) for phase in report.phases]
    styles = {
        group: (COLOURS[number % len(COLOURS)], MARKERS[number % len(MARKERS)])
        for number, group in enumerate(entering)
    }
    return styles | {NEVER_ENTERED: (NEVER_COLOUR, NEVER_MARKER)}


def write_subtitle(axes: Axes, text: str) -> None:
    """A quiet line between a panel and its title."""
    axes.annotate(text, (0, 1), (0, 6), xycoords="axes fraction", textcoords="offset points", color="#555555")


def draw_bits_per_byte(axes: Axes, report: Report) -> None:
    """Mean bits per byte of each group after each phase, with the middle half of its languages."""
    order = [phase.name for phase in report.phases]
    entering = [group_name(name) for name in order]
    places = np.arange(len(order))
    for group, languages in report.groups.items():
        colour, marker = group_styles(report)[group]
        per_language = np.array([[phase.bits_per_byte[name] for name in languages] for phase in report.phases])
        low, high = np.percentile(per_language, [25, 75], axis=1)  # (phases,) each
        axes.fill_between(places, low, high, color=colour, alpha=0.1, linewidth=0)
        means = [report.bits_per_byte[name][group] for name in order]
        look: dict[str, Any] = {"color": colour, "marker": marker, "markersize": 8, "markeredgewidth": 2}
        axes.plot(places, means, linewidth=2, label=group_label(report, group), **look)
        entry = entering.index(group) if group in entering else len(order)
        axes.plot(places[:entry], means[:entry], linestyle="none", markerfacecolor="white", **look)
    for place, name in enumerate(order):
        label_means(axes, place, report.bits_per_byte[name])
    axes.set_xticks(places, [f"after {name}" for name in order])
    axes.set_xlim(-0.3, len(order) - 0.7)
    axes.margins(y=0.08)
    axes.set_ylabel("held-out bits per byte (lower is better)")
    axes.set_title("Bits per byte, by the phase that a language enters in", pad=22)
    write_subtitle(axes, "means; hollow: not trained on yet; band: middle half of the languages")
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.07), ncols=2)


def label_means(axes: Axes, place: int, means: dict[str, float]) -> None:
    """Write the means at one phase: the highest above its point, the lowest below, any others beside theirs."""
    ranked = sorted(means.values())
    for mean in ranked:
        offset, ha, va = (9, 0), "left", "center"
        if mean == ranked[-1]:
            offset, ha, va = (0, 8), "center", "bottom"
        elif mean == ranked[0]:
            offset, ha, va = (0, -8), "center", "top"
        axes.annotate(f"{mean:.2f}", (place, mean), offset, textcoords="offset points", ha=ha, va=va, fontsize=9)


def draw_improvement(axes: Axes, report: Report) -> None:
    """Change of every language over the last phase, one dot each, by group."""
    last = report.phases[-1].name
    improvement = report.improvement_per_language[last]
    groups = list(report.groups)
    jitter = np.random.default_rng(0)
    for place, group in enumerate(groups):
        colour, marker = group_styles(report)[group]
        values = np.array([improvement[language] for language in report.groups[group]])
        heights = place + jitter.uniform(-0.28, 0.28, len(values))
        axes.scatter(values, heights, s=16, color=colour, marker=marker, alpha=0.45, linewidths=0.8)
        median = float(np.median(values))
        axes.plot([median, median], [place - 0.38, place + 0.38], color="black", linewidth=2)
        axes.text(median, place - 0.4, f"median {median:+.1%}", ha="center", va="bottom", fontsize=9)
    axes.axvline(0, color="#555555", linewidth=1)
    axes.set_yticks(range(len(groups)), [group_label(report, group).replace(" (", "\n(") for group in groups])
    axes.set_ylim(len(groups) - 0.4, -0.6)
    axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.set_xlabel(f"fewer bits per byte than after {report.compared_with[last]} (left of 0: the language lost)")
    axes.set_title(f"What {last} did for each language", pad=22)
    axes.grid(axis="y", visible=False)


def draw_shares(axes: Axes, report: Report, phase: PhaseRecord) -> None:
    """Planned and realised share of every language of a phase, from the largest plan to the smallest."""
    entry = entry_phases(report.phases)
    ranked = sorted(phase.planned_share, key=lambda language: -phase.planned_share[language])
    rank = np.arange(1, len(ranked) + 1)
    realised = np.array([phase.realised_share[language] for language in ranked])
    for group, (colour, marker) in group_styles(report).items():
        drawn = np.array([group_name(entry[language]) == group for language in ranked]) & (realised > 0)
        axes.scatter(rank[drawn], realised[drawn], s=20, color=colour, marker=marker, alpha=0.7, linewidths=0)
    axes.plot(rank, [phase.planned_share[language] for language in ranked], color="black", linewidth=1.3)
    axes.set(xscale="log", yscale="log")
    axes.xaxis.set_major_formatter(lambda rank, _: f"{rank:g}")
    axes.yaxis.set_major_formatter(lambda share, _: f"{100 * share:g}%")
    axes.set_xlabel("rank of the language by planned share")
    axes.set_ylabel("share of tokens\n(line: planned, marks: realised)")
    axes.label_outer()
    axes.set_title(f"{phase.name}: τ = {phase.tau:g}, mask rate {phase.mask_rate:.0%}", pad=22)
    undrawn = int((realised == 0).sum())
    missing = f"; {undrawn} never drawn" if undrawn else ""
    write_subtitle(axes, f"{len(ranked)} languages, {phase.tokens:,} tokens{missing}")


def draw_report(report: Report) -> bytes:
    """The figure as PNG bytes."""
    with matplotlib.style.context(STYLE):
        figure = Figure(figsize=(13, 9.5), layout="constrained")
        rows = figure.add_gridspec(2, 1, height_ratios=[1.2, 1])
        above, below = figure.add_subfigure(rows[0]), figure.add_subfigure(rows[1])
        draw_bits_per_byte(above.add_subplot(1, 2, 1), report)
        draw_improvement(above.add_subplot(1, 2, 2), report)
        first: Axes | None = None
        for place, phase in enumerate(report.trained, start=1):
            panel = below.add_subplot(1, len(report.trained), place, sharex=first, sharey=first)
            draw_shares(panel, report, phase)
            first = first or panel
        return as_png(figure, dpi=120)
