"""A small corpus in six invented languages, its tokenizer and its shards, made once a session."""
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from data_prep.inputs import find_inputs
from data_prep.prepare import prepare
from data_prep.train_tokenizer import train
from data_prep.work import Settings
from mmbert.tokenizer import save_tokenizer
from tests.faults.reliability import FIGURES, Reliability
from tests.merges import save_decays
from tests.training_runs import Outcome, write_yamls
from tests.training_runs import train as train_phase

torch.set_num_threads(1)  # tests run beside their own training processes

SEED = 62  # of the rows: the checkpoints of phase 1 then fall on the steps 4, 9, 13, 17 and 20, which tests name
PHASES = ("phase1", "phase2", "phase3")
Finished = tuple[Path, dict[str, Outcome]]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--long", action="store_true", help="run the tests marked `long`, too")
    parser.addoption("--slurm", action="store_true", help="run the tests marked `slurm`, too")
    parser.addoption("--kills", type=int, default=6, help="runs to kill at random points")


def pytest_configure(config: pytest.Config) -> None:
    shared = config.getoption("shared", default=None)
    config.pluginmanager.register(Reliability(shared, config.getoption("process", default=0)))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for mark, command in (("long", "make faults` or `make slurm-test"), ("slurm", "make slurm-test")):
        for item in items:
            if item.get_closest_marker(mark) and not config.getoption(mark):
                item.add_marker(pytest.mark.skip(reason=f"{mark}: `{command}` runs it"))


@pytest.fixture
def figures(request: pytest.FixtureRequest) -> dict[str, float]:
    """What a test counts, for docs/reliability.md: name -> number."""
    return request.node.stash.setdefault(FIGURES, {})


@pytest.fixture
def no_process_group() -> None:
    """The process group that training in a test before left here is gone."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


@dataclass(frozen=True)
class Corpus:
    """Folders of the session's corpus; rows of 64 and of 128 tokens."""

    tokenizer: Path
    shards: dict[int, Path]


def write_text(folder: Path) -> list[str]:
    """Six languages of 4 to 60 documents, each with words of its own; returns all documents."""
    rng = np.random.default_rng(0)
    texts: list[str] = []
    for number, (language, documents) in enumerate(zip("abcdef", (60, 40, 25, 12, 6, 4), strict=True)):
        words = ["".join(rng.choice(list("aeioubdgklmnprst"), size=rng.integers(2, 7))) for _ in range(40 + 5 * number)]
        lines = [" ".join(rng.choice(words, size=rng.integers(5, 90))) for _ in range(documents)]
        (folder / f"la{language}.txt").write_text("\n\n".join(lines) + "\n")
        texts += lines
    return texts


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    root = tmp_path_factory.mktemp("corpus")
    (root / "text").mkdir()
    texts = write_text(root / "text")
    save_tokenizer(train(texts, vocab_size=512), root / "tokenizer", origin=root / "text")
    shards = {}
    for row_length in (64, 128):
        shards[row_length] = root / f"shards-{row_length}"
        settings = Settings(str(shards[row_length]), str(root / "tokenizer"), row_length, seed=SEED)
        prepare(settings, find_inputs(str(root / "text"), "invented"), workers=1)
    return Corpus(root / "tokenizer", shards)


@pytest.fixture(scope="session")
def finished(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """The three phases, uninterrupted, dropout on: the folder and each phase's steps."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    write_yamls(folder, corpus)
    outcomes = {}
    for phase in PHASES:
        outcomes[phase] = train_phase([folder / f"{phase}.yaml"], folder / f"{phase}.jsonl")
        assert outcomes[phase].exit_code == 0, outcomes[phase].output
    return folder, outcomes


@pytest.fixture(scope="session")
def decays(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run root of what tests of merging merge."""
    root = tmp_path_factory.mktemp("decays") / "runs"
    save_decays(root, corpus.tokenizer)
    return root


@pytest.fixture
def runs(decays: Path, tmp_path: Path) -> Path:
    """A copy of them that a test may break."""
    return shutil.copytree(decays, tmp_path / "runs")
