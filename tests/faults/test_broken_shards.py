"""Rows 4 and 11: shards that are missing, short, of another stream, or rotten, at the start and later."""
import multiprocessing
import random
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mmbert.shards
from mmbert.manifest import check_shard, read_manifest
from mmbert.shards import LanguageShards
from tests.conftest import Corpus, Finished
from tests.damage import flip, truncate
from tests.faults.oracle import check_same_end
from tests.guards import replace, without_shard_check
from tests.training_runs import PRELOADED, Outcome, prepare, train, train_ranks

SHARD = Path("train/invented/laa/shard.00000.mds")
OTHER = Path("train/invented/lab/shard.00000.mds")


def swap(root: Path) -> None:
    (root / SHARD).rename(root / "aside")
    (root / OTHER).rename(root / SHARD)
    (root / "aside").rename(root / OTHER)


def delete(root: Path) -> None:
    (root / SHARD).unlink()


BREAKS: dict[str, Callable[[Path], object]] = {
    "empty": lambda root: truncate(root / SHARD, 0.0),
    "half": lambda root: truncate(root / SHARD, 0.5),
    "99 %": lambda root: truncate(root / SHARD, 0.99),
    "one bit": lambda root: flip(root / SHARD),
    "deleted": delete,
    "swapped": swap,
}


def after_the_check(root: str, how: str) -> None:
    """Change of a run: the shard breaks between the check at the start and its first use."""
    import mmbert.trainer

    build = mmbert.trainer.build_data

    def breaking(*arguments: Any) -> Any:
        BREAKS[how](Path(root))
        return build(*arguments)

    replace(mmbert.trainer, "build_data", breaking)


def train_on_broken(corpus: Corpus, folder: Path, how: str, workers: int, late: bool) -> Outcome:
    """A run on a copy of the shards, one of them broken before its start or right after."""
    root = Path(shutil.copytree(corpus.shards[64], folder / "shards"))
    arguments = [prepare(folder / "it", corpus), f"data.root={root}", f"data.num_workers={workers}"]
    if not late:
        BREAKS[how](root)
    changes = [partial(after_the_check, str(root), how)] if late else []
    return train(arguments, folder / "x.jsonl", changes=changes)


ALL = [(how, workers, late) for how in BREAKS for workers in (0, 2) for late in (False, True)]
SHORT = {("one bit", 0, False), ("one bit", 2, True), ("deleted", 2, True), ("swapped", 0, False), ("half", 2, True)}
CASES = [pytest.param(*case, marks=[] if case in SHORT else pytest.mark.long) for case in ALL]


@pytest.mark.fault(4, 11)
@pytest.mark.parametrize("how, workers, late", CASES)
def test_a_broken_shard_ends_the_run_in_one_line_that_names_it(
    corpus: Corpus, finished: Finished, tmp_path: Path, how: str, workers: int, late: bool
) -> None:
    """Before a row of it is used: the steps before were the right ones."""
    outcome = train_on_broken(corpus, tmp_path, how, workers, late)
    assert outcome.exit_code == 1
    line = outcome.output.splitlines()[-1]
    assert line.startswith("error: ")
    assert str(tmp_path / "shards" / "train" / "invented") in line
    assert any(str(path) in line for path in (SHARD, OTHER))
    assert "Traceback" not in outcome.output
    assert len(outcome.steps) < 5
    assert outcome.steps == finished[1]["phase1"].steps[: len(outcome.steps)]


@pytest.mark.fault(4, 11)
def test_two_ranks_end_with_the_same_line_and_go_on_once_the_shard_is_whole(
    corpus: Corpus, two_ranks: Path, tmp_path: Path
) -> None:
    root = Path(shutil.copytree(corpus.shards[64], tmp_path / "shards"))
    yaml = prepare(tmp_path / "it", corpus)
    flip(root / SHARD)
    outcomes = train_ranks([yaml, f"data.root={root}"], tmp_path / "x.jsonl")
    assert [outcome.exit_code for outcome in outcomes] == [1, 1]
    lines = {outcome.output.splitlines()[-1] for outcome in outcomes}
    assert len(lines) == 1
    assert f"{root / SHARD} was changed after it was written" in lines.pop()
    flip(root / SHARD)
    again = train_ranks([yaml, f"data.root={root}"], tmp_path / "x.jsonl")
    assert [outcome.exit_code for outcome in again] == [0, 0]
    check_same_end(tmp_path / "it" / "runs" / "phase1", two_ranks)


