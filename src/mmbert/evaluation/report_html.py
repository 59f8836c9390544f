"""The page of a report: one static HTML file with the figure, a summary in words, and every number in tables."""
from html import escape

from mmbert.evaluation.report_numbers import Report, entry_phases
from mmbert.evaluation.report_summary import describe_group, summarise
from mmbert.page_style import Cell, bullets, document, number_cell, picture, table, text_cell

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


def group_table(report: Report) -> str:
    """Mean bits per byte of every group after every phase, with the improvement that the phase brought."""
    heads = ["Languages", "number"]
    for phase in report.phases:
        heads += [f"after {phase.name}"]
        heads += [f"improvement on {report.compared_with[phase.name]}"] if phase.name in report.improvement else []
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
            Cell(f"{100 * phase.max_share_deviation:.3f} points", phase.max_share_deviation)
            if phase.tokens
            else number_cell(None, ""),
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
    name = report.phases[-1].name
    heads += [f"improvement in {name} on {report.compared_with[name]}"]
    last = report.improvement_per_language[name]
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
    body = [
        bullets(summarise(report)),
        picture(figure, FIGURE_ALT),
        f"<h2>Bits per byte by entry phase</h2>\n{group_table(report)}",
        f'<p class="note">{escape(HOW_MEASURED)}</p>',
        f"<h2>Phases</h2>\n{phase_table(report)}",
        f'<p class="note">{escape(HOW_SHARED)}</p>',
        f"<h2>Languages</h2>\n{language_table(report)}",
        """<p class="note">A click on a column's head sorts by it. A dash: no held-out text.</p>""",
    ]
    return document("report", "mmBERT training report", names, body)
