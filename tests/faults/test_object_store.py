"""Row 23 for shards in an object store: the same bits as from a folder, whatever the store and the cache do."""
import shutil
import signal
from functools import partial
from pathlib import Path

import pytest

from mmbert.ledger_audit import audit
from mmbert.manifest import read_manifest
from mmbert.object_store import client
from tests.conftest import Corpus, Finished
from tests.faults.bad_files import sign
from tests.faults.oracle import check_same_end, processes_of
from tests.guards import replace
from tests.object_stores import ObjectStore
from tests.training_runs import Run, prepare, train

LAA = "train/invented/laa/shard.00000.mds"


def remote(url: str, folder: Path, limit: str = "1GB", workers: int = 2) -> list[str]:
    cache = [f"data.root={url}", f"data.cache={folder / 'cache'}", f"data.cache_limit={limit}"]
    return [*cache, f"data.num_workers={workers}"]


def without_waiting() -> None:
    """What fails is not tried again."""
    import mmbert.remote_rows

    replace(mmbert.remote_rows, "WAITS", ())


@pytest.mark.fault(23)
def test_a_run_from_a_store_has_the_bits_of_one_from_a_folder_also_after_a_kill_and_with_a_small_cache(
    corpus: Corpus, finished: Finished, store: ObjectStore, tmp_path: Path
) -> None:
    """Only the largest shard fits into the cache, so that every batch evicts what another one needs."""
    shards = corpus.shards[64]
    largest = max((shards / "train" / "invented").glob("la[ab]/*.mds"), key=lambda path: path.stat().st_size)
    url = store.upload(shards, "small-cache")
    arguments = [prepare(tmp_path / "it", corpus), *remote(url, tmp_path, f"{largest.stat().st_size}")]
    record = tmp_path / "x.jsonl"
    assert train(arguments, record, kill_at=9, environment=store.environment).exit_code == -signal.SIGKILL
    outcome = train(arguments, record, environment=store.environment)
    assert outcome.exit_code == 0, outcome.output
    folder, outcomes = finished
    assert {step["step"]: step["loss"] for step in outcome.steps} == {
        step["step"]: step["loss"] for step in outcomes["phase1"].steps
    }
    check_same_end(run := tmp_path / "it" / "runs" / "phase1", folder / "runs" / "phase1")
    client.cache_clear()  # this process may know another server
    with pytest.MonkeyPatch.context() as patch:
        for name, value in store.environment.items():
            patch.setenv(name, value)
        assert not audit(run).faults
    assert not audit(run, str(shards)).faults


@pytest.mark.fault(23)
@pytest.mark.parametrize("workers", [0, 2])
def test_an_object_that_is_missing_or_damaged_ends_the_run_with_its_url_and_the_same_command_goes_on(
    corpus: Corpus, store: ObjectStore, tmp_path: Path, workers: int
) -> None:
    url = store.upload(corpus.shards[64], prefix := f"broken-{workers}")
    arguments = [prepare(tmp_path / "it", corpus), "duration=1000", *remote(url, tmp_path, workers=workers)]
    content = store.get(f"{prefix}/{LAA}")
    store.delete(f"{prefix}/{LAA}")
    for words in (f"error: {url}/{LAA} does not exist", f"error: {url}/{LAA} arrived damaged, 1 times"):
        run = Run(arguments, tmp_path / "x.jsonl", changes=[without_waiting], environment=store.environment)
        outcome = run.wait()
        assert outcome.exit_code == 1
        assert outcome.output.splitlines()[-1].startswith(words)
        assert "Traceback" not in outcome.output
        assert not processes_of(run)
        store.put(f"{prefix}/{LAA}", content[:-1])
    store.put(f"{prefix}/{LAA}", content)
    assert train(arguments, tmp_path / "x.jsonl", environment=store.environment).exit_code == 0


@pytest.mark.fault(23)
def test_shards_that_change_in_the_store_under_a_run_are_refused_at_its_restart(
    corpus: Corpus, store: ObjectStore, tmp_path: Path, half_done: Path
) -> None:
    url = store.upload(corpus.shards[64], "changed")
    arguments = [prepare(tmp_path / "it", corpus, copied={"phase1": half_done}), *remote(url, tmp_path)]
    started = partial(train, arguments, tmp_path / "x.jsonl", environment=store.environment)
    assert started(kill_at=15).exit_code == -signal.SIGKILL
    changed = Path(shutil.copytree(corpus.shards[64] / "train" / "invented" / "laa", tmp_path / "laa"))
    sign(changed, documents=read_manifest(changed).documents + 1)
    store.put("changed/train/invented/laa/manifest.json", (changed / "manifest.json").read_bytes())
    outcome = started()
    assert outcome.exit_code == 1
    assert "was trained with another recipe: shards.invented/laa was" in outcome.output.splitlines()[-1]
