"""The numbers of a report: languages grouped by the phase they enter in, and how each group fares after each phase."""
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean
from typing import Any

from mmbert.evaluation.run_records import PhaseRecord

NEVER_ENTERED = "never_entered"

DEFINITIONS = {
    "bits_per_byte": "mean over the languages of a group, each language counting the same",
    "improvement": "(before - after) / before of bits_per_byte over a phase; negative when the group lost",
    "compared_with": "before a phase: its parent, or what is named before it where the parent is not in the report",
    "groups": "a language belongs to the first phase whose mixture has it",
}


@dataclass(frozen=True)
class Report:
    """Everything that report.json, the figure and the page show.

    Attributes:
        phases: in the order of training.
        groups: `entered_<phase>` -> its languages that have held-out text.
        bits_per_byte: phase -> group -> mean over the group's languages.
        compared_with: phase, from the second on -> the one that it is compared with, its parent if that is here.
        improvement: the same phases -> group -> relative reduction of that mean.
        improvement_per_language: the same of each language.
    """

    phases: list[PhaseRecord]
    groups: dict[str, list[str]]
    bits_per_byte: dict[str, dict[str, float]]
    compared_with: dict[str, str]
    improvement: dict[str, dict[str, float]]
    improvement_per_language: dict[str, dict[str, float]]

    @property
    def trained(self) -> list[PhaseRecord]:
        """The phases without what was merged or imported."""
        return [phase for phase in self.phases if phase.tokens]

    @property
    def tokens_per_language(self) -> dict[str, int]:
        """Tokens of every language over all phases."""
        languages = sorted({language for phase in self.phases for language in phase.tokens_per_language})
        return {
            language: sum(phase.tokens_per_language.get(language, 0) for phase in self.phases)
            for language in languages
        }

    @property
    def hf_max_logit_difference(self) -> float:
        """Largest difference between a trained and a converted model's logits, over all phases."""
        return max(phase.hf_max_logit_difference for phase in self.phases)


def entry_phases(phases: list[PhaseRecord]) -> dict[str, str]:
    """Language -> name of the first phase whose mixture has it."""
    entry: dict[str, str] = {}
    for phase in phases:
        for language in phase.languages:
            entry.setdefault(language, phase.name)
    return entry


def group_name(phase_name: str) -> str:
    """Group of the languages that enter in a phase."""
    return f"entered_{phase_name}"


def group_languages(phases: list[PhaseRecord]) -> dict[str, list[str]]:
    """Group -> its evaluated languages, in the order of the phases.

    Held-out languages that no mixture has form a last group, `never_entered`. Groups without languages are left out.
    """
    entry = entry_phases(phases)
    names = [*(group_name(phase.name) for phase in phases), NEVER_ENTERED]
    groups: dict[str, list[str]] = {name: [] for name in names}
    for language in sorted(phases[0].bits_per_byte):
        groups[group_name(entry[language]) if language in entry else NEVER_ENTERED].append(language)
    return {group: languages for group, languages in groups.items() if languages}


def relative_reduction(before: dict[str, float], after: dict[str, float]) -> dict[str, float]:
    """(before - after) / before of every key: 0.1 says 10 % fewer bits, negative says more."""
    return {key: (before[key] - after[key]) / before[key] for key in before}


def build_report(phases: list[PhaseRecord]) -> Report:
    """Compute a report.

    Raises:
        ValueError: there are fewer than two phases, so that nothing can be compared.
    """
    if len(phases) < 2:
        raise ValueError(f"--phases names {len(phases)} phase; a report compares two or more")
    groups = group_languages(phases)
    bits = {
        phase.name: {
            group: fmean(phase.bits_per_byte[language] for language in languages)
            for group, languages in groups.items()
        }
        for phase in phases
    }
    by_name = {phase.name: phase for phase in phases}
    steps = [(by_name.get(after.parent or "", before), after) for before, after in pairwise(phases)]
    return Report(
        phases=phases,
        groups=groups,
        bits_per_byte=bits,
        compared_with={after.name: before.name for before, after in steps},
        improvement={after.name: relative_reduction(bits[before.name], bits[after.name]) for before, after in steps},
        improvement_per_language={
            after.name: relative_reduction(before.bits_per_byte, after.bits_per_byte) for before, after in steps
        },
    )


def report_as_json(report: Report) -> dict[str, Any]:
    """Content of report.json."""
    return {
        "definitions": DEFINITIONS,
        "phases": [
            {
                "name": phase.name,
                "languages": len(phase.languages),
                "tokens": phase.tokens,
                "finished": phase.finished,
                "tau": phase.tau,
                "mask_rate": phase.mask_rate,
                "max_share_deviation": phase.max_share_deviation,
            }
            for phase in report.phases
        ],
        "bits_per_byte": report.bits_per_byte,
        "compared_with": report.compared_with,
        "improvement": report.improvement,
        "languages_per_group": {group: len(languages) for group, languages in report.groups.items()},
        "hf_max_logit_difference": report.hf_max_logit_difference,
        "entry_phase": entry_phases(report.phases),
        "tokens_per_language": report.tokens_per_language,
        "bits_per_byte_per_language": {phase.name: phase.bits_per_byte for phase in report.phases},
        "improvement_per_language": report.improvement_per_language,
    }
