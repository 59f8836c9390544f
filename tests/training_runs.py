"""Runs of the real trainer in processes of their own, forked from one that has already imported everything."""
import json
import multiprocessing
import os
import shutil
import signal
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmbert.launch import Layout, free_port

Change = Callable[[], None]  # what a test does to a training process before it begins: `tests.guards`

PRELOADED = [
    "composer", "composer.algorithms", "streaming", "optimi", "safetensors.torch", "torch.testing", "mmbert.trainer",
    "mmbert.ledger", "callbacks", "main", "tests.guards", "tests.faults.injected", "tests.faults.kill_points",
]  # fmt: skip
WALL_SECONDS = 120.0  # a run that takes longer hangs

BASE = """
tokenizer: {tokenizer}
run_root: {run_root}
device: cpu
precision: fp32
max_seq_len: 64
duration: 5000
global_train_batch_size: 4
device_train_microbatch_size: 4
mask_rate: 0.30
model:
  vocab_size: 512
  hidden_size: 32
  intermediate_size: 48
  num_hidden_layers: 3
  num_attention_heads: 2
  max_position_embeddings: 128
  global_rope_theta: 10000
  local_rope_theta: 10000
  attn_out_dropout: 0.1
optimizer: {{lr: 3.0e-3, betas: [0.9, 0.95], eps: 1.0e-8, weight_decay: 8.0e-5}}
learning_rate: {{shape: warmup_stable_decay, warmup: 1000}}
checkpoint: {{interval: 1000, keep: 2}}
data:
  root: {shards64}
  period_rows: 24
  num_workers: 0
  mixture:
    large: {{source: invented, languages: [laa, lab], share: 1.0, tau: 0.7}}
"""
PHASES = {
    "phase1": "name: phase1\n",
    "phase2": """
name: phase2
parent: phase1
max_seq_len: 128
global_train_batch_size: 2
device_train_microbatch_size: 2
mask_rate: 0.15
model: {{global_rope_theta: 160000, local_rope_theta: 160000}}
optimizer: {{lr: 1.0e-3, weight_decay: 0.01}}
learning_rate: {{warmup: 0}}
data: {{root: {shards128}, mixture: {{large: {{languages: [laa, lab, lac, lad], tau: 0.5}}}}}}
""",
    "phase3": """
name: phase3
parent: phase2
mask_rate: {{kind: linear, start: 0.15, end: 0.05}}
learning_rate: {{shape: one_minus_sqrt, floor: 0.02}}
data:
  mixture:
    large: {{share: 0.75, tau: {{kind: linear, start: 0.5, end: 0.3}}}}
    small: {{source: invented, languages: [lae, laf], share: 0.25, tau: 0.3, max_repeats: 40}}
""",
}


def write_yamls(folder: Path, corpus: Any) -> None:
    """base.yaml, phase1.yaml, phase2.yaml and phase3.yaml, for runs below `folder`/runs."""
    values = {
        "tokenizer": corpus.tokenizer,
        "run_root": folder / "runs",
        "shards64": corpus.shards[64],
        "shards128": corpus.shards[128],
    }
    (folder / "base.yaml").write_text(BASE.format(**values))
    for name, text in PHASES.items():
        parent = "phase2" if name == "phase3" else "base"
        (folder / f"{name}.yaml").write_text(f"extends: [{parent}.yaml]\n" + text.format(**values))


def prepare(folder: Path, corpus: Any, phase: str = "phase1", copied: Mapping[str, Path] | None = None) -> Path:
    """A new folder in which a phase can be run; returns its YAML.

    Args:
        copied: name of a phase -> run folder to be copied to `folder`/runs under it: a parent, or a run to go on.
    """
    (folder / "runs").mkdir(parents=True)
    write_yamls(folder, corpus)
    for name, run_folder in (copied or {}).items():
        shutil.copytree(run_folder, folder / "runs" / name)
    return folder / f"{phase}.yaml"


@dataclass(frozen=True)
class Outcome:
    """How a run ended, what it printed, and one record a step, of all runs that wrote to the same file."""

    exit_code: int | None
    output: str
    steps: list[dict[str, Any]]


