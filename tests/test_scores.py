"""Per-stream sums of training: exact, in any order, and the same after any stop."""
import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from callbacks.language_scores import metrics
from mmbert.ledger import read_ledger
from mmbert.linear_cross_entropy import Losses
from mmbert.scores import Score, add_scores, from_scores, no_scores, to_scores
from tests.conftest import Corpus, Finished
from tests.faults.injected import gradient_becomes, loss_becomes
from tests.training_runs import prepare, train, train_ranks

NAMES = ("web/fao", "web/isl", "books/isl")
EVERY_6 = "logging.scores_interval_batches=6"  # checkpoints come every four to five steps


def events(run_folder: Path) -> list[dict[str, Any]]:
    """What every stretch of steps did; of a stretch that was done again, the later attempt's."""
    history = read_ledger(run_folder)
    latest: dict[int, dict[str, Any]] = {}
    for event in history.events:
        if event.name == "scores":
            values = {key: value for key, value in event.values.items() if key not in ("seconds", "time")}
            latest[event.step] = {"step": event.step, **values, "streams": history.streams_of(event)}
    return [latest[step] for step in sorted(latest)]


def losses_of(each: torch.Tensor, correct: torch.Tensor) -> Losses:
    return Losses(each.sum(), each, correct)


def test_sums_are_those_of_each_stream_and_the_same_bits_in_any_order() -> None:
    generator = torch.Generator().manual_seed(0)
    each, streams = 12 * torch.rand(1000, generator=generator), torch.randint(2, (1000,), generator=generator)
    correct = torch.rand(1000, generator=generator) < 0.3
    sums, shuffled = no_scores(3), no_scores(3)
    add_scores(sums, streams, losses_of(each, correct))
    for part in torch.randperm(1000, generator=generator).split(77):
        add_scores(shuffled, streams[part], losses_of(each[part], correct[part]))
    assert sums.equal(shuffled)
    scores = to_scores(NAMES, sums.numpy())
    assert scores.keys() == {"web/fao", "web/isl"}  # the third has no label
    for stream, name in enumerate(scores):
        of = streams == stream
        assert scores[name].labels == int(of.sum())
        assert scores[name].correct == int(correct[of].sum())
        assert scores[name].loss == pytest.approx(each[of].double().sum().item(), abs=1e-6 * int(of.sum()))
    assert from_scores(NAMES, scores).equal(sums)


def test_streams_are_summed_up_by_language_source_and_script() -> None:
    scores = {"web/fao": Score(10, 20.0, 1), "web/isl": Score(10, 40.0, 5), "books/isl": Score(30, 60.0, 5)}
    found = metrics(scores, {"web/fao": 100, "web/isl": 200, "books/isl": 300})
    assert found["loss/train/language/isl"] == 100 / 40
    assert found["accuracy/train/language/isl"] == 10 / 40
    assert found["tokens/train/language/isl"] == 500
    assert found["loss/train/source/web"] == 60 / 20
    assert found["tokens/train/source/books"] == 300
    assert found["loss/train/script/Latn"] == 120 / 50
    assert found["tokens/train/script/Latn"] == 600
    assert len(found) == 3 * (2 + 2 + 1)


def test_a_language_that_no_list_knows_is_of_an_unknown_script() -> None:
    found = metrics({"web/rus": Score(1, 1.0, 1), "web/laa": Score(1, 2.0, 0)}, {"web/rus": 1, "web/laa": 1})
    assert found["loss/train/script/Cyrl"] == 1.0
    assert found["loss/train/script/unknown"] == 2.0


