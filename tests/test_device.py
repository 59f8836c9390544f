"""A run computes where it was told to, and no GPU lies idle unsaid."""
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mmbert import device
from mmbert.config import RunConfig, load_config
from mmbert.device import check_device, device_of
from tests.conftest import Corpus
from tests.training_runs import prepare


@pytest.fixture
def config(corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunConfig:
    """With `device: auto`, on a machine whose GPU torch does not see."""
    (tmp_path / "nvidia0").touch()
    (tmp_path / "nvidiactl").touch()
    monkeypatch.setattr(device, "DEVICE_FILES", tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return load_config(prepare(tmp_path / "it", corpus), ["device=auto"])


def fails_with(reason: str) -> Callable[[], None]:
    """A torch.cuda.init of that fate."""

    def init() -> None:
        raise RuntimeError(reason)

    return init


def test_auto_refuses_the_cpu_of_a_machine_with_a_gpu_that_torch_does_not_see(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "init", fails_with("The NVIDIA driver on your system is too old.\nPlease update"))
    with pytest.raises(ValueError) as refusal:
        check_device(config)
    assert str(refusal.value) == (
        "device = auto: this machine has NVIDIA GPUs (nvidia0), but torch finds no GPU here: The NVIDIA driver on "
        "your system is too old (CUDA_VISIBLE_DEVICES is None); mend that, or write device: cpu"
    )


def test_a_torch_without_cuda_is_named_as_the_cause(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """As PyPI's torch 2.7.0 is on a Grace Hopper machine."""
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(torch.version, "hip", None)
    with pytest.raises(ValueError, match=r"finds no GPU here: torch 2\..* was built without CUDA, .*A newer torch"):
        check_device(config)


def test_a_gpu_that_the_environment_does_not_name_is_told_with_the_variable(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "init", fails_with("No CUDA GPUs are available"))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    told = r"no GPU here: No CUDA GPUs are available \(CUDA_VISIBLE_DEVICES is '7'\); mend that, or write device: cpu$"
    with pytest.raises(ValueError, match=told):
        check_device(config)


@pytest.mark.parametrize("value", ["", "-1", "NoDevFiles"])
def test_who_hides_the_gpus_gets_the_cpu(config: RunConfig, monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", value)
    check_device(config)
    assert device_of(config) == "cpu"


def test_a_machine_without_gpus_computes_on_the_cpu(config: RunConfig, tmp_path: Path) -> None:
    (tmp_path / "nvidia0").unlink()
    check_device(config)
    assert device_of(config) == "cpu"


def test_the_gpu_is_taken_where_torch_sees_one(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    check_device(config)
    assert device_of(config) == "gpu"
    assert device_of(replace(config, device="cpu")) == "cpu"
