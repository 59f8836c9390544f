"""A machine without what Triton compiles with is told so before a run begins."""
import shutil
import sysconfig
from pathlib import Path

import pytest
import torch

from mmbert.config import load_config
from mmbert.device import check_c_compiler
from mmbert.trainer import Phase
from tests.conftest import Corpus
from tests.training_runs import write_yamls


@pytest.fixture(autouse=True)
def nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Neither compiler nor headers."""
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setattr(sysconfig, "get_path", lambda name, scheme: str(tmp_path))


@pytest.mark.parametrize("compiler", ["gcc", "clang", "CC"])
def test_one_compiler_and_the_headers_are_enough(
    compiler: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with pytest.raises(FileNotFoundError, match=r"^no C compiler is found.*install gcc"):
        check_c_compiler()
    if compiler == "CC":
        monkeypatch.setenv("CC", "cc-12")
    else:
        monkeypatch.setattr(shutil, "which", lambda name: "/usr/bin/it" if name == compiler else None)
    with pytest.raises(FileNotFoundError, match=r"Python\.h is missing.*python3-dev"):
        check_c_compiler()
    (tmp_path / "Python.h").touch()
    check_c_compiler()


def test_a_run_on_a_gpu_asks_before_it_begins(
    corpus: Corpus, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    write_yamls(tmp_path, corpus)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(FileNotFoundError, match="no C compiler is found"):
        Phase.open(load_config(tmp_path / "phase1.yaml", ["device=gpu"]))
