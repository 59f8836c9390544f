"""Runs of the real trainer in processes of their own, forked from one that has already imported everything."""
import json
import multiprocessing
import os
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PRELOADED = ["composer", "streaming", "optimi", "safetensors.torch", "mmbert.trainer", "callbacks", "main"]

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


@dataclass(frozen=True)
class Outcome:
    """How a run ended, what it printed, and one record a step, of all runs that wrote to the same file."""

    exit_code: int | None
    output: str
    steps: list[dict[str, Any]]


def train(
    arguments: Sequence[str], record: Path, kill_at: int | None = None, number: int = signal.SIGKILL
) -> Outcome:
    """Run `main.py` on these arguments; with `kill_at`, send it the signal `number` at the end of that step."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    output = record.with_suffix(".log")
    words = [str(argument) for argument in arguments]
    process = context.Process(target=_run, args=(words, str(record), str(output), kill_at, number))
    process.start()
    process.join(timeout=120)
    if process.is_alive():
        process.kill()
        raise TimeoutError(f"{arguments} still runs after 120 s")
    steps = [json.loads(line) for line in record.read_text().splitlines()] if record.exists() else []
    return Outcome(process.exitcode, output.read_text(), steps)


def _run(arguments: list[str], record: str, output: str, kill_at: int | None, number: int) -> None:
    """What main.py does, with one callback more, printing to the file `output`."""
    import zlib

    import torch
    from composer import Callback, Logger, State

    import main

    file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(file, 1)
    os.dup2(file, 2)
    torch.set_num_threads(1)

    class Record(Callback):
        """Appends what each step saw and did."""

        def batch_end(self, state: State, logger: Logger) -> None:
            batch, groups = state.batch, state.optimizers[0].param_groups
            values = {
                "step": int(state.timestamp.batch),
                "tokens": int(state.timestamp.token),
                "loss": float(state.total_loss_dict["loss/train/total"]).hex(),
                "ids": zlib.crc32(batch["input_ids"].numpy().tobytes()),
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

    build = main.build_callbacks

    def with_record(phase: Any) -> list[Callback]:
        return [Record(), *build(phase)]

    main.build_callbacks = with_record
    main.main(arguments)
