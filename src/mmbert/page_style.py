"""The look of the pages and figures that programs write: colours, the frame of a page, tables that a click sorts."""
import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from matplotlib.figure import Figure

from mmbert.data_config import UNITS

# Okabe and Ito's palette: these stay apart for colour-blind readers, and markers differ too.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00")
MARKERS = ("o", "s", "^", "D", "v", "P")
STYLE = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e4e4e4",
    "axes.edgecolor": "#888888",
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "legend.frameon": False,
}

CSS = """
:root { --ink: #1d2530; --soft: #5b6673; --line: #dde2e8; --tint: #f4f6f8; --accent: #0072b2; }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 76rem; padding: 2rem 1.25rem 4rem; color: var(--ink); background: #fff;
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 .3rem; }
h2 { font-size: 1.2rem; margin: 2.4rem 0 .7rem; }
p, li { max-width: 52rem; }
.lead, .note { color: var(--soft); }
.summary { border-left: 4px solid var(--accent); background: var(--tint); margin: 1rem 0;
  padding: .8rem 1.2rem .8rem 2.2rem; }
.summary li { margin: .35rem 0; }
figure { margin: 1.5rem 0; }
img { display: block; width: 100%; min-width: 44rem; height: auto; }
.scroll { overflow: auto; max-height: 60rem; border: 1px solid var(--line); }
table { border-collapse: collapse; width: 100%; font-size: .92rem; font-variant-numeric: tabular-nums; }
th, td { padding: .4rem .8rem; text-align: right; border-bottom: 1px solid var(--line); }
td { white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
thead th { position: sticky; top: 0; background: var(--tint); }
tbody tr:hover { background: var(--tint); }
th button { all: unset; cursor: pointer; }
th button:focus-visible { outline: 2px solid var(--accent); }
th button::after { content: "\\a0\\2195"; color: var(--soft); }
th[aria-sort=ascending] button::after { content: "\\a0\\2191"; }
th[aria-sort=descending] button::after { content: "\\a0\\2193"; }
@media print { .scroll { max-height: none; overflow: visible; } th button::after { content: ""; } }
"""

SORT = """
for (const button of document.querySelectorAll("th button")) {
  button.addEventListener("click", () => {
    const head = button.parentElement, body = head.closest("table").tBodies[0];
    const up = head.getAttribute("aria-sort") !== "ascending";
    const key = row => row.cells[head.cellIndex].dataset.value ?? row.cells[head.cellIndex].textContent;
    const compare = (a, b) => isNaN(a) || isNaN(b) ? a.localeCompare(b) : a - b;
    for (const other of head.parentElement.cells) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", up ? "ascending" : "descending");
    body.append(...[...body.rows].sort((a, b) => compare(key(a), key(b)) * (up ? 1 : -1)));
  });
}
"""


def document(title: str, heading: str, lead: str, body: Sequence[str], css: str = "") -> str:
    """A whole page, nothing in it fetched from elsewhere.

    Args:
        title: of the window, behind "mmBERT".
        lead: the line below the heading.
        body: HTML, part by part.
        css: rules of this page alone.
    """
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>mmBERT {escape(title)}: {escape(lead)}</title>
<style>{CSS}{css}</style>
</head>
<body>
<h1>{escape(heading)}</h1>
<p class="lead">{escape(lead)}</p>
{chr(10).join(body)}
<script>{SORT}</script>
</body>
</html>
"""


def counted(number: int, one: str) -> str:
    """`1 step`, `2 steps`."""
    return f"{number:,} {one}" if number == 1 else f"{number:,} {one}s"


def quantity(number: float) -> str:
    """As a YAML has it: 1.2T, 600B, 35.4M, 812."""
    for unit, power in reversed(UNITS.items()):
        if abs(number) >= 0.99995 * 10**power:
            return f"{number / 10**power:.4g}{unit}"
    return f"{number:.4g}"


def as_png(figure: Figure, dpi: int) -> bytes:
    """The figure as PNG bytes."""
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=dpi)
    return stream.getvalue()


def picture(png: bytes, text: str) -> str:
    """An embedded figure, and its words for those who cannot see it."""
    image = base64.b64encode(png).decode()
    return f'<figure class="scroll"><img src="data:image/png;base64,{image}" alt="{escape(text)}"></figure>'


def bullets(sentences: Sequence[str]) -> str:
    """A page's summary."""
    return '<ul class="summary">' + "\n".join(f"<li>{escape(sentence)}</li>" for sentence in sentences) + "</ul>"


@dataclass(frozen=True)
class Cell:
    """What a table shows, and the value that its column is sorted by."""

    text: str
    value: float | str


def text_cell(text: str) -> Cell:
    """A cell of words."""
    return Cell(text, text)


def number_cell(number: float | None, form: str) -> Cell:
    """A cell of a number in the given format; a dash where there is none."""
    return Cell("-", -1.0) if number is None else Cell(format(number, form), number)


def table(heads: list[str], rows: list[list[Cell]], sortable: bool = False) -> str:
    """An HTML table; the first column is left-aligned, the others right-aligned."""
    titles = [f'<button type="button">{escape(head)}</button>' if sortable else escape(head) for head in heads]
    head = "".join(f'<th scope="col">{title}</th>' for title in titles)
    lines = [
        "".join(f'<td data-value="{escape(str(cell.value))}">{escape(cell.text)}</td>' for cell in row) for row in rows
    ]
    body = "\n".join(f"<tr>{line}</tr>" for line in lines)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>'
