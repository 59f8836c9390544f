"""The cache of an object store: each shard is fetched once, whoever dies, and its limit holds."""
import multiprocessing
import os
import signal
import time
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mmbert.remote_rows
from mmbert.data import with_later
from mmbert.manifest import read_manifest
from mmbert.remote_rows import ROOM, Prefetcher, RemoteRows, locked
from mmbert.shards import LanguageShards
from tests.conftest import Corpus
from tests.object_stores import ObjectStore
from tests.remote.streams import LAA, LAB, SHARD, all_rows, cached, local_rows, opened, sizes


def in_process(action: Any, *arguments: Any) -> multiprocessing.Process:
    process = multiprocessing.get_context("fork").Process(target=action, args=arguments, daemon=True)
    process.start()
    return process


def read_and_count(remote: RemoteRows, counts: Path) -> None:
    """Read all rows; a line for each shard that this process fetched."""
    download = mmbert.remote_rows.download

    def counted(url: str, *arguments: Any) -> None:
        with counts.open("a") as file:
            file.write(f"{url}\n")
        time.sleep(0.1)
        download(url, *arguments)

    shards = opened(remote)
    mmbert.remote_rows.download = counted  # type: ignore[assignment]
    all_rows(shards)


def test_processes_that_want_the_same_shards_fetch_each_once(url: str, tmp_path: Path) -> None:
    remote = RemoteRows(url, tmp_path / "cache")
    processes = [in_process(read_and_count, remote, tmp_path / "counts") for _ in range(4)]
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 4
    fetched = (tmp_path / "counts").read_text().split()
    assert sorted(fetched) == [f"{url}/{LAA}/{SHARD}", f"{url}/{LAB}/{SHARD}"]


def die_half_way(remote: RemoteRows) -> None:
    """Be killed when half of a shard has arrived."""

    def half(url: str, target: Path, *_: object) -> None:
        target.write_bytes(bytes(100))
        os.kill(os.getpid(), signal.SIGKILL)

    shards = opened(remote)
    mmbert.remote_rows.download = half  # type: ignore[assignment]
    shards.rows([(0, 0)])


@pytest.mark.parametrize("limited", [False, True])
def test_a_kill_in_the_middle_of_a_download_blocks_nobody_and_leaves_nothing(
    url: str, corpus: Corpus, tmp_path: Path, limited: bool
) -> None:
    """Where there is a limit, it holds just the largest shard, so that what the kill left must make room."""
    remote = RemoteRows(url, tmp_path / "cache")
    if limited:
        remote = replace(remote, limit=max(sizes(opened(remote).manifests)))
    process = in_process(die_half_way, remote)
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert cached(remote) == [f"{LAA}/.{SHARD}.partial/{SHARD}"]
    shards = opened(remote)
    if limited:
        shards.rows([(1, 0)])
        assert cached(remote) == [f"{LAB}/{SHARD}"]
    assert all_rows(shards) == local_rows(corpus)
    assert not list(remote.folder.rglob("*.partial*"))


def read_at_random(remote: RemoteRows, expected: list[bytes], seed: int) -> None:
    """Read rows of all streams, as long as the test's processes do, and leave with status 1 if one is another."""
    shards = opened(remote)
    numbers = [(stream, number) for stream, m in enumerate(shards.manifests) for number in range(m.rows)]
    for at in np.random.default_rng(seed).integers(len(numbers), size=60):
        shards.fetch([numbers[at]], later=[numbers[at - 1]])
        if shards.rows([numbers[at]]).input_ids.tobytes() != expected[at]:
            os._exit(1)


def test_the_cache_stays_below_its_limit_and_no_reader_notices(url: str, corpus: Corpus, tmp_path: Path) -> None:
    """Three processes read two streams, of whose shards only one fits."""
    remote = RemoteRows(url, tmp_path / "cache")
    shards = opened(remote)
    remote = replace(remote, limit=max(sizes(shards.manifests)))
    assert sum(sizes(shards.manifests)) > max(sizes(shards.manifests))
    processes = [in_process(read_at_random, remote, local_rows(corpus), seed) for seed in range(3)]
    first, second = (folder / SHARD for folder in shards.folders)
    both = False
    while any(process.is_alive() for process in processes):
        both |= first.exists() and second.exists() and first.exists()  # it may go while one looks for the other
        time.sleep(0.005)
    assert [process.exitcode for process in processes] == [0] * 3
    assert not both


