"""The real trainer: accumulation, chaining, killing and resuming, refusals; on three tiny phases."""
import json
import os
import shutil
import signal
import subprocess
import sys
import zlib
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mmbert.checkpoint import newest_checkpoint, read_state, step_folders
from mmbert.config import load_config
from mmbert.data import Microbatches, PhaseData, build_data
from mmbert.ledger import read_ledger
from mmbert.masking import Vocabulary, mask_batch
from mmbert.ranks import Ranks
from mmbert.tokenizer import load_tokenizer
from tests.conftest import Corpus
from tests.training_runs import Outcome, prepare, train, write_yamls


def test_phases_run_to_their_duration_and_are_marked_finished(finished: tuple[Path, dict[str, Outcome]]) -> None:
    folder, outcomes = finished
    for phase, outcome in outcomes.items():
        state = read_state(newest_checkpoint(folder / "runs" / phase))
        assert state["finished"]
        assert state["tokens"] == outcome.steps[-1]["tokens"] >= 5000
        assert sum(state["tokens_per_stream"].values()) == state["tokens"]
        assert [row for step in outcome.steps for row in step["rows"]] == list(range(state["rows"]))


def test_a_finished_run_whose_last_checkpoint_a_kill_had_hidden_is_finished(
    corpus: Corpus, finished: tuple[Path, dict[str, Outcome]], tmp_path: Path
) -> None:
    """The kill came while that checkpoint was replaced by itself."""
    yaml = prepare(tmp_path / "it", corpus, copied={"phase1": finished[0] / "runs" / "phase1"})
    newest = newest_checkpoint(tmp_path / "it" / "runs" / "phase1")
    newest.rename(newest.with_name(f".{newest.name}.old"))
    outcome = train([yaml], tmp_path / "steps.jsonl")
    assert outcome.exit_code == 0, outcome.output
    assert not outcome.steps
    assert newest_checkpoint(newest.parent) == newest


def test_only_the_newest_checkpoints_stay(finished: tuple[Path, dict[str, Outcome]]) -> None:
    assert len(step_folders(finished[0] / "runs" / "phase1")) == 2


def test_a_phase_has_its_own_numbers_from_its_very_first_step(finished: tuple[Path, dict[str, Outcome]]) -> None:
    folder, outcomes = finished
    first, second = outcomes["phase1"], outcomes["phase2"]
    assert first.steps[0]["lr"] == 0.0  # its warm-up begins
    assert first.steps[-1]["lr"] == 3.0e-3
    step = second.steps[0]
    assert step["lr"] == step["max_lr"] == 1.0e-3
    assert step["weight_decay"] == [0.01, 0.0]
    assert step["betas"] == [0.9, 0.95]
    assert step["masked"] == pytest.approx(0.15, abs=0.08)
    assert outcomes["phase1"].steps[0]["masked"] > 0.2
    config = read_state(newest_checkpoint(folder / "runs" / "phase2"))["config"]
    assert config["model"]["global_rope_theta"] == config["model"]["local_rope_theta"] == 160000
    assert step["rows"] == [0, 1]


def test_each_batch_is_masked_at_the_rate_of_its_first_token(finished: tuple[Path, dict[str, Outcome]]) -> None:
    """Phase 3's rate falls from 15 % to 5 %: the same ids, masked here at the rate of a straight line, are the same."""
    folder, outcomes = finished
    config = load_config(folder / "phase3.yaml")
    tokenizer = load_tokenizer(Path(config.tokenizer))
    vocabulary = Vocabulary(tokenizer.vocab_size, tokenizer.mask_token_id, tokenizer.special_token_ids)
    data = PhaseData.open(config, tokenizer)
    batches = build_data(config, data, 0, Ranks(0, 1, None), Microbatches()).dataloader
    tokens = 0
    for step, batch in zip(outcomes["phase3"].steps, batches, strict=False):  # the loader has no end
        masked = mask_batch(batch, config.phase_seed, 0.15 - 0.10 * tokens / config.duration, vocabulary)
        assert zlib.crc32(masked["input_ids"].tobytes()) == step["ids"]
        tokens = step["tokens"]


