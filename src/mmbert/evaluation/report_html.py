"""The page of a report: one static HTML file with the figure, a summary in words, and every number in tables."""
import base64
from dataclasses import dataclass
from html import escape

from mmbert.evaluation.report_numbers import Report, entry_phases
from mmbert.evaluation.report_summary import describe_group, summarise

FIGURE_ALT = (
    "Bits per byte of each entry group after each phase; change of every language in the last phase; planned and "
    "realised share of every language in each phase. The tables below hold the numbers."
)
HOW_MEASURED = (
    "Bits per byte of held-out text, by reconstruction of masked tokens with the same masks after every phase; the "
    "mean over a group's languages, each counting the same. A language belongs to the first phase whose mixture has "
    "it. Improvement: the share of the bits that a phase saved; negative where it lost."
)
HOW_SHARED = (
    "τ is the exponent of the language temperature, share ~ tokens^τ. The share deviation is the largest "
    "difference between a language's planned and realised share of a phase's tokens."
)

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


def group_table(report: Report) -> str:
    """Mean bits per byte of every group after every phase, with the improvement that the phase brought."""
    heads = ["Languages", "number"]
    for phase in report.phases:
        heads += [f"after {phase.name}"] + (["improvement"] if phase.name in report.improvement else [])
    rows = []
    for group, languages in report.groups.items():
        row = [text_cell(describe_group(group)), number_cell(len(languages), ",")]
        for phase in report.phases:
            row.append(number_cell(report.bits_per_byte[phase.name][group], ".4f"))
            if phase.name in report.improvement:
                row.append(number_cell(report.improvement[phase.name][group], "+.1%"))
        rows.append(row)
    return table(heads, rows)


def phase_table(report: Report) -> str:
    """What every phase was."""
    heads = ["Phase", "tokens", "finished", "languages", "τ", "mask rate", "share deviation", "HF logit difference"]
    rows = [
        [
            text_cell(phase.name),
            number_cell(phase.tokens, ","),
            text_cell("yes" if phase.finished else "no"),
            number_cell(len(phase.languages), ","),
            number_cell(phase.tau, "g"),
            number_cell(phase.mask_rate, ".0%"),
            Cell(f"{100 * phase.max_share_deviation:.3f} points", phase.max_share_deviation),
            number_cell(phase.hf_max_logit_difference, ".1e"),
        ]
        for phase in report.phases
    ]
    return table(heads, rows)


def language_table(report: Report) -> str:
    """Every language: the phase it entered in, the tokens it had and its bits per byte after every phase."""
    entry = entry_phases(report.phases)
    heads = ["Language", "entered in"]
    heads += [f"tokens in {phase.name}" for phase in report.phases]
    heads += [f"bits per byte after {phase.name}" for phase in report.phases]
    heads += [f"improvement in {report.phases[-1].name}"]
    last = report.improvement_per_language[report.phases[-1].name]
    rows = [
        [
            text_cell(language),
            text_cell(entry.get(language, "never")),
            *(number_cell(phase.tokens_per_language.get(language, 0), ",") for phase in report.phases),
            *(number_cell(phase.bits_per_byte.get(language), ".3f") for phase in report.phases),
            number_cell(last.get(language), "+.1%"),
        ]
        for language in sorted(entry.keys() | report.phases[0].bits_per_byte.keys())
    ]
    return table(heads, rows, sortable=True)


def render_page(report: Report, figure: bytes) -> str:
    """The whole page; nothing in it is fetched from elsewhere.

    Args:
        figure: PNG bytes.
    """
    names = " → ".join(phase.name for phase in report.phases)
    image = base64.b64encode(figure).decode()
    sentences = "\n".join(f"<li>{escape(sentence)}</li>" for sentence in summarise(report))
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>mmBERT report: {escape(names)}</title>
<style>{CSS}</style>
</head>
<body>
<h1>mmBERT training report</h1>
<p class="lead">{escape(names)}</p>
<ul class="summary">
{sentences}
</ul>
<figure class="scroll">
<img src="data:image/png;base64,{image}" alt="{escape(FIGURE_ALT)}">
</figure>
<h2>Bits per byte by entry phase</h2>
{group_table(report)}
<p class="note">{escape(HOW_MEASURED)}</p>
<h2>Phases</h2>
{phase_table(report)}
<p class="note">{escape(HOW_SHARED)}</p>
<h2>Languages</h2>
{language_table(report)}
<p class="note">A click on a column's head sorts by it. A dash: no held-out text.</p>
<script>{SORT}</script>
</body>
</html>
"""
