"""The plan: its arithmetic against brute force and the real model, its promises against a real training."""
import csv
import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from mmbert import geglu, rope
from mmbert.attention import Packing
from mmbert.checkpoint import checkpoint_bytes, newest_checkpoint, prune, read_state, step_folders
from mmbert.config import ModelConfig, load_config
from mmbert.mixture import Group, Plan
from mmbert.model import MmBertForMaskedLM
from mmbert.plan.chain import Chain, plan_chain
from mmbert.plan.counts import read_counts
from mmbert.plan.facts import duration_of
from mmbert.plan.numbers import activation_bytes, checkpoints_that_stay, num_parameters, saves, stretches
from mmbert.plan.phase import Hardware, learning_rate, plan_phase
from mmbert.plan.text import chain_text
from mmbert.recipe_table import steps
from mmbert.schedules import BatchSizes, Schedule
from mmbert.streams import mixture_streams
from mmbert.untrained_run import first_state
from tests.conftest import Corpus
from tests.tiny_checkpoints import save_tiny
from tests.training_runs import Outcome, prepare, train, write_yamls
from tests.written_streams import write_counts

DEMO = [f"yamls/demo/phase{number}.yaml" for number in (1, 2, 3)]
H100 = Hardware.named(8, "H100", 0.25, None)


# ------------------------------------------------------------------------------------------------------- arithmetic


@pytest.mark.parametrize("shape", ["phase1", "small/phase1", "demo/phase1"])
def test_parameters_and_checkpoints_are_counted_as_the_model_has_them(shape: str) -> None:
    config = load_config(f"yamls/{shape}.yaml")
    with torch.device("meta"):
        model = MmBertForMaskedLM(config.model)
    assert num_parameters(config.model) == sum(parameter.numel() for parameter in model.parameters())
    assert plan_phase("", config, None, None).checkpoint_bytes == checkpoint_bytes(model)