def test_a_phases_tau_is_that_of_its_largest_group_of_languages(corpus: Corpus, tmp_path: Path) -> None:
    """As in the paper's phase 1, where the small Wikipedia group has one language more than FineWeb2's."""
    write_yamls(tmp_path, corpus)
    wide = "data.mixture.wide={source: invented, languages: [lac, lad, lae], share: 0.1}"
    arguments = [tmp_path / "phase1.yaml", "duration=1000", wide, "data.mixture.large.share=0.9"]
    assert train(arguments, tmp_path / "phase1.jsonl").exit_code == 0
    assert read_state(newest_checkpoint(tmp_path / "runs" / "phase1"))["tau"] == 0.7


def test_weights_and_moments_carry_over_to_the_next_phase(
    corpus: Corpus, finished: tuple[Path, dict[str, Outcome]], tmp_path: Path
) -> None:
    """With a learning rate of zero the first step of the new phase leaves the parent's weights as they are."""
    folder, outcomes = finished
    write_yamls(tmp_path, corpus)
    shutil.copytree(folder / "runs" / "phase1", tmp_path / "runs" / "phase1")
    arguments = [tmp_path / "phase2.yaml", "duration=100", "learning_rate.warmup=100", "checkpoint.interval=100"]
    outcome = train(arguments, tmp_path / "phase2.jsonl")
    assert outcome.exit_code == 0, outcome.output
    parent, child = (newest_checkpoint(tmp_path / "runs" / phase) for phase in ("phase1", "phase2"))
    weights, carried = load_file(parent / "model.safetensors"), load_file(child / "model.safetensors")
    assert all(torch.equal(weights[name], carried[name]) for name in weights)
    assert outcome.steps[0]["optimizer_step"] == outcomes["phase1"].steps[-1]["optimizer_step"] + 1
    before, after = load_file(parent / "optimizer.safetensors"), load_file(child / "optimizer.safetensors")
    name = "exp_avg_sq.model.layers.1.mlp.Wi.weight"
    step = outcome.steps[0]["optimizer_step"]
    kept = (0.95**step - 0.95) / (0.95**step - 1)  # the debiased beta2 of that step
    assert (after[name] >= before[name] * (kept - 1e-6)).all()  # what is added is a square
    assert (after[name] != before[name]).any()


@pytest.mark.fault(2, 14)
@pytest.mark.parametrize("phase, kills", [("phase1", (3, 9, 20)), ("phase3", (2, 11))])
def test_killed_runs_go_on_bit_for_bit(
    corpus: Corpus, finished: tuple[Path, dict[str, Outcome]], tmp_path: Path, phase: str, kills: tuple[int, ...]
) -> None:
    """SIGKILL at several steps, the same command again, dropout 0.1: every loss, mask, batch and final weight equal."""
    folder, outcomes = finished
    write_yamls(tmp_path, corpus)
    if phase == "phase3":
        shutil.copytree(folder / "runs" / "phase2", tmp_path / "runs" / "phase2")
    record = tmp_path / "steps.jsonl"
    for kill in kills:
        assert train([tmp_path / f"{phase}.yaml"], record, kill_at=kill).exit_code == -9
    outcome = train([tmp_path / f"{phase}.yaml", "data.num_workers=2"], record)
    assert outcome.exit_code == 0, outcome.output
    uninterrupted = {step["step"]: step for step in outcomes[phase].steps}
    assert len(outcome.steps) > len(uninterrupted)  # some steps were done twice: the kills came between checkpoints
    assert all(step == uninterrupted[step["step"]] for step in outcome.steps)
    own, other = (newest_checkpoint(root / "runs" / phase) for root in (tmp_path, folder))
    for name in ("model.safetensors", "optimizer.safetensors"):
        assert (own / name).read_bytes() == (other / name).read_bytes()
    assert read_state(own)["tokens_per_stream"] == read_state(other)["tokens_per_stream"]


