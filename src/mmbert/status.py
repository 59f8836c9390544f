"""Where the phases of a chain are: python -m mmbert.status CONFIG ... [key.sub=value ...], or slurm/status.sh.

Reads the ends of the ledgers, the newest checkpoints and Slurm's queue, so it takes seconds however long the runs are.
"""
import argparse
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta

from mmbert.checkpoint import step_folders
from mmbert.checkpoint_files import read_state
from mmbert.command import errors_in_one_line, yamls_and_overrides
from mmbert.config import RunConfig
from mmbert.ledger import last_step
from mmbert.stages import ARGUMENTS, Stage, load_all, stages

HEADER = ("stage", "state", "job", "step", "tokens", "done", "time left", "restarts")


@dataclass(frozen=True)
class Job:
    """One of Slurm's: number, state and, while it waits, the reason."""

    number: str
    state: str
    reason: str

    def __str__(self) -> str:
        state = self.state.lower()
        return state if self.reason in ("None", "") else f"{state} ({self.reason})"


def queued_jobs() -> dict[str, Job]:
    """Result -> the job that makes it; empty where there is no Slurm."""
    if not shutil.which("squeue"):
        return {}
    command = ["squeue", "--me", "--noheader", "--format=%A|%T|%r|%k"]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        raise OSError(f"squeue: {' '.join(result.stderr.split())}")
    rows = [line.split("|", 3) for line in result.stdout.splitlines()]
    return {comment: Job(*values) for *values, comment in rows}


def progress(config: RunConfig) -> tuple[str, ...]:
    """Step, tokens, share done, time left and restarts of a phase."""
    last = last_step(config.run_folder)
    if last is None:
        return ("-",) * 5
    share = min(1.0, last.tokens / config.duration)
    return (
        f"{last.step:,}", f"{last.tokens:,} of {config.duration:,}", f"{share:.1%}",
        time_left(config, last.tokens), str(last.attempt - 1),
    )  # fmt: skip


def time_left(config: RunConfig, tokens: int) -> str:
    """Of training, at the mean speed up to the newest checkpoint; waiting in the queue is not in it."""
    try:
        state = read_state(step_folders(config.run_folder)[0])
    except (IndexError, OSError, ValueError):
        return "-"  # none yet, or a damaged one, of which the run itself will say so
    seconds = state["seconds"] / max(1, state["tokens"]) * max(0, config.duration - tokens)
    return str(timedelta(seconds=round(seconds)))


def table(chain: Sequence[Stage], configs: Mapping[str, RunConfig], jobs: Mapping[str, Job]) -> str:
    """One line a stage."""
    rows: list[tuple[str, ...]] = [HEADER]
    for stage in chain:
        job = jobs.get(str(stage.result.absolute()))
        state = "done" if stage.is_done else str(job) if job else "not queued"
        numbers = progress(configs[stage.name]) if stage.name in configs else ("",) * 5
        rows.append((stage.name, state, job.number if job else "-", *numbers))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def main() -> None:
    """Print the table; a mistake of the user ends it with one line and exit code 1."""
    parser = argparse.ArgumentParser(prog="python -m mmbert.status", description="Where the phases of a chain are.")
    parser.add_argument("arguments", nargs="+", metavar="CONFIG", help=ARGUMENTS)
    options = parser.parse_args()
    with errors_in_one_line():
        paths, overrides = yamls_and_overrides(options.arguments)
        chain = stages(paths, overrides)
        phases = {each.name: each for each in load_all(paths, overrides) if isinstance(each, RunConfig)}
        print(table(chain, phases, queued_jobs()))


if __name__ == "__main__":
    main()
