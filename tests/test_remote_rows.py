"""Shards in an object store: what is read is what was uploaded, whoever dies, and the cache stays within its limit."""
import multiprocessing
import os
import signal
import threading
import time
from argparse import ArgumentTypeError
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mmbert.object_store
import mmbert.remote_rows
from mmbert.command import local_folder
from mmbert.config import RunConfig, load_config
from mmbert.data import Microbatches, PhaseData, build_data, with_later
from mmbert.heldout import read_heldout
from mmbert.manifest import Manifest, read_manifest
from mmbert.plan.phase import plan_phase
from mmbert.ranks import Ranks
from mmbert.remote_rows import ROOM, Prefetcher, RemoteRows, locked
from mmbert.shards import LanguageShards
from mmbert.tokenizer import load_tokenizer
from mmbert.validation import check_validation
from tests.conftest import Corpus
from tests.object_stores import ObjectStore, object_store
from tests.training_runs import prepare, write_yamls

LAA, LAB = (f"train/invented/{name}" for name in ("laa", "lab"))
SHARD = "shard.00000.mds"


@pytest.fixture(scope="module")
def store() -> Iterator[ObjectStore]:
    with object_store() as found:
        yield found


@pytest.fixture
def url(store: ObjectStore, corpus: Corpus, tmp_path: Path) -> str:
    """A prefix of one's own, with the shards of 64 tokens."""
    return store.upload(corpus.shards[64], tmp_path.name)


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mmbert.remote_rows, "WAITS", (0.0, 0.0))


def opened(remote: RemoteRows) -> LanguageShards:
    """The streams laa and lab."""
    folders = [remote.folder / LAA, remote.folder / LAB]
    remote.fetch_manifests(folders)
    return LanguageShards(folders, [read_manifest(folder) for folder in folders], remote)


def all_rows(shards: LanguageShards) -> list[bytes]:
    return [
        shards.row(stream, number).input_ids.tobytes()
        for stream, manifest in enumerate(shards.manifests)
        for number in range(manifest.rows)
    ]


def local_rows(corpus: Corpus) -> list[bytes]:
    folders = [corpus.shards[64] / name for name in (LAA, LAB)]
    return all_rows(LanguageShards(folders, [read_manifest(folder) for folder in folders]))


def sizes(manifests: tuple[Manifest, ...] | list[Manifest]) -> list[int]:
    return [record.bytes for manifest in manifests for record in manifest.shards.values()]


def cached(remote: RemoteRows) -> list[str]:
    """Every shard in the cache, whole or not."""
    return sorted(str(path.relative_to(remote.folder)) for path in remote.cache.rglob("*.mds*") if path.is_file())


# ------------------------------------------------------------------------------------------------------------ reading


def test_remote_rows_are_the_local_ones_and_only_what_is_read_is_fetched(
    url: str, corpus: Corpus, tmp_path: Path
) -> None:
    remote = RemoteRows(url, tmp_path / "cache")
    shards = opened(remote)
    assert cached(remote) == []
    shards.row(0, 0)
    assert cached(remote) == [f"{LAA}/{SHARD}"]
    assert all_rows(shards) == local_rows(corpus)


