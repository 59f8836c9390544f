"""Validation in training: the numbers of the converted model, at fixed moments, and training none the wiser."""
import json
import os
import re
import signal
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from callbacks.validation import metrics
from mmbert import convert_to_hf
from mmbert.config import load_config
from mmbert.data import Microbatches
from mmbert.evaluation import bits_per_byte
from mmbert.heldout import check_validation, listed, read_heldout
from mmbert.ledger import read_ledger
from mmbert.ranks import Ranks
from mmbert.scores import UNITS
from mmbert.tokenizer import load_tokenizer
from mmbert.validation import HeldoutSet, LanguageBits, filled
from tests.conftest import Corpus, Finished
from tests.faults.oracle import check_same_end
from tests.guards import replace
from tests.training_runs import prepare, train, train_ranks

LANGUAGES = "[laa, lab, lac]"  # the third is not trained on


def validated(corpus: Corpus, interval: int = 1800) -> str:
    """The override that switches validation on."""
    root = corpus.shards[64]
    return f"validation={{interval: {interval}, root: {root}, source: invented, languages: {LANGUAGES}}}"


def events(run_folder: Path) -> dict[int, list[dict[str, Any]]]:
    """By step, all attempts'."""
    found: dict[int, list[dict[str, Any]]] = {}
    history = read_ledger(run_folder)
    for event in history.events:
        if event.name == "validation":
            values = {key: value for key, value in event.values.items() if key != "time"}
            values["streams"] = history.streams_of(event)
            found.setdefault(event.step, []).append(values)
    return found