def test_events_cover_every_step_once_and_their_losses_are_the_steps_losses(
    corpus: Corpus, finished: Finished, tmp_path: Path
) -> None:
    yaml = prepare(tmp_path / "it", corpus)
    outcome = train([yaml, EVERY_6, "device_train_microbatch_size=3"], tmp_path / "steps.jsonl")
    assert outcome.exit_code == 0, outcome.output
    run_folder = tmp_path / "it" / "runs" / "phase1"
    history, found = read_ledger(run_folder), events(run_folder)
    steps = history.steps
    assert [event["from_step"] for event in found] == [0, *(event["step"] for event in found[:-1])]
    assert [event["step"] for event in found[:-1]] == list(range(6, len(steps), 6))
    assert found[-1]["step"] == len(steps)
    recorded = outcome.steps
    for event in found:
        stretch = slice(event["from_step"], event["step"])
        assert event["tokens"] == sum(step.stream_tokens for step in steps[stretch])
        labels = [
            round(step["masked"] * own.stream_tokens)
            for step, own in zip(recorded[stretch], steps[stretch], strict=True)
        ]
        assert sum(score[0] for score in event["streams"].values()) == sum(labels)
        loss = sum(step.loss * count for step, count in zip(steps[stretch], labels, strict=True))
        assert sum(score[1] for score in event["streams"].values()) == pytest.approx(loss, rel=1e-5)
        assert event["streams"].keys() == {name for step in steps[stretch] for name in history.streams_of(step)}
        assert all(0 <= correct <= count for count, _, correct in event["streams"].values())


def test_a_run_that_was_killed_and_stopped_within_intervals_tells_the_same_bits(corpus: Corpus, tmp_path: Path) -> None:
    whole, it = (prepare(tmp_path / name, corpus) for name in ("whole", "it"))
    assert train([whole, EVERY_6], tmp_path / "whole.jsonl").exit_code == 0
    record = tmp_path / "it.jsonl"
    assert train([it, EVERY_6], record, kill_at=9).exit_code == -9
    assert train([it, EVERY_6], record, kill_at=14, number=15).exit_code == 85
    assert train([it, EVERY_6], record).exit_code == 0
    expected = events(tmp_path / "whole" / "runs" / "phase1")
    assert len(expected) > 3
    assert events(tmp_path / "it" / "runs" / "phase1") == expected


def test_two_ranks_tell_what_one_tells_also_after_a_stop(corpus: Corpus, tmp_path: Path) -> None:
    """Dropout off: ranks draw their own. Masks are equal, so labels are; losses within the rounding of a product."""
    off = [EVERY_6, "model.attn_out_dropout=0"]
    one, two = (prepare(tmp_path / name, corpus) for name in ("one", "two"))
    assert train([one, *off], tmp_path / "one.jsonl").exit_code == 0
    record = tmp_path / "two.jsonl"
    assert [o.exit_code for o in train_ranks([two, *off], record, kill_at={1: 8}, number=15)] == [85, 85]
    assert [o.exit_code for o in train_ranks([two, *off], record)] == [0, 0]
    expected, found = (events(tmp_path / name / "runs" / "phase1") for name in ("one", "two"))
    assert [event["step"] for event in found] == [event["step"] for event in expected]
    for event, other in zip(found, expected, strict=True):
        assert event["streams"].keys() == other["streams"].keys()
        for name, (labels, loss, _) in event["streams"].items():
            assert labels == other["streams"][name][0]
            assert loss == pytest.approx(other["streams"][name][1], rel=1e-4)


@pytest.mark.parametrize("fault", [loss_becomes, gradient_becomes])
def test_a_skipped_step_does_not_count(corpus: Corpus, tmp_path: Path, fault: Any) -> None:
    yaml = prepare(tmp_path / "it", corpus)
    outcome = train([yaml, EVERY_6, "duration=1500"], tmp_path / "it.jsonl", changes=[partial(fault, np.nan, {2})])
    assert outcome.exit_code == 0, outcome.output
    run_folder = tmp_path / "it" / "runs" / "phase1"
    steps = read_ledger(run_folder).steps
    assert [step.step for step in steps if step.skipped] == [2]
    (event,) = events(run_folder)[:1]
    labels = [round(own["masked"] * step.stream_tokens) for own, step in zip(outcome.steps, steps, strict=True)]
    assert sum(score[0] for score in event["streams"].values()) == sum(labels[: event["step"]]) - labels[1]
    json.dumps(event, allow_nan=False)