class Run:
    """`main.py` on some arguments, in a process that is running already."""

    def __init__(
        self,
        arguments: Sequence[Any],
        record: Path,
        kill_at: int | None = None,
        number: int = signal.SIGKILL,
        changes: Sequence[Change] = (),
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """Start it.

        Args:
            record: file that gets one JSON line a step; what the run prints goes to the same name with `.log`.
            kill_at: a step; at its end the run sends itself the signal `number`.
            changes: called in the process before the run begins; each must be picklable.
            environment: variables to set in it.
        """
        self.arguments, self.record = [str(argument) for argument in arguments], record
        self.log, self.scratch = record.with_suffix(".log"), record.with_suffix(".tmp")
        self.log.unlink(missing_ok=True)
        self.scratch.mkdir(parents=True, exist_ok=True)
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOADED)
        variables = {"TMPDIR": str(self.scratch), **(environment or {})}
        values = (self.arguments, str(record), str(self.log), kill_at, number, tuple(changes), variables)
        self.process = context.Process(target=_run, args=values)
        self.process.start()

    @property
    def is_running(self) -> bool:
        """Whether it has not ended."""
        return self.process.is_alive()

    def steps(self) -> list[dict[str, Any]]:
        """The steps that were recorded up to now; a kill may have torn the last line."""
        if not self.record.exists():
            return []
        lines = self.record.read_bytes().split(b"\n")[:-1]
        return [json.loads(line) for line in lines]

    def output(self) -> str:
        """What it has printed up to now."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def wait(self, limit: float = WALL_SECONDS) -> Outcome:
        """How it ended.

        Raises:
            TimeoutError: it has not ended after `limit` seconds, and was killed.
        """
        self.process.join(timeout=limit)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
            raise TimeoutError(f"{self.arguments} still runs after {limit} s:\n{self.output()}")
        return Outcome(self.process.exitcode, self.output(), self.steps())


def train(
    arguments: Sequence[Any],
    record: Path,
    kill_at: int | None = None,
    number: int = signal.SIGKILL,
    changes: Sequence[Change] = (),
    environment: Mapping[str, str] | None = None,
) -> Outcome:
    """Run `main.py` on these arguments to its end; see `Run`."""
    return Run(arguments, record, kill_at, number, changes, environment).wait()


def start_ranks(
    arguments: Sequence[Any],
    record: Path,
    num_ranks: int = 2,
    changes: Sequence[Change] = (),
    kill_at: Mapping[int, int] | None = None,
    number: int = signal.SIGKILL,
    more: Mapping[int, Sequence[Any]] | None = None,
) -> list[Run]:
    """Start `main.py` once a rank, with what a launcher tells each; none watches over them.

    Args:
        record: rank 1 writes to `x-rank1.jsonl` where this is `x.jsonl`, and so on; rank 0 to the name itself.
        kill_at: rank -> step at whose end it gets the signal `number`.
        more: rank -> arguments that it alone gets.
    """
    layout = Layout(num_ranks, 1, 0, "127.0.0.1", free_port())
    return [
        Run(
            [*arguments, *(more or {}).get(rank, ())],
            record.with_stem(f"{record.stem}-rank{rank}") if rank else record,
            (kill_at or {}).get(rank),
            number,
            changes,
            layout.environment(rank),
        )
        for rank in range(num_ranks)
    ]


def train_ranks(
    arguments: Sequence[Any],
    record: Path,
    num_ranks: int = 2,
    changes: Sequence[Change] = (),
    kill_at: Mapping[int, int] | None = None,
    number: int = signal.SIGKILL,
    more: Mapping[int, Sequence[Any]] | None = None,
) -> list[Outcome]:
    """Run `main.py` on several ranks to their end; see `start_ranks`."""
    runs = start_ranks(arguments, record, num_ranks, changes, kill_at, number, more)
    try:
        return [run.wait() for run in runs]
    finally:
        for run in runs:
            run.process.kill()


def _run(
    arguments: list[str],
    record: str,
    output: str,
    kill_at: int | None,
    number: int,
    changes: Sequence[Change],
    environment: Mapping[str, str],
) -> None:
    """What main.py does, with one callback more, printing to the file `output`."""
    import zlib

    import torch
    from composer import Callback, Logger, State
    from composer.utils import collect_env

    import callbacks
    import main
    from tests.faults import injected
    from tests.guards import replace

    file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.environ.update(environment)
    replace(collect_env, "get_cpu_model", lambda: "any")  # starts a second Python, which takes longer than the run
    tempfile.tempdir = None  # TMPDIR may have been read already
    multiprocessing.set_start_method("fork", force=True)  # as in a program that was not forked from a fork server
    torch.set_num_threads(1)

    class Record(Callback):
        """Appends what each step saw and did."""

        def batch_start(self, state: State, logger: Logger) -> None:
            injected.now.step = int(state.timestamp.batch) + 1

        def batch_end(self, state: State, logger: Logger) -> None:
            batch, groups = state.batch, state.optimizers[0].param_groups
            values = {
                "step": int(state.timestamp.batch),
                "tokens": int(state.timestamp.token),
                "loss": float(state.total_loss_dict["loss/train/total"]).hex(),
                "ids": zlib.crc32(batch["input_ids"].tobytes()),
                "rows": [int(position) for position in batch["row_positions"]],
                "masked": batch["num_labels"] / len(batch["input_ids"]),
                "lr": groups[0]["lr"],
                "weight_decay": [group["weight_decay"] for group in groups],
                "betas": [groups[0]["beta1"], groups[0]["beta2"]],
                "max_lr": groups[0]["max_lr"],
                "optimizer_step": int(groups[0]["step"]),
            }
            with open(record, "a") as file:
                file.write(json.dumps(values) + "\n")
            if kill_at == int(state.timestamp.batch):
                os.kill(os.getpid(), number)

    build = callbacks.build_callbacks

    def with_record(phase: Any, request: Any) -> list[Callback]:
        return [Record(), *build(phase, request)]

    callbacks.build_callbacks = with_record
    for change in changes:
        change()
    main.main(arguments)
