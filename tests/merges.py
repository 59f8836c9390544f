"""Runs to be merged, and what tests of merging share."""
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from torch import Tensor

from mmbert.checkpoint import FILES, plain_size
from mmbert.file_contents import sha256_of
from mmbert.merge import main
from tests.tiny_checkpoints import content_of
from tests.tiny_runs import save_run

TIES = "ties: {base: phase2, runs: {eng: 1.0, cont: 2.0, all: 1.5}, density: 0.3, scale: 0.8}"
MEAN = "exponential: {run: all, ratio: 0.5}"
DECAYS = ("eng", "cont", "all")


def write(folder: Path, method: str) -> Path:
    """YAML of a merge of the runs in `folder`/runs."""
    path = folder / "merge.yaml"
    path.write_text(f"name: merged\nrun_root: {folder / 'runs'}\n{method}\n")
    return path


def save_decays(root: Path, tokenizer: Path) -> None:
    """Run root of a base and three runs from it; `all` kept three checkpoints."""
    save_run(root, "phase2", 0, tokenizer, config={"parent": "phase1"})
    for seed, name in enumerate(DECAYS, start=1):
        steps = (2, 4, 8) if name == "all" else (8,)
        save_run(root, name, seed, tokenizer, steps, config={"parent": "phase2"})


def weights(checkpoint: Path) -> dict[str, Tensor]:
    return load_file(checkpoint / "model.safetensors")


def refused(path: Path, message: str, *overrides: str) -> None:
    """The merge ends with this one line, and leaves nothing."""
    before = content_of(path.parent / "runs")
    with pytest.raises(SystemExit, match=message) as refusal:
        main([str(path), *overrides])
    said = str(refusal.value)
    assert said.startswith("error: ")
    assert "\n" not in said
    assert len(said) < 600
    assert content_of(path.parent / "runs") == before


def change_state(checkpoint: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change state.json, and the manifest with it, as if it had been written so."""
    state = json.loads((checkpoint / "state.json").read_text())
    change(state)
    (checkpoint / "state.json").write_text(json.dumps(state))
    sign(checkpoint)


def sign(checkpoint: Path) -> None:
    files = {name: checkpoint / name for name in FILES}
    manifest = {name: {"sha256": sha256_of(file), "bytes": plain_size(file)} for name, file in files.items()}
    (checkpoint / "manifest.json").write_text(json.dumps(manifest))


def damage(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
