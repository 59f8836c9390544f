"""Runs that many tests begin with, made once a session, and the end of those that a test leaves."""
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import Corpus
from tests.faults.oracle import processes_of, processes_with
from tests.object_stores import ObjectStore, object_store
from tests.training_runs import Run, prepare, train, train_ranks


@pytest.fixture(scope="session")
def half_done(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run folder of a phase 1 that was killed after step 14; to be copied, not used."""
    folder = tmp_path_factory.mktemp("half-done")
    yaml = prepare(folder / "it", corpus)
    assert train([yaml], folder / "steps.jsonl", kill_at=14).exit_code == -9
    return folder / "it" / "runs" / "phase1"


@pytest.fixture(scope="session")
def two_ranks(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run folder of a phase 1 that two ranks trained to its end."""
    folder = tmp_path_factory.mktemp("two-ranks")
    yaml = prepare(folder / "it", corpus)
    for outcome in train_ranks([yaml], folder / "steps.jsonl"):
        assert outcome.exit_code == 0, outcome.output
    return folder / "it" / "runs" / "phase1"


@pytest.fixture(scope="session")
def store() -> Iterator[ObjectStore]:
    """A local server that speaks S3."""
    with object_store() as found:
        yield found


@pytest.fixture
def started() -> Iterator[list[Run]]:
    """Runs that a test starts and may leave."""
    runs: list[Run] = []
    yield runs
    for run in runs:
        for process in processes_of(run):
            os.kill(process, signal.SIGKILL)


@pytest.fixture
def log(tmp_path: Path) -> Iterator[Path]:
    """Where launcher and ranks write; whoever still does at the end is killed."""
    yield tmp_path / "ranks.log"
    for process in processes_with(tmp_path / "ranks.log"):
        os.kill(process, signal.SIGKILL)
