"""Builds the Composer trainer of one phase: fresh, handed over from its parent, or resumed where it stopped."""
import json
import logging
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from composer import Algorithm, Callback, Event, Logger, State, Time, Timestamp, Trainer
from composer.core import Precision
from composer.utils import reproducibility
from torch import nn

from mmbert.atomic import make_folder
from mmbert.attention import check_kernel
from mmbert.checkpoint import (
    checkpoint_bytes,
    load_moments,
    load_weights,
    newest_checkpoint,
    prune,
    read_state,
    tidy,
)
from mmbert.config import RunConfig
from mmbert.data import Microbatches, PhaseData, build_data
from mmbert.device import check_c_compiler, check_device, device_of
from mmbert.finished import check_identity, check_parent
from mmbert.heldout import check_validation
from mmbert.identity import MAY_DIFFER, encoder_changes, recipe
from mmbert.ledger import last_saved_step
from mmbert.loggers import build_loggers
from mmbert.manifest import Manifest
from mmbert.mlm import MaskedLM
from mmbert.model import MmBertForMaskedLM
from mmbert.optim import build_optimizer
from mmbert.processes import open_files_allowed
from mmbert.ranks import Ranks
from mmbert.run_lock import hold_run, sole_writer
from mmbert.tokenizer import Tokenizer, tokenizer_of_run

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Phase:
    """A phase before training: its configuration, tokenizer and streams, all checked, and its folder held.

    Attributes:
        heldout: manifests of the languages that are validated.
    """

    config: RunConfig
    tokenizer: Tokenizer
    data: PhaseData
    ranks: Ranks
    heldout: tuple[Manifest, ...] = ()

    @classmethod
    def open(cls, config: RunConfig) -> "Phase":
        """Check everything that can be checked before a model is built.

        Raises:
            FileNotFoundError, ValueError, OSError: one line that names the key or file, the value and the remedy.
        """
        check_open_files(config)
        check_device(config)
        device = device_of(config)
        if device == "gpu":
            check_c_compiler()
        ranks = Ranks.connect(device, config.hang_minutes)  # and this process looks at its own GPU from here on

        def read() -> tuple[Tokenizer, PhaseData, tuple[Manifest, ...]]:
            check_kernel(config.model.attention, device == "gpu", config.precision, config.model.head_dim)
            tokenizer = tokenizer_of_run(config.tokenizer, config.model.vocab_size)
            return tokenizer, PhaseData.open(config, tokenizer), check_validation(config, tokenizer)

        tokenizer, data, heldout = ranks.together(read)  # which may fail on one machine alone
        phase = cls(config, tokenizer, data, ranks, heldout)
        phase.check_ranks_agree()

        def take_folder() -> None:
            make_folder(config.run_folder)
            hold_run(config.run_folder)  # as long as this process lives

        ranks.by_first(take_folder)
        return phase

    def check_ranks_agree(self) -> None:
        """All ranks must train the same run on the same rows; their gradients would be added even so.

        Raises:
            ValueError: on all ranks; names one that differs from the first, and what differs.
        """
        heldout = {f"heldout.{manifest.language}": manifest.digest for manifest in self.heldout}
        text = json.dumps({**self.identity(), **recipe(self.config, MAY_DIFFER), **heldout})
        own, first = json.loads(text), json.loads(self.ranks.of_first(text))
        differ = sorted(key for key in first.keys() | own.keys() if first.get(key) != own.get(key))
        shown = "; ".join(f"{key} is {own.get(key)!r} here, {first.get(key)!r} on rank 0" for key in differ[:5])
        more = f" and {len(differ) - 5} more" if len(differ) > 5 else ""
        remedy = "give all machines the same YAML, overrides, rows and tokenizer"
        self.ranks.raise_together(ValueError(f"{shown}{more}; {remedy}") if differ else None)

    def identity(self) -> dict[str, Any]:
        """All that a restart must have in common with the run, flat: key -> value."""
        streams = {f"shards.{name}": digest for name, digest in self.data.digests().items()}
        return {**recipe(self.config), **streams, "tokenizer.digest": self.tokenizer.digest}


def finished_parent(config: RunConfig, tokenizer: Tokenizer) -> Path | None:
    """The last checkpoint of the phase that this one continues.

    Raises:
        FileNotFoundError, ValueError: the parent is missing, unfinished, or of another tokenizer.
    """
    if config.parent is None:
        return None
    folder = Path(config.run_root) / config.parent
    if not folder.is_dir():
        near = sorted({path.parent.name for path in folder.parent.glob("*/step-*")} - {config.name})
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
    if changed := encoder_changes(state["config"]["model"], asdict(config.model)):
        raise ValueError(f"parent = {config.parent!r} has another encoder: {'; '.join(changed)}; give it the parent's")
    return checkpoint


