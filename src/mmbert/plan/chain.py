"""The phases that are planned together, each with the phase that it goes on from."""
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from omegaconf import OmegaConf

from mmbert.config import RunConfig, build_config, is_merge, load_config, read_yaml
from mmbert.file_contents import parse_object
from mmbert.plan.counts import Count, Name
from mmbert.plan.findings import Finding, judge, judge_chain
from mmbert.plan.phase import Hardware, PhasePlan, plan_phase


@dataclass(frozen=True)
class Chain:
    """Plans in the order of training."""

    plans: tuple[PhasePlan, ...]
    hardware: Hardware | None
    findings: tuple[Finding, ...]

    def has_errors(self) -> bool:
        """Whether a phase would not run."""
        return any(finding.level == "error" for finding in self.findings)


def plan_chain(
    paths: Sequence[str], overrides: Sequence[str], table: Mapping[Name, Count] | None, hardware: Hardware | None,
    apart: bool = False,
) -> Chain:  # fmt: skip
    """Plan the phases of these YAMLs.

    Args:
        overrides: `key.sub=value`, for every phase.
        hardware: left out where all phases say `device: cpu`.
        apart: they are no chain, each is judged by itself.

    Raises:
        FileNotFoundError, ValueError: a configuration cannot be read.
    """
    configs = [load_config(path, overrides) for path in paths]
    if all(config.device == "cpu" for config in configs):
        hardware = None
    pairs = zip(paths, configs, strict=True)
    plans = [plan_phase(path, config, find_parent(path, config, configs, overrides), table) for path, config in pairs]
    findings = [finding for plan in plans for finding in judge(plan, hardware)]
    chains = [slice(i, i + 1) for i in range(len(plans))] if apart else [slice(None)]
    findings += [finding for part in chains for finding in judge_chain(plans[part])]
    return Chain(tuple(plans), hardware, tuple(findings))


def find_parent(path: str, config: RunConfig, given: Sequence[RunConfig], overrides: Sequence[str]) -> RunConfig | None:
    """The parent among the phases given, or else `<parent>.yaml` beside the phase's own file, or else its run.

    Of the overrides the one beside takes `run_root` alone, where the phase will look for it.
    A merge's YAML says nothing of a model; what was merged is found by its run folder (`untrained_texts`).
    """
    if config.parent is None:
        return None
    for other in given:
        if other.name == config.parent:
            return other
    beside = Path(path).with_name(f"{config.parent}.yaml")
    if beside.is_file() and not is_merge(read_yaml(beside)):
        found = load_config(beside, [override for override in overrides if override.startswith("run_root=")])
        if found.name == config.parent:
            return found
    return trained_with(config.run_folder.with_name(config.parent))


def trained_with(run_folder: Path) -> RunConfig | None:
    """The configuration of a run; None where it has no checkpoint yet, or its weights were imported or merged."""
    states = sorted(run_folder.glob("step-*/state.json"))
    if not states:
        return None
    saved = parse_object(states[-1].read_bytes(), states[-1], "take that checkpoint away")["config"]
    if "parent" not in saved:
        return None
    return build_config(RunConfig, OmegaConf.create(saved), states[-1], [f"run_root={run_folder.parent}"])
