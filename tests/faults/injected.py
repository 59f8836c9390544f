"""Faults put into a training process: called before the run begins, with arguments bound by functools.partial.

The product knows nothing of it.
"""
import importlib
import os
import resource
import signal
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor

from tests.guards import replace


@dataclass
class Now:
    """Where this process is; `tests.training_runs` keeps it up to date."""

    step: int = 0  # from 1 on


now = Now()


def is_rank(rank: int | None) -> bool:
    """Whether this process is that rank; None is every rank."""
    return rank is None or int(os.environ.get("RANK", "0")) == rank


def set_constant(module: str, name: str, value: Any) -> None:
    """Give a module's constant another value: `set_constant("callbacks.checkpointing", "RETRY_SECONDS", 0.0)`."""
    replace(importlib.import_module(module), name, value)


def before_step(action: Callable[[], None]) -> None:
    """Call `action` when a step's batch is there and `now.step` is its number."""
    from callbacks.dropout_seed import DropoutSeed

    seed = DropoutSeed.batch_start

    def batch_start(self: Any, state: Any, logger: Any) -> None:
        seed(self, state, logger)
        action()

    replace(DropoutSeed, "batch_start", batch_start)



def loss_becomes(value: float, steps: Collection[int], rank: int | None = None) -> None:
    """The loss of these steps is multiplied by `value`: NaN, infinity, or a number."""
    from mmbert.mlm import MaskedLM

    loss = MaskedLM.loss

    def changed(self: Any, outputs: Tensor, batch: dict[str, Any]) -> Tensor:
        right = loss(self, outputs, batch)
        return right * value if now.step in steps and is_rank(rank) else right

    replace(MaskedLM, "loss", changed)


def disturb_update(step: int) -> None:
    """The optimizer throws the weights off in this step, whose own loss is as ever."""
    from mmbert.optim import StableAdamW

    update = StableAdamW.step

    def changed(self: Any, *arguments: Any, **named: Any) -> Any:
        result = update(self, *arguments, **named)
        if now.step == step:
            noise = torch.Generator().manual_seed(0)
            with torch.no_grad():
                for group in self.param_groups:
                    for parameter in group["params"]:
                        parameter += torch.randn(parameter.shape, generator=noise)
        return result

    replace(StableAdamW, "step", changed)


def composer_as_on_gpu() -> None:
    """Composer decides about precision and loss scale as for a GPU."""
    import composer.trainer.trainer as composer_trainer
    import torch
    from composer.devices import DeviceCPU

    replace(composer_trainer, "DeviceGPU", DeviceCPU)
    replace(composer_trainer, "_validate_precision", lambda *_: None)
    replace(composer_trainer, "GradScaler", lambda *_, **__: torch.amp.GradScaler("cpu"))


def gradient_becomes(value: float, steps: Collection[int], rank: int | None = None) -> None:
    """One element of one gradient of these steps is `value`, with a loss that is finite."""
    from composer.core import Engine, Event

    run_event = Engine.run_event

    def changed(self: Any, event: Any, *arguments: Any) -> Any:
        if Event(event) == Event.AFTER_TRAIN_BATCH and now.step in steps and is_rank(rank):
            weight = next(p for p in self.state.model.parameters() if p.grad is not None and p.ndim > 1)
            weight.grad.view(-1)[7] = value
        return run_event(self, event, *arguments)

    replace(Engine, "run_event", changed)


def disturb_weights(step: int) -> None:
    """From this step on the weights are not what was learned, the same on all ranks: the loss is high and stays so."""
    from mmbert.mlm import MaskedLM

    forward = MaskedLM.forward

    def changed(self: Any, batch: dict[str, Any]) -> Tensor:
        if now.step == step:
            noise = torch.Generator().manual_seed(0)
            with torch.no_grad():
                for parameter in self.parameters():
                    parameter += torch.randn(parameter.shape, generator=noise)
        return forward(self, batch)

    replace(MaskedLM, "forward", changed)


