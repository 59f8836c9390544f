"""Runs and plans over an object store are those over a folder."""
from argparse import ArgumentTypeError
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from mmbert.command import local_folder
from mmbert.config import RunConfig, load_config
from mmbert.data import Microbatches, PhaseData, build_data
from mmbert.heldout import check_validation, read_heldout
from mmbert.plan.phase import plan_phase
from mmbert.ranks import Ranks
from mmbert.remote_rows import place_of
from mmbert.tokenizer import load_tokenizer
from tests.conftest import Corpus
from tests.remote.streams import LAA, sizes
from tests.training_runs import prepare, write_yamls


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
    for manifest in manifests:
        found, expected = (
            read_heldout(folder, manifest, None, store)
            for folder, store in (place_of(url, config.data), (corpus.shards[64], None))
        )
        assert [ids.tolist() for ids in found.documents] == [ids.tolist() for ids in expected.documents]


def test_a_plan_reads_the_manifests_of_a_store(url: str, corpus: Corpus, tmp_path: Path) -> None:
    local = plan_phase("", phase_config(corpus, tmp_path), None, None)
    config = phase_config(corpus, tmp_path, f"data.root={url}", f"data.cache={tmp_path / 'cache'}")
    plan = plan_phase("", config, None, None)
    assert plan.problem == local.problem
    assert plan.counts is not None
    assert local.counts is not None
    assert plan.counts.manifests == local.counts.manifests
    assert url in plan.counts.origin


def test_programs_that_list_a_folder_refuse_a_store() -> None:
    words = "s3://b/x lies in an object store: name a folder, and copy from or to it"
    with pytest.raises(ArgumentTypeError, match=words):
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
