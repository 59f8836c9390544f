"""The section `data` of a configuration: where the rows are, and how they are mixed."""
from dataclasses import dataclass, field, replace
from typing import Annotated, Any

from mmbert.schedules import Schedule
from mmbert.typed import whole_number

BYTES = {"KB": 3, "MB": 6, "GB": 9, "TB": 12}
UNITS = {"K": 3, "M": 6, "B": 9, "T": 12}


def parse_bytes(value: Any) -> int:
    """A number of bytes: 4096, or with a unit of powers of 1,000, `200GB`."""
    if not (number := whole_number(value, BYTES)):
        raise ValueError(f"{value!r} is no number of bytes above 0; write 500MB, 200GB or 1.5TB")
    return number


def parse_tokens(value: Any) -> int:
    """A number of tokens: 4096, 1e9, or with a unit as the paper writes it, `600B` or `2.3T`."""
    tokens = whole_number(value, UNITS)
    if tokens is None:
        raise ValueError(f"{value!r} is no number of tokens; write 4096, 1e9, 600M or 2.3T")
    return tokens


def parse_schedule(value: Any) -> Any:
    """A bare number is a constant schedule."""
    if not isinstance(value, int | float | dict) or isinstance(value, bool):
        raise ValueError(f"{value!r} is neither a number, as 0.15, nor a curve, as {{kind: linear, start: 0.3, "
                         "end: 0.1}")  # fmt: skip
    if isinstance(value, dict) and value.get("at") is not None:
        return {**value, "at": parse_tokens(value["at"])}
    return value if isinstance(value, dict) else {"start": value}


Bytes = Annotated[int, parse_bytes]
Tokens = Annotated[int, parse_tokens]
ScheduleOf = Annotated[Schedule, parse_schedule]


@dataclass(frozen=True)
class GroupConfig:
    """One row of a phase's mixture table: some languages of one source.

    Attributes:
        source: folder of the source below `data.root/train`.
        languages: codes; an entry that ends in `.txt` is a file with one code a line.
        share: fraction of the phase's tokens that the group gets.
        tau: within the group, tokens of a language are proportional to (tokens it has)^tau.
        max_repeats: most times that any language of the group may be seen in the phase, 1.2 say: all of its rows, and
            a fifth of them again. The rest of the group takes what this frees.
        floor: least fraction of the group's tokens that each of its languages gets; the rest of the group gives it.
    """

    source: str
    languages: list[str]
    share: float
    tau: ScheduleOf = field(default_factory=lambda: Schedule(1.0))
    max_repeats: float | None = None
    floor: float | None = None


@dataclass(frozen=True)
class DataConfig:
    """Where the rows are and how they are mixed.

    Attributes:
        root: folder of the shards, or their place in an object store: `s3://bucket/prefix`.
        period_rows: rows between two looks at tau's schedule; within them the mixture is constant and shuffled.
        num_workers: loader processes of each rank; their number changes nothing but speed.
        cache: folder on a local disk for the shards of an object store; all processes of a machine share it.
        cache_limit: most bytes of shards in it; None for no limit.
    """

    root: str
    mixture: dict[str, GroupConfig | None]
    period_rows: int
    num_workers: int = 2
    cache: str | None = None
    cache_limit: Bytes | None = None

    def groups(self) -> dict[str, GroupConfig]:
        """The mixture without the groups that a YAML switched off with `null`."""
        return {name: group for name, group in self.mixture.items() if group is not None}

    def moved_to(self, root: str) -> "DataConfig":
        """The same rows at another place."""
        if is_remote(root):
            return replace(self, root=root)
        return replace(self, root=root, cache=None, cache_limit=None)


def is_remote(root: str) -> bool:
    """Whether rows lie in an object store."""
    return "://" in root


def check_data(data: DataConfig, heldout_root: str | None) -> None:
    """Refuse what does not fit together.

    Args:
        heldout_root: `validation.root`, whose shards go to the same cache.

    Raises:
        ValueError: names the key, the value and the remedy.
    """
    groups = data.groups()
    for name, group in groups.items():
        if group.share <= 0:
            raise ValueError(
                f"data.mixture.{name}.share = {group.share:g} must be above 0; data.mixture.{name}: null leaves the "
                "group out"
            )
        if min(group.tau.values()) < 0:
            raise ValueError(f"data.mixture.{name}.tau = {group.tau.values()} must not be negative")
        if group.max_repeats is not None and group.max_repeats <= 0:
            raise ValueError(f"data.mixture.{name}.max_repeats = {group.max_repeats:g} must be above 0")
        if group.floor is not None and not 0.0 < group.floor <= 1.0:
            raise ValueError(f"data.mixture.{name}.floor = {group.floor:g} must lie above 0 and not above 1")
    total = sum(group.share for group in groups.values())
    if abs(total - 1.0) > 1e-6:
        shares = " + ".join(f"{name} {group.share:g}" for name, group in groups.items())
        raise ValueError(f"data.mixture: the shares sum to {total:g}, not 1: {shares}")
    roots = {"data.root": data.root, "validation.root": heldout_root or ""}
    remote = [f"{key} = {root}" for key, root in roots.items() if is_remote(root)]
    if remote and data.cache is None:
        raise ValueError(
            f"{remote[0]} lies in an object store: name a folder on a local disk for its shards, `data.cache`, and how "
            "much of them it may hold, `data.cache_limit: 200GB`"
        )
    if not remote and (data.cache, data.cache_limit) != (None, None):
        raise ValueError(
            f"data.cache and data.cache_limit are for shards in an object store; data.root = {data.root} is a folder, "
            "so leave them out"
        )
    if data.cache is not None and is_remote(data.cache):
        raise ValueError(f"data.cache = {data.cache} must be a folder on a local disk")
