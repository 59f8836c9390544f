"""The page of a plan: one static HTML file, nothing in it fetched from elsewhere."""
from collections.abc import Sequence
from html import escape

from mmbert.page_style import Cell, document, number_cell, picture, quantity, table, text_cell
from mmbert.plan.chain import Chain
from mmbert.plan.facts import assumption, changes, facts, total_lines
from mmbert.plan.findings import Finding
from mmbert.plan.phase import Hardware, Line, PhasePlan
from mmbert.plan.text import chain_rows

OWN_CSS = """
.wrap td { white-space: normal; text-align: left; } .wrap th { text-align: left; }
.findings { list-style: none; padding: 0; } .findings li { max-width: none; }
.error, .warning, .ok { display: inline-block; width: 5.5rem; font-weight: 600; }
.error { color: #b00020; } .warning { color: #a05a00; } .ok { color: #00704f; }
"""
ALT = (
    "Learning rate, mask rate, tau, batch size and RoPE theta over the tokens of all phases; share and repeats of "
    "every language in each phase. The tables below hold the numbers."
)
HEADS = ["tokens", "share", "there are", "rows", "repeats"]


def finding_list(findings: Sequence[Finding]) -> str:
    """What is wrong first."""
    ordered = sorted(findings, key=lambda finding: ("error", "warning", "ok").index(finding.level))
    lines = (
        f'<li><span class="{finding.level}">{finding.level}</span> {escape(finding.phase)}: {escape(finding.text)}</li>'
        for finding in ordered
    )
    return f'<ul class="findings">{"".join(lines)}</ul>'


def line_cells(line: Line) -> list[Cell]:
    """The numbers of a stream or of several."""
    there = Cell("-", -1) if line.has is None else Cell(quantity(line.has), line.has)
    return [
        Cell(quantity(line.tokens), round(line.tokens)),
        Cell(f"{line.share:.4%}", round(line.share, 9)),
        there,
        number_cell(None if line.rows is None else round(line.rows, 1), ",.1f"),
        number_cell(None if line.repeats is None else float(f"{line.repeats:.4g}"), ",.3g"),
    ]


def phase_section(plan: PhasePlan, hardware: Hardware | None) -> list[str]:
    """One phase."""
    parent = plan.parent
    rows = [[text_cell(label), text_cell(value)] for label, value in facts(plan, hardware).items()]
    body = [f"<h2>{escape(plan.config.name)}</h2>", f'<p class="note">{escape(plan.path)}</p>']
    body.append(f'<div class="wrap">{table(["", "plan"], rows)}</div>')
    for by in ("group", "language"):
        totals = total_lines(plan, by)
        if by == "group" or plan.counts:
            cells = [[text_cell(getattr(line, by)), *line_cells(line)] for line in totals]
            name = "Groups" if by == "group" else "Languages, all sources together; repeats of the most repeated source"
            body += [f"<h3>{name}</h3>", table([by, *HEADS], cells, sortable=True)]
    if parent:
        cells = [[text_cell(cell) for cell in change] for change in changes(plan.config, parent)]
        heads = ["key", parent.name, plan.config.name]
        body += [f"<h3>Changed against {escape(parent.name)}</h3>", f'<div class="wrap">{table(heads, cells)}</div>']
    streams = sorted(plan.lines, key=lambda line: -line.tokens)
    cells = [[text_cell(f"{line.source}/{line.language}"), text_cell(line.group), *line_cells(line)]
             for line in streams]  # fmt: skip
    body += ["<h3>Every stream</h3>", table(["stream", "group", *HEADS], cells, sortable=True)]
    return body


def chain_page(chain: Chain, figure: bytes) -> str:
    """The page of one phase or of a chain.

    Args:
        figure: PNG bytes.
    """
    head, *rows = chain_rows(chain)
    body = [
        table(head, [[text_cell(cell) for cell in row] for row in rows]),
        f'<p class="note">{escape(assumption(chain.hardware))}</p>',
        finding_list(chain.findings),
        picture(figure, ALT),
    ]
    for plan in chain.plans:
        body += phase_section(plan, chain.hardware)
    names = " → ".join(plan.config.name for plan in chain.plans)
    return document("plan", "mmBERT training plan", names, body, OWN_CSS)
