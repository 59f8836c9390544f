"""Builds the Composer trainer of one phase: fresh, handed over from its parent, or resumed where it stopped."""
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from composer import Callback, Time, Timestamp, Trainer
from composer.loggers import LoggerDestination, WandBLogger
from composer.utils import dist, reproducibility

from mmbert.checkpoint import load_moments, load_weights, newest_checkpoint, read_state, step_folders
from mmbert.config import RunConfig
from mmbert.data import PhaseData, build_data
from mmbert.mlm import MaskedLM
from mmbert.model import MmBertForMaskedLM
from mmbert.optim import build_optimizer
from mmbert.tokenizer import Tokenizer, load_tokenizer

log = logging.getLogger(__name__)

# What may differ between a run and its restart: nothing here changes which rows are seen or how they are masked.
MAY_CHANGE = {
    "run_root",
    "tokenizer",  # its folder; its digest is compared
    "device",
    "device_train_microbatch_size",
    "logging",
    "checkpoint",
    "data.root",
    "data.num_workers",
    "model.attention",
}


@dataclass(frozen=True)
class Phase:
    """A phase before training: its configuration, tokenizer and streams, all checked."""

    config: RunConfig
    tokenizer: Tokenizer
    data: PhaseData

    @classmethod
    def open(cls, config: RunConfig) -> "Phase":
        """Check everything that can be checked before a model is built.

        Raises:
            FileNotFoundError, ValueError, OSError: one line that names the key or file, the value and the remedy.
        """
        tokenizer = load_tokenizer(Path(config.tokenizer))
        if tokenizer.vocab_size > config.model.vocab_size:
            raise ValueError(
                f"model.vocab_size = {config.model.vocab_size} is smaller than the {tokenizer.vocab_size} ids of "
                f"tokenizer {tokenizer.folder}"
            )
        config.run_folder.mkdir(parents=True, exist_ok=True)
        (config.run_folder / ".writable").touch()
        (config.run_folder / ".writable").unlink()
        return cls(config, tokenizer, PhaseData.open(config, tokenizer))

    def identity(self) -> dict[str, Any]:
        """All that a restart must have in common with the run, flat: key -> value."""
        flat = flatten(self.config.as_dict())
        kept = {key: value for key, value in flat.items() if not any(within(key, free) for free in MAY_CHANGE)}
        streams = {f"shards.{name}": digest for name, digest in self.data.digests().items()}
        return {**kept, **streams, "tokenizer.digest": self.tokenizer.digest}


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


def check_identity(checkpoint: Path, saved: dict[str, Any], now: dict[str, Any]) -> None:
    """Refuse to resume a run whose data or recipe changed.

    Raises:
        ValueError: lists what differs.
    """
    changed = sorted(key for key in saved.keys() | now.keys() if saved.get(key) != now.get(key))
    if changed:
        shown = "; ".join(f"{key} was {saved.get(key)!r}, is {now.get(key)!r}" for key in changed[:5])
        more = f" and {len(changed) - 5} more" if len(changed) > 5 else ""
        raise ValueError(
            f"{checkpoint.parent} was trained with another recipe: {shown}{more}; restore it, or give this run "
            "another `name` and this one as `parent`"
        )


def finished_parent(config: RunConfig, tokenizer: Tokenizer) -> Path | None:
    """The last checkpoint of the phase that this one continues.

    Raises:
        FileNotFoundError, ValueError: the parent is missing, unfinished, or of another tokenizer.
    """
    if config.parent is None:
        return None
    folder = Path(config.run_root) / config.parent
    if not folder.is_dir():
        near = sorted(path.name for path in folder.parent.glob("*") if path.is_dir() and path.name != config.name)
        raise FileNotFoundError(
            f"parent = {config.parent!r}: no such run {folder}; there {'are ' + ', '.join(near) if near else 'is none'}"
        )
    checkpoint = newest_checkpoint(folder)
    state = read_state(checkpoint)
    if not state["finished"]:
        raise ValueError(
            f"parent = {config.parent!r} is unfinished: {state['tokens']:,} of {state['config']['duration']:,} tokens; "
            f"run it to its end first"
        )
    if state["identity"]["tokenizer.digest"] != tokenizer.digest:
        raise ValueError(f"parent = {config.parent!r} was trained with another tokenizer than {tokenizer.folder}")
    return checkpoint


def is_finished(run_folder: Path) -> bool:
    """Whether the run has reached its duration."""
    return bool(step_folders(run_folder)) and bool(read_state(newest_checkpoint(run_folder))["finished"])


def restore_clock(trainer: Trainer, state: dict[str, Any], callbacks: Sequence[Callback]) -> None:
    """Set the trainer's clock and the callbacks' state to the checkpoint's."""
    batch, sample, token = state["step"], state["rows"], state["tokens"]
    spent = timedelta(seconds=state["seconds"])
    trainer.state.timestamp = Timestamp(
        batch=batch, sample=sample, token=token, batch_in_epoch=batch, sample_in_epoch=sample, token_in_epoch=token,
        total_wct=spent, epoch_wct=spent,
    )  # fmt: skip
    for callback in callbacks:
        if (saved := state["callbacks"].get(type(callback).__name__)) is not None:
            callback.load_state_dict(saved)


def build_loggers(config: RunConfig) -> list[LoggerDestination]:
    """wandb where the configuration names a project; the console line is a callback."""
    project = config.logging.wandb_project
    return [WandBLogger(project=project, name=f"{Path(config.run_root).name}/{config.name}")] if project else []


def build_trainer(phase: Phase, callbacks: Sequence[Callback]) -> Trainer:
    """The trainer of a phase, ready to fit.

    An own checkpoint wins over the parent's, so that one command serves the first start and every restart.

    Raises:
        FileNotFoundError, ValueError: see `finished_parent` and `check_identity`.
    """
    config = phase.config
    device = config.device if config.device != "auto" else ("gpu" if torch.cuda.is_available() else "cpu")
    dist.initialize_dist(device)
    own = newest_checkpoint(config.run_folder) if step_folders(config.run_folder) else None
    source = own or finished_parent(config, phase.tokenizer)
    state = read_state(own) if own else None
    if own and state:
        check_identity(own, state["identity"], phase.identity())

    reproducibility.seed_all(config.seed)
    encoder = MmBertForMaskedLM(config.model)
    if source:
        load_weights(source, encoder)
    optimizer = build_optimizer(encoder, config.optimizer, on_gpu=device == "gpu")
    start = state["rows"] if state else 0
    trainer = Trainer(
        model=MaskedLM(encoder, config.precision),
        optimizers=optimizer,
        train_dataloader=build_data(config, phase.data, start, dist.get_global_rank(), dist.get_world_size()),
        max_duration=Time.from_token(config.duration),
        device=device,
        device_train_microbatch_size=config.device_train_microbatch_size,
        accumulate_train_batch_on_tokens=True,
        spin_dataloaders=False,  # the data start at the right row by themselves
        callbacks=list(callbacks),
        loggers=build_loggers(config),
        progress_bar=False,
        run_name=config.name,
        seed=config.seed,
    )
    if source:
        load_moments(source, encoder, optimizer)  # after the trainer has moved the parameters to their device
        log.info("%s %s", "resuming" if own else "starting from the parent's", source)
    if state:
        restore_clock(trainer, state, callbacks)
    return trainer