@pytest.mark.parametrize("action", ["prepare", "open"])
def test_what_was_asked_for_last_stays(url: str, tmp_path: Path, action: str) -> None:
    remote = RemoteRows(url, tmp_path / "cache")
    folders = [remote.folder / f"train/invented/la{name}" for name in "abc"]
    remote.fetch_manifests(folders)
    manifests = [read_manifest(folder) for folder in folders]
    shards = LanguageShards(folders, manifests, replace(remote, limit=sum(sizes(manifests)) - 1))
    shards.rows([(0, 0)])
    shards.rows([(1, 0)])
    opened_again = getattr(remote, action)(folders[0], SHARD, manifests[0].shards[SHARD])
    if opened_again is not None:
        os.close(opened_again)
    shards.rows([(2, 0)])
    assert cached(remote) == [f"train/invented/la{name}/{SHARD}" for name in "ac"]


def test_an_evicted_shard_is_closed_at_the_next_batch(url: str, corpus: Corpus, tmp_path: Path) -> None:
    shards = opened(RemoteRows(url, tmp_path / "cache"))
    assert all_rows(shards) == local_rows(corpus)
    path = str(shards.folders[0] / SHARD)
    os.unlink(path)
    assert len(shards.rows([(0, 1)]).input_ids)  # it is open
    shards.fetch([(1, 0)])
    assert shards.shards[0] == (0, SHARD)
    assert 0 not in shards.files
    assert not os.path.exists(path)
    assert all_rows(shards) == local_rows(corpus)


def test_room_is_kept_for_a_shard_on_its_way_until_its_process_is_gone(tmp_path: Path) -> None:
    remote = RemoteRows("s3://b/x", tmp_path / "cache", 1)
    partial = remote.folder / f".{SHARD}.partial"
    assert remote.kept_room(partial) == 0
    with locked(partial / ROOM):
        os.truncate(partial / ROOM, 12345)
        assert remote.kept_room(partial) == 12345
    with locked(remote._lock_of(remote.folder / SHARD)):  # it is just done, and its owner removes the folder
        assert remote.kept_room(partial) == 0
        assert partial.exists()
    assert remote.kept_room(partial) == 0
    assert not partial.exists()


def test_a_limit_below_one_shard_is_refused_with_the_numbers(url: str, tmp_path: Path) -> None:
    remote = RemoteRows(url, tmp_path / "cache")
    manifests = opened(remote).manifests
    largest = max(sizes(manifests))
    replace(remote, limit=largest).check_limit(manifests)
    with pytest.raises(ValueError, match=rf"data.cache_limit = {largest - 1:,} bytes is smaller than .*{largest:,} by"):
        replace(remote, limit=largest - 1).check_limit(manifests)




def test_every_batch_is_announced_once_and_in_time() -> None:
    batches = [np.array([[number, 0, 0]]) for number in range(100)]
    told: list[int] = []
    for number, (batch, later) in enumerate(islice(with_later(iter(batches), 8), 60)):
        assert batch is batches[number]
        told += later[:, 0].tolist()
        assert told == list(range(1, 1 + len(told)))
        assert len(told) == min(2 * (number + 1), number + 8)
    assert [later.shape for _, later in islice(with_later(iter(batches), 0), 60)] == [(0, 3)] * 60


def test_shards_are_fetched_ahead(url: str, tmp_path: Path) -> None:
    shards = opened(RemoteRows(url, tmp_path / "cache"))
    shards.fetch([(0, 0)], later=[(1, 0), (1, 1)])
    path = shards.folders[1] / SHARD
    end = time.monotonic() + 30
    while not path.exists():
        assert time.monotonic() < end
        time.sleep(0.01)
    assert len(shards.rows([(1, 0)]).input_ids)


def test_a_shard_that_cannot_be_fetched_ahead_is_an_error_only_where_it_is_needed(
    url: str, store: ObjectStore, tmp_path: Path
) -> None:
    shards = opened(RemoteRows(url, tmp_path / "cache"))
    store.delete(f"{tmp_path.name}/{LAB}/{SHARD}")
    shards.fetch([(0, 0)], later=[(1, 0)])
    assert isinstance(shards.ahead, Prefetcher)
    assert len(shards.rows([(0, 1)]).input_ids)
    with pytest.raises(OSError, match=f"{url}/{LAB}/{SHARD} does not exist"):
        shards.fetch([(1, 0)])