@pytest.mark.fault(1, 14)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1], ids=str)
def test_a_run_that_is_asked_to_stop_saves_its_last_step_and_goes_on_bit_for_bit(
    corpus: Corpus, finished: tuple[Path, dict[str, Outcome]], tmp_path: Path, number: signal.Signals
) -> None:
    folder, outcomes = finished
    write_yamls(tmp_path, corpus)
    stopped = train([tmp_path / "phase1.yaml"], tmp_path / "steps.jsonl", kill_at=7, number=number)
    assert stopped.exit_code == 85, stopped.output
    assert "the same command goes on with it" in stopped.output
    last = stopped.steps[-1]["step"]
    assert last in (7, 8)  # 8 when the signal came too late for its step
    assert read_state(newest_checkpoint(tmp_path / "runs" / "phase1"))["step"] == last
    outcome = train([tmp_path / "phase1.yaml"], tmp_path / "steps.jsonl")
    assert outcome.exit_code == 0, outcome.output
    assert outcome.steps == outcomes["phase1"].steps  # every step once
    own, other = (newest_checkpoint(root / "runs" / "phase1") for root in (tmp_path, folder))
    assert (own / "model.safetensors").read_bytes() == (other / "model.safetensors").read_bytes()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_killed_runs_go_on_on_a_gpu(corpus: Corpus, tmp_path: Path) -> None:
    """In bf16: the moments fit, so the losses go on where they were."""
    write_yamls(tmp_path, corpus)
    arguments = [tmp_path / "phase1.yaml", "device=gpu", "precision=amp_bf16"]
    whole = train([*arguments, f"run_root={tmp_path}/whole"], tmp_path / "whole.jsonl")
    assert train(arguments, tmp_path / "killed.jsonl", kill_at=9).exit_code == -9
    killed = train(arguments, tmp_path / "killed.jsonl")
    assert killed.exit_code == whole.exit_code == 0, killed.output
    for one, other in zip(killed.steps[-10:], whole.steps[-10:], strict=True):
        assert one["ids"] == other["ids"]
        assert float.fromhex(one["loss"]) == pytest.approx(float.fromhex(other["loss"]), rel=1e-2)


def test_a_finished_phase_is_left_alone(finished: tuple[Path, dict[str, Outcome]], tmp_path: Path) -> None:
    folder, _ = finished
    before = {path: path.stat().st_mtime_ns for path in (folder / "runs").rglob("*") if path.name != "lock"}
    outcome = train([folder / "phase2.yaml"], tmp_path / "steps.jsonl")
    assert outcome.exit_code == 0
    assert not outcome.steps
    assert before == {path: path.stat().st_mtime_ns for path in (folder / "runs").rglob("*") if path.name != "lock"}


@pytest.mark.fault(20)
def test_a_phase_whose_parent_was_trained_anew_is_refused_and_one_whose_parent_is_gone_is_not(
    corpus: Corpus, finished: tuple[Path, dict[str, Outcome]], tmp_path: Path
) -> None:
    parent, record = finished[0] / "runs" / "phase1", tmp_path / "steps.jsonl"
    yaml = prepare(tmp_path / "it", corpus, "phase2", {"phase1": parent})
    runs = yaml.parent / "runs"
    assert train([yaml], record, kill_at=13).exit_code == -9
    shutil.copytree(runs / "phase2", tmp_path / "begun")
    shutil.rmtree(runs / "phase1")
    for _ in ("goes on", "is finished"):
        assert train([yaml], record).exit_code == 0
    shutil.copytree(runs / "phase2", tmp_path / "ended")
    assert train([yaml.with_name("phase1.yaml"), "optimizer.lr=0.002"], tmp_path / "anew.jsonl").exit_code == 0
    for state in ("ended", "begun"):
        shutil.rmtree(runs / "phase2")
        shutil.copytree(tmp_path / state, runs / "phase2")
        outcome = train([yaml], record)
        assert outcome.exit_code == 1
        assert f"{runs}/phase2 began with other weights than phase1 has now" in outcome.output
    shutil.rmtree(runs / "phase1")
    shutil.copytree(parent, runs / "phase1")
    assert train([yaml], record).exit_code == 0


