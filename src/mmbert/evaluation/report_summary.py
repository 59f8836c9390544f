"""What a report's numbers say, in sentences: whether groups of languages improved or lost, and by how much."""
from mmbert.evaluation.report_numbers import NEVER_ENTERED, Report
from mmbert.evaluation.run_records import PhaseRecord
from mmbert.page_style import counted

UNCHANGED = 5e-4  # a relative change below this prints as 0.0 %


def describe_change(improvement: float) -> str:
    """`improved by 3.1 %`, `lost 3.1 %` or `did not change`, of a relative reduction."""
    if abs(improvement) < UNCHANGED:
        return "did not change"
    return f"improved by {improvement:.1%}" if improvement > 0 else f"lost {-improvement:.1%}"


def describe_group(group: str) -> str:
    """`that entered in phase1`, or that never did."""
    return "never trained on" if group == NEVER_ENTERED else f"that entered in {group.removeprefix('entered_')}"


def summarise_group(report: Report, group: str) -> str:
    """How one group fared in the last phase."""
    last = report.phases[-1].name
    before = report.compared_with[last]
    changes = [report.improvement_per_language[last][language] for language in report.groups[group]]
    better = sum(change > 0 for change in changes)
    change = describe_change(report.improvement[last][group])
    start, end = report.bits_per_byte[before][group], report.bits_per_byte[last][group]
    return (
        f"The {counted(len(changes), 'language')} {describe_group(group)} {change} in {last}: {start:.3f} bits per "
        f"byte after {before}, {end:.3f} after {last}; {better} of {len(changes)} have fewer."
    )


def summarise_mixture(phases: list[PhaseRecord]) -> str:
    """How far the training mixture was from its plan, at worst."""
    worst = max(phases, key=lambda phase: phase.max_share_deviation)
    return (
        "No language's share of a phase's tokens was further from its plan than "
        f"{100 * worst.max_share_deviation:.2f} percentage points ({worst.name})."
    )


def summarise_training(report: Report) -> list[str]:
    """What was trained, in one sentence; none where nothing was."""
    if not report.trained:
        return []
    first, last = report.trained[0], report.trained[-1]
    languages = sum(count > 0 for count in report.tokens_per_language.values())
    tokens = sum(phase.tokens for phase in report.trained)
    what = f"trained on {tokens:,} tokens of {counted(languages, 'language')}"
    if first is last:
        return [f"{first.name} {what}, and ended at a tau of {first.tau:g} and a mask rate of {first.mask_rate:.0%}."]
    return [
        f"{len(report.trained)} phases {what}. From {first.name} to {last.name} tau went from {first.tau:g} to "
        f"{last.tau:g} and the mask rate from {first.mask_rate:.0%} to {last.mask_rate:.0%}."
    ]


def summarise(report: Report) -> list[str]:
    """The report in sentences, each computed from its numbers."""
    unfinished = [phase.name for phase in report.phases if not phase.finished]
    sentences = [
        *summarise_training(report),
        *(summarise_group(report, group) for group in report.groups),
        *([summarise_mixture(report.trained)] if report.trained else []),
        "The logits of the converted Hugging Face models differ from the trained ones' by at most "
        f"{report.hf_max_logit_difference:.1e}.",
    ]
    if unfinished:
        sentences.insert(0, f"Not finished, so the numbers are of an earlier checkpoint: {', '.join(unfinished)}.")
    return sentences
