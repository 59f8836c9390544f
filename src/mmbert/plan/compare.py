"""Two plans side by side: only what differs, and what each language's share becomes."""
import csv
import io

from mmbert.plan.chain import Chain
from mmbert.plan.facts import Change, assumption, changes, facts, total_lines
from mmbert.plan.text import columns, finding_text

SHOWN = 15  # languages whose share changes most

Shares = list[tuple[str, float, float]]


def differing_facts(chain: Chain) -> list[Change]:
    """Label, first, second."""
    first, second = (facts(plan, chain.hardware) for plan in chain.plans)
    labels = dict.fromkeys((*first, *second))
    return [(label, first.get(label, "-"), second.get(label, "-"))
            for label in labels if first.get(label) != second.get(label)]  # fmt: skip


def share_changes(chain: Chain, by: str) -> Shares:
    """Group or language, its share in the first and in the second; those that change, the largest change first.

    None of the languages where their sizes are unknown: a group's line stands for all of its own then.
    """
    if by == "language" and not all(plan.counts for plan in chain.plans):
        return []
    first, second = ({getattr(line, by): line.share for line in total_lines(plan, by)} for plan in chain.plans)
    pairs = [(name, first.get(name, 0.0), second.get(name, 0.0)) for name in dict.fromkeys((*first, *second))]
    return sorted((pair for pair in pairs if abs(pair[2] - pair[1]) > 1e-9), key=lambda pair: -abs(pair[2] - pair[1]))


def names(chain: Chain) -> list[str]:
    """Of the two phases: their files, where the names are the same."""
    first, second = chain.plans
    same = first.config.name == second.config.name
    return [plan.path if same else plan.config.name for plan in (first, second)]


def share_rows(pairs: Shares, heads: list[str]) -> str:
    """A table of share changes."""
    rows = [[name, f"{before:.4%}", f"{after:.4%}", f"{100 * (after - before):+.4f}"] for name, before, after in pairs]
    return columns([heads, *rows], indent="")


def compare_text(chain: Chain) -> str:
    """What differs."""
    heads = names(chain)
    found = changes(chain.plans[1].config, chain.plans[0].config)
    parts = [assumption(chain.hardware)]
    for title, rows in (("what differs", differing_facts(chain)), ("keys", found)):
        parts.append("\n".join([f"{title}: {heads[0]} | {heads[1]}", *(
            f"  {label}\n    {first}\n    {second}" for label, first, second in rows
        )]))  # fmt: skip
    for by in ("group", "language"):
        if not (pairs := share_changes(chain, by)):
            continue
        shown = pairs if by == "group" else pairs[:SHOWN]
        more = f"\n... {len(pairs) - len(shown):,} more" if len(pairs) > len(shown) else ""
        parts.append(share_rows(shown, [f"share of {by}", *heads, "points"]) + more)
    parts.append("\n".join(finding_text(finding) for finding in chain.findings if finding.level != "ok"))
    return "\n\n".join(part for part in parts if part) + "\n"


def compare_csv(chain: Chain) -> str:
    """The share of every language in both."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["language", *(f"share in {name}" for name in names(chain)), "difference"])
    for name, before, after in share_changes(chain, "language"):
        writer.writerow([name, f"{before:.9g}", f"{after:.9g}", f"{after - before:.9g}"])
    return file.getvalue()
