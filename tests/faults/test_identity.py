"""Rows 19 and 20: what may change between a run and its restart and what may not, and phases that follow each other."""
import json
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from data_prep.inputs import find_inputs
from data_prep.prepare import prepare as prepare_text
from data_prep.work import Settings
from mmbert.checkpoint import newest_checkpoint, read_state, step_folders
from mmbert.config import RunConfig, load_config
from mmbert.data import PhaseData
from mmbert.identity import MAY_CHANGE, flatten, within
from mmbert.ranks import Ranks
from mmbert.tokenizer import load_tokenizer
from mmbert.trainer import Phase, check_identity
from tests.conftest import PHASES, SEED, Corpus, Finished
from tests.damage import flip
from tests.faults.injected import send_self
from tests.faults.oracle import check_same_end, check_same_steps, fingerprint
from tests.guards import without_identity_check, without_parent_check
from tests.object_stores import ObjectStore
from tests.training_runs import Outcome, prepare, train, train_ranks

Contents = dict[str, tuple[int, bytes]]


def make_shards(corpus: Corpus, folder: Path, tokenizer: Path, row_length: int, seed: int) -> Path:
    """Shards of the session's texts, made anew."""
    texts = corpus.tokenizer.parent / "text"
    prepare_text(Settings(str(folder), str(tokenizer), row_length, seed=seed), find_inputs(str(texts), "invented"), 1)
    return folder


