"""The page of a run's report: one static HTML file that opens without a network."""
from collections.abc import Iterator, Sequence
from html import escape

from mmbert.page_style import Cell, bullets, document, number_cell, picture, table, text_cell
from mmbert.run_report.curves import Scores, Validations
from mmbert.run_report.figures import draw_bits, draw_course, draw_mixture, draw_scores
from mmbert.run_report.mixture_tokens import StreamTokens, add_up
from mmbert.run_report.phase_run import PhaseRun
from mmbert.run_report.summary import summarise
from mmbert.streams import language_of, source_of

NO_STEPS = "No step is in the ledger yet."
NO_SCORES = (
    "Loss and accuracy by language, and throughput: not in this ledger yet. A run notes them every "
    "logging.scores_interval_batches steps."
)
NO_VALIDATIONS = (
    "Held-out bits per byte by language: not in this ledger. A run notes them where its YAML has validation: "
    "{interval: ..., root: ..., source: ..., languages: [...]}."
)
HOW_PLANNED = (
    "Planned: the mixture's share of the tokens up to here. A period has it to the row; the rows within one are "
    "shuffled, so a period that is not over yet may differ by some. In rows: the difference over the stream's mean "
    "row. Rows read: by the plan, with which every step was compared. Repeats: realised over what the stream holds."
)


def token_cells(part: StreamTokens) -> list[Cell]:
    """Planned, realised, difference in tokens, per cent and rows, and repeats."""
    return [
        number_cell(part.planned, ",.0f"),
        number_cell(part.realised, ",d"),
        number_cell(part.difference, "+,.0f"),
        number_cell(None if part.ratio is None else part.ratio - 1.0, "+.2%"),
        number_cell(part.difference_rows, "+,.1f"),
        number_cell(part.rows_read, ",d"),
        number_cell(part.repeats, ",.2f"),
    ]


TOKEN_HEADS = ["planned tokens", "realised", "difference", "of plan", "in rows", "rows read", "repeats"]


def token_table(name: str, parts: Sequence[StreamTokens]) -> str:
    """Planned against realised, a line for each part."""
    return table([name, *TOKEN_HEADS], [[text_cell(part.name), *token_cells(part)] for part in parts], sortable=True)


def language_table(phase: PhaseRun, scores: Scores | None, bits: Validations | None) -> str:
    """Every language: tokens, and what is known of its loss and bits per byte."""
    heads = ["Language", *TOKEN_HEADS]
    columns: list[tuple[dict[str, float], str]] = []
    if scores:
        heads += ["loss lately", "accuracy lately"]
        columns += [(scores.of.lately(scores.loss_sum), ".3f"), (scores.of.lately(scores.correct), ".1%")]
    if bits:
        heads += ["bits per byte, first", "last"]
        ends = bits.of.ends(bits.bits)
        columns += [({name: pair[place] for name, pair in ends.items()}, ".3f") for place in (0, 1)]
    parts = {part.name: part for part in add_up(phase.streams, language_of)}
    validated = set(bits.of.names) if bits else set()
    rows = [
        [
            text_cell(name),
            *token_cells(parts.get(name, StreamTokens(name, 0))),
            *(number_cell(values.get(name), form) for values, form in columns),
        ]
        for name in sorted(parts.keys() | validated)
    ]
    return table(heads, rows, sortable=True)


def phase_sections(phase: PhaseRun) -> Iterator[str]:
    """What stands under the heading of a phase."""
    yield bullets(summarise(phase))
    yield audit_table(phase)
    if not phase.tokens:
        yield f"<p>{NO_STEPS}</p>"
        return
    yield "<h3>Loss and schedules</h3>"
    yield picture(draw_course(phase), "Loss, learning rate, mask rate and tau over tokens, with what was planned.")
    scores, bits = phase.scores, phase.validations
    yield "<h3>Languages over tokens</h3>"
    if scores and scores.of.names:
        loss, accuracy = (scores.of.quotient(sums) for sums in (scores.loss_sum, scores.correct))
        yield picture(draw_scores(scores.of, loss, accuracy), "Loss and accuracy by language over tokens.")
    else:
        yield f'<p class="note">{escape(NO_SCORES)}</p>'
    if bits:
        yield picture(draw_bits(bits.of, bits.of.quotient(bits.bits)), "Bits per byte by language over tokens.")
    else:
        yield f'<p class="note">{escape(NO_VALIDATIONS)}</p>'
    yield f"<h3>Planned and realised tokens, after {phase.as_of:,}</h3>"
    if any(stream.planned for stream in phase.streams):
        yield picture(draw_mixture(phase.streams), "Realised over planned tokens of every stream against its size.")
    yield f'<p class="note">{escape(HOW_PLANNED)} Lately: over the last tenth of the tokens so far.</p>'
    yield token_table("Source", add_up(phase.streams, source_of))
    yield f"<h4>Languages</h4>{language_table(phase, scores, bits)}"
    yield f"<h4>Streams</h4>{token_table('Stream', phase.streams)}"


def audit_table(phase: PhaseRun) -> str:
    """The lines of the audit, and the speed."""
    lines = [*phase.audit.table] if phase.audit else [("attempts", f"{phase.attempts:,}")]
    if phase.seconds:
        speed, hours = phase.saved_tokens / phase.seconds, phase.seconds / 3600
        lines.append(("tokens per second", f"{speed:,.0f}, over {hours:,.2f} hours up to the checkpoint"))
    return table(["The run", ""], [[text_cell(key), text_cell(value)] for key, value in lines])


def render_page(phases: Sequence[PhaseRun]) -> str:
    """The whole page; nothing in it is fetched from elsewhere."""
    names = " → ".join(phase.name for phase in phases)
    body = [part for phase in phases for part in (f"<h2>{escape(phase.name)}</h2>", *phase_sections(phase))]
    note = """<p class="note">A click on a column's head sorts by it. A dash: not known.</p>"""
    return document("run", "The run against its plan", names, [*body, note])
