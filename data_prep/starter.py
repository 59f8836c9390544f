r"""Write a first YAML for prepared rows: all their languages in one group, from random weights.

    python -m data_prep.starter --rows data/mine/rows-1024 --tokenizer data/tokenizer-gemma2 \
        --output data/mine/train.yaml

It is a beginning that trains, not a recipe: change what you like. A file that is there already stays as it is, and what
of it does not fit the rows is told.
"""
import argparse
import json
import os
import shlex
import textwrap
from pathlib import Path

from data_prep.totals import few
from data_prep.verify import find_streams
from mmbert.atomic import write_file
from mmbert.command import errors_in_one_line
from mmbert.config import load_config
from mmbert.manifest import Manifest, read_manifest
from mmbert.streams import mixture_streams

PASSES = 2  # over the text; temperature gives small languages up to twice as many
BATCHES = 1000  # optimizer steps that a phase should have at least, where the text allows it
SMALLEST, LARGEST = 8, 512  # rows of a global batch
GPU = Path("/dev/nvidia0")
TEMPLATE = """\
# Made by data_prep.starter from {rows}: {tokens:,} tokens in {num_languages} languages.
# Train: {command}
{little}extends: [{common}, {model}]
name: {name}
run_root: {run_root}
tokenizer: {tokenizer}
duration: {duration} # {passes:.1f} passes over the text; a small language is seen {repeats} times at most
max_seq_len: {row_length}
global_train_batch_size: {batch}
device_train_microbatch_size: 8
mask_rate: 0.30
{machine}model:
  vocab_size: {vocab_size}
  max_position_embeddings: {row_length}
  global_rope_theta: 10000
  local_rope_theta: 10000
learning_rate: {{shape: warmup_stable_decay, warmup: {warmup}, decay: {decay}, floor: 0.02}}
checkpoint: {{interval: {interval}}}
{validation}data:
  root: {root}
  period_rows: {period_rows}
{workers}  mixture:
    {source}: {{source: {source}, languages: {languages}, share: 1.0, tau: 0.5, max_repeats: {repeats}}}
"""
LITTLE = """\
# Little text: the phase passes over it {passes:,.0f} times. That shows that everything works; a real model needs more.
"""
CPU_LINES = """\
device: cpu # a tiny model, in fp32; data_prep.starter --device gpu writes a small one
precision: fp32
logging: {interval_batches: 1} # a line on the console each step, which takes seconds
"""
VALIDATION = "validation: {{interval: {interval}, root: {root}, source: {source}, languages: {languages}, rows: 128}}\n"


def batch_rows(tokens: int, row_length: int) -> int:
    """Rows of a global batch: a power of two that leaves `BATCHES` steps, within the bounds."""
    rows = SMALLEST
    while 2 * rows <= LARGEST and PASSES * tokens >= 2 * rows * row_length * BATCHES:
        rows *= 2
    return rows


def quoted(value: Path | str | list[str]) -> str:
    """As YAML reads it back: bare, a folder `2024` would be a number, and the language `yes` a truth."""
    return json.dumps(value, default=str, ensure_ascii=False)


def train_command(path: Path, device: str) -> str:
    """What trains a YAML; on a CPU with the launcher that sets what speeds it up, and ends without a traceback."""
    program = "python -m mmbert.launch --nproc 1" if device == "cpu" else "composer"
    return f"{program} main.py {shlex.quote(str(path))}"