def test_what_is_in_the_cache_is_not_fetched_again_but_manifests_are(
    url: str, corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    remote = RemoteRows(url, tmp_path / "cache")
    all_rows(opened(remote))
    fetched: list[str] = []
    download = mmbert.remote_rows.download

    def counted(url: str, *arguments: Any) -> None:
        fetched.append(url.removeprefix(remote.url + "/"))
        download(url, *arguments)

    monkeypatch.setattr(mmbert.remote_rows, "download", counted)
    assert all_rows(opened(remote)) == local_rows(corpus)
    assert sorted(fetched) == [f"{LAA}/manifest.json", f"{LAB}/manifest.json"]


def test_a_shard_that_rots_in_the_cache_is_fetched_again(url: str, corpus: Corpus, tmp_path: Path) -> None:
    remote = RemoteRows(url, tmp_path / "cache")
    all_rows(opened(remote))
    path = remote.folder / LAA / SHARD
    content = path.read_bytes()
    for broken in (bytes(len(content)), content[:-1], b""):
        path.write_bytes(broken)
        assert all_rows(opened(remote)) == local_rows(corpus)
        assert path.read_bytes() == content


def test_a_manifest_that_changed_in_the_store_is_the_one_that_is_read(
    url: str, store: ObjectStore, corpus: Corpus, tmp_path: Path
) -> None:
    remote = RemoteRows(url, tmp_path / "cache")
    before = opened(remote).manifests[0]
    for path in (corpus.shards[128] / LAA).iterdir():
        store.put(f"{tmp_path.name}/{LAA}/{path.name}", path.read_bytes())
    after = [remote.folder / LAA]
    remote.fetch_manifests(after)
    assert read_manifest(after[0]) == read_manifest(corpus.shards[128] / LAA) != before


# ------------------------------------------------------------------------------------------------------------- errors


def test_a_damaged_object_is_tried_again_then_named(
    url: str, store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    remote = RemoteRows(url, tmp_path / "cache")
    shards = opened(remote)
    key = f"{tmp_path.name}/{LAA}/{SHARD}"
    content = store.get(key)
    monkeypatch.setattr(mmbert.remote_rows, "WAITS", (0.0,) * 100)  # which a server that is gone would get
    for broken in (content[:-1], bytes(len(content)), b""):
        store.put(key, broken)
        with pytest.raises(ValueError, match=f"{url}/{LAA}/{SHARD} arrived damaged, 3 times: {url}/.*upload it again"):
            shards.row(0, 0)
        assert cached(remote) == []
    monkeypatch.setattr(mmbert.object_store, "log", log := Mends(store, key, content))
    assert len(shards.row(0, 0).input_ids)
    assert log.lines == 1


class Mends:
    """In the place of a log: at its first line the object is mended."""

    def __init__(self, store: ObjectStore, key: str, content: bytes) -> None:
        self.store, self.key, self.content, self.lines = store, key, content, 0

    def warning(self, *_: object) -> None:
        self.lines += 1
        self.store.put(self.key, self.content)


def test_what_is_missing_or_forbidden_is_named_at_once(
    url: str, store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mmbert.remote_rows, "WAITS", (1e9,))
    remote = RemoteRows(url, tmp_path / "cache")
    shards = opened(remote)
    store.delete(f"{tmp_path.name}/{LAA}/{SHARD}")
    with pytest.raises(OSError, match=f"{url}/{LAA}/{SHARD} does not exist, or its bucket does not"):
        shards.row(0, 0)
    with pytest.raises(OSError, match=r"s3://nowhere/x/train/invented/la./manifest.json does not exist, or its bucket"):
        opened(RemoteRows("s3://nowhere/x", tmp_path / "cache"))
    with pytest.raises(ValueError, match="Streaming cannot read ftp://"):
        opened(RemoteRows("ftp://nowhere/x", tmp_path / "cache"))
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("HOME", str(tmp_path))
    mmbert.object_store.client.cache_clear()
    with pytest.raises(OSError, match=r"manifest.json may not be read \(Unable to locate credentials\); look at your"):
        opened(remote)
    mmbert.object_store.client.cache_clear()


def test_a_server_that_is_gone_is_waited_for_and_named_in_the_end(
    url: str, store: ObjectStore, corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    remote = RemoteRows(url, tmp_path / "cache")
    shards = opened(remote)
    store.stop()
    try:
        with pytest.raises(OSError, match=f"{url}/{LAA}/{SHARD} cannot be fetched, tried 3 times: .*run the same"):
            shards.row(0, 0)
        back = threading.Timer(1.0, store.start)
        back.start()
        monkeypatch.setattr(mmbert.remote_rows, "WAITS", (0.2,) * 100)
        assert all_rows(shards) == local_rows(corpus)
        back.join()
    except BaseException:
        store.start()
        raise


def test_a_full_disk_is_named_at_once(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    remote = RemoteRows(url, tmp_path / "cache")
    shards = opened(remote)
    monkeypatch.setattr(mmbert.remote_rows, "WAITS", (1e9,))

    class Full:
        def download(self, *_: object) -> None:
            os.write(os.open("/dev/full", os.O_WRONLY), b"x")

    monkeypatch.setattr(mmbert.object_store, "client", lambda *_: Full())
    with pytest.raises(OSError, match=f"{SHARD} cannot be written: No space left on device; free some space, or set"):
        shards.row(0, 0)
    assert cached(remote) == []


# ---------------------------------------------------------------------------------------------- several processes


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
    shards.row(0, 0)


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
        shards.row(1, 0)
        assert cached(remote) == [f"{LAB}/{SHARD}"]
    assert all_rows(shards) == local_rows(corpus)
    assert not list(remote.folder.rglob("*.partial*"))


# -------------------------------------------------------------------------------------------------------------- limit


def read_at_random(remote: RemoteRows, expected: list[bytes], seed: int) -> None:
    """Read rows of all streams, as long as the test's processes do, and leave with status 1 if one is another."""
    shards = opened(remote)
    numbers = [(stream, number) for stream, m in enumerate(shards.manifests) for number in range(m.rows)]
    for at in np.random.default_rng(seed).integers(len(numbers), size=60):
        shards.fetch([numbers[at]], later=[numbers[at - 1]])
        if shards.row(*numbers[at]).input_ids.tobytes() != expected[at]:
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
    shards.row(0, 0)
    shards.row(1, 0)
    opened_again = getattr(remote, action)(folders[0], SHARD, manifests[0].shards[SHARD])
    if opened_again is not None:
        os.close(opened_again)
    shards.row(2, 0)
    assert cached(remote) == [f"train/invented/la{name}/{SHARD}" for name in "ac"]


def test_an_evicted_shard_is_closed_at_the_next_batch(url: str, corpus: Corpus, tmp_path: Path) -> None:
    shards = opened(RemoteRows(url, tmp_path / "cache"))
    assert all_rows(shards) == local_rows(corpus)
    path = str(shards.folders[0] / SHARD)
    os.unlink(path)
    assert len(shards.row(0, 1).input_ids)  # it is open
    shards.fetch([(1, 0)])
    assert path not in shards.files
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


# -------------------------------------------------------------------------------------------------------------- ahead


def test_every_batch_is_announced_once_and_in_time() -> None:
    batches = [[(number, 0, 0)] for number in range(100)]
    told: list[int] = []
    for number, (batch, later) in enumerate(islice(with_later(iter(batches), 8), 60)):
        assert batch == batches[number]
        told += [place[0] for place in later]
        assert told == list(range(1, 1 + len(told)))
        assert len(told) == min(2 * (number + 1), number + 8)
    assert [later for _, later in islice(with_later(iter(batches), 0), 60)] == [[]] * 60


def test_shards_are_fetched_ahead(url: str, tmp_path: Path) -> None:
    shards = opened(RemoteRows(url, tmp_path / "cache"))
    shards.fetch([(0, 0)], later=[(1, 0), (1, 1)])
    path = shards.folders[1] / SHARD
    end = time.monotonic() + 30
    while not path.exists():
        assert time.monotonic() < end
        time.sleep(0.01)
    assert len(shards.row(1, 0).input_ids)


def test_a_shard_that_cannot_be_fetched_ahead_is_an_error_only_where_it_is_needed(
    url: str, store: ObjectStore, tmp_path: Path
) -> None:
    shards = opened(RemoteRows(url, tmp_path / "cache"))
    store.delete(f"{tmp_path.name}/{LAB}/{SHARD}")
    shards.fetch([(0, 0)], later=[(1, 0)])
    assert isinstance(shards.ahead, Prefetcher)
    assert len(shards.row(0, 1).input_ids)
    with pytest.raises(OSError, match=f"{url}/{LAB}/{SHARD} does not exist"):
        shards.fetch([(1, 0)])


# ------------------------------------------------------------------------------------------------------------ the rest


def phase_config(corpus: Corpus, folder: Path, *overrides: str) -> RunConfig:
    write_yamls(folder, corpus)
    return load_config(folder / "phase1.yaml", overrides)


def test_the_errors_of_a_stream_name_its_url(url: str, corpus: Corpus, tmp_path: Path) -> None:
    config = phase_config(corpus, tmp_path, f"data.root={url}", f"data.cache={tmp_path / 'cache'}", "max_seq_len=32")
    with pytest.raises(ValueError, match=rf"^{url}/{LAA}/manifest.json: row_length is 64, the run wants 32"):
        PhaseData.open(config, load_tokenizer(corpus.tokenizer))


def test_a_period_takes_the_shards_of_what_it_reads(url: str, corpus: Corpus, tmp_path: Path) -> None:
    """A period as long as everything is takes all shards; a short one takes a part of them, and a shard a stream."""
    config = phase_config(corpus, tmp_path)
    data = PhaseData.open(config, load_tokenizer(corpus.tokenizer))
    everything = sum(sizes(data.manifests))
    for rows in (1, 24, 100_000):
        plan = data.plan(replace(config, data=replace(config.data, period_rows=rows)))
        assert data.bytes_of_period(plan) in ([everything] if rows > 1 else sizes(data.manifests))
    (one,) = data.manifests[0].shards.values()
    split = replace(data.manifests[0], shards={f"{n}.mds": replace(one, bytes=one.bytes // 10) for n in range(10)})
    data = replace(data, manifests=(split, data.manifests[1]))
    plan = data.plan(replace(config, data=replace(config.data, period_rows=10)))
    period = next(plan.periods())
    passes = int(period.last[0]) / split.rows
    expected = int((passes * 10 + 1) * (one.bytes // 10)) + sizes(data.manifests)[-1]
    assert data.bytes_of_period(plan) == expected < everything


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_the_same_from_a_store_and_from_a_folder(
    url: str, corpus: Corpus, tmp_path: Path, workers: int
) -> None:
    overrides = [f"data.root={url}", f"data.cache={tmp_path / 'cache'}", f"data.num_workers={workers}"]
    tokenizer = load_tokenizer(corpus.tokenizer)

    def batches(config: RunConfig) -> list[dict]:
        data = PhaseData.open(config, tokenizer)
        return list(islice(build_data(config, data, 4, Ranks(0, 1, None), Microbatches()).dataloader, 12))

    pairs = zip(
        batches(phase_config(corpus, tmp_path)), batches(phase_config(corpus, tmp_path, *overrides)), strict=True
    )
    for local, remote in pairs:
        assert np.array_equal(local["input_ids"], remote["input_ids"])
        assert local["digest"] == remote["digest"]


def test_held_out_text_is_read_from_a_store(url: str, corpus: Corpus, tmp_path: Path) -> None:
    config = phase_config(
        corpus, tmp_path, f"data.cache={tmp_path / 'cache'}",
        f"validation={{interval: 900, root: '{url}', source: invented, languages: [laa, lac]}}",
    )  # fmt: skip
    manifests = check_validation(config, load_tokenizer(corpus.tokenizer))
    remote = RemoteRows.at(url, config.data)
    assert remote is not None
    for manifest in manifests:
        found, expected = (
            read_heldout(folder, manifest, None, store)
            for folder, store in ((remote.folder, remote), (corpus.shards[64], None))
        )
        assert [ids.tolist() for ids in found.documents] == [ids.tolist() for ids in expected.documents]


def test_a_plan_reads_the_manifests_of_a_store(url: str, corpus: Corpus, tmp_path: Path) -> None:
    local = plan_phase("", phase_config(corpus, tmp_path), None)
    config = phase_config(corpus, tmp_path, f"data.root={url}", f"data.cache={tmp_path / 'cache'}")
    plan = plan_phase("", config, None)
    assert plan.problem == local.problem
    assert plan.counts is not None
    assert local.counts is not None
    assert plan.counts.manifests == local.counts.manifests
    assert url in plan.counts.origin


def test_programs_that_list_a_folder_refuse_a_store() -> None:
    with pytest.raises(ArgumentTypeError, match="s3://b/x lies in an object store: copy it to a folder first"):
        local_folder("s3://b/x")
    assert local_folder("data/rows") == Path("data/rows")


def test_a_cache_must_fit_the_root(corpus: Corpus, tmp_path: Path) -> None:
    yaml = prepare(tmp_path / "it", corpus)
    with pytest.raises(ValueError, match=r"data.root = s3://b/x lies in an object store: name a folder .*data.cache"):
        load_config(yaml, ["data.root=s3://b/x"])
    with pytest.raises(ValueError, match=r"data.cache and data.cache_limit are for shards in an object store"):
        load_config(yaml, ["data.cache_limit=200GB"])
    with pytest.raises(ValueError, match=r"data.cache = s3://b/y must be a folder on a local disk"):
        load_config(yaml, ["data.root=s3://b/x", "data.cache=s3://b/y"])
    with pytest.raises(ValueError, match=r"unknown key data.cache_limits; did you mean cache_limit"):
        load_config(yaml, ["data.cache_limits=1"])
    for wrong in ("0", "-1", "1.5", "many", "1GiB", "true"):
        with pytest.raises(ValueError, match=r"data.cache_limit: .* is no number of bytes above 0"):
            load_config(yaml, ["data.root=s3://b/x", "data.cache=c", f"data.cache_limit={wrong}"])
    config = load_config(yaml, ["data.root=s3://b/x", "data.cache=c", "data.cache_limit=1.5MB"])
    assert config.data.cache_limit == 1_500_000
    assert config.data.moved_to("elsewhere").cache is None
    assert config.data.moved_to("s3://b/y").cache == "c"
