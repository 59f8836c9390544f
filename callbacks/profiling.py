"""Where the time of a step goes: python -m callbacks.profiling yamls/mine.yaml [key.sub=value ...] [--steps 3].

Trains a few steps of the phase on its own data with torch's profiler on, from fresh weights and in a folder that is
removed again: the run itself is not touched. Writes `trace.json`, for chrome://tracing or ui.perfetto.dev, and prints a
table.
"""
import argparse
import logging
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from composer import Callback, Logger, State
from torch.profiler import ProfilerActivity, profile

from callbacks import build_callbacks
from callbacks.dropout_seed import DropoutSeed
from callbacks.finite_steps import FiniteSteps
from callbacks.language_temperature import LanguageTemperature
from callbacks.learning_rate import LearningRate
from callbacks.mask_ratio import MaskRatio
from mmbert.atomic import make_folder
from mmbert.command import errors_in_one_line
from mmbert.config import load_config
from mmbert.device import device_of
from mmbert.stop_request import StopRequest
from mmbert.trainer import Phase, build_trainer

STEP = (MaskRatio, LanguageTemperature, LearningRate, DropoutSeed, FiniteSteps)  # what belongs to a step
WARMUP_STEPS = 3  # compilation, the optimizer's state, the allocator
ROWS = 20


class Profiling(Callback):
    """Records `steps` steps after the warm-up, and stops."""

    def __init__(self, phase: Phase, steps: int) -> None:
        on_gpu = device_of(phase.config) == "gpu"
        self.steps, self.sort_by = steps, "self_device_time_total" if on_gpu else "self_cpu_time_total"
        self.profiler = profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])])
        self.seconds_waited = 0.0

    def before_dataloader(self, state: State, logger: Logger) -> None:
        """Begin before the first recorded step fetches its batch."""
        if int(state.timestamp.batch) == WARMUP_STEPS:
            self.profiler.start()

    def batch_end(self, state: State, logger: Logger) -> None:
        """End after the last one."""
        done = int(state.timestamp.batch) - WARMUP_STEPS
        if done > 0:
            self.seconds_waited += state.batch["seconds_waited"]
        if done == self.steps:
            self.profiler.stop()
            state.stop_training()

    def rows(self) -> list[tuple[str, float, int]]:
        """Operations with their own seconds and calls, the longest first."""
        events = [
            (event.key, getattr(event, self.sort_by) / 1e6, event.count) for event in self.profiler.key_averages()
        ]
        return sorted(events, key=lambda event: -event[1])


def table(rows: Sequence[tuple[str, float, int]], steps: int) -> str:
    """The longest operations of `rows`, of all steps together, per step.

    Raises:
        ValueError: none took any time, as where the profiler may not look at the GPU.
    """
    total = sum(seconds for _, seconds, _ in rows)
    if not total:
        raise ValueError(
            "the profiler saw the GPU do nothing: its driver may show that to root alone "
            "(NVreg_RestrictProfilingToAdminUsers), or another profiler runs; trace.json has the host's part"
        )
    lines = ["| operation | ms a step | share | calls a step |", "| --- | ---: | ---: | ---: |"]
    for name, seconds, calls in rows[:ROWS]:
        lines.append(f"| {name[:60]} | {1e3 * seconds / steps:,.2f} | {seconds / total:.1%} | {calls / steps:,.0f} |")
    rest = sum(seconds for _, seconds, _ in rows[ROWS:])
    return "\n".join([*lines, f"| {len(rows[ROWS:])} others | {1e3 * rest / steps:,.2f} | {rest / total:.1%} | |"])


def run(config_path: str, overrides: Sequence[str], steps: int, output: Path) -> str:
    """Profile a phase; returns the table."""
    make_folder(output)
    with TemporaryDirectory(dir=output) as folder:  # its disk must have room for a checkpoint, as a run's must
        fresh = [f"run_root={folder}", "parent=null", "logging.wandb_project=null", "logging.tensorboard=false"]
        phase = Phase.open(load_config(config_path, [*overrides, *fresh]))
        step: list[Any] = [part for part in build_callbacks(phase, StopRequest()) if isinstance(part, STEP)]
        profiling = Profiling(phase, steps)
        trainer = build_trainer(phase, [*step, profiling])
        trainer.fit()
        trainer.close()
        phase.ranks.leave()
        if (made := int(trainer.state.timestamp.batch)) < WARMUP_STEPS + steps:
            if made > WARMUP_STEPS:
                profiling.profiler.stop()  # or Python would crash at its end
            raise ValueError(f"--steps {steps} and {WARMUP_STEPS} before them: {phase.config.name} has only {made}")
    profiling.profiler.export_chrome_trace(str(output / "trace.json"))
    waited = f"waiting for rows: {1e3 * profiling.seconds_waited / steps:,.2f} ms a step"
    return f"{table(profiling.rows(), steps)}\n\n{waited}\n{output / 'trace.json'}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the program; a mistake of the user ends it with one line and exit code 1."""
    parser = argparse.ArgumentParser(prog="python -m callbacks.profiling", description="Profile a phase's steps.")
    parser.add_argument("config", help="YAML of the phase")
    parser.add_argument("overrides", nargs="*", help="key.sub=value")
    parser.add_argument("--steps", type=int, default=3, help="steps to record; default 3")
    parser.add_argument("--output", type=Path, default=Path("runs/profile"), help="folder of the trace")
    options = parser.parse_args(arguments)
    with errors_in_one_line():
        if options.steps < 1:
            raise ValueError(f"--steps {options.steps} must be at least 1")
        logging.basicConfig(level=logging.INFO, format="%(message)s")
        print(run(options.config, options.overrides, options.steps, options.output))


if __name__ == "__main__":
    main()
