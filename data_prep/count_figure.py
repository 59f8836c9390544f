"""The figure of counts: tokens a word and a character of every language, by script, for every tokenizer."""
from collections.abc import Mapping

import matplotlib.style
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from data_prep.count_table import FEW
from data_prep.counts import Counts, Stream, by_script
from mmbert.page_style import COLOURS, MARKERS, STYLE, as_png

LINE = 0.22  # inches
RATIOS = ("tokens_per_word", "tokens_per_character", "tokens_per_byte")


def draw_counts(tables: Mapping[str, Mapping[Stream, Counts]]) -> bytes:
    """The figure as PNG bytes.

    A line is a language, or a script where there are many languages: then each language is a point on it.

    Args:
        tables: name of a tokenizer -> what it makes of each stream; all of the same streams.
    """
    scripts = by_script(next(iter(tables.values())))
    lines = {script: list(streams) for script, streams in scripts.items()}
    if sum(map(len, lines.values())) <= FEW:
        lines = {f"{'/'.join(stream)}  {script}": [stream] for script, streams in lines.items() for stream in streams}
    else:
        lines = {f"{script}  {len(streams)}": streams for script, streams in lines.items()}
    every = [each for table in tables.values() for each in table.values()]
    keys = [key for key in RATIOS if any(getattr(each, key) is not None for each in every)]
    with matplotlib.style.context(STYLE):
        figure = Figure(figsize=(12, 1.6 + LINE * len(lines)), layout="constrained")
        panels = figure.subplots(1, len(keys), sharey=True, squeeze=False)[0]
        for panel, key in zip(panels, keys, strict=True):
            draw_ratio(panel, key, lines, tables)
            panel.set_title(key.replace("_per_", " a "))
        panels[0].set_yticks(range(len(lines)), list(lines))
        panels[0].set_ylim(len(lines) - 0.5, -0.5)
        if len(tables) > 1:
            figure.legend(*panels[-1].get_legend_handles_labels(), loc="outside upper right", ncols=len(tables))
        return as_png(figure, dpi=100)


def draw_ratio(
    panel: Axes, key: str, lines: Mapping[str, list[Stream]], tables: Mapping[str, Mapping[Stream, Counts]]
) -> None:
    """The points of one ratio; a script in which it means nothing has none."""
    for number, (name, counts) in enumerate(tables.items()):
        shift = (number - (len(tables) - 1) / 2) * 0.5 / len(tables)  # so that tokenizers do not hide each other
        points = [
            (value, height + shift)
            for height, streams in enumerate(lines.values())
            for stream in streams
            if (value := getattr(counts[stream], key)) is not None
        ]
        panel.plot(
            [value for value, _ in points],
            [height for _, height in points],
            MARKERS[number % len(MARKERS)],
            color=COLOURS[number % len(COLOURS)],
            markersize=4 if len(points) > FEW else 7,
            alpha=0.5 if len(points) > FEW else 1.0,
            label=name,
        )
    panel.set_xlim(left=0)