def test_microbatches_give_the_same_weights(corpus: Corpus, tmp_path: Path) -> None:
    """23 steps of 2, 4, 6 and then 8 rows, no dropout, microbatches of 1, 3 and 8: within 1e-6 of the weights' norm.

    No single tensor differs by 1e-5: the optimizer divides each gradient by its own size, rounding included.
    """
    write_yamls(tmp_path, corpus)
    weights = {}
    for rows in (8, 3, 1):
        arguments = [
            tmp_path / "phase1.yaml",
            f"run_root={tmp_path}/{rows}",
            f"device_train_microbatch_size={rows}",
            "global_train_batch_size=8",
            "batch_size_warmup={start: 2, tokens: 1280}",
            "model.attn_out_dropout=0.0",
            "duration=10300",
            "checkpoint.interval=1M",
        ]
        outcome = train(arguments, tmp_path / f"{rows}.jsonl")
        assert outcome.exit_code == 0, outcome.output
        assert [len(step["rows"]) for step in outcome.steps[:7]] == [2, 2, 4, 4, 6, 6, 8]
        assert len(outcome.steps) >= 20
        weights[rows] = load_file(newest_checkpoint(tmp_path / str(rows) / "phase1") / "model.safetensors")
    norm = torch.stack([whole.norm() for whole in weights[8].values()]).norm()
    for rows in (3, 1):
        differences = {name: (weights[rows][name] - whole).norm() for name, whole in weights[8].items()}
        assert torch.stack(list(differences.values())).norm() / norm < 1e-6
        relative = {name: float(d / weights[8][name].norm().clamp_min(1e-3)) for name, d in differences.items()}
        assert max(relative.values()) < 1e-5, relative


@pytest.mark.fault(22)
def test_two_ranks_train_as_one(corpus: Corpus, tmp_path: Path) -> None:
    """Composer's launcher, gloo, no dropout, batch and learning rate warming up: the same rows, masks and rates, and
    weights within fp32 rounding."""
    write_yamls(tmp_path, corpus)
    own = [f"{tmp_path}/phase1.yaml", "model.attn_out_dropout=0.0", "duration=2500"]
    own.append("batch_size_warmup={start: 2, tokens: 500}")
    alone = train([*own, f"run_root={tmp_path}/alone"], tmp_path / "alone.jsonl")
    assert alone.exit_code == 0, alone.output
    launcher = [str(Path(sys.executable).with_name("composer")), "-n", "2", "main.py", *own, f"run_root={tmp_path}/two"]
    launched = subprocess.run(
        launcher, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=240
    )
    assert launched.returncode == 0, launched.stdout + launched.stderr
    one, two = (newest_checkpoint(tmp_path / root / "phase1") for root in ("alone", "two"))
    for key in ("tokens", "rows", "tokens_per_stream"):
        assert read_state(one)[key] == read_state(two)[key]
    first, second = (read_ledger(tmp_path / root / "phase1").steps for root in ("alone", "two"))
    for step, other in zip(first, second, strict=True):
        assert (step.first_row, step.num_rows, step.tokens) == (other.first_row, other.num_rows, other.tokens)
        assert step.learning_rate == other.learning_rate
    assert {step.num_rows for step in first} == {2, 4}
    assert len({step.learning_rate for step in first}) > 5
    weights, others = load_file(one / "model.safetensors"), load_file(two / "model.safetensors")
    for name, weight in weights.items():
        assert (others[name] - weight).norm() / weight.norm().clamp_min(1e-3) < 1e-5, name


def refusals(corpus: Corpus, folder: Path) -> dict[str, tuple[list[str], list[str]]]:
    """Bad input -> (arguments, words of the error)."""
    shards, phase1 = corpus.shards[64], str(folder / "phase1.yaml")
    other = folder / "other-tokenizer"
    return {
        "missing shard folder": ([phase1, "data.root=/nowhere"], ["/nowhere", "does not exist"]),
        "unknown language": (
            [phase1, "data.mixture.large.languages=[laa, lax]"],
            ["invented/lax does not exist; did you mean", "or leave lax out"],
        ),
        "language listed twice": ([phase1, "data.mixture.large.languages=[laa, laa]"], ["listed twice: laa"]),
        "no language": ([phase1, "data.mixture.large.languages=[]"], ["large.languages: no language; name one"]),
        "missing list": ([phase1, "data.mixture.large.languages=[no.txt]"], ["no such file: no.txt"]),
        "longer rows than the shards'": ([phase1, "max_seq_len=100"], [str(shards), "row_length is 64"]),
        "missing parent": ([str(folder / "phase2.yaml"), "parent=phase7"], ["phase7", "no such run"]),
        "missing tokenizer": ([phase1, f"tokenizer={other}"], [str(other), "does not exist"]),
        "too small a vocabulary": ([phase1, "model.vocab_size=100"], ["model.vocab_size = 100", "512"]),
        "output that is a file": ([phase1, f"run_root={phase1}"], [phase1]),
        "caps that cannot be met": ([phase1, "data.mixture.large.max_repeats=0.01"], ["raise max_repeats to at least"]),
        "too high a floor": ([phase1, "data.mixture.large.floor=0.6"], ["floor 0.6 for each of 2 languages is 1.20"]),
        "a floor above a cap": (
            [phase1, "data.mixture.large={floor: 0.49, max_repeats: 0.94}"],
            ["max_repeats 0.94 allows to 1 of 2 languages, laa first", "lower the floor to at most"],
        ),
        "unknown key": ([phase1, "mask_rat=0.1"], ["did you mean mask_rate?"]),
        "missing file": ([str(folder / "phase9.yaml")], ["no such configuration"]),
    }


