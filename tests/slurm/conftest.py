"""The cluster of the tests, and a run that nothing happened to."""
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import Corpus
from tests.slurm.cluster import Cluster, why_not
from tests.slurm.site import LONG
from tests.training_runs import prepare, train_ranks
from tests.waiting import wait_until


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    if reason := why_not():
        pytest.skip(reason)
    cluster = Cluster(tmp_path_factory.mktemp("slurm"))
    try:
        yield cluster
    finally:
        cluster.stop()
    wait_until(lambda: not cluster.environments(), pause=0.5)


@pytest.fixture(scope="session")
def uninterrupted(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run folder of phase 1, LONG, on two ranks that nothing happened to."""
    folder = tmp_path_factory.mktemp("two-ranks") / "it"
    yaml = prepare(folder, corpus)
    for outcome in train_ranks([yaml, *LONG], folder / "steps.jsonl"):
        assert outcome.exit_code == 0, outcome.output
    return folder / "runs" / "phase1"
