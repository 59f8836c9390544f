"""What would stop a job is found and named before it trains."""
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from mmbert.config import load_config
from mmbert.launch import free_port
from mmbert.preflight import checks
from mmbert.preflight.__main__ import main, preflight
from mmbert.preflight.meeting import Place
from mmbert.preflight.report import CLOCK_SECONDS, Report, judge
from tests.conftest import Corpus
from tests.training_runs import prepare

pytestmark = pytest.mark.usefixtures("no_process_group")


@pytest.fixture
def yaml(corpus: Corpus, tmp_path: Path) -> Path:
    return prepare(tmp_path / "it", corpus)


def test_nodes_with_the_same_versions_and_clocks_may_train() -> None:
    assert judge([Report(f"n{i}", [], {"torch": "2.7.0"}, 1e9 + CLOCK_SECONDS * i / 3) for i in range(4)]) == []


def test_a_version_that_differs_is_named_with_its_nodes() -> None:
    found = judge([Report("n0", [], {"torch": "2.7.0"}), Report("n1", [], {"torch": "2.6.0"}), Report("n2", [], {})])
    assert found == [
        "torch differs: 2.6.0 on n1, 2.7.0 on n0, missing on n2; give all nodes the same environment and the same "
        "checkout"
    ]


def test_clocks_that_differ_too_much_are_named() -> None:
    line, = judge([Report("n0", clock=1e9), Report("n1", clock=1e9 + CLOCK_SECONDS + 50), Report("n2", clock=1e9 + 1)])
    assert line.startswith("the clock of n1 is 60 s ahead of that of n0")


def test_what_all_ranks_of_a_node_say_is_told_once() -> None:
    assert judge([Report("n0", ["no GPU"]), Report("n0", ["no GPU"]), Report("n1", ["no GPU"])]) == [
        "n0: no GPU", "n1: no GPU",
    ]  # fmt: skip


def test_a_whole_phase_passes_alone(yaml: Path, capfd: pytest.CaptureFixture[str]) -> None:
    main([str(yaml)])
    assert "preflight: 1 ranks can train" in capfd.readouterr().err


def refused(arguments: list[str], capfd: pytest.CaptureFixture[str]) -> str:
    """What is said when preflight ends with status 1."""
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 1
    return capfd.readouterr().err


def no_compiler() -> None:
    raise FileNotFoundError("no C compiler")


def test_every_fault_is_told_at_once_with_the_nodes_name(
    yaml: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SLURMD_NODENAME", "n7")
    monkeypatch.setenv("TRITON_CACHE_DIR", "/proc/cache")
    monkeypatch.setattr(checks, "SHARED_MEMORY_BYTES", 1 << 60)
    monkeypatch.setattr(checks, "check_c_compiler", no_compiler)
    monkeypatch.setattr(checks, "why_no_gpu", lambda: "old")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    told = refused([str(yaml), "device=gpu", "max_seq_len=128", "--gpus", "3"], capfd).splitlines()
    assert len(told) == 5
    assert "n7: " in told[0]
    assert "row_length is 64, the run wants 128" in told[0]
    assert told[1].startswith("preflight: n7: 0 GPUs are seen, 3 are needed (CUDA_VISIBLE_DEVICES is None; torch: old)")
    assert told[2] == "preflight: n7: no C compiler"
    assert told[3].startswith("preflight: n7: TRITON_CACHE_DIR = /proc/cache cannot be written")
    assert told[4].startswith("preflight: n7: precision = fp32: attention: ")


def test_a_language_without_held_out_rows_is_named(
    corpus: Corpus, yaml: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    validation = f"validation={{interval: 1800, root: {corpus.shards[64]}, source: invented, languages: [laa, lax]}}"
    told = refused([str(yaml), validation], capfd)
    assert "heldout/invented/lax does not exist" in told


def test_a_small_shared_memory_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "SHARED_MEMORY_BYTES", 1 << 60)
    with pytest.raises(OSError, match=r"/dev/shm has .* MB free, NCCL wants .*--shm-size"):
        checks.check_shared_memory()


def test_a_vocabulary_that_is_not_the_tokenizers_is_told_once(yaml: Path, capfd: pytest.CaptureFixture[str]) -> None:
    validation = f"validation={{interval: 1K, root: {yaml.parent}, source: x, languages: [laa]}}"
    assert refused([str(yaml), validation, "model.vocab_size=999"], capfd).count("model.vocab_size = 999 must be") == 1


def test_a_gpu_that_torch_does_not_see_is_named_before_the_cpu_is_taken(
    yaml: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "nvidia0").touch()
    monkeypatch.setattr("mmbert.device.DEVICE_FILES", tmp_path)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert "device = auto: this machine has NVIDIA GPUs (nvidia0)" in refused([str(yaml), "device=auto"], capfd)


@pytest.mark.parametrize("rule", ["keep=1000000000000", "keep_every=1"])
def test_a_disk_without_room_for_the_checkpoints_is_named(
    yaml: Path, capfd: pytest.CaptureFixture[str], rule: str
) -> None:
    many = ["duration=1T", "checkpoint.interval=1M", f"checkpoint.{rule}"]
    assert "are needed for checkpoints" in refused([str(yaml), *many], capfd)


def test_a_port_that_is_taken_is_named(yaml: Path) -> None:
    with socket.socket() as other:
        other.bind(("", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(OSError, match=f"port {port} is not free"):
            checks.check_port(Place(0, 1, 0, 1, "127.0.0.1", port))
        with pytest.raises(OSError, match=f"port {port} is not free"):
            preflight(load_config(yaml), Place(0, 1, 0, 1, "127.0.0.1", port), 0, 1.0)
    assert "watchdog" not in {thread.name for thread in threading.enumerate()}  # it would end this process
    checks.check_port(Place(0, 1, 0, 1, "127.0.0.1", port))


def start(yaml: Path, node: int, port: int, *arguments: str) -> "subprocess.Popen[str]":
    """Preflight on one of two nodes."""
    command = [
        sys.executable, "-m", "mmbert.launch", "--nnodes", "2", "--node-rank", str(node), "--master-addr", "127.0.0.1",
        "--master-port", str(port), "-m", "mmbert.preflight", "--wait", "20", str(yaml), *arguments,
    ]  # fmt: skip
    environment = {**os.environ, "SLURMD_NODENAME": f"n{node}"}
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)


def test_two_nodes_meet_and_a_fault_of_one_ends_both(yaml: Path) -> None:
    port = free_port()
    nodes = [start(yaml, 0, port), start(yaml, 1, port, "device=gpu")]
    told = [node.communicate(timeout=120)[1] for node in nodes]
    assert [node.returncode for node in nodes] == [1, 1], told
    assert "preflight: n1: 0 GPUs are seen, 1 are needed" in told[0]


def test_a_node_that_never_comes_is_named(yaml: Path) -> None:
    node = start(yaml, 0, free_port(), "--wait", "3")
    told = node.communicate(timeout=120)[1]
    assert node.returncode == 1
    assert "rank 1 said nothing within 3 s" in told
