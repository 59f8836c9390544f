"""Programs and tests on an emulated GPU, and a phase on one against the CPU; docs/gpu-checks.md has what that lacks."""
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from tests import emulated_gpu
from tests.conftest import Corpus
from tests.training_runs import train, write_yamls

pytestmark = [
    pytest.mark.skipif(torch.cuda.is_available(), reason="there is a real one, for `pytest -m gpu`"),
    pytest.mark.skipif(
        shutil.which("gcc") is None or torch.version.cuda is None, reason="needs gcc and a torch that is built for CUDA"
    ),
]
# Rows are filled up with padding on a GPU, which draws dropout, too.
ARGUMENTS = ["model.attn_out_dropout=0.0", "device_train_microbatch_size=3"]


# What waits for the GPU: the first three in each step, but not within a microbatch; the others at intervals.
WAITS = {
    "trainer.py", "finite_steps.py", "stableadamw.py", "ranks.py", "language_scores.py", "checkpoint_files.py",
}  # fmt: skip


def losses(steps: list[dict[str, Any]]) -> list[float]:
    return [float.fromhex(step["loss"]) for step in steps]


def test_a_phase_on_a_gpu_is_that_of_a_cpu_and_goes_on_bit_for_bit(corpus: Corpus, tmp_path: Path) -> None:
    """Two microbatches a step, the second not full. A kill, and the same command: as if there had been none."""
    write_yamls(tmp_path, corpus)
    (tmp_path / "gpu").mkdir()
    (tmp_path / "killed").mkdir()
    arguments = [tmp_path / "phase1.yaml", "precision=amp_bf16", *ARGUMENTS]
    on_cpu = train([*arguments, f"run_root={tmp_path}/cpu"], tmp_path / "cpu.jsonl")
    assert on_cpu.exit_code == 0, on_cpu.output

    on_gpu = [*arguments, "device=gpu"]
    whole = emulated_gpu.run(tmp_path / "gpu", [*on_gpu, f"run_root={tmp_path}/gpu"])
    assert whole.exit_code == 0, whole.output
    assert "destroy_process_group" not in whole.output
    assert "on cuda runs the kernel torch_" in whole.output
    assert [step["ids"] for step in whole.steps] == [step["ids"] for step in on_cpu.steps]
    assert losses(whole.steps) == pytest.approx(losses(on_cpu.steps), rel=1e-3)
    assert set(whole.waits) == WAITS

    assert emulated_gpu.run(tmp_path / "killed", on_gpu, kill_at=9).exit_code == -9
    killed = emulated_gpu.run(tmp_path / "killed", on_gpu)
    assert killed.exit_code == 0, killed.output
    first = killed.steps[9]["step"]
    assert 1 < first < 9  # from a checkpoint
    assert killed.steps == whole.steps[:9] + whole.steps[first - 1 :]


def test_the_tests_for_a_gpu_run_on_an_emulated_one(tmp_path: Path) -> None:
    """So a real one, lent for half an hour, meets no mistake in a test or in the benchmark of a step.

    Two tests are left out: the head of 100,000 entries is much for a CPU, and the phase is trained above.
    """
    files = [f"tests/test_{name}.py" for name in ("attention", "model", "benchmark_step", "evaluation")]
    done = emulated_gpu.run_program(tmp_path, "pytest", ["-m", "gpu", "-p", "no:cacheprovider", "-rp", *files])
    assert done.returncode == 0, done.stdout
    passed = "\n".join(line for line in done.stdout.splitlines() if line.startswith("PASSED"))
    of_attention = [f"{name}[torch_flash" for name in ("dtype_allows", "without_a_query", "waits_for_the_device")]
    for name in (*of_attention, "close_to_fp32_on_a_gpu", "a_step_on_a_gpu", "a_gpu_measures_what_a_cpu_does"):
        assert name in passed, done.stdout


def test_the_benchmark_of_the_head_runs_on_a_gpu(tmp_path: Path) -> None:
    words = ["--device", "gpu", "--precision", "amp_bf16", "--rows", 900, "--vocab", 500, "--hidden", 16]
    done = emulated_gpu.run_program(tmp_path, "mmbert.benchmark", ["head", *words, "--min-memory-ratio", 3])
    assert done.returncode == 0, done.stderr
    assert "torch.cuda.max_memory_allocated" in done.stdout


def test_a_start_that_is_refused_says_so_and_no_more(corpus: Corpus, tmp_path: Path) -> None:
    """NCCL would warn behind the error that nobody left it."""
    write_yamls(tmp_path, corpus)
    lost = corpus.shards[64] / "lost"
    refused = emulated_gpu.run_program(tmp_path, "main", [tmp_path / "phase1.yaml", "device=gpu", f"data.root={lost}"])
    assert refused.returncode == 1
    assert refused.stderr.splitlines()[-1].startswith("error: "), refused.stderr


def test_plain_attention_serves_a_gpu_too(corpus: Corpus, tmp_path: Path) -> None:
    """Older ones have no FlashAttention, and fp32 has none anywhere. Documents are longer than the window's tiles."""
    write_yamls(tmp_path, corpus)
    arguments = [tmp_path / "phase1.yaml", "precision=fp32", "model.local_attention=8", "duration=1500", *ARGUMENTS]
    arguments += ["max_seq_len=128", f"data.root={corpus.shards[128]}"]
    on_cpu = train([*arguments, "model.attention=cpu"], tmp_path / "cpu.jsonl")
    assert on_cpu.exit_code == 0, on_cpu.output
    on_gpu = [*arguments, "model.attention=cpu", "device=gpu", f"run_root={tmp_path}/gpu"]
    (tmp_path / "gpu").mkdir()
    outcome = emulated_gpu.run(tmp_path / "gpu", on_gpu)
    assert outcome.exit_code == 0, outcome.output
    assert losses(outcome.steps) == pytest.approx(losses(on_cpu.steps), rel=1e-5)