@pytest.fixture(scope="module")
def whole(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run folder of an uninterrupted phase 1 with validation."""
    folder = tmp_path_factory.mktemp("validated")
    outcome = train([prepare(folder / "it", corpus), validated(corpus)], folder / "steps.jsonl")
    assert outcome.exit_code == 0, outcome.output
    assert "bits per byte, mean over 3 languages" in outcome.output
    each = r" languages \((\w+ \d\.\d\d\*(, |; )){3}\*: fewer than 1,000 masked tokens\)  \d"
    assert re.search(each, outcome.output)
    return folder / "it" / "runs" / "phase1"


def test_training_is_the_same_with_and_without(whole: Path, finished: Finished) -> None:
    """Weights, moments and losses, with dropout on."""
    check_same_end(whole, finished[0] / "runs" / "phase1")


def test_it_is_done_where_the_clock_crosses_the_interval_and_at_the_end(whole: Path) -> None:
    steps = read_ledger(whole).steps
    clock = [0, *(step.tokens for step in steps)]
    crossed = [step.step for step in steps if clock[step.step - 1] // 1800 != clock[step.step] // 1800]
    found = events(whole)
    assert len(crossed) == 2
    assert list(found) == [*crossed, steps[-1].step]
    assert [values["tokens"] for (values,) in found.values()] == [clock[step] for step in found]
    bits = [values["streams"]["invented/laa"][0] for (values,) in found.values()]
    assert bits[0] > bits[1] > bits[2]


def test_it_is_what_the_converted_model_needs(whole: Path, corpus: Corpus, tmp_path: Path) -> None:
    convert_to_hf.main(["--checkpoint", str(whole), "--output", str(tmp_path / "hf")])
    arguments = {"--model": tmp_path / "hf", "--shards": corpus.shards[64], "--output": tmp_path / "bits.json"}
    words = [text for key, path in arguments.items() for text in (key, str(path))]
    bits_per_byte.main([*words, "--source", "invented"])
    written = json.loads((tmp_path / "bits.json").read_text())
    *_, (last,) = events(whole).values()
    assert len(last["streams"]) == 3
    for name, (bits, text_bytes, labels) in last["streams"].items():
        theirs = written["languages"][name.removeprefix("invented/")]
        assert bits / text_bytes == pytest.approx(theirs["bits_per_byte"], rel=1e-5)
        assert (text_bytes, labels) == (theirs["text_bytes"], theirs["masked_tokens"])


def at_validation(microbatch: int, number: int) -> None:
    """The process gets the signal `number` when its validations come to this microbatch, of all that they do."""
    from mmbert.mlm import MaskedLM

    forward, done = MaskedLM.forward, [0]

    def changed(self: Any, batch: dict[str, Any]) -> Any:
        if not torch.is_grad_enabled():
            done[0] += 1
            if done[0] == microbatch:
                os.kill(os.getpid(), number)
        return forward(self, batch)

    replace(MaskedLM, "forward", changed)


@pytest.mark.parametrize("number, status", [(signal.SIGTERM, 85), (signal.SIGKILL, -9)], ids=["stop", "kill"])
def test_a_run_that_is_ended_while_it_validates_does_so_when_it_goes_on(
    corpus: Corpus, whole: Path, tmp_path: Path, number: int, status: int
) -> None:
    yaml, record = prepare(tmp_path / "it", corpus), tmp_path / "steps.jsonl"
    run_folder = tmp_path / "it" / "runs" / "phase1"
    ended = train([yaml, validated(corpus)], record, changes=[partial(at_validation, 2, number)])
    assert ended.exit_code == status, ended.output
    first, *_ = events(whole)
    assert ended.steps[-1]["step"] == first
    assert not events(run_folder)
    outcome = train([yaml, validated(corpus)], record)
    assert outcome.exit_code == 0, outcome.output
    assert events(run_folder) == events(whole)
    check_same_end(run_folder, whole)
    last = read_ledger(run_folder).attempts[-1]
    assert [e.attempt for e in read_ledger(run_folder).events if e.name == "validation"] == [last] * 3


def test_a_stop_while_a_validation_is_made_up_for_leaves_it_for_the_next_time(
    corpus: Corpus, whole: Path, tmp_path: Path
) -> None:
    yaml, record = prepare(tmp_path / "it", corpus), tmp_path / "steps.jsonl"
    run_folder = tmp_path / "it" / "runs" / "phase1"
    for steps in (None, 0):
        before = len(record.read_text().splitlines()) if record.exists() else 0
        stopped = train([yaml, validated(corpus)], record, changes=[partial(at_validation, 1, signal.SIGUSR1)])
        assert stopped.exit_code == 85, stopped.output
        assert steps is None or len(stopped.steps) == before
        assert not events(run_folder)
    assert train([yaml, validated(corpus)], record).exit_code == 0
    assert events(run_folder) == events(whole)


def test_a_validation_that_is_longer_than_a_runs_minutes_is_made_up_for_all_the_same(
    corpus: Corpus, whole: Path, tmp_path: Path
) -> None:
    """Else each start would begin with it, and none would get on."""
    arguments, record = [prepare(tmp_path / "it", corpus), validated(corpus)], tmp_path / "steps.jsonl"
    first, *_ = events(whole)
    assert train(arguments, record, changes=[partial(at_validation, 1, signal.SIGTERM)]).exit_code == 85
    outcome = train([*arguments, "max_minutes=0.0001"], record)
    assert outcome.exit_code == 85, outcome.output
    assert outcome.steps[-1]["step"] == first + 1
    assert list(events(tmp_path / "it" / "runs" / "phase1")) == [first]


def test_a_job_of_slurm_that_is_shorter_than_a_validation_is_an_error(corpus: Corpus, tmp_path: Path) -> None:
    """Else it would be queued again for ever."""
    arguments, record = [prepare(tmp_path / "it", corpus), validated(corpus)], tmp_path / "steps.jsonl"
    assert train(arguments, record, changes=[partial(at_validation, 1, signal.SIGTERM)]).exit_code == 85
    outcome = train(arguments, record, environment={"SLURM_JOB_END_TIME": str(time.time() + 20)})
    assert outcome.exit_code == 1
    assert "the one that is due takes longer than a whole job of Slurm; lower validation.rows, or" in outcome.output


def test_a_stop_in_the_step_of_a_validation_does_not_wait_for_it(corpus: Corpus, whole: Path, tmp_path: Path) -> None:
    yaml, record = prepare(tmp_path / "it", corpus), tmp_path / "steps.jsonl"
    run_folder = tmp_path / "it" / "runs" / "phase1"
    first, second, last = events(whole)
    for step in (first, last):
        asked = train([yaml, validated(corpus)], record, kill_at=step, number=signal.SIGTERM)
        assert asked.exit_code == (0 if step == last else 85), asked.output
        assert list(events(run_folder)) == ([] if step == first else [first, second, last])
    assert events(run_folder) == events(whole)


def test_a_phase_with_a_parent_begins_with_what_that_scored(corpus: Corpus, whole: Path, tmp_path: Path) -> None:
    yaml = prepare(tmp_path / "it", corpus, copied={"phase1": whole})
    arguments, record = [yaml, validated(corpus), "name=child", "parent=phase1"], tmp_path / "steps.jsonl"
    run_folder = tmp_path / "it" / "runs" / "child"
    cut_off = train(arguments, record, changes=[partial(at_validation, 1, signal.SIGUSR1)])
    assert cut_off.exit_code == 85, cut_off.output
    assert not cut_off.steps
    assert train(arguments, record, kill_at=2, number=signal.SIGTERM).exit_code == 85
    outcome = train(arguments, record)
    assert outcome.exit_code == 0, outcome.output
    assert list(events(run_folder)) == [0, *events(whole)]  # a restart does not begin anew
    [first], [*_, [last]] = events(run_folder)[0], events(whole).values()
    assert (first["tokens"], first["streams"]) == (0, last["streams"])


def test_it_may_be_switched_on_in_a_run_that_goes_on(corpus: Corpus, whole: Path, tmp_path: Path) -> None:
    yaml, record = prepare(tmp_path / "it", corpus), tmp_path / "steps.jsonl"
    _, second, _ = events(whole)
    assert train([yaml], record, kill_at=second, number=signal.SIGTERM).exit_code == 85
    outcome = train([yaml, validated(corpus)], record)
    assert outcome.exit_code == 0, outcome.output
    found = events(tmp_path / "it" / "runs" / "phase1")
    assert found == {step: values for step, values in events(whole).items() if step > second}


def test_two_ranks_validate_each_document_once(corpus: Corpus, whole: Path, tmp_path: Path) -> None:
    yaml = prepare(tmp_path / "it", corpus)
    outcomes = train_ranks([yaml, validated(corpus), "duration=1000"], tmp_path / "steps.jsonl")
    assert [outcome.exit_code for outcome in outcomes] == [0, 0], outcomes[0].output
    ((found,),) = events(tmp_path / "it" / "runs" / "phase1").values()
    *_, (last,) = events(whole).values()
    assert {name: values[1:] for name, values in found["streams"].items()} == {
        name: values[1:] for name, values in last["streams"].items()
    }


def heldout_of(corpus: Corpus, folder: Path, rank: int, world_size: int, *overrides: str) -> HeldoutSet:
    two_rows = "device_train_microbatch_size=2"
    config = load_config(prepare(folder / str(rank), corpus), [validated(corpus), two_rows, *overrides])
    tokenizer = load_tokenizer(corpus.tokenizer)
    manifests = check_validation(config, tokenizer)
    return HeldoutSet.read(config, manifests, tokenizer, Ranks(rank, world_size, None), Microbatches())


def test_ranks_share_the_documents_and_know_all_of_the_text(corpus: Corpus, tmp_path: Path) -> None:
    alone = heldout_of(corpus, tmp_path / "alone", 0, 1)
    shares = [heldout_of(corpus, tmp_path / "shared", rank, 3) for rank in range(3)]

    def documents(heldout: HeldoutSet) -> list[list[int]]:
        return [part.tolist() for batch in heldout.microbatches for part in batch["input_ids"].split(batch["lengths"])]

    assert sorted(documents(alone)) == sorted(document for share in shares for document in documents(share))
    assert all(share.num_tokens == alone.num_tokens and share.text_bytes == alone.text_bytes for share in shares)
    assert all(sum(batch["lengths"]) <= 2 * 64 for batch in alone.microbatches)
    mask_id = load_tokenizer(corpus.tokenizer).mask_token_id
    for batch in alone.microbatches:
        assert (batch["input_ids"][batch["masked"]] == mask_id).all()
        assert len(batch["label_streams"]) == len(batch["masked"]) == len(batch["targets"]) == batch["num_labels"]


def test_bits_are_the_mean_loss_times_all_tokens(corpus: Corpus, tmp_path: Path) -> None:
    heldout = heldout_of(corpus, tmp_path, 0, 1)
    sums = np.array([[4, 4 * UNITS * 3, 1]] * 3)
    for place, found in enumerate(heldout.bits(sums).values()):
        assert found.bits == pytest.approx(3 * heldout.num_tokens[place] / np.log(2))
        assert (found.text_bytes, found.labels) == (heldout.text_bytes[place], 4)


def test_some_rows_stand_for_their_share_of_the_bytes(corpus: Corpus, tmp_path: Path) -> None:
    few, everything = (heldout_of(corpus, tmp_path / o, 0, 1, f"validation.rows={o}") for o in ("1", "null"))
    manifests = check_validation(
        load_config(tmp_path / "1" / "0" / "phase1.yaml", [validated(corpus)]), load_tokenizer(corpus.tokenizer)
    )
    assert everything.text_bytes == [manifest.text_bytes for manifest in manifests]
    for place, manifest in enumerate(manifests):
        tokens = sum(len(ids) for ids in read_heldout(corpus.shards[64], manifest, 1).documents)
        assert tokens <= 64 < manifest.tokens
        assert few.text_bytes[place] == round(manifest.text_bytes * tokens / manifest.tokens)


def test_documents_fill_microbatches_in_order() -> None:
    assert filled([3, 3, 3, 9, 2, 8], 8) == [range(0, 2), range(2, 3), range(3, 4), range(4, 5), range(5, 6)]
    assert filled([1, 2, 5], 8) == [range(0, 3)]
    assert filled([], 8) == []


def test_every_language_counts_alike_in_the_mean() -> None:
    assert metrics({"web/fao": LanguageBits(300.0, 100, 7), "web/isl": LanguageBits(1000.0, 1000, 9)}) == {
        "validation/bits_per_byte/fao": 3.0,
        "validation/bits_per_byte/isl": 1.0,
        "validation/mean_bits_per_byte": 2.0,
    }


def test_few_languages_are_listed_and_what_rests_on_few_tokens_is_marked() -> None:
    assert listed({"fao": (3.214, 999), "isl": (2.98, 1000)}) == (
        " (fao 3.21*, isl 2.98; *: fewer than 1,000 masked tokens)"
    )
    assert listed({"isl": (2.98, 1000)}) == " (isl 2.98)"
    assert listed({str(number): (1.0, 1000) for number in range(12)}) != ""
    assert listed({str(number): (1.0, 1000) for number in range(13)}) == ""


def tell_beats(file: str) -> None:
    """Append what the watchdog is told to a file."""
    from mmbert.watchdog import Watchdog

    beat = Watchdog.beat

    def changed(self: Any, doing: str) -> None:
        with open(file, "a") as beats:
            beats.write(doing + "\n")
        beat(self, doing)

    replace(Watchdog, "beat", changed)


def test_the_watchdog_hears_of_every_microbatch(corpus: Corpus, tmp_path: Path) -> None:
    yaml = prepare(tmp_path / "it", corpus)
    few = [validated(corpus), "duration=1000", "device_train_microbatch_size=1"]
    outcome = train([yaml, *few], tmp_path / "s.jsonl", changes=[partial(tell_beats, str(tmp_path / "beats"))])
    assert outcome.exit_code == 0, outcome.output
    beats = [line for line in (tmp_path / "beats").read_text().splitlines() if "validating" in line]
    assert len(beats) > 3
    assert beats == [f"rank 0, validating, microbatch {number + 1}" for number in range(len(beats))]


@pytest.mark.parametrize(
    "override, words",
    [
        ("validation.languages=[laa, lax]", ["validation: ", "heldout/invented/lax does not exist", "did you mean"]),
        ("validation.source=invent", ["validation: ", "invent"]),
        ("validation.interval=0", ["validation.interval = 0 must be above 0"]),
        ("validation.rows=0", ["validation.rows = 0 must be above 0"]),
        ("max_seq_len=63", ["row_length"]),
        ("validation.languages=[laa, laa]", ["validation.languages: listed twice: laa"]),
        ("validation.intervall=1", ["unknown key validation.intervall; did you mean interval?"]),
        ("logging.scores_interval_batches=0", ["logging.scores_interval_batches = 0 must be above 0"]),
    ],
)
def test_bad_input_is_refused_in_one_line(corpus: Corpus, tmp_path: Path, override: str, words: list[str]) -> None:
    from main import main

    with pytest.raises(SystemExit) as refusal:
        main([str(prepare(tmp_path / "it", corpus)), validated(corpus), override])
    message = str(refusal.value.code)
    assert message.startswith("error: ")
    assert "\n" not in message
    assert all(word in message for word in words), message


def test_rows_longer_than_the_runs_are_refused(corpus: Corpus, tmp_path: Path) -> None:
    from main import main

    with pytest.raises(SystemExit, match="has rows of 128 tokens, the run's max_seq_len is 64"):
        main([str(prepare(tmp_path / "it", corpus)), validated(corpus), f"validation.root={corpus.shards[128]}"])
