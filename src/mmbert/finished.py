"""Whether a run has reached its end, as the run that it is asked to be."""
from pathlib import Path
from typing import Any

from mmbert.checkpoint import is_valid, step_folders
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


def is_finished(config: RunConfig) -> bool:
    """Whether the run has reached its duration; hashes the checkpoint only if it says so.

    Raises:
        ValueError: it has, with another recipe: a longer duration, say, would be ignored.
    """
    for newest in step_folders(config.run_folder)[:1]:
        try:
            state = read_state(newest)
        except (ValueError, OSError):
            return False  # broken: whoever goes on with the run will say so
        if state["finished"] and is_valid(newest):
            saved = state["identity"].items()
            asked = {key: value for key, value in saved if not key.startswith(("shards.", "tokenizer."))}
            check_identity(newest, asked, recipe(config))
            return True
    return False
