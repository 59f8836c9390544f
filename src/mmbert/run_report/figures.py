"""The figures of a run's report, as PNG bytes. N steps, B moments, L languages."""
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import matplotlib.style
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mmbert.clock import learning_rate
from mmbert.config import RunConfig
from mmbert.mixture import Floats
from mmbert.page_style import COLOURS, STYLE, as_png, quantity
from mmbert.run_report.curves import Scores, Steps, smooth
from mmbert.run_report.languages import PerLanguage
from mmbert.run_report.mixture_tokens import StreamTokens
from mmbert.run_report.phase_run import PhaseRun

DRAWN = 2000  # points of a curve, evenly chosen
DPI = 110
SHOWN = 6  # languages with a line of their own
PLANNED: dict[str, Any] = {"color": "black", "linewidth": 4, "alpha": 0.25, "label": "planned"}


def some(count: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """At most DRAWN indices below `count`, evenly spaced, the last one among them."""
    return np.unique(np.linspace(0, count - 1, min(count, DRAWN)).astype(np.int64))


def tokens_below(axes: Axes) -> None:
    """Tokens on the x axis."""
    axes.set_xlabel("tokens")
    axes.xaxis.set_major_formatter(lambda tokens, _: quantity(tokens))


def draw_loss(axes: Axes, steps: Steps) -> None:
    """Raw and smoothed."""
    window = max(1, len(steps.loss) // 100)
    axes.plot(steps.tokens, steps.loss, color=COLOURS[0], linewidth=0.5, alpha=0.35, label="each step")
    chosen = some(len(steps.loss))
    label = f"mean of {window} steps"
    axes.plot(steps.tokens[chosen], smooth(steps.loss, window)[chosen], color=COLOURS[0], linewidth=1.8, label=label)
    axes.set_title("Training loss, nats per masked token")
    axes.legend()
    tokens_below(axes)


def draw_schedule(
    axes: Axes, title: str, steps: Steps, values: Floats, planned: Callable[[int], float] | None, colour: str
) -> None:
    """Values (N,) as they were, over the plan."""
    chosen = some(len(steps.before))
    if planned:
        axes.plot(steps.before[chosen], [planned(int(tokens)) for tokens in steps.before[chosen]], **PLANNED)
    axes.plot(steps.before[chosen], values[chosen], color=colour, linewidth=1.3, label="as it was")
    axes.set_title(title)
    axes.set_ylim(bottom=0)
    axes.legend()
    tokens_below(axes)


def draw_taus(axes: Axes, steps: Steps, config: RunConfig | None) -> None:
    """Of every group, as it was, over the plan; within a period of rows it stays as it was at the period's start."""
    chosen = some(len(steps.before))
    groups = config.data.groups() if config else {}
    for number, (name, taus) in enumerate(steps.taus.items()):
        if config and name in groups:
            planned = [groups[name].tau.value(int(tokens), config.duration) for tokens in steps.before[chosen]]
            axes.plot(steps.before[chosen], planned, **PLANNED | {"label": None if number else "planned"})
        axes.plot(steps.before[chosen], taus[chosen], color=COLOURS[number % 6], linewidth=1.3, label=name)
    axes.set_title("Language temperature τ, by group")
    axes.set_ylim(bottom=0)
    axes.legend(ncols=2 if len(steps.taus) > 4 else 1)
    tokens_below(axes)


def draw_throughput(axes: Axes, scores: Scores) -> None:
    """Real tokens a second, with all that was saved and validated in between."""
    axes.step(scores.of.tokens, scores.tokens / np.maximum(scores.seconds, 1e-9), where="pre", color=COLOURS[3])
    axes.set_title("Tokens per second")
    axes.set_ylim(bottom=0)
    tokens_below(axes)


def draw_course(phase: PhaseRun) -> bytes:
    """Loss, schedules and throughput over tokens."""
    with matplotlib.style.context(STYLE):
        figure = Figure(figsize=(13, 8.5), layout="constrained")
        grid = figure.add_gridspec(2, 6)
        draw_loss(figure.add_subplot(grid[0, :4]), phase.steps)
        rate = partial(learning_rate, phase.config) if phase.config else None
        draw_schedule(figure.add_subplot(grid[0, 4:]), "Learning rate", phase.steps, phase.steps.learning_rate, rate,
                      COLOURS[5])  # fmt: skip
        rate = partial(phase.config.mask_rate.value, duration=phase.config.duration) if phase.config else None
        draw_schedule(figure.add_subplot(grid[1, :2]), "Mask rate", phase.steps, phase.steps.mask_rate, rate,
                      COLOURS[2])  # fmt: skip
        draw_taus(figure.add_subplot(grid[1, 2:4]), phase.steps, phase.config)
        if phase.scores:
            draw_throughput(figure.add_subplot(grid[1, 4:]), phase.scores)
        return as_png(figure, DPI)


def draw_mixture(streams: Sequence[StreamTokens]) -> bytes:
    """Realised over planned tokens of every stream against its planned tokens, and one row's worth as a band."""
    known = sorted(
        (stream for stream in streams if stream.planned and stream.ratio is not None),
        key=lambda stream: stream.planned or 0.0,
    )
    planned = np.array([stream.planned for stream in known], dtype=np.float64)
    ratio = np.array([stream.ratio for stream in known], dtype=np.float64)
    with matplotlib.style.context(STYLE):
        figure = Figure(figsize=(13, 4.2), layout="constrained")
        axes = figure.add_subplot()
        rows = [stream.available / stream.rows for stream in known if stream.available and stream.rows]
        if rows:
            at = np.geomspace(planned[0], planned[-1])
            row = float(np.median(rows)) / at
            axes.fill_between(at, 1 - row, 1 + row, color="#999999", alpha=0.2, linewidth=0, label="one row")
            axes.legend(loc="upper right")
        axes.axhline(1.0, color="black", linewidth=1)
        axes.scatter(planned, ratio, s=18, color=COLOURS[0], alpha=0.6, linewidths=0)
        reach = max(0.02, 1.15 * float(np.abs(ratio - 1.0).max(initial=0.0)))
        axes.set_ylim(1.0 - reach, 1.0 + reach)
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(lambda tokens, _: quantity(tokens))
        axes.set_xlabel("planned tokens of the stream")
        axes.set_ylabel("realised / planned")
        axes.set_title("Planned and realised, each stream a dot")
        return as_png(figure, DPI)


def draw_languages(axes: Axes, found: PerLanguage, values: Floats, title: str) -> None:
    """Values (B, L) over tokens: the largest languages, and the middle half of all."""
    if len(found.names) > SHOWN and len(found.tokens) > 1:
        with np.errstate(invalid="ignore"):
            middle = np.array([np.nanpercentile(row, [25, 50, 75]) for row in values if not np.isnan(row).all()])
        at = found.tokens[~np.isnan(values).all(axis=1)]
        axes.fill_between(at, middle[:, 0], middle[:, 2], color="#999999", alpha=0.25, linewidth=0)
        axes.plot(at, middle[:, 1], color="#555555", linestyle="--", label=f"median of {len(found.names):,}")
    marker = "o" if len(found.tokens) < 30 else None
    for number, column in enumerate(found.largest(SHOWN)):
        there = ~np.isnan(values[:, column])
        look: dict[str, Any] = {"color": COLOURS[number % 6], "marker": marker, "markersize": 3, "linewidth": 1.2}
        axes.plot(found.tokens[there], values[there, column], label=found.names[column], **look)
    axes.set_title(title)
    axes.legend(ncols=2, fontsize=9)
    tokens_below(axes)


def draw_scores(found: PerLanguage, loss: Floats, accuracy: Floats) -> bytes:
    """Loss and accuracy of the masked tokens, by language."""
    with matplotlib.style.context(STYLE):
        figure = Figure(figsize=(13, 4.6), layout="constrained")
        draw_languages(figure.add_subplot(1, 2, 1), found, loss, "Training loss by language, nats per masked token")
        draw_languages(figure.add_subplot(1, 2, 2), found, accuracy, "Masked tokens predicted right, by language")
        return as_png(figure, DPI)


def draw_bits(found: PerLanguage, bits_per_byte: Floats) -> bytes:
    """Held-out bits per byte, by language."""
    with matplotlib.style.context(STYLE):
        figure = Figure(figsize=(13, 4.6), layout="constrained")
        draw_languages(figure.add_subplot(), found, bits_per_byte, "Held-out bits per byte by language")
        return as_png(figure, DPI)