def test_activations_are_what_autograd_keeps(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU's formulas on the CPU, in bf16 autocast, within 2 %.

    There attention's output is held twice, but in the last layer.
    """
    for module in (geglu, rope):
        monkeypatch.setattr(module, "is_compiling", lambda: True)
    model = ModelConfig(
        vocab_size=64, hidden_size=64, intermediate_size=96, num_hidden_layers=4, num_attention_heads=2,
        max_position_embeddings=128, global_rope_theta=1e5, local_rope_theta=1e4, global_attn_every_n_layers=2,
        attn_out_dropout=0.0,
    )  # fmt: skip
    lengths, masked = [128] * 32, 600
    encoder = MmBertForMaskedLM(model)
    weights = {parameter.untyped_storage().data_ptr() for parameter in encoder.parameters()}
    kept: dict[int, torch.Tensor] = {}  # one tensor of every storage, which keeps its place

    def note(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with (
        torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor),
        torch.autocast("cpu", dtype=torch.bfloat16),
    ):
        ids, places = torch.randint(0, 64, (sum(lengths),), dtype=torch.int32), torch.arange(masked)
        encoder.loss(ids, Packing.from_lengths(lengths, ids.device), places, places % 64)
    of_activations = [tensor for tensor in kept.values() if tensor.shape[0] in (1, sum(lengths), masked)]
    measured = sum(tensor.untyped_storage().nbytes() for tensor in of_activations
                   if tensor.untyped_storage().data_ptr() not in weights)  # fmt: skip
    copies = 3 * sum(lengths) * 2 * model.hidden_size
    assert activation_bytes(model, sum(lengths), masked) + copies == pytest.approx(measured, rel=0.02)


@pytest.mark.parametrize("sizes", [BatchSizes([0], [8]), BatchSizes.build(32, 8, 500)], ids=["constant", "growing"])
@pytest.mark.parametrize("needed", [1.0, 8.0, 8.5, 100.25, 499.0, 528.0, 10_000.5])
def test_steps_are_those_of_a_loop_over_batches(sizes: BatchSizes, needed: float) -> None:
    position, taken = 0, []
    while position < needed:
        taken.append(sizes.at(position))
        position += taken[-1]
    found = stretches(sizes, needed)
    assert [stretch.batch_rows for stretch in found for _ in range(stretch.steps)] == taken


def test_a_walk_over_the_periods_agrees_with_the_mixtures_own_sum() -> None:
    rows, tokens = np.array([400, 90, 7]), np.array([25_000, 5_000, 300])
    groups = (Group("a", 1.0, Schedule(0.8, "linear", 0.2), 40.0, np.arange(3)),)
    plan = Plan(groups, rows, tokens, 100_000, 64)
    for moment in (10, 5_000, 100_000):
        read = plan.walk(moment)
        assert read.stream_rows.sum() == pytest.approx(read.rows)
        assert read.stream_rows @ (tokens / rows) == pytest.approx(moment)


@pytest.mark.parametrize("keep, keep_every", [(1, None), (3, None), (2, 350), (1, 1000), (2, 50)])
def test_checkpoints_that_stay_are_those_that_pruning_leaves(tmp_path: Path, keep: int, keep_every: int | None) -> None:
    saved = saves(duration=1250, interval=150, step_tokens=40)
    assert saved == [160, 320, 480, 600, 760, 920, 1080, 1200, 1280]
    most = 0
    for step, tokens in enumerate(saved, start=1):
        save_tiny(tmp_path, step, seed=0, tokens=tokens)
        most = max(most, len(step_folders(tmp_path)))
        prune(tmp_path, keep, keep_every)
    assert checkpoints_that_stay(saved, keep, keep_every) == (len(step_folders(tmp_path)), most)


def test_an_interval_without_its_unit_saves_every_step_and_is_counted_at_once() -> None:
    saved = saves(duration=10**12, interval=100, step_tokens=4_000_000.5)
    assert len(saved) == 250_000
    assert saved[:2] == [4_000_000, 8_000_001]
    assert checkpoints_that_stay(saved, 2, 100) == (250_000, 250_000)


@pytest.mark.parametrize("name", ["phase1", "phase2", "phase3-all", "small/phase1", "demo/phase3"])
def test_the_plan_has_the_steps_and_rates_of_the_recipes_tables(name: str) -> None:
    config = load_config(f"yamls/{name}.yaml")
    if name.startswith("demo"):
        config = replace(config, data=replace(config.data, root="nowhere"))
    plan = plan_phase("", config, None, None)
    assert plan.steps == pytest.approx(steps(config), rel=2e-4, abs=1)  # the table takes all rows to be full
    assert plan.curves()["learning rate"][-1] == learning_rate(config, config.duration)
    assert 0 <= plan.tokens - config.duration < plan.step_tokens


def test_time_is_flops_over_the_assumed_speed() -> None:
    plan = plan_phase("", load_config("yamls/phase1.yaml", ["data.root=nowhere"]), None, None)
    assert plan.seconds(H100) == pytest.approx(plan.tokens * plan.full_flops / (8 * 989.4e12 * 0.25))
    known = replace(H100, tokens_per_second=2e6)
    assert plan.seconds(known) == pytest.approx(plan.tokens / 2e6)


# --------------------------------------------------------------------------------------------- against real training


def test_training_does_what_was_planned(finished: tuple[Path, dict[str, Outcome]]) -> None:
    """Steps, rows and learning rates to the digit."""
    folder, outcomes = finished
    paths = [str(folder / f"{name}.yaml") for name in outcomes]
    chain = plan_chain(paths, [], None, None)
    assert not chain.has_errors()
    for plan, outcome in zip(chain.plans, outcomes.values(), strict=True):
        state = read_state(newest_checkpoint(plan.config.run_folder))
        assert (plan.steps, plan.rows) == (state["step"], state["rows"])
        begins = [0, *(step["tokens"] for step in outcome.steps[:-1])]
        assert [step["lr"] for step in outcome.steps] == [learning_rate(plan.config, tokens) for tokens in begins]


def test_training_reads_of_every_language_what_was_planned_within_a_row(
    corpus: Corpus, finished: tuple[Path, dict[str, Outcome]], tmp_path: Path
) -> None:
    """With periods of one batch, for inside a period rows are shuffled, and a phase may end in the midst of one.

    A row more or less, and the rows that were read may be fuller than the mean of all, by which tokens are planned.
    """
    path = prepare(tmp_path / "run", corpus, "phase3", {"phase2": finished[0] / "runs" / "phase2"})
    changes = ["data.period_rows=2", "duration=8000"]
    outcome = train([path, *changes], tmp_path / "steps.jsonl")
    assert outcome.exit_code == 0, outcome.output
    plan = plan_phase("", load_config(path, changes), None, None)
    state = read_state(newest_checkpoint(plan.config.run_folder))
    assert (plan.steps, plan.rows) == (state["step"], state["rows"])
    assert len(plan.lines) == 6
    for line in plan.lines:
        realised = state["tokens_per_stream"][f"{line.source}/{line.language}"]
        room = plan.config.max_seq_len - line.tokens / line.rows
        assert abs(line.tokens - realised) <= plan.config.max_seq_len + line.rows * room, line


def test_counts_give_the_plan_that_the_manifests_give(corpus: Corpus, tmp_path: Path) -> None:
    write_yamls(tmp_path, corpus)
    config = load_config(tmp_path / "phase3.yaml")
    from_rows = plan_phase("", config, None, None)
    assert from_rows.counts is not None
    names, _ = mixture_streams(config)
    with (tmp_path / "counts.csv").open("w") as file:
        writer = csv.writer(file)
        writer.writerow(["source", "language", "tokens", "rows"])
        for name, manifest in zip(names, from_rows.counts.manifests, strict=True):
            writer.writerow([*name, manifest.tokens, manifest.rows])
    from_counts = plan_phase("", config, None, read_counts(tmp_path / "counts.csv"))
    assert from_counts.lines == from_rows.lines
    assert from_counts.steps == from_rows.steps


# ---------------------------------------------------------------------------------------------------------- findings


def test_what_training_refuses_of_rows_that_are_there_is_an_error_of_the_plan(corpus: Corpus, tmp_path: Path) -> None:
    write_yamls(tmp_path, corpus)

    def errors(*changes: str) -> str:
        return texts(plan_chain([str(tmp_path / "phase1.yaml")], changes, None, None), "error")

    validated = f"validation={{interval: 1K, source: invented, root: {corpus.shards[64]}, languages: [laa]}}"
    assert not errors(validated)
    assert "heldout/invented/z does not exist" in errors(validated, "validation.languages=[z]")
    assert "has rows of 128 tokens" in errors(validated, f"validation.root={corpus.shards[128]}")
    assert "row_length is 64, the run wants 128; name a folder" in errors(
        "max_seq_len=128", "model.max_position_embeddings=128"
    )
    assert "model.vocab_size = 999 must be the" in errors("model.vocab_size=999")
    assert "tokenizer folder nowhere does not exist below" in errors("tokenizer=nowhere")
    other = shutil.copytree(corpus.tokenizer, tmp_path / "other")
    (other / "tokenizer.json").write_bytes((other / "tokenizer.json").read_bytes() + b" ")
    assert "name the tokenizer that made the rows" in errors(f"tokenizer={other}")


def test_a_language_that_trains_and_could_be_validated_but_is_not_is_named(corpus: Corpus, tmp_path: Path) -> None:
    """As one that a decay adds to the mixture, and not to the validation that it inherits."""
    write_yamls(tmp_path, corpus)
    section = "interval: 1K, source: invented, languages: [laa, lab, lac, lad]"
    validated = f"validation={{{section}, root: {corpus.shards[64]}}}"

    def warnings(*changes: str) -> str:
        return texts(plan_chain([str(tmp_path / "phase3.yaml")], [validated, *changes], None, None), "warning")

    left_out = "2 languages train and have held-out text, but are not in validation.languages, and so never measured"
    assert f"{left_out}: lae, laf" in warnings()
    assert "held-out" not in warnings("validation.languages=[laa, lab, lac, lad, lae, laf]")
    assert "held-out" not in warnings("data.mixture.small=null", "data.mixture.large.share=1")
    assert "held-out" not in warnings("validation.languages=[laa]")  # a choice


def test_a_last_step_behind_duration_is_no_break_of_max_repeats(corpus: Corpus, tmp_path: Path) -> None:
    write_yamls(tmp_path, corpus)

    def said(max_repeats: str) -> str:
        changes = [f"data.mixture.small.max_repeats={max_repeats}", "data.mixture.small.tau=0"]
        changes += ["data.mixture.small.share=0.99", "data.mixture.large.share=0.01", "duration=9850"]
        return texts(plan_chain([str(tmp_path / "phase3.yaml")], changes, None, None), "warning")

    assert "small: 2 of 2 streams read more than 5 times (laf" in said("null")
    assert "read more" not in said("7")
    assert "the last step ends 1." in said("7")


def texts(chain: Chain, level: str) -> str:
    return "\n".join(finding.text for finding in chain.findings if finding.level == level)


@pytest.mark.parametrize(
    "changes, level, said",
    [
        (["device_train_microbatch_size=50"], "warning", "48 rows a GPU are 0.96 microbatches of 50"),
        (["device_train_microbatch_size=50"], "warning", "a step: lower it, or give --gpus where there are not 8"),
        (["global_train_batch_size=4", "batch_size_warmup=null"], "error", "too small for 8 GPUs"),
        (["device_train_microbatch_size=144"], "warning", "are likely too much"),
        (["precision=fp32"], "error", "need amp_bf16"),
        (["model.attention=cpu", "precision=fp32"], "warning", "plain torch is slow on a GPU"),
        (["checkpoint.interval=3T"], "warning", "longer than the phase"),
        (["checkpoint.interval=1M"], "warning", "every step is saved"),
        (["checkpoint.interval=100B"], "warning", "hours lie between two checkpoints"),
        (["learning_rate.warmup=1T"], "warning", "warmup takes 43% of the phase"),
        (["duration=30B"], "warning", "ends within batch_size_warmup"),
        (["data.mixture.fineweb2.tau=1.5"], "warning", "is above 1"),
        (["data.period_rows=10_000_000_000"], "warning", "tau never moves"),
        (["duration=20M", "learning_rate.warmup=0", "batch_size_warmup=null"], "warning", "behind duration"),
        (["data.mixture.fineweb2.max_repeats=1"], "error", "raise max_repeats to at least"),
        (["data.mixture.dclm.max_repeats=20", "data.mixture.fineweb2.max_repeats=null"], "error", "at least 69.39"),
        (["duration=1B", "learning_rate.warmup=0", "data.mixture.dclm.share=0.303835",
          "data.mixture.books.share=0.000001"], "warning", "books: 1 of 1 streams with less than one row"),
    ],
    ids=lambda value: None if not isinstance(value, list) else value[0].partition("=")[0],
)  # fmt: skip
def test_what_is_worth_a_stop_is_said(tmp_path: Path, changes: list[str], level: str, said: str) -> None:
    table = read_counts(write_counts(tmp_path / "counts.csv", ["yamls/phase1.yaml"], tokens=10_000_000_000))
    plain = plan_chain(["yamls/phase1.yaml"], ["data.mixture.fineweb2.max_repeats=null"], table, H100)
    if "null" not in changes[0]:
        assert said not in texts(plain, level)
    assert said in texts(plan_chain(["yamls/phase1.yaml"], changes, table, H100), level)


def test_plain_attention_on_a_gpu_takes_fp32(tmp_path: Path) -> None:
    table = read_counts(write_counts(tmp_path / "counts.csv", ["yamls/phase1.yaml"], tokens=10_000_000_000))
    changes = ["model.attention=cpu", "precision=fp32"]
    assert "fp32" not in texts(plan_chain(["yamls/phase1.yaml"], changes, table, H100), "error")


@pytest.mark.parametrize(
    "key, value, level, said",
    [
        ("global_train_batch_size", "288", "warning", "a step has 2,359,296 tokens, its parent's has 4,718,592"),
        ("model.num_attention_heads", "6", "error", "model.num_attention_heads was 12, is 6"),
        ("model.num_hidden_layers", "24", "error", "model.num_hidden_layers was 22, is 24"),
        ("model.global_rope_theta", "10000", "warning", "model.global_rope_theta does not"),
        ("model.local_rope_theta", "9999", "error", "model.local_rope_theta was 10000.0, is 9999.0"),
        ("run_root", "elsewhere", "error", "run_root = elsewhere"),
        ("tokenizer", "other", "warning", "tokenizer = other"),
        ("optimizer.lr", "0.01", "warning", "learning rate jumps from 0.0008"),
        ("parent", "phase0", "warning", "its parent phase0 is not among the phases"),
    ],
)
def test_a_phase_is_held_against_its_parent(tmp_path: Path, key: str, value: str, level: str, said: str) -> None:
    yamls = Path("yamls").resolve()
    path = tmp_path / "phase2.yaml"
    section, _, name = key.rpartition(".")
    inner = f"{section}: {{{name}: {value}}}" if section else f"{name}: {value}"
    path.write_text(f"extends: [{yamls}/phase2.yaml]\n{inner}\n")
    plain = plan_chain(["yamls/phase1.yaml", "yamls/phase2.yaml"], [], None, H100)
    assert "as many tokens a step as phase1" in texts(plain, "ok")
    assert said not in texts(plain, level)
    assert said in texts(plan_chain(["yamls/phase1.yaml", str(path)], [], None, H100), level)


def test_a_parent_that_is_not_given_is_looked_for_in_the_run_root_that_is() -> None:
    chain = plan_chain(["yamls/phase2.yaml"], ["run_root=elsewhere"], None, H100)
    assert "as many tokens a step as phase1, the same encoder, tokenizer and run_root" in texts(chain, "ok")
    assert not texts(chain, "error")


def test_a_phase_is_held_against_a_run_whose_yaml_has_another_name_or_is_gone(tmp_path: Path) -> None:
    path, state = tmp_path / "more.yaml", tmp_path / "runs" / "phase1" / "step-0000000001" / "state.json"
    path.write_text(f"extends: [{Path('yamls/phase2.yaml').resolve()}]\nrun_root: {tmp_path}/runs\n")
    assert "its parent phase1 is not among" in texts(plan_chain([str(path)], [], None, H100), "warning")
    state.parent.mkdir(parents=True)
    state.write_text(json.dumps({"config": load_config("yamls/phase1.yaml", ["run_root=moved"]).as_dict()}))
    assert "as many tokens a step as phase1, the same" in texts(plan_chain([str(path)], [], None, H100), "ok")
    high = texts(plan_chain([str(path)], ["optimizer.lr=0.01"], None, H100), "warning")
    assert "the learning rate jumps from 0.0008, where phase1 ends, to 0.01" in high


@pytest.mark.parametrize("record, made", [("import.json", "imported"), ("merge.json", "merged")])
def test_a_phase_is_held_against_a_parent_that_was_imported_or_merged(tmp_path: Path, record: str, made: str) -> None:
    """It has no YAML, but a run folder, as import_from_hf and merge write it."""
    path = tmp_path / "mine.yaml"
    path.write_text(f"extends: [{Path('yamls/phase2.yaml').resolve()}]\nname: mine\nparent: published\n")

    def found(level: str, *changes: str) -> str:
        return texts(plan_chain([str(path)], [f"run_root={tmp_path}", *changes], None, H100), level)

    assert f"nor a run in {tmp_path}: nothing is compared" in found("warning")
    if made == "merged":  # the YAML that it is merged by may lie beside, and says nothing of its model
        (tmp_path / "published.yaml").write_text(Path("yamls/merge.yaml").read_text().replace("merged", "published", 1))
        assert f"nor a phase's YAML beside {path}, nor a run in {tmp_path}: nothing" in found("warning")
    state = tmp_path / "published" / "step-0000000000" / "state.json"
    state.parent.mkdir(parents=True)
    (tmp_path / "published" / record).write_text("{}")
    model = asdict(load_config(path).model)
    state.write_text(json.dumps(first_state(model, "data/tokenizer-gemma2", "0")))
    going_on = ("learning_rate.warmup=1B", "optimizer.lr=4e-4")
    assert f"the same encoder as {tmp_path}/published, which was {made}" in found("ok", *going_on)
    high = f"optimizer.lr = 0.0008 is for random weights, and its parent published was {made}: unless that has yet to "
    assert high in found("warning", "learning_rate.warmup=1B")
    assert "random weights" not in found("warning", *going_on)
    assert f"warmup = 0, and its parent published was {made}" in found("warning", "learning_rate.warmup=0")
    decay = "learning_rate={shape: one_minus_sqrt, warmup: 0, decay: 0, floor: 0.02}"  # it refuses a warm-up
    assert "moments are zero, so take warmup_stable_decay and a warm-up" in found("warning", decay)
    assert "model.hidden_size was 768, is 384" in found("error", "model.hidden_size=384")
    assert "model.global_rope_theta was 160000.0, is 10000" in found("error", "model.global_rope_theta=10000")


@pytest.mark.parametrize(
    "seconds, written",
    [(0.4, "0 seconds"), (50, "50 seconds"), (90, "1.5 minutes"), (7200, "2.0 hours"), (1e9, "11,574.1 days")],
)
def test_a_time_is_written_in_a_unit_that_shows_it(seconds: float, written: str) -> None:
    assert duration_of(seconds) == written


def test_a_short_run_takes_gpus_more_than_no_time() -> None:
    """A plan of minutes: what all GPUs together are busy is not 0.0 days."""
    changes = ["duration=1B", "learning_rate.warmup=0", "data.root=nowhere"]
    chain = plan_chain(["yamls/phase1.yaml"], changes, None, H100)
    [plan] = chain.plans
    seconds = plan.seconds(H100)
    assert 60 < seconds < 3600 < 8 * seconds < 86400
    head, row, *_ = (line for line in chain_text(chain).splitlines())
    assert head.endswith("GPU time")
    assert row.endswith(f"{seconds / 60:.1f} minutes  {8 * seconds / 3600:.1f} hours")
    assert f"{seconds / 60:.1f} minutes; {8 * seconds / 3600:.1f} hours of GPU time" in chain_text(chain)


def test_a_chain_in_the_wrong_order_is_an_error() -> None:
    chain = plan_chain(DEMO[1::-1], ["data.root=nowhere"], None, None)
    assert "stands before its parent phase1" in texts(chain, "error")
