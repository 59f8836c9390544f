"""Guards taken out of a training process before the run begins, to see the harm that they keep away.

Each function is called in the process (`tests.training_runs.Run(changes=...)`). The product knows nothing of it.
"""
import shutil
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def replace(owner: Any, name: str, new: Any) -> None:
    """Put something else in the place of a module's or class's name, which must be there."""
    assert hasattr(owner, name), f"{owner} has no {name}"
    setattr(owner, name, new)


def nothing(*_: Any) -> None:
    """A callback's event, or a check, that does nothing."""


def without_planned_stop() -> None:
    """A request to stop is not looked at, and a signal does what it does by default."""
    import main
    from callbacks.planned_stop import PlannedStop

    replace(PlannedStop, "batch_end", nothing)
    replace(main.StopRequest, "listen", lambda self: self.__exit__(None, None, None))


def without_atomic_saves() -> None:
    """Checkpoints are written straight under their final names."""
    import mmbert.checkpoint

    @contextmanager
    def in_place(target: Path) -> Iterator[Path]:
        target.mkdir(parents=True, exist_ok=True)
        yield target

    replace(mmbert.checkpoint, "partial_folder", in_place)
    replace(mmbert.checkpoint, "publish_folder", nothing)


def without_checkpoint_check() -> None:
    """Every folder that is named as a checkpoint passes for a whole one."""
    import callbacks.spike_rollback
    import mmbert.checkpoint
    import mmbert.finished

    replace(mmbert.checkpoint, "why_invalid", lambda checkpoint: "")
    for module in (mmbert.checkpoint, mmbert.finished, callbacks.spike_rollback):
        replace(module, "is_valid", lambda checkpoint: True)


def without_seek() -> None:
    """What Composer does by itself: begin at the first row, and pass over all batches up to the current step."""
    import mmbert.trainer
    from mmbert.data import RankBatches

    build, fetch, passed_over = mmbert.trainer.build_data, RankBatches.fetch, {"rows": 0}

    def from_the_first_row(config: Any, data: Any, start: int, *others: Any) -> Any:
        passed_over["rows"] = start
        return build(config, data, 0, *others)

    def spin(self: Any, batches: Any) -> Any:
        while passed_over["rows"] > 0:
            batch = fetch(self, batches)
            assert isinstance(batch, dict)
            passed_over["rows"] -= len(batch["row_tokens"]) * self.ranks.world_size
        return fetch(self, batches)

    replace(mmbert.trainer, "build_data", from_the_first_row)
    replace(RankBatches, "fetch", spin)


def without_shard_check() -> None:
    """A shard is opened as it is."""
    import mmbert.shards

    replace(mmbert.shards, "check_shard", nothing)


def without_row_check() -> None:
    """What a shard's rows hold is not looked at."""
    import mmbert.mds_samples

    replace(mmbert.mds_samples, "find_fault", lambda rows, manifest: "")


def without_worker_messages() -> None:
    """An error of the loader goes up as it is."""
    from mmbert.data import RankBatches

    replace(RankBatches, "fetch", lambda self, batches: next(batches))


def with_filler_thread() -> None:
    """The loader of ModernBERT: a thread fills a buffer and dies at any error; the consumer waits for it."""
    from mmbert.data import RankBatches

    def fetch(self: Any, batches: Any) -> Any:
        if not hasattr(self, "buffer"):
            self.buffer = deque()
            threading.Thread(target=fill, args=(self.buffer, batches), daemon=True).start()
        while not self.buffer:
            time.sleep(0.001)
        return self.buffer.popleft()

    def fill(buffer: deque, batches: Any) -> None:
        for batch in batches:
            while len(buffer) >= 3:
                time.sleep(0.001)
            if isinstance(batch, Exception):
                raise batch
            buffer.append(batch)

    replace(RankBatches, "fetch", fetch)


def without_retry() -> None:
    """A save that fails ends the run: its `except OSError` catches nothing."""
    import callbacks.checkpointing

    class NothingRaisesThisError(Exception):
        pass

    callbacks.checkpointing.OSError = NothingRaisesThisError  # type: ignore[attr-defined]


def with_retention_from_memory() -> None:
    """What Composer does: only checkpoints that this process wrote are ever removed."""
    import callbacks.checkpointing
    from mmbert.checkpoint import step_folders

    written: list[Path] = []

    def prune(run_folder: Path, keep: int, keep_every: int | None) -> None:
        written.append(step_folders(run_folder)[0])
        while len(written) > keep:
            shutil.rmtree(written.pop(0))

    replace(callbacks.checkpointing, "prune", prune)


def without_ledger_check() -> None:
    """Whether the run's ledger speaks of checkpoints is not looked at."""
    import mmbert.trainer

    replace(mmbert.trainer, "last_saved_step", nothing)


def without_finite_steps() -> None:
    """The optimizer steps with whatever gradient there is, and whatever comes of it is saved."""
    import mmbert.checkpoint
    import mmbert.checkpoint_files
    from callbacks.finite_steps import FiniteSteps

    replace(FiniteSteps, "after_train_batch", nothing)
    for module in (mmbert.checkpoint, mmbert.checkpoint_files):
        replace(module, "not_finite", nothing)


def without_dropout_seed() -> None:
    """Dropout draws from a generator that nobody restores."""
    from callbacks.dropout_seed import DropoutSeed

    replace(DropoutSeed, "batch_start", nothing)


def without_liveness() -> None:
    """Nobody watches."""
    from callbacks.liveness import Liveness

    for event in ("fit_start", "after_dataloader", "batch_end", "fit_end"):
        replace(Liveness, event, nothing)


def without_lock() -> None:
    """Nobody holds the run's folder."""
    import mmbert.trainer

    replace(mmbert.trainer, "hold_run", nothing)


def without_parent_signal() -> None:
    """Neither a rank nor a loader worker is told when its parent ends."""
    import main
    import mmbert.data

    replace(main, "die_with_parent", nothing)
    replace(mmbert.data, "die_with_parent", nothing)


def without_identity_check() -> None:
    """A checkpoint fits any configuration and data."""
    import mmbert.trainer

    replace(mmbert.trainer, "check_identity", nothing)


def without_parent_check() -> None:
    """Any checkpoint of the parent will do."""
    import mmbert.trainer
    from mmbert.checkpoint import newest_checkpoint

    def any_parent(config: Any, tokenizer: Any) -> Path:
        return newest_checkpoint(Path(config.run_root) / config.parent)

    replace(mmbert.trainer, "finished_parent", any_parent)


def without_rank_comparison() -> None:
    """Nobody compares the weights of the ranks."""
    from callbacks.checkpointing import Checkpointing

    replace(Checkpointing, "check_ranks_agree", nothing)


def without_spike_rollback() -> None:
    """A loss that stays high changes nothing."""
    from callbacks.spike_rollback import SpikeRollback

    replace(SpikeRollback, "batch_end", nothing)
