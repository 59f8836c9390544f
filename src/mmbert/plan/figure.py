"""The figure of a plan: the schedules over the tokens of all phases, and the mixture of each."""
from collections.abc import Sequence
from typing import Any

import matplotlib.style
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mmbert.page_style import COLOURS, STYLE, as_png, quantity
from mmbert.plan.chain import Chain
from mmbert.plan.facts import total_lines
from mmbert.plan.findings import REPEATS
from mmbert.plan.phase import PhasePlan

PER_ROW = 4  # panels


def draw_schedules(panels: Sequence[Axes], chain: Chain) -> None:
    """Learning rate, mask rate, tau and batch size with theta, one panel each, phase behind phase."""
    titles = ("learning rate", "mask rate", "tau of the groups", "tokens of a batch", "global RoPE theta")
    start = 0.0
    for number, plan in enumerate(chain.plans):
        curves = plan.curves()
        tokens = np.array(curves["tokens"]) + start
        colour = COLOURS[number % len(COLOURS)]
        look: dict[str, Any] = {"color": colour, "linewidth": 2.0}
        panels[0].plot(tokens, curves["learning rate"], label=plan.config.name, **look)
        panels[1].plot(tokens, curves["mask rate"], **look)
        for name, values in curves.items():
            if name.startswith("tau "):
                panels[2].plot(tokens, values, **look)
        panels[3].plot(tokens, curves["batch"], drawstyle="steps-post", **look)
        panels[4].plot(tokens[[0, -1]], [plan.config.model.global_rope_theta] * 2, **look)
        start = float(tokens[-1])
    for panel, title in zip(panels, titles, strict=True):
        panel.set_title(title)
        panel.set_xlabel("tokens")
        panel.xaxis.set_major_formatter(lambda value, _: quantity(value))
        panel.set_ylim(bottom=0)
    for panel in panels[3:5]:
        panel.yaxis.set_major_formatter(lambda value, _: quantity(value))
    panels[0].legend()


def draw_mixture(axes: Axes, plan: PhasePlan, colour: str) -> None:
    """Share of every language by rank, and how often its text is read."""
    totals = total_lines(plan, "language" if plan.counts else "group")
    rank = np.arange(1, len(totals) + 1)
    axes.plot(rank, [line.share for line in totals], ".-", color=colour, markersize=4)
    axes.set(xscale="log", yscale="log", xlabel="rank")
    axes.set_title(f"{plan.config.name}: share of {'languages' if plan.counts else 'groups'}")
    axes.yaxis.set_major_formatter(lambda share, _: f"{100 * share:g}%")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")


def draw_repeats(axes: Axes, plan: PhasePlan, colour: str) -> None:
    """How often every stream is read, by what there is of it."""
    known = [(line.has, line.repeats) for line in plan.lines if line.has is not None and line.repeats is not None]
    axes.set_title(f"{plan.config.name}: times a stream is read")
    if not known:
        axes.text(0.5, 0.5, "sizes unknown", ha="center", transform=axes.transAxes)
        return
    there, repeats = np.array(known).T
    axes.scatter(there, repeats, s=10, color=colour, alpha=0.5)
    axes.axhline(REPEATS, color="#777777", linestyle="--", linewidth=1)
    axes.set(xscale="log", yscale="log", xlabel="tokens that there are")
    axes.xaxis.set_major_formatter(lambda value, _: quantity(value))
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")


def draw_chain(chain: Chain) -> bytes:
    """The figure as PNG bytes."""
    count = 5 + 2 * len(chain.plans)
    rows = -(-count // PER_ROW)
    with matplotlib.style.context(STYLE):
        figure = Figure(figsize=(15, 3.4 * rows), layout="constrained")
        panels = [figure.add_subplot(rows, PER_ROW, place) for place in range(1, count + 1)]
        draw_schedules(panels[:5], chain)
        for number, plan in enumerate(chain.plans):
            colour = COLOURS[number % len(COLOURS)]
            draw_mixture(panels[5 + 2 * number], plan, colour)
            draw_repeats(panels[6 + 2 * number], plan, colour)
        return as_png(figure, dpi=100)
