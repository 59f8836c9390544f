"""Whether a run has reached its end, and is the run that it is asked to be."""
from contextlib import suppress
from pathlib import Path
from typing import Any

from mmbert.checkpoint import is_valid, step_folders, weights_sha256
from mmbert.checkpoint_files import read_state
from mmbert.config import RunConfig
from mmbert.identity import recipe


def check_identity(checkpoint: Path, saved: dict[str, Any], now: dict[str, Any]) -> None:
    """Refuse to resume a run whose data or recipe changed.

    Raises:
        ValueError: lists what differs.
    """
    changed = sorted(key for key in saved.keys() | now.keys() if saved.get(key) != now.get(key))
    if changed:
        shown = "; ".join(f"{key} was {saved.get(key)!r}, is {now.get(key)!r}" for key in changed[:5])
        more = f" and {len(changed) - 5} more" if len(changed) > 5 else ""
        go_on = "this one as `parent`"
        if not read_state(checkpoint)["finished"]:  # then it can be no parent
            go_on = "begin it from this checkpoint (docs/operations.md, It stopped)"
        raise ValueError(
            f"{checkpoint.parent} was trained with another recipe: {shown}{more}; restore it, or give this run another "
            f"`name` and {go_on}"
        )


def check_parent(checkpoint: Path, state: dict[str, Any], parent: str | None) -> None:
    """Refuse to go on with a run, to call it finished, or to merge it, whose parent was trained anew since.

    Args:
        state: of `checkpoint`.
        parent: name of the run that it went on from.

    Raises:
        ValueError: the run began with other weights than its parent has now. A parent that is gone is no matter.
    """
    if parent is None:
        return
    began_with = state["callbacks"].get("Checkpointing", {}).get("parent_weights")
    now = weights_sha256(checkpoint.parents[1] / parent)
    if began_with and now and began_with != now:
        raise ValueError(
            f"{checkpoint.parent} began with other weights than {parent} has now: that was trained anew. Move "
            f"{checkpoint.parent} away to train it from them, or bring the old {parent} back"
        )


def check_unchanged(checkpoint: Path, state: dict[str, Any], config: RunConfig) -> None:
    """Both checks, of all that can be compared without the run's rows and its tokenizer.

    Raises:
        ValueError: see `check_identity` and `check_parent`.
    """
    asked = {key: value for key, value in state["identity"].items() if not key.startswith(("shards.", "tokenizer."))}
    check_identity(checkpoint, asked, recipe(config))
    check_parent(checkpoint, state, config.parent)


def check_begun(config: RunConfig) -> None:
    """Refuse a run that training would refuse to go on with; hashes nothing, so it is as good as its state.json is.

    Raises:
        ValueError: see `check_unchanged`.
    """
    for folder in step_folders(config.run_folder):
        with suppress(OSError, ValueError):  # broken: training goes on from one before
            state = read_state(folder)
            break
    else:
        return
    check_unchanged(folder, state, config)


def is_finished(config: RunConfig) -> bool:
    """Whether the run has reached its duration; hashes the checkpoint only if it says so.

    Raises:
        ValueError: it has, with another recipe, where a longer duration, say, would be ignored; see `check_unchanged`.
    """
    for newest in step_folders(config.run_folder)[:1]:
        try:
            state = read_state(newest)
        except (ValueError, OSError):
            return False  # broken: whoever goes on with the run will say so
        if state["finished"] and is_valid(newest):
            check_unchanged(newest, state, config)
            return True
    return False
