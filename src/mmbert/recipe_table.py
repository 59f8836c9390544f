"""Prints the recipe as Markdown tables, from the YAMLs alone: python -m mmbert.recipe_table.

docs/recipe.md holds what this prints; a test compares the two.
"""
from collections.abc import Sequence

from mmbert.clock import batch_sizes
from mmbert.clock import learning_rate as rate_at
from mmbert.config import RunConfig, load_config
from mmbert.plan.numbers import stretches
from mmbert.streams import read_languages

DECAYS = ("phase3-eng", "phase3-cont", "phase3-all")
BASE = [f"yamls/{name}.yaml" for name in ("phase1", "phase2", *DECAYS)]
SMALL = [f"yamls/small/{name}.yaml" for name in ("phase1", "phase1-plateau", "phase2", *DECAYS)]


def languages(config: RunConfig) -> set[str]:
    """Languages of a run, over all groups; code is none."""
    groups = config.data.groups().items()
    return {code for name, group in groups for code in read_languages(group.languages, name)} - {"code"}


def steps(config: RunConfig) -> int:
    """Optimizer steps of a run whose rows are all full."""
    return sum(stretch.steps for stretch in stretches(batch_sizes(config), config.duration / config.max_seq_len))


def learning_rate(config: RunConfig) -> str:
    """Peak, and where the rate ends."""
    peak = config.optimizer.lr
    last = rate_at(config, config.duration)
    return f"{peak:g}" if last == peak else f"{peak:g} to {last:.3g}, {config.learning_rate.shape}"


def phase_row(path: str, config: RunConfig) -> dict[str, str]:
    """One run."""
    return {
        "YAML": path.removeprefix("yamls/"),
        "parent": config.parent or "-",
        "tokens": f"{config.duration / 1e9:,.0f}B",
        "rows x length": f"{config.global_train_batch_size} x {config.max_seq_len}",
        "steps": f"{steps(config):,}",
        "mask rate": " to ".join(map(str, config.mask_rate.values())),
        "tau": " to ".join(map(str, config.data.groups()["fineweb2"].tau.values())),
        "languages": f"{len(languages(config)):,}",
        "theta": f"{config.model.global_rope_theta:,.0f}",
        "learning rate": learning_rate(config),
        "weight decay": f"{config.optimizer.weight_decay:g}",
    }


def mixture_rows(configs: Sequence[RunConfig]) -> list[dict[str, str]]:
    """One row a group of the mixture, one column a run: percent of the tokens."""
    names = dict.fromkeys(name for config in configs for name in config.data.groups())
    shares = {config.name: {name: f"{g.share:.2%}" for name, g in config.data.groups().items()} for config in configs}
    return [{"group": name, **{run: share.get(name, "-") for run, share in shares.items()}} for name in names]


def table(rows: Sequence[dict[str, str]]) -> str:
    """A Markdown table; the first row's keys are its head."""
    lines = [list(rows[0]), ["---"] * len(rows[0]), *(list(row.values()) for row in rows)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def recipe() -> str:
    """Both tables, as docs/recipe.md has them."""
    configs = {path: load_config(path) for path in BASE + SMALL}
    phases = table([phase_row(path, config) for path, config in configs.items()])
    return f"{phases}\n\n{table(mixture_rows([configs[path] for path in BASE]))}"


if __name__ == "__main__":
    print(recipe())
