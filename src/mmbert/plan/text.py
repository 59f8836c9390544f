"""The plan as text, and every stream of it as CSV."""
import csv
import io
from collections.abc import Sequence

from mmbert.mixture import main_group
from mmbert.page_style import quantity
from mmbert.plan.chain import Chain
from mmbert.plan.facts import assumption, changes, duration_of, facts, gigabytes, path_of, total_lines
from mmbert.plan.findings import Finding
from mmbert.plan.phase import Hardware, Line, PhasePlan

SHOWN = 12, 5  # of the languages: the largest, the smallest
MARKS = {"ok": "ok     ", "warning": "WARNING", "error": "ERROR  "}


def columns(rows: Sequence[Sequence[str]], indent: str = "  ") -> str:
    """A table with its first column on the left, the others on the right; the first row is its head."""
    widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
    return "\n".join(
        indent + "  ".join([row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:],
                                                                                               strict=True))]).rstrip()
        for row in rows
    )  # fmt: skip


def chain_rows(chain: Chain) -> list[list[str]]:
    """All phases in a table, with a sum."""
    heads = ["phase", "tokens", "steps", "rows x length", "learning rate", "mask rate", "tau", "theta", "checkpoints"]
    hardware = chain.hardware
    rows = [heads + (["time", "GPU time"] if hardware else [])]
    for plan in chain.plans:
        config = plan.config
        stay, _ = plan.checkpoints
        row = [config.name, quantity(config.duration), f"{plan.steps:,}"]
        row += [f"{config.global_train_batch_size:,} x {config.max_seq_len:,}", f"{config.optimizer.lr:g}"]
        row += [path_of(config.mask_rate), path_of(main_group(plan.groups).tau)]
        row += [f"{config.model.global_rope_theta:,.0f}"]
        row += [gigabytes(stay * plan.checkpoint_bytes)]
        if hardware:
            seconds = plan.seconds(hardware)
            row += [duration_of(seconds), duration_of(seconds * hardware.gpus)]
        rows.append(row)
    if len(chain.plans) > 1:
        row = ["all", quantity(sum(plan.config.duration for plan in chain.plans))]
        row += [f"{sum(plan.steps for plan in chain.plans):,}", "", "", "", "", ""]
        row += [gigabytes(sum(plan.checkpoints[0] * plan.checkpoint_bytes for plan in chain.plans))]
        if hardware:
            seconds = sum(plan.seconds(hardware) for plan in chain.plans)
            row += [duration_of(seconds), duration_of(seconds * hardware.gpus)]
        rows.append(row)
    return rows


def finding_text(finding: Finding) -> str:
    """One line."""
    return f"{MARKS[finding.level]}  {finding.phase}: {finding.text}"


def line_cells(line: Line) -> list[str]:
    """Share, tokens, what there is, and repeats."""
    has = "-" if line.has is None else quantity(line.has)
    repeats = "-" if line.repeats is None else f"{line.repeats:.3g}"
    return [f"{line.share:.4%}", quantity(line.tokens), has, repeats]


def language_table(plan: PhasePlan) -> str:
    """The languages with the most and the fewest tokens, and the sum."""
    totals = total_lines(plan, "language")
    first, last = SHOWN
    left_out = len(totals) - first - last
    middle = [[f"... {left_out:,} more", "", "", "", ""]] if left_out > 0 else []
    shown = [[line.language, *line_cells(line)] for line in totals]
    rows = shown[:first] + middle + shown[-last:] if left_out > 0 else shown
    share, tokens = sum(line.share for line in totals), sum(line.tokens for line in totals)
    head = ["language, all sources", "share", "tokens", "there are", "repeats, at most"]
    return columns([head, *rows, ["all", f"{share:.4%}", quantity(tokens), "", ""]])


def phase_text(plan: PhasePlan, hardware: Hardware | None) -> str:
    """One phase."""
    parent = plan.parent
    head = f"{plan.config.name}   {plan.path}" + (f"   goes on from {plan.config.parent}" if plan.config.parent else "")
    parts = [head, "=" * len(head)]
    parts += [f"  {label:16}{value}" for label, value in facts(plan, hardware).items()]
    before = {name: group.share for name, group in parent.data.groups().items()} if parent else {}
    heads = ["group", "share", "tokens", "there are", "repeats, at most"] + (["share in parent"] if parent else [])
    rows = [[line.group, *line_cells(line)] + ([f"{before.get(line.group, 0.0):.4%}"] if parent else [])
            for line in total_lines(plan, "group")]  # fmt: skip
    parts += ["", columns([heads, *rows])]
    if plan.counts:
        parts += ["", language_table(plan)]
    if parent:
        listed = [change for change in changes(plan.config, parent) if not change[0].startswith("data.mixture.")]
        parts += ["", columns([["changed against the parent", parent.name, plan.config.name], *map(list, listed)])]
    return "\n".join(parts)


def chain_text(chain: Chain) -> str:
    """The whole plan."""
    findings = sorted(chain.findings, key=lambda finding: ("error", "warning", "ok").index(finding.level))
    parts = [columns(chain_rows(chain), indent=""), assumption(chain.hardware)]
    parts += ["\n".join(finding_text(finding) for finding in findings)]
    parts += [phase_text(plan, chain.hardware) for plan in chain.plans]
    return "\n\n".join(parts) + "\n"


def chain_csv(chain: Chain) -> str:
    """Every stream of every phase; numbers in full."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["phase", "group", "source", "language", "tokens_there", "share", "tokens", "rows", "repeats"])
    for plan in chain.plans:
        for line in sorted(plan.lines, key=lambda line: -line.tokens):
            numbers = [line.has, f"{line.share:.9g}", f"{line.tokens:.0f}"]
            numbers += ["" if number is None else f"{number:.6g}" for number in (line.rows, line.repeats)]
            writer.writerow([plan.config.name, line.group, line.source, line.language, *numbers])
    return file.getvalue()