@pytest.fixture(scope="module")
def other_corpus(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """The same texts and ids, but tokenizer.json is written otherwise: to a digest, another tokenizer."""
    folder = tmp_path_factory.mktemp("other-tokenizer")
    tokenizer = Path(shutil.copytree(corpus.tokenizer, folder / "tokenizer"))
    content = json.loads((tokenizer / "tokenizer.json").read_text())
    (tokenizer / "tokenizer.json").write_text(json.dumps(content, indent=1))
    shards = {length: make_shards(corpus, folder / f"shards-{length}", tokenizer, length, SEED) for length in (64, 128)}
    return Corpus(tokenizer, shards)


def contents(folder: Path) -> Contents:
    """Everything below a folder but the lock: when it was changed, and to what."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != "lock")
    return {str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.read_bytes()) for path in files}


def check_refused(outcome: Outcome, words: list[str]) -> None:
    """It ended with status 1, before its first step, and with one line that has these words."""
    assert outcome.exit_code == 1, outcome.output
    assert not outcome.steps
    errors = [line for line in outcome.output.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert "Traceback" not in outcome.output
    for word in words:
        assert word in errors[0]


def open_phase(config: RunConfig) -> Phase:
    """A phase as a start would see it, without holding its folder."""
    tokenizer = load_tokenizer(Path(config.tokenizer))
    return Phase(config, tokenizer, PhaseData.open(config, tokenizer), Ranks(0, 1, None))


def identity_of(yaml: Path, overrides: list[str]) -> dict[str, Any]:
    """What a start with these overrides would compare with a checkpoint."""
    return open_phase(load_config(yaml, overrides)).identity()


# -------------------------------------------------------------------------------------- 19: a changed recipe or corpus

# Overrides -> the difference that is shown.
CHANGED = {
    "seed=22": "seed was 21, is 22",
    "optimizer.lr=1e-3": "optimizer.lr was 0.003, is 0.001",
    "optimizer.betas=[0.9, 0.98]": "optimizer.betas was [0.9, 0.95], is [0.9, 0.98]",
    "optimizer.weight_decay=0.1": "optimizer.weight_decay was 8e-05, is 0.1",
    "data.mixture.large.tau=0.6": "data.mixture.large.tau.start was 0.7, is 0.6",
    "data.mixture.large.languages=[laa]": "data.mixture.large.languages was ['laa', 'lab'], is ['laa']",
    "data.mixture.large.languages=[lab, laa]": "data.mixture.large.languages was ['laa', 'lab'], is ['lab', 'laa']",
    "data.mixture.large.max_repeats=100": "data.mixture.large.max_repeats was None, is 100.0",
    "data.mixture.large.floor=0.1": "data.mixture.large.floor was None, is 0.1",
    "data.period_rows=48": "data.period_rows was 24, is 48",
    "mask_rate=0.2": "mask_rate.start was 0.3, is 0.2",
    "mask_rate={kind: linear, start: 0.3, end: 0.1}": "mask_rate.end was None, is 0.1",
    "global_train_batch_size=8": "global_train_batch_size was 4, is 8",
    "batch_size_warmup={start: 1, tokens: 640}": "batch_size_warmup.start was None, is 1",
    "duration=6000": "duration was 5000, is 6000",
    "learning_rate.warmup=500": "learning_rate.warmup was 1000, is 500",
    "model.hidden_size=64": "model.hidden_size was 32, is 64",
    "model.attn_out_dropout=0.0": "model.attn_out_dropout was 0.1, is 0.0",
    "model.global_rope_theta=160000": "model.global_rope_theta was 10000.0, is 160000.0",
    "precision=amp_bf16": "precision was 'fp32', is 'amp_bf16'",
    "parent=phase0": "parent was None, is 'phase0'",
    "spikes={sigma: 8, window: 8, patience: 2}": "spikes.sigma was None, is 8.0",
}


@pytest.fixture(scope="module")
def saved_identity(half_done: Path) -> dict[str, Any]:
    """What the checkpoints of the half-done phase 1 hold."""
    return read_state(newest_checkpoint(half_done))["identity"]


@pytest.mark.fault(19)
@pytest.mark.parametrize("override", CHANGED)
def test_a_changed_recipe_is_refused_with_the_difference(
    corpus: Corpus, half_done: Path, saved_identity: dict[str, Any], tmp_path: Path, override: str
) -> None:
    yaml = prepare(tmp_path / "it", corpus)
    assert identity_of(yaml, []) == saved_identity
    with pytest.raises(ValueError, match="was trained with another recipe") as refusal:
        check_identity(newest_checkpoint(half_done), saved_identity, identity_of(yaml, [override]))
    assert CHANGED[override] in str(refusal.value)
    assert str(half_done) in str(refusal.value)
    assert "another `name` and begin it from this checkpoint" in str(refusal.value)  # not as `parent`: it is unfinished
    assert "\n" not in str(refusal.value)


@pytest.mark.fault(19)
def test_every_field_is_compared_or_may_change(
    corpus: Corpus, half_done: Path, saved_identity: dict[str, Any], tmp_path: Path, figures: dict[str, float]
) -> None:
    """Whatever key of the checkpoint has another value, or is missing, is named; two differences are both shown."""
    config = flatten(load_config(prepare(tmp_path / "it", corpus)).as_dict())
    free = {key for key in config if any(within(key, field) for field in MAY_CHANGE)}
    assert all(any(within(key, field) for key in config) for field in MAY_CHANGE)
    others = {"shards.invented/laa", "shards.invented/lab", "tokenizer.digest"}
    assert saved_identity.keys() == (config.keys() - free) | others
    for key, value in saved_identity.items():
        for other in ("another value", None):
            if other == value:
                continue
            changed = {**saved_identity, key: other}
            for one, two in ((saved_identity, changed), (changed, saved_identity)):
                with pytest.raises(ValueError, match="another recipe") as refusal:
                    check_identity(newest_checkpoint(half_done), one, two)
                assert f"{key} was {one[key]!r}, is {two[key]!r};" in str(refusal.value)
    figures["fields that are compared"], figures["fields that may change"] = len(saved_identity), len(free)


@pytest.mark.fault(19)
def test_the_order_of_the_mixtures_groups_changes_nothing_or_is_refused(corpus: Corpus, tmp_path: Path) -> None:
    config = load_config(prepare(tmp_path / "it", corpus, "phase3"))
    groups = dict(reversed(config.data.mixture.items()))
    phases = [open_phase(config), open_phase(replace(config, data=replace(config.data, mixture=groups)))]
    rows = []
    for phase in phases:
        order = phase.data.row_order(phase.config)
        streams, numbers = order.rows_of(next(order.plan.periods()))
        rows.append([(phase.data.names[stream], int(row)) for stream, row in zip(streams, numbers, strict=True)])
    assert rows[0] == rows[1] or phases[0].identity() != phases[1].identity()


@pytest.mark.fault(19)
def test_a_refused_start_leaves_the_runs_folder_as_it_was(
    corpus: Corpus, other_corpus: Corpus, half_done: Path, tmp_path: Path, figures: dict[str, float]
) -> None:
    yaml = prepare(tmp_path / "it", corpus, copied={"phase1": half_done})
    run_folder = tmp_path / "it" / "runs" / "phase1"
    remade = make_shards(corpus, tmp_path / "remade", corpus.tokenizer, 64, seed=1)
    cases = {
        "seed was 21, is 22": ["seed=22"],
        "global_train_batch_size was 4, is 8": ["global_train_batch_size=8"],
        "shards.invented/laa was": [f"data.root={remade}"],
        "tokenizer.digest was": [f"tokenizer={other_corpus.tokenizer}", f"data.root={other_corpus.shards[64]}"],
    }
    before = contents(run_folder)
    for words, arguments in cases.items():
        check_refused(train([yaml, *arguments], tmp_path / "x.jsonl"), ["was trained with another recipe", words])
        assert contents(run_folder) == before
    figures["real runs refused"] = len(cases)


@pytest.mark.fault(19)
def test_ranks_that_were_given_different_things_are_refused(corpus: Corpus, tmp_path: Path) -> None:
    """As on two machines, each with a command and a copy of the rows of its own."""
    remade = make_shards(corpus, tmp_path / "remade", corpus.tokenizer, 64, seed=1)
    validation = f"{{interval: 900, root: {corpus.shards[64]}, source: invented, languages: [lac]}}"
    cases = {
        "rank 1: seed is 5 here, 21 on rank 0; give all": ["seed=5"],
        "rank 1: global_train_batch_size is 6 here, 4 on rank 0; give all": ["global_train_batch_size=6"],
        "rank 1: shards.invented/laa is ": [f"data.root={remade}"],
        "validation.source is 'invented' here, None on rank 0; ": [f"validation={validation}"],
    }
    for number, (words, arguments) in enumerate(cases.items()):
        yaml = prepare(tmp_path / str(number), corpus)
        for outcome in train_ranks([yaml], tmp_path / f"{number}.jsonl", more={1: arguments}):
            check_refused(outcome, [words])
        assert not (tmp_path / str(number) / "runs" / "phase1").exists()


@pytest.mark.fault(19)
def test_ranks_may_have_their_files_elsewhere_and_be_as_fast_as_they_are(corpus: Corpus, tmp_path: Path) -> None:
    yaml, copy = prepare(tmp_path / "it", corpus), shutil.copytree(corpus.shards[64], tmp_path / "copy")
    arguments = [f"data.root={copy}", "data.num_workers=1", "device_train_microbatch_size=1", "hang_minutes=25"]
    for outcome in train_ranks([yaml, "duration=1000"], tmp_path / "x.jsonl", more={1: arguments}):
        assert outcome.exit_code == 0, outcome.output


@pytest.mark.fault(19)
@pytest.mark.parametrize("override", ["optimizer.lr=1e-3", "duration=6000"])
def test_a_finished_run_does_not_pass_for_one_of_another_recipe(
    corpus: Corpus, finished: Finished, tmp_path: Path, override: str
) -> None:
    yaml = prepare(tmp_path / "it", corpus, copied={"phase1": finished[0] / "runs" / "phase1"})
    before = contents(tmp_path / "it" / "runs")
    outcome = train([yaml, override], tmp_path / "x.jsonl")
    check_refused(outcome, ["was trained with another recipe", CHANGED[override]])
    assert contents(tmp_path / "it" / "runs") == before


@pytest.mark.fault(19)
def test_a_resumed_run_may_change_all_that_changes_no_row(
    corpus: Corpus, half_done: Path, finished: Finished, store: ObjectStore, tmp_path: Path
) -> None:
    """All at once but the size of microbatches, to the same final bits."""
    yaml = prepare(tmp_path / "it", corpus, copied={"phase1": half_done})  # another run_root
    url = store.upload(corpus.shards[64], "elsewhere")
    changed = {
        "run_root": [],
        "tokenizer": [f"tokenizer={shutil.copytree(corpus.tokenizer, tmp_path / 'tokenizer')}"],
        "device": ["device=cpu"] if torch.cuda.is_available() else ["device=auto"],
        "device_train_microbatch_size": [],  # see below
        "logging": ["logging.interval_batches=3"],
        "validation": [
            f"validation={{interval: 900, root: {corpus.shards[64]}, source: invented, languages: [lac], rows: 1}}"
        ],
        "checkpoint": ["checkpoint={interval: 700, keep: 1, keep_every: 5M, give_up_minutes: 1}"],
        "data.root": [f"data.root={url}"],
        "data.cache": [f"data.cache={tmp_path / 'cache'}"],
        "data.cache_limit": ["data.cache_limit=1GB"],
        "data.num_workers": ["data.num_workers=3"],
        "max_minutes": ["max_minutes=30"],
        "hang_minutes": ["hang_minutes=10"],
        "model.attention": ["model.attention=cpu"],
    }
    assert changed.keys() == MAY_CHANGE
    arguments = [yaml, *(one for overrides in changed.values() for one in overrides)]
    outcome = train(arguments, tmp_path / "x.jsonl", environment=store.environment)
    assert outcome.exit_code == 0, outcome.output
    check_same_end(tmp_path / "it" / "runs" / "phase1", finished[0] / "runs" / "phase1")


@pytest.mark.fault(19)
@pytest.mark.long
def test_microbatches_of_another_size_go_on_to_the_same_weights_within_rounding(corpus: Corpus, tmp_path: Path) -> None:
    arguments = ["model.attn_out_dropout=0.0", "device_train_microbatch_size=4"]
    assert train([prepare(tmp_path / "whole", corpus), *arguments], tmp_path / "whole.jsonl").exit_code == 0
    yaml, record = prepare(tmp_path / "it", corpus), tmp_path / "steps.jsonl"
    assert train([yaml, *arguments], record, kill_at=11).exit_code == -signal.SIGKILL
    assert train([yaml, *arguments, "device_train_microbatch_size=1"], record).exit_code == 0
    one, two = (
        load_file(newest_checkpoint(tmp_path / name / "runs" / "phase1") / "model.safetensors")
        for name in ("whole", "it")
    )
    norm = torch.stack([weight.norm() for weight in one.values()]).norm()
    assert torch.stack([(weight - one[name]).norm() for name, weight in two.items()]).norm() / norm < 1e-6


@pytest.mark.fault(19, control=True)
def test_without_the_check_another_recipe_is_taken_over_in_silence(
    corpus: Corpus, half_done: Path, finished: Finished, tmp_path: Path
) -> None:
    """Another learning rate and seed are taken over without a word, and other weights come of it."""
    yaml = prepare(tmp_path / "it", corpus, copied={"phase1": half_done})
    changed = [yaml, "optimizer.lr=1e-3", "seed=22"]
    outcome = train(changed, tmp_path / "x.jsonl", changes=[without_identity_check])
    assert outcome.exit_code == 0, outcome.output
    assert "recipe" not in outcome.output
    assert fingerprint(tmp_path / "it" / "runs" / "phase1") != fingerprint(finished[0] / "runs" / "phase1")


# ----------------------------------------------------------------------------------- 20: phases that follow each other


def kills_of(phase: str, last: int) -> list[int]:
    """Steps at whose end a phase of the chain is killed, one start after the other; 0 is before the first."""
    begin = [] if phase == "phase1" else [0, 1, 2]
    end = [last - 1, last]  # the last one is done, and not saved
    return begin + ([] if phase == "phase3" else end)


def train_with_kills(yaml: Path, record: Path, kills: list[int]) -> Outcome:
    """Start a phase anew after each kill, and let it end."""
    before_the_first = partial(send_self, "build_data", signal.SIGKILL)
    for step in kills:
        killed = train([yaml], record, kill_at=step, changes=[] if step else [before_the_first])
        assert killed.exit_code == -signal.SIGKILL, killed.output
    outcome = train([yaml], record)
    assert outcome.exit_code == 0, outcome.output
    return outcome


@pytest.mark.fault(20)
@pytest.mark.long
def test_a_chain_that_is_killed_around_each_border_ends_with_the_same_bits(
    corpus: Corpus, finished: Finished, tmp_path: Path, figures: dict[str, float]
) -> None:
    prepare(tmp_path / "it", corpus)
    for phase in PHASES:
        kills = kills_of(phase, finished[1][phase].steps[-1]["step"])
        outcome = train_with_kills(tmp_path / "it" / f"{phase}.yaml", tmp_path / f"{phase}.jsonl", kills)
        check_same_steps(outcome, finished[1][phase])
        check_same_end(tmp_path / "it" / "runs" / phase, finished[0] / "runs" / phase)
        figures["kills"] = figures.get("kills", 0) + len(kills)


def flip_a_bit(run_folder: Path) -> None:
    """Of the weights of the newest checkpoint: the ones before it are not the run's last."""
    flip(newest_checkpoint(run_folder) / "model.safetensors")


def leave_alone(run_folder: Path) -> None:
    """The parent is as it was left."""


OTHER_ENCODER = ["num_attention_heads=1", "norm_eps=1e-6", "local_attention=64", "global_attn_every_n_layers=2",
                 "global_rope_theta=9999"]  # fmt: skip
# Case -> (whether the parent is finished, what happens to it, overrides, words of the error).
BAD_PARENTS: dict[str, tuple[bool | None, Callable[[Path], None], list[str], list[str]]] = {
    "half finished": (False, leave_alone, [], ["parent = 'phase1' is unfinished", "of 5,000 tokens", "to its end"]),
    "last checkpoint broken": (True, flip_a_bit, [], ["parent = 'phase1' is unfinished"]),
    "missing": (None, leave_alone, [], ["parent = 'phase1': no such run"]),
    "misspelt": (True, leave_alone, ["parent=phase_1"], ["parent = 'phase_1': no such run", "there are phase1"]),
    "itself": (None, leave_alone, ["parent=phase2"], ["phase2"]),
    "another shape": (True, leave_alone, ["model.hidden_size=48"], ["model.safetensors", "model."]),
    "another encoder": (
        True, leave_alone, [f"model.{key}" for key in OTHER_ENCODER],
        ["parent = 'phase1' has another encoder: ", *(f"model.{key.partition('=')[0]} was " for key in OTHER_ENCODER)],
    ),
    "another depth": (True, leave_alone, ["model.num_hidden_layers=4"], ["model.safetensors", "model."]),
}


@pytest.mark.fault(20)
@pytest.mark.parametrize("case", BAD_PARENTS)
def test_a_parent_that_cannot_be_gone_on_with_is_refused(
    corpus: Corpus, half_done: Path, finished: Finished, tmp_path: Path, case: str
) -> None:
    is_done, damage, overrides, words = BAD_PARENTS[case]
    parent = half_done if is_done is False else finished[0] / "runs" / "phase1"
    yaml = prepare(tmp_path / "it", corpus, "phase2", {} if is_done is None else {"phase1": parent})
    runs = tmp_path / "it" / "runs"
    if is_done is not None:
        damage(runs / "phase1")
    before = contents(runs / "phase1")
    check_refused(train([yaml, *overrides], tmp_path / "x.jsonl"), words)
    assert contents(runs / "phase1") == before
    assert not step_folders(runs / "phase2")


@pytest.mark.fault(20)
def test_a_parent_of_another_tokenizer_is_refused(
    corpus: Corpus, other_corpus: Corpus, finished: Finished, tmp_path: Path
) -> None:
    yaml = prepare(tmp_path / "it", corpus, "phase2", {"phase1": finished[0] / "runs" / "phase1"})
    arguments = [yaml, f"tokenizer={other_corpus.tokenizer}", f"data.root={other_corpus.shards[128]}"]
    check_refused(train(arguments, tmp_path / "x.jsonl"), ["parent = 'phase1' was trained with another tokenizer"])


@pytest.mark.fault(20, control=True)
def test_without_the_check_a_phase_begins_with_a_half_finished_parent(
    corpus: Corpus, half_done: Path, finished: Finished, tmp_path: Path
) -> None:
    """A phase begins with its parent's weights from the middle of training, and ends with exit status 0."""
    yaml = prepare(tmp_path / "it", corpus, "phase2", {"phase1": half_done})
    outcome = train([yaml], tmp_path / "x.jsonl", changes=[without_parent_check])
    assert outcome.exit_code == 0, outcome.output
    assert fingerprint(tmp_path / "it" / "runs" / "phase2") != fingerprint(finished[0] / "runs" / "phase2")
