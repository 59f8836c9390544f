"""The benchmark's statistics, gates, demands, table and page; the head's benchmark; peak memory."""

import argparse
import json
import re
import subprocess
from collections.abc import Callable
from itertools import count
from math import nan
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mmbert.benchmark import __main__ as program
from mmbert.benchmark import environment, head, startup, timing
from mmbert.benchmark.page import section
from mmbert.benchmark.result import (
    OURS,
    Gate,
    as_markdown,
    check_gates,
    check_peers,
    demands,
    document,
    fact_line,
    fact_tables,
    parse_min_ratio,
    table,
    unmet,
)
from mmbert.benchmark.timing import Sample, Spread, measure, ratio
from mmbert.device_peaks import peak_flops

TINY_HEAD = ["head", "--vocab", "50", "--rows", "20", "--hidden", "8", "--repetitions", "2"]


def asked(*min_ratio: tuple[str, float]) -> argparse.Namespace:
    return argparse.Namespace(min_ratio=list(min_ratio), min_cpu_ratio=[])


def test_a_ratio_is_of_medians_and_its_range_of_rounds() -> None:
    assert ratio([2.0, 4.0, 8.0], [1.0, 4.0, 2.0]) == Spread(min=1.0, median=2.0, max=4.0)
    with pytest.raises(ValueError):
        ratio([1.0], [1.0, 2.0])


def test_candidates_take_turns_and_the_warm_up_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = count()
    monkeypatch.setattr(timing.time, "perf_counter", lambda: float(next(ticks)))
    ran: list[str] = []
    candidates: dict[str, Callable[[], object]] = {name: lambda name=name: ran.append(name) for name in "abc"}
    samples = measure(candidates, repetitions=2, warmup=1)
    assert ran == list("abc" * 3)
    assert list(samples) == list("abc")
    assert all([sample.wall for sample in runs] == [1.0, 1.0] for runs in samples.values())
    assert all(sample.cpu >= 0 for runs in samples.values() for sample in runs)


def test_processor_time_is_that_of_the_clock_that_is_given() -> None:
    ticks = count(step=3)
    samples = measure({"a": list, "b": list}, repetitions=2, cpu=lambda: float(next(ticks)))
    assert [sample.cpu for runs in samples.values() for sample in runs] == [3.0] * 4


def result(**candidate_facts: dict[str, Any]) -> dict[str, Any]:
    samples = {OURS: [Sample(1.0, 2.0), Sample(2.0, 2.0), Sample(4.0, 8.0)], "peer": [Sample(6.0, 3.0)] * 3}
    made = document("step", samples, 12, [Gate("loss", 1e-7, 1e-5)], {"seq": 1024, "mask": 0.3}, candidate_facts)
    surroundings = {
        "command": "python -m mmbert.benchmark step", "date": "2026-11-23T09:00:00+00:00", "cpu": "A processor",
        "cpu_features": ["avx2"], "cpus": 2, "gpu": None, "threads": 2,
        "load_average_1_minute": 0.5, "versions": {"torch": "2.7.0"}, "settings": {"MALLOC_MMAP_MAX_": "0"},
    }  # fmt: skip
    return {**made, "environment": surroundings}


def test_the_document_holds_every_run_and_ratios_of_throughput() -> None:
    made = json.loads(json.dumps(result()))
    ours = made["candidates"][OURS]
    assert ours["wall_seconds"] == [1.0, 2.0, 4.0]
    assert ours["wall"] == {"min": 1.0, "median": 2.0, "max": 4.0}
    assert (ours["tokens_per_second"], ours["tokens_per_cpu_second"]) == (6.0, 6.0)
    assert made["ratios"] == {"peer": {"min": 1.5, "median": 3.0, "max": 6.0}}
    assert made["cpu_ratios"]["peer"]["median"] == 1.5


def test_candidates_may_get_through_different_numbers_of_tokens() -> None:
    made = document("data", {OURS: [Sample(1.0, 1.0)], "peer": [Sample(1.0, 1.0)]}, {OURS: 30, "peer": 10}, [], {})
    assert made["ratios"]["peer"]["median"] == pytest.approx(3.0)