@pytest.mark.parametrize("case", list(refusals(Corpus(Path(), {64: Path()}), Path())))
def test_bad_input_ends_in_one_clear_line(
    corpus: Corpus, tmp_path: Path, case: str
) -> None:
    from main import main

    write_yamls(tmp_path, corpus)
    arguments, words = refusals(corpus, tmp_path)[case]
    with pytest.raises(SystemExit) as refusal:
        main(arguments)
    message = str(refusal.value.code)
    assert message.startswith("error: ")
    assert "\n" not in message
    for word in words:
        assert word in message
    assert not list(tmp_path.glob("runs/*/step-*"))


def test_a_missing_parent_is_told_with_the_runs_that_there_are(corpus: Corpus, tmp_path: Path) -> None:
    """What else lies in run_root, the plan's folder for one, is no run."""
    from main import main

    write_yamls(tmp_path, corpus)
    for folder in ("plan", "phase0/step-0000000012"):
        (tmp_path / "runs" / folder).mkdir(parents=True)
    with pytest.raises(SystemExit, match=r"no such run .*phase7; there are phase0$"):
        main([str(tmp_path / "phase2.yaml"), "parent=phase7"])


@pytest.mark.parametrize("change, missing", [
    ("tokenizer=data/tokenizer", "tokenizer folder data/tokenizer does not exist"),
    ("data.root=data/rows", "data/rows/train/invented/laa does not exist, nor does data/rows/train/invented"),
    ("data.mixture.large.languages=[data/list.txt]", "no such file: data/list.txt"),
])  # fmt: skip
def test_of_a_relative_path_the_error_says_where_it_was_looked_for(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str, missing: str
) -> None:
    """A YAML that was written in the root of the repository, and is trained elsewhere."""
    from main import main

    write_yamls(tmp_path, corpus)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as refusal:
        main(["phase1.yaml", change])
    assert f"{missing} below {tmp_path} (run this in the root of the repository)" in str(refusal.value.code)


def test_a_gpu_that_torch_does_not_see_is_told_before_a_run_begins(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from main import main

    write_yamls(tmp_path, corpus)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    told = r"^error: device = gpu, but torch finds no GPU here: .*; mend that, or write device: cpu$"
    with pytest.raises(SystemExit, match=told):
        main([str(tmp_path / "phase1.yaml"), "device=gpu"])


def test_shards_of_another_tokenizer_are_refused(corpus: Corpus, tmp_path: Path) -> None:
    from main import main

    write_yamls(tmp_path, corpus)
    shutil.copytree(corpus.tokenizer, tmp_path / "tokenizer")
    path = tmp_path / "tokenizer" / "tokenizer.json"
    path.write_text(json.dumps(json.loads(path.read_text()), indent=1))  # the same tokenizer to the eye, another digest
    with pytest.raises(SystemExit, match="name the tokenizer that made the rows"):
        main([str(tmp_path / "phase1.yaml"), f"tokenizer={tmp_path}/tokenizer"])


def test_the_saved_configuration_builds_the_same_run(finished: tuple[Path, dict[str, Outcome]]) -> None:
    folder, _ = finished
    saved = read_state(newest_checkpoint(folder / "runs" / "phase3"))["config"]
    assert saved == json.loads(json.dumps(asdict(load_config(folder / "phase3.yaml"))))
