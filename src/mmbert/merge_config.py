"""The configuration of a merge: finished runs, and how they become one model. Read as a run's is (config.py)."""
import re
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from mmbert.config import MERGE_METHODS, ValidationConfig, build_config, check_run_root, read_yaml

ENTRY = re.compile(r"(?!\.)[^/]+(/step-[0-9]{10})?")
"""A run, which stands for its newest checkpoint, or one of its checkpoints."""


@dataclass(frozen=True)
class TiesConfig:
    """TIES (merging.py) of several runs onto the one that all of them began from.

    Attributes:
        base: a run below run_root, or `run/step-0000000123`.
        runs: the same -> its weight; only the proportions count.
        density: share of each tensor's entries that stay of what a run changed, the largest.
        scale: what is merged is multiplied by this before it is added to the base.
    """

    base: str
    runs: dict[str, float]
    density: float
    scale: float

    def __post_init__(self) -> None:
        if len(self.runs) < 2:
            raise ValueError(f"runs = {self.runs} must name at least two, for there is nothing to merge in one")
        for key, entry in (("base", self.base), *(("runs", entry) for entry in self.runs)):
            if not ENTRY.fullmatch(entry):
                raise ValueError(f"{key}: {entry!r} must be a run's name, or name/step-0000000123")
        if self.base in self.runs:
            raise ValueError(f"runs: {self.base} is the base; take it out, for it has changed nothing")
        for entry, weight in self.runs.items():
            if weight <= 0:
                raise ValueError(f"runs.{entry} = {weight} must be a number above 0; take out what shall not count")
        if not 0 < self.density <= 1:
            raise ValueError(f"density = {self.density} must be above 0 and at most 1, which trims nothing")
        if self.scale <= 0:
            raise ValueError(f"scale = {self.scale} must be a number above 0; 1 adds what was merged as it is")


@dataclass(frozen=True)
class ExponentialConfig:
    """A weighted mean of the checkpoints that one run kept; the newest weighs most.

    Attributes:
        run: its name below run_root.
        ratio: what a checkpoint weighs against the next newer one.
    """

    run: str
    ratio: float

    def __post_init__(self) -> None:
        if "/" in self.run:
            raise ValueError(f"run = {self.run!r} must be a run's name: all of its checkpoints are merged")
        if not 0 < self.ratio < 1:
            raise ValueError(f"ratio = {self.ratio} must lie between 0 and 1, for the newest to weigh most")


@dataclass(frozen=True)
class MergeConfig:
    """A merge. Its result is the finished run `run_root/name`, which `parent` may name.

    Attributes:
        validation: the held-out text that the merged model is evaluated on, as in a phase.
    """

    name: str
    run_root: str
    ties: TiesConfig | None = None
    exponential: ExponentialConfig | None = None
    validation: ValidationConfig | None = None

    def __post_init__(self) -> None:
        check_run_root(self.run_root)
        if (self.ties is None) == (self.exponential is None):
            raise ValueError(f"give one of {' and '.join(MERGE_METHODS)}, and not the other")
        if "/" in self.name:
            raise ValueError(f"name = {self.name!r} must be the name of a folder below run_root")

    @property
    def run_folder(self) -> Path:
        """Folder of the merged run."""
        return Path(self.run_root) / self.name

    @property
    def method(self) -> TiesConfig | ExponentialConfig:
        """The one section that is given."""
        method = self.ties or self.exponential
        assert method is not None
        return method

    @property
    def entries(self) -> list[str]:
        """What the YAML names: runs, or checkpoints of them."""
        method = self.method
        return [method.base, *method.runs] if isinstance(method, TiesConfig) else [method.run]

    @property
    def runs(self) -> tuple[str, ...]:
        """Names of the runs that are read."""
        return tuple(dict.fromkeys(map(run_of, self.entries)))


def run_of(entry: str) -> str:
    """Name of the run that an entry is of."""
    return entry.partition("/")[0]


def load_merge(path: str | Path, overrides: Sequence[str] = ()) -> MergeConfig:
    """Read a merge's configuration.

    Raises:
        FileNotFoundError, ValueError: one line that names the key or file, the value and the remedy.
    """
    tree = read_yaml(Path(path))
    if "duration" in tree:
        raise ValueError(f"{path} is no merge but a phase: composer main.py {path}")
    return build_config(MergeConfig, tree, path, overrides)


def of_merges(overrides: Sequence[str]) -> list[str]:
    """Those of a chain's overrides whose key a merge has."""
    keys = {field.name for field in fields(MergeConfig)}
    return [override for override in overrides if override.partition("=")[0].partition(".")[0] in keys]
