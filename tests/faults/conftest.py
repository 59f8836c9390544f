"""Runs that many tests begin with, made once a session."""
from pathlib import Path

import pytest

from tests.conftest import Corpus
from tests.training_runs import prepare, train, train_ranks


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
