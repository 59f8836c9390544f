"""Shards in an object store: what is read is what was uploaded, and what goes wrong is named."""
import os
import threading
from pathlib import Path
from typing import Any

import pytest

import mmbert.object_store
import mmbert.remote_rows
from mmbert.manifest import read_manifest
from mmbert.remote_rows import RemoteRows
from tests.conftest import Corpus
from tests.object_stores import ObjectStore
from tests.remote.streams import LAA, LAB, SHARD, all_rows, cached, local_rows, opened


def test_remote_rows_are_the_local_ones_and_only_what_is_read_is_fetched(
    url: str, corpus: Corpus, tmp_path: Path
) -> None:
    remote = RemoteRows(url, tmp_path / "cache")
    shards = opened(remote)
    assert cached(remote) == []
    shards.rows([(0, 0)])
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
            shards.rows([(0, 0)])
        assert cached(remote) == []
    monkeypatch.setattr(mmbert.object_store, "log", log := Mends(store, key, content))
    assert len(shards.rows([(0, 0)]).input_ids)
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
        shards.rows([(0, 0)])
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
            shards.rows([(0, 0)])
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
        shards.rows([(0, 0)])
    assert cached(remote) == []