def starter(manifests: list[Manifest], rows: Path, tokenizer: Path, path: Path, on_gpu: bool) -> str:
    """The YAML.

    Raises:
        ValueError: the rows are of several sources.
    """
    train = [manifest for manifest in manifests if manifest.split == "train"]
    if len(sources := sorted({manifest.source for manifest in train})) > 1:
        raise ValueError(f"{rows} holds several sources, {', '.join(sources)}: write the mixture yourself")
    tokens, row_length = sum(manifest.tokens for manifest in train), train[0].row_length
    batch = batch_rows(tokens, row_length)
    steps = max(10, -(-PASSES * tokens // (batch * row_length)))
    duration = steps * batch * row_length
    interval = duration // 10
    source, root, name = quoted(train[0].source), quoted(rows), path.absolute().parent.name
    validation = ""
    if heldout := [manifest.language for manifest in manifests if manifest.split == "heldout"]:
        validation = VALIDATION.format(interval=interval, root=root, source=source, languages=quoted(heldout))
    yamls = Path(os.path.relpath("yamls", path.parent.resolve()))  # a link to another disk is another way up
    return TEMPLATE.format(
        rows=rows,
        tokens=tokens,
        num_languages=len(train),
        command=train_command(path, "auto" if on_gpu else "cpu"),
        little=LITTLE.format(passes=duration / tokens) if duration > 2 * PASSES * tokens else "",
        common=quoted(yamls / "common.yaml"),
        model=quoted(yamls / "model" / ("small.yaml" if on_gpu else "tiny.yaml")),
        name=quoted(name),
        run_root=quoted(f"runs/{name}"),
        tokenizer=quoted(tokenizer),
        duration=duration,
        passes=duration / tokens,
        repeats=max(2 * PASSES, -(-duration // tokens)),
        row_length=row_length,
        batch=batch,
        machine="" if on_gpu else CPU_LINES,
        workers="" if on_gpu else "  num_workers: 0\n",
        vocab_size=train[0].vocab_size,
        warmup=duration // 20,
        decay=duration // 4,
        interval=interval,
        validation=validation,
        source=source,
        root=root,
        period_rows=batch * min(steps, 100),
        languages=quoted([manifest.language for manifest in train]),
    )


def look_at(path: Path, rows: Path) -> tuple[str, str]:
    """How a YAML that is there already does not fit the rows, in words, "" where it does; and its device."""
    try:
        config = load_config(path)
        named = {"/".join(stream) for stream in mixture_streams(config)[0]}
    except Exception as error:  # its owner may have written anything
        return f"cannot be loaded: {textwrap.shorten(str(error), 300)}", "auto"
    if Path(config.data.root).resolve() != rows.resolve():
        return f"trains on {config.data.root}, not on {rows}", config.device
    train = [folder for folder in find_streams(rows) if folder.parents[1].name == "train"]
    there = {f"{folder.parent.name}/{folder.name}" for folder in train}
    parts = [f"leaves out {few(sorted(there - named))}"] if there - named else []
    if named - there:
        parts.append(f"names {few(sorted(named - there))}, of which there are no rows")
    return " and ".join(parts), config.device


@errors_in_one_line()
def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m data_prep.starter", description="Write a first YAML for prepared rows."
    )
    parser.add_argument("--rows", type=Path, required=True, help="shards folder, made by data_prep.prepare")
    parser.add_argument("--tokenizer", type=Path, required=True, help="tokenizer folder that they were made with")
    parser.add_argument("--output", type=Path, required=True, help="YAML to write")
    parser.add_argument("--device", choices=["cpu", "gpu"], help="what will train (default: what this machine has)")
    arguments = parser.parse_args()
    if arguments.output.exists():
        found, device = look_at(arguments.output, arguments.rows)
        remedy = f", but it {found}: move it away to have a new one" if found else ""
        print(f"{arguments.output} is there already, and stays as it is{remedy}")
        print(f"Train: {train_command(arguments.output, device)}")
    else:
        manifests = [read_manifest(folder) for folder in find_streams(arguments.rows)]
        on_gpu = GPU.exists() if arguments.device is None else arguments.device == "gpu"
        content = starter(manifests, arguments.rows, arguments.tokenizer, arguments.output, on_gpu)
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        write_file(arguments.output, content.encode())
        print("\n".join(line.removeprefix("# ") for line in content.splitlines() if line.startswith("# ")))


if __name__ == "__main__":
    main()