@pytest.mark.parametrize("value", [2e-5, nan])
def test_a_gate_stops_before_the_timing(value: float) -> None:
    check_gates([Gate("loss", 1e-5, 1e-5)])
    with pytest.raises(ValueError, match="loss"):
        check_gates([Gate("other", 0.0, 1e-5), Gate("loss", value, 1e-5)])


@pytest.mark.parametrize("text", ["hf", "hf=", "=1", "hf=zero", "hf=0", "hf=-1", "hf=nan"])
def test_a_min_ratio_without_peer_or_number_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="--min-ratio"):
        parse_min_ratio(text)


def test_a_min_ratio_names_a_peer_that_runs() -> None:
    assert parse_min_ratio("hf-tuned=1.5") == ("hf-tuned", 1.5)
    check_peers(asked(("hf", 1.5)), ["hf"])
    with pytest.raises(ValueError, match="hf-tuned, hf"):
        check_peers(asked(("hg", 1.5)), ["hf-tuned", "hf"])


def test_a_demand_that_is_not_met_is_told_with_both_numbers() -> None:
    made = result()
    made["demands"] = [vars(demand) for demand in demands(made, asked(("peer", 2.9), ("peer", 3.5)))]
    assert unmet(made) == ["throughput of ours / peer is 3.000, below 3.5"]
    assert f"\n**Asked for and missed:**\n\n- {unmet(made)[0]}\n\n| " in section("step", made)
    assert "missed" not in section("step", result())


def test_the_table_has_the_columns_that_there_are_figures_for() -> None:
    rows = table(result(peer={"fill": 0.5}))
    figures = ["wall s", "CPU s", "tokens/s", "tokens/CPU s", "fill", "ours is faster by", "by CPU time"]
    assert rows[0] == ["candidate", *figures]
    assert rows[1][:2] == [OURS, "2.000 (1.000 to 4.000)"]
    assert rows[1][-3:] == ["", "", ""]
    assert rows[2][-3:] == ["0.500", "3.00x (1.50x to 6.00x)", "1.50x (0.38x to 1.50x)"]


def test_the_page_is_written_from_the_files_alone(tmp_path: Path) -> None:
    made = result(peer={"note": "batches of 4 documents", "peak_bytes": 3_000}, ours={"peak_bytes": 2_000})
    (tmp_path / "step-demo.json").write_text(json.dumps(made))
    program.main(["page", str(tmp_path / "step-demo.json"), "--output", str(tmp_path / "benchmarks.md")])
    page = (tmp_path / "benchmarks.md").read_text()
    assert "## step-demo" in page
    assert "2026-11-23, 2 CPUs of A processor (avx2), 2 threads" in page
    assert "- loss: 1.0e-07, at most 1e-05" in page
    assert as_markdown(table(made)) in page
    assert "- peer: batches of 4 documents" in page
    ratios = "3.00x (1.50x to 6.00x) | 1.50x (0.38x to 1.50x)"
    assert f"| [step-demo](#step-demo) | A processor | peer | {ratios} | 1.5x less |" in page


def test_a_fact_of_many_numbers_is_a_table() -> None:
    made = result()
    made["facts"]["ns_per_token"] = {"read": {"1 stream": 1.5, "9 streams": 2}, "mask": {"1 stream": 3, "9 streams": 4}}
    assert "ns" not in fact_line(made)
    assert fact_tables(made) == [[["ns per token", "1 stream", "9 streams"], ["read", "1.5", "2"], ["mask", "3", "4"]]]
    assert as_markdown(fact_tables(made)[0]) in section("data", made)


def test_a_result_without_gates_says_nothing_of_them() -> None:
    assert "\nGates passed:\n\n- loss: " in section("step", result())
    assert "Gates" not in section("startup", {**result(), "gates": []})


