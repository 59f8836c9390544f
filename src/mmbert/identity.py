"""What makes two configurations the same run, and what a phase and its parent must have in common."""
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from mmbert.config import RunConfig

# What may differ between a run and its restart: nothing here changes which rows are seen or how they are masked.
MAY_CHANGE = {
    "run_root",
    "tokenizer",  # its folder; its digest is compared
    "device",
    "device_train_microbatch_size",
    "logging",
    "validation",
    "checkpoint",
    "data.root",
    "data.cache",
    "data.cache_limit",
    "data.num_workers",
    "max_minutes",
    "hang_minutes",
    "model.attention",
}

# What may differ between the ranks of a run: where a machine has its files, and what it does at its own pace.
MAY_DIFFER = {
    "run_root",  # preflight sees whether it is one folder
    "tokenizer",
    "device_train_microbatch_size",
    "data.root",
    "data.cache",
    "data.cache_limit",
    "data.num_workers",
    "validation.root",
    "max_minutes",
    "hang_minutes",
    "model.attention",
}

# A phase's model must have these in common with its parent's; the weights' shapes would not tell.
KEPT = ("num_attention_heads", "norm_eps", "local_attention", "global_attn_every_n_layers")

# A phase of longer rows may raise these. Lowered, every known distance would look like one that was never seen.
GROWING = ("global_rope_theta", "local_rope_theta")


def encoder_changes(before: Mapping[str, Any], now: Mapping[str, Any], kept: Sequence[str] = KEPT) -> list[str]:
    """What a phase's model section has that its parent's forbids, in words.

    Args:
        kept: keys that must be the same.
    """
    changed = [f"model.{key} was {before.get(key)!r}, is {now[key]!r}" for key in kept if before.get(key) != now[key]]
    return changed + [f"model.{key} was {before[key]}, is {now[key]}" for key in GROWING if before[key] > now[key]]


def recipe(config: RunConfig, free: Collection[str] = MAY_CHANGE) -> dict[str, Any]:
    """The part of the configuration that a restart must have in common with the run, flat: key -> value.

    Args:
        free: keys and sections that are no part of it.
    """
    flat = flatten(config.as_dict())
    return {key: value for key, value in flat.items() if not any(within(key, section) for section in free)}


def within(key: str, section: str) -> bool:
    """Whether `key` is `section` or lies in it."""
    return key == section or key.startswith(section + ".")


def flatten(tree: dict[str, Any], path: str = "") -> dict[str, Any]:
    """Nested mappings -> dotted keys; tuples become lists, as JSON has them."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        name = f"{path}.{key}" if path else key
        if isinstance(value, dict):
            flat |= flatten(value, name)
        else:
            flat[name] = list(value) if isinstance(value, tuple) else value
    return flat