def hang_at_step(step: int, rank: int | None = None) -> None:
    """The process sleeps for ever in this step."""

    def sleep_through() -> None:
        while now.step == step and is_rank(rank):
            time.sleep(3600)

    before_step(sleep_through)


def raise_at_step(step: int, rank: int | None = None) -> None:
    """A bug shows in this step."""

    def fail() -> None:
        if now.step == step and is_rank(rank):
            raise ArithmeticError("a bug that a test put in")

    before_step(fail)


def exit_at_step(step: int, status: int, rank: int | None = None) -> None:
    """The process ends in this step without a word."""

    def leave() -> None:
        if now.step == step and is_rank(rank):
            os._exit(status)

    before_step(leave)


def at_row(position: int, fault: Callable[[], None]) -> None:
    """Call `fault` in the loader (a worker, if there are any) that is asked for the row at this position."""
    from mmbert.data import PackedRows

    read = PackedRows.__getitems__

    def changed(self: Any, planned: Any) -> Any:
        if any(place[0] == position for place in planned[0]):
            fault()
        return read(self, planned)

    replace(PackedRows, "__getitems__", changed)


def be_killed() -> None:
    """What the kernel does to a process when memory runs out."""
    os.kill(os.getpid(), signal.SIGKILL)


def sleep_for_ever() -> None:
    """Hang."""
    while True:
        time.sleep(3600)


def be_seen_to_hang(mark: str) -> None:
    """Hang, having made this file."""
    Path(mark).touch()
    sleep_for_ever()


def fail_as_a_decoder_may() -> NoReturn:
    """An error that nobody expects in a loader."""
    raise KeyError("a column that a test took away")


def flip_weight_bit(step: int, rank: int, bit: int = 3) -> None:
    """One bit of one weight is flipped in this step, after the gradients were exchanged."""
    from callbacks.finite_steps import FiniteSteps

    after_train_batch = FiniteSteps.after_train_batch

    def changed(self: Any, state: Any, logger: Any) -> None:
        after_train_batch(self, state, logger)
        if now.step == step and is_rank(rank):
            weight = next(p for p in state.model.parameters() if p.ndim > 1)
            weight.detach().view(torch.int32).view(-1)[11] ^= 1 << bit

    replace(FiniteSteps, "after_train_batch", changed)


def full_disk(since: int, until: int, largest: int) -> None:
    """No file grows above `largest` bytes from step `since` to step `until`: EFBIG where a full disk has ENOSPC."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # an errno then, as on a full disk

    def limit() -> None:
        if now.step in (since, until):
            size = largest if now.step == since else resource.RLIM_INFINITY
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

    before_step(limit)


def leak(steps_from: int, size: int) -> None:
    """Every step keeps `size` bytes, and a file open."""
    kept: list[Any] = []

    def grow() -> None:
        if now.step >= steps_from:
            kept.append((bytearray(os.urandom(size)), open(os.devnull)))  # noqa: SIM115

    before_step(grow)


def limit_open_files(number: int) -> None:
    """As `ulimit -n` does."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (number, number))


def count_rows(report: str) -> None:
    """Write how many rows this process had read from shards when the first step began, and how many before the last."""
    from mmbert.shards import LanguageShards

    rows, seen = LanguageShards.rows, {"rows": 0, "began": time.monotonic()}

    def counted(self: Any, wanted: Any) -> Any:
        seen["rows"] += len(wanted)
        return rows(self, wanted)

    def tell() -> None:
        if not Path(report).exists():
            Path(report).write_text(f"{seen['rows']} {time.monotonic() - seen['began']}")

    replace(LanguageShards, "rows", counted)
    before_step(tell)


def send_self(where: str, number: int) -> None:
    """The process gets the signal `number` when the trainer calls its function `where`."""
    import mmbert.trainer

    function = getattr(mmbert.trainer, where)

    def signalled(*arguments: Any) -> Any:
        os.kill(os.getpid(), number)
        return function(*arguments)

    replace(mmbert.trainer, where, signalled)