def test_the_page_refuses_a_file_that_is_no_result(tmp_path: Path) -> None:
    (tmp_path / "old.json").write_text("{}")
    with pytest.raises(SystemExit, match=r"old\.json has no 'environment'"):
        program.main(["page", str(tmp_path / "old.json"), "--output", str(tmp_path / "benchmarks.md")])


# ------------------------------------------------------------------------------------------------------------ the head


@pytest.fixture
def no_child(monkeypatch: pytest.MonkeyPatch) -> None:
    """Peak memory as if it had been measured: gradients and 1 MB for ours, 3 MB for torch's."""
    gradients = 4 * (20 * 8 + 50 * 8 + 50)
    peaks = {OURS: gradients + 1_000_000, head.PEER: gradients + 3_000_000}
    monkeypatch.setattr(head, "peak_in_child", lambda module, words: peaks[words[0]])


@pytest.mark.usefixtures("no_child")
def test_the_head_is_compared_weighed_and_timed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    program.main([*TINY_HEAD, "--json", str(tmp_path / "head.json"), "--min-memory-ratio", "2.9"])
    made = json.loads((tmp_path / "head.json").read_text())
    assert made["environment"]["command"].startswith("python -m mmbert.benchmark head --vocab 50")
    assert len(made["gates"]) == 4
    assert made["facts"]["memory_ratio"] == 3.0
    assert made["candidates"][head.PEER]["peak_bytes"] == 3_000_000
    assert len(made["candidates"][OURS]["wall_seconds"]) == 2
    assert "ours is faster by" in capsys.readouterr().out


@pytest.mark.usefixtures("no_child")
@pytest.mark.parametrize("demand", [["--min-ratio", "full-logits=1e9"], ["--min-memory-ratio", "3.1"]])
def test_an_unmet_demand_fails_after_the_file_is_written(tmp_path: Path, demand: list[str]) -> None:
    with pytest.raises(SystemExit, match="below"):
        program.main([*TINY_HEAD, *demand, "--json", str(tmp_path / "head.json")])
    assert json.loads((tmp_path / "head.json").read_text())["demands"]


@pytest.mark.usefixtures("no_child")
def test_a_wrong_gradient_is_not_timed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def wrong(hidden: Tensor, weight: Tensor, bias: Tensor, targets: Tensor) -> Tensor:
        return head.full_logits(hidden, weight, bias, targets) + 1e-3 * (bias - bias.detach()).sum()

    monkeypatch.setitem(head.LOSSES, OURS, wrong)
    monkeypatch.setattr(timing, "measure", lambda *_: pytest.fail("timed"))
    with pytest.raises(SystemExit, match="gate not passed, nothing was timed: gradient of bias"):
        program.main([*TINY_HEAD, "--json", str(tmp_path / "head.json")])
    assert not (tmp_path / "head.json").exists()


@pytest.mark.parametrize(
    "words, told",
    [(["--rows", "0"], "--rows 0"), (["--min-memory-ratio", "0"], "--min-memory-ratio"), (["--repetitions", "0"],
     "--repetitions 0"), (["--min-ratio", "hf=1"], "full-logits"), (["--threads", "0"], "--threads 0")],
)  # fmt: skip
def test_a_wrong_option_is_told_in_one_line(words: list[str], told: str) -> None:
    with pytest.raises(SystemExit, match=told):
        program.main([*TINY_HEAD, *words])


@pytest.mark.parametrize("subcommand", ["head", "step"])
def test_a_gpu_that_is_not_there_is_refused(subcommand: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="--device gpu: torch sees no GPU here; take --device cpu"):
        program.main([subcommand, "--device", "gpu"])


def test_unknown_options_and_subcommands_are_refused() -> None:
    for words in (["head", "--row", "3"], ["heads"], []):
        with pytest.raises(SystemExit) as exit_:
            program.main(words)
        assert exit_.value.code == 2


