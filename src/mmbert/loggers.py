"""Where metrics go besides the console and the ledger: wandb and TensorBoard, by choice. Neither ever ends a run."""
import logging
import secrets
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
from composer import Logger, State
from composer.core import Event
from composer.loggers import LoggerDestination, TensorboardLogger, WandBLogger

from mmbert.atomic import write_file
from mmbert.config import RunConfig

log = logging.getLogger(__name__)

FINISH_SECONDS = 60.0  # that wandb may take at the end; Slurm gives a run three minutes to save and end


class Tolerant(LoggerDestination):
    """Stands before a logger of Composer's: the first error is told, and nothing goes to that logger any more."""

    has_failed = False

    def run_event(self, event: Event, state: State, logger: Logger) -> None:
        """Hand on an event of the training loop."""
        self.hand_on(super().run_event, event, state, logger)

    def log_metrics(self, metrics: dict[str, Any], step: int | None = None) -> None:
        """Hand on metrics."""
        self.hand_on(super().log_metrics, metrics, step)

    def log_hyperparameters(self, hyperparameters: dict[str, Any]) -> None:
        """Hand on what the trainer says once."""
        self.hand_on(super().log_hyperparameters, hyperparameters)

    def hand_on(self, call: Callable[..., Any], *values: Any) -> None:
        """Call, unless it has failed before."""
        if self.has_failed:
            return
        try:
            call(*values)
        except Exception as error:  # whatever a disk, a server or a library of theirs comes up with
            self.has_failed = True
            log.warning("%s fails, training goes on without it: %s", type(self).__name__, error)


class WandB(Tolerant, WandBLogger):
    """wandb; the run's id lies in its folder, so that a restart goes on with the same run there."""

    def __init__(self, config: RunConfig, is_first: bool) -> None:
        folder = config.run_folder
        self.options: dict[str, Any] = {"dir": str(folder), "resume": "allow"}
        if is_first:
            self.options["id"] = wandb_id(folder)
        name = f"{Path(config.run_root).name}/{config.name}"
        super().__init__(project=config.logging.wandb_project, name=name, init_kwargs=self.options)

    def init(self, state: State, logger: Logger) -> None:
        """Begin the run there, or do without it.

        The other ranks wait until the first has begun, so it must begin somehow.
        """
        try:
            super().init(state, logger)
        except Exception as error:
            log.warning("wandb cannot begin, this attempt trains without it: %s", error)
            self.options["mode"] = "disabled"
            super().init(state, logger)
        threading.Thread(target=self.limit_exit, daemon=True).start()

    def post_close(self) -> None:
        """Send what is left, or leave it: without its server wandb tries for ever, and the watchdog has gone by now."""
        finish = threading.Thread(target=super().post_close, daemon=True)
        finish.start()
        finish.join(FINISH_SECONDS)
        if finish.is_alive():
            self.leave()

    def limit_exit(self) -> None:
        """After an error nothing is closed, and Python waits for wandb at its exit, where no thread can begin."""
        threading.main_thread().join()
        time.sleep(FINISH_SECONDS)
        self.leave()

    def leave(self) -> None:
        """End what sends; Python would wait for it at its exit, too."""
        folder = Path(str(self.run_dir)).parent
        for child in psutil.Process().children():
            if child.name() == "wandb-core":
                log.warning("wandb does not end; what it lacks is sent with: wandb sync --append %s", folder)
                child.kill()


class TensorBoard(Tolerant, TensorboardLogger):
    """TensorBoard's event files, in `tensorboard/<name>` of the run's folder."""


def wandb_id(folder: Path) -> str:
    """The id of a run at wandb, made at its first start. A folder that is moved away to start anew takes it along."""
    path = folder / "wandb-id"
    if not path.exists():
        write_file(path, f"{secrets.token_hex(8)}\n".encode())
    return path.read_text().strip()


def build_loggers(config: RunConfig, is_first: bool) -> list[LoggerDestination]:
    """What `logging` asks for; the console line and the ledger are callbacks.

    Args:
        is_first: whether this is rank 0, which alone logs.
    """
    loggers: list[LoggerDestination] = []
    if config.logging.wandb_project:
        loggers.append(WandB(config, is_first))
    if config.logging.tensorboard:
        loggers.append(TensorBoard(log_dir=str(config.run_folder / "tensorboard")))
    return loggers