@pytest.mark.fault(11)
def test_every_one_of_many_flipped_bits_of_a_shard_is_found(
    corpus: Corpus, tmp_path: Path, figures: dict[str, float], pytestconfig: pytest.Config
) -> None:
    number = 4_000 if pytestconfig.option.long else 500
    folder = Path(shutil.copytree((corpus.shards[64] / SHARD).parent, tmp_path / "laa"))
    path, record = folder / SHARD.name, read_manifest(folder).shards[SHARD.name]
    content = bytearray(path.read_bytes())
    rng, found = random.Random(0), 0
    for _ in range(number):
        place = rng.randrange(8 * len(content))
        content[place // 8] ^= 1 << place % 8
        path.write_bytes(content)
        try:
            check_shard(folder, path.name, record)
        except ValueError as error:
            found += str(path) in str(error)
        content[place // 8] ^= 1 << place % 8
    figures["flipped bits of a shard"], figures["of these found"] = number, found
    assert found == number


def bits_that_make_other_tokens(folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A bit in every row of the shard, so that the row can still be read and has another id."""
    monkeypatch.setattr(mmbert.shards, "check_shard", lambda *_: None)
    manifest, path = read_manifest(folder), folder / SHARD.name
    content = path.read_bytes()

    def row(number: int) -> np.ndarray:
        return LanguageShards([folder], [manifest]).rows([(0, number)]).input_ids

    def bit(number: int) -> int:
        right, begin = row(number), int.from_bytes(content[4 * (1 + number) :][:4], "little")
        for place in range(8 * (begin + 32), 8 * len(content)):
            changed = bytearray(content)
            changed[place // 8] ^= 1 << place % 8
            path.write_bytes(changed)
            try:
                if not np.array_equal(row(number), right):
                    return place
            except ValueError:
                continue  # the row itself looks wrong
            finally:
                path.write_bytes(content)
        raise AssertionError("no bit changes a token and nothing else")

    return [bit(number) for number in range(manifest.rows)]


@pytest.mark.fault(11, control=True)
def test_without_the_check_a_flipped_bit_is_trained_on(
    corpus: Corpus, finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A flipped bit is another token, the model is trained on it, and the run ends with exit status 0."""
    root = Path(shutil.copytree(corpus.shards[64], tmp_path / "shards"))
    for place in bits_that_make_other_tokens((root / SHARD).parent, monkeypatch):
        flip(root / SHARD, place)
    arguments = [prepare(tmp_path / "it", corpus), f"data.root={root}"]
    outcome = train(arguments, tmp_path / "x.jsonl", changes=[without_shard_check])
    assert outcome.exit_code == 0, outcome.output
    seen, right = ([step["ids"] for step in steps] for steps in (outcome.steps, finished[1]["phase1"].steps))
    assert seen != right


def read_with_streaming(remote: str, local: str, report: str) -> None:
    """One epoch of plain StreamingDataset; writes how many samples came."""
    from streaming import StreamingDataset

    dataset = StreamingDataset(remote=remote, local=local, batch_size=1, shuffle=False, download_timeout=5)
    Path(report).write_text(str(sum(1 for _ in dataset)))


@pytest.mark.fault(4, control=True)
def test_plain_streaming_ends_an_epoch_early_at_a_missing_shard_and_says_nothing(tmp_path: Path) -> None:
    """StreamingDataset ends the epoch early at a missing shard, with exit status 0."""
    from streaming import MDSWriter

    with MDSWriter(out=str(tmp_path / "remote"), columns={"text": "str"}, size_limit=4096) as writer:
        for number in range(400):
            writer.write({"text": f"sample {number} " + "x" * 80})
    shards = sorted((tmp_path / "remote").glob("*.mds"))
    assert len(shards) > 5
    shards[4].unlink()
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    report = tmp_path / "samples.txt"
    values = (str(tmp_path / "remote"), str(tmp_path / "local"), str(report))
    process = context.Process(target=read_with_streaming, args=values)
    process.start()
    process.join(60)
    assert process.exitcode == 0
    assert int(report.read_text()) < 400