def test_peak_memory_is_that_of_the_logits() -> None:
    """64 x 131,072 logits are 34 MB; torch holds two such tensors at least, ours one: all rows fit in a chunk.

    With so wide a vocabulary ours holds a chunk's gradient of the bias besides, 0.5 MB: more than Linux's counters err.
    """
    options = argparse.Namespace(vocab=131_072, rows=64, hidden=8, precision="fp32")
    logits, gradients = 4 * 64 * 131_072, 4 * (64 * 8 + 131_072 * 8 + 131_072)
    unused: Any = None
    ours, theirs = (head.peak_cpu_bytes(name, unused, options) - gradients for name in (OURS, head.PEER))
    assert theirs >= 2 * logits
    assert logits <= ours <= 1.1 * logits


@pytest.mark.parametrize(
    "name, peak",
    [("NVIDIA H100 80GB HBM3", 989.4e12), ("NVIDIA H100 PCIe", 756.5e12), ("NVIDIA H100 NVL", 835.5e12),
     ("NVIDIA H200", 989.4e12), ("NVIDIA H200 NVL", 835.5e12), ("NVIDIA A100-SXM4-80GB", 312e12),
     ("NVIDIA A100 80GB PCIe", 312e12), ("NVIDIA H20", None), ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None),
     ("Tesla T4", None)],
)  # fmt: skip
def test_peaks_are_dense_bf16_and_of_whole_gpus(name: str, peak: float | None) -> None:
    assert peak_flops(name) == peak


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_the_head_saves_memory_on_a_gpu(tmp_path: Path) -> None:
    words = ["head", "--device", "gpu", "--vocab", "100000", "--rows", "8192", "--json", str(tmp_path / "head.json")]
    program.main([*words, "--min-memory-ratio", "1.2"])


def test_startup_times_new_processes_and_compares_none(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(startup, "STARTS", {OURS: "import json", "other": "import math"})
    path = tmp_path / "startup.json"
    program.main(["startup", "--repetitions", "1", "--warmup", "0", "--json", str(path)])
    assert "faster" not in capsys.readouterr().out
    assert json.loads(path.read_text())["candidates"]["other"]["wall"]["median"] > 0.0
    with pytest.raises(subprocess.CalledProcessError):
        startup.start("import no_such_module")


def test_a_figure_names_the_commit_it_was_measured_at(tmp_path: Path) -> None:
    assert environment.commit(tmp_path) == "unknown"
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "code.py").write_text("one = 1\n")
    for words in (["init", "-q"], ["add", "."], ["commit", "-qm", "first"]):
        subprocess.run([*git, *words], check=True)
    found = environment.commit(tmp_path)
    assert re.fullmatch("[0-9a-f]{10}", found)
    (tmp_path / "result.json").write_text("{}")  # what a benchmark writes is no code
    assert environment.commit(tmp_path) == found
    (tmp_path / "src" / "code.py").write_text("one = 2\n")
    assert environment.commit(tmp_path) == f"{found}-changed"


@pytest.mark.parametrize("failing, code", [("nothing", 0), ("startup", 2)])
def test_a_ratio_that_is_missed_costs_no_other_figure_and_not_the_page(tmp_path: Path, failing: str, code: int):
    (tmp_path / "Makefile").write_bytes((Path(__file__).parents[1] / "Makefile").read_bytes())
    (tmp_path / "bin").mkdir()
    for name in ("python", "pip"):
        (tmp_path / "bin" / name).write_text(f'#!/bin/sh\necho "$*" >> called\ncase "$3" in {failing}) exit 1; esac\n')
        (tmp_path / "bin" / name).chmod(0o755)
    elsewhere = ["docs/benchmarks/data-amd.json", "docs/benchmarks/gpu-head.json"]
    for name in ("requirements.txt", "requirements.lock", "pyproject.toml", ".venv/.installed", *elsewhere):
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).touch()
    result = subprocess.run(["make", "bench", "BIN=bin"], cwd=tmp_path, capture_output=True)
    called = (tmp_path / "called").read_text().splitlines()
    measured = {words[words.index("--json") + 1] for words in map(str.split, called) if "--json" in words}
    page = called[-1].split()[3:]
    assert result.returncode == code
    assert measured == set(page[:10])
    assert page[10:] == [*elsewhere, "--output", "docs/benchmarks.md"]