def starting_point(phase: Phase) -> Path | None:
    """The checkpoint to go on from: the newest of this run, or the last of its parent. Tidies the run's folder.

    Raises:
        FileNotFoundError, ValueError: see `finished_parent`, `check_identity` and `check_parent`; or the run has
            trained, and its checkpoints are gone.
    """
    folder = phase.config.run_folder
    own = tidy(folder)
    if own:
        state = read_state(own)
        check_identity(own, state["identity"], phase.identity())
        check_parent(own, state, phase.config.parent)
        return own
    if saved := last_saved_step(folder):
        raise ValueError(
            f"{folder} has no checkpoint, but its ledger says that step {saved} was saved: bring step-{saved:010d} "
            "back, or move the folder away to start anew"
        )
    return finished_parent(phase.config, phase.tokenizer)


def check_open_files(config: RunConfig) -> None:
    """Refuse to start where the loader's pipes would not fit.

    Raises:
        OSError: names the limit and what is needed.
    """
    needed, limit = 32 + 8 * config.data.num_workers, open_files_allowed()
    if limit < needed:
        raise OSError(f"this process may open {limit} files, and needs {needed}: raise it with `ulimit -n {needed}`")


def check_space(folder: Path, model: nn.Module) -> None:
    """Refuse to start where not even one checkpoint can be written.

    Raises:
        OSError: says what is needed and what is free.
    """
    needed, free = checkpoint_bytes(model), shutil.disk_usage(folder).free
    if free < needed:
        raise OSError(
            f"{folder}: a checkpoint takes {needed / 1e6:,.0f} MB, and {free / 1e6:,.0f} MB are free; free some, or "
            "choose another run_root"
        )


def clear_up(config: RunConfig) -> None:
    """Remove what a kill after the last save of a finished run left: old checkpoints, hidden folders."""
    with sole_writer(config.run_folder):
        tidy(config.run_folder)
        prune(config.run_folder, config.checkpoint.keep, config.checkpoint.keep_every)


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


def microbatches(phase: Phase) -> Microbatches:
    """How a device gets its rows; a GPU in one shape, for which its model is compiled."""
    config = phase.config
    if device_of(config) == "cpu":
        return Microbatches()
    tokens = config.device_train_microbatch_size * config.max_seq_len
    return Microbatches(tokens, phase.tokenizer.pad_token_id, config.max_seq_len)


class FixedBuckets(Algorithm):
    """Has DDP keep the buckets in which gradients are added over the ranks.

    Else it makes new ones after a process' first step, and three ranks or more then add in another order: a run that
    was stopped and one that was not would differ in their last bits. Asking DDP to look for unused parameters, of which
    there are none, is what keeps it from that; it says once that this is slow. Two ranks add in one way only, and
    kernels of a GPU in any order as it is.
    """

    find_unused_parameters = True

    def match(self, event: Event, state: State) -> bool:
        """It changes no step."""
        return False

    def apply(self, event: Event, state: State, logger: Logger) -> None:
        """Never called."""


def build_trainer(phase: Phase, callbacks: Sequence[Callback]) -> Trainer:
    """The trainer of a phase, ready to fit.

    An own checkpoint wins over the parent's, so that one command serves the first start and every restart.

    Raises:
        ValueError: on all ranks; see `starting_point` and `check_space`.
    """
    config, ranks = phase.config, phase.ranks
    device = device_of(config)
    found = ranks.by_first(lambda: starting_point(phase))
    source = Path(found) if found else None
    state = read_state(source) if source and source.parent == config.run_folder else None

    reproducibility.seed_all(config.seed)
    encoder = MmBertForMaskedLM(config.model)
    ranks.by_first(lambda: check_space(config.run_folder, encoder))
    if source:
        load_weights(source, encoder)
    if device == "gpu":
        encoder.model.compile_layers()
    optimizer = build_optimizer(encoder, config.optimizer, on_gpu=device == "gpu")
    start = state["rows"] if state else 0
    trainer = Trainer(
        model=MaskedLM(encoder, config.precision),
        optimizers=optimizer,
        train_dataloader=build_data(config, phase.data, start, ranks, microbatches(phase)),
        max_duration=Time.from_token(config.duration),
        device=device,
        precision=Precision.FP32,  # `MaskedLM` casts by itself; Composer's own choice for a GPU would scale the loss
        device_train_microbatch_size=config.device_train_microbatch_size,
        accumulate_train_batch_on_tokens=True,
        spin_dataloaders=False,  # the data start at the right row by themselves
        algorithms=[FixedBuckets()] if device == "cpu" and ranks.world_size > 2 else [],
        ddp_sync_strategy="single_auto_sync",  # once a step, as where nobody looks for unused parameters
        callbacks=list(callbacks),
        loggers=build_loggers(config, ranks.is_first),
        progress_bar=False,
        run_name=config.name,
        seed=config.seed,
    )
    if source:
        load_moments(source, encoder, optimizer)  # after the trainer has moved the parameters to their device
        log.info("%s %s", "resuming" if state else "starting from the parent's", source)
    if state:
        restore_clock(trainer, state, callbacks)
    return trainer
