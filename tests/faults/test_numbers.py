"""Rows 12, 13 and 29: what no weight may ever hold, a loss that explodes, and ranks that have drifted apart."""
import math
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mmbert.checkpoint import newest_checkpoint, step_folders
from mmbert.ledger import read_ledger
from tests.conftest import Corpus
from tests.faults.injected import (
    composer_as_on_gpu,
    disturb_update,
    disturb_weights,
    flip_weight_bit,
    gradient_becomes,
    loss_becomes,
)
from tests.faults.oracle import check_same_end, check_tidy, fingerprint
from tests.guards import without_finite_steps, without_rank_comparison, without_spike_rollback
from tests.training_runs import Change, Outcome, prepare, train, train_ranks

NAN, INFINITY = math.nan, math.inf
FAULTS = {
    "NaN loss": (partial(loss_becomes, NAN), "loss is not finite"),
    "infinite loss": (partial(loss_becomes, INFINITY), "loss is not finite"),
    "NaN gradient": (partial(gradient_becomes, NAN), "gradient is not finite"),
    "infinite gradient": (partial(gradient_becomes, -INFINITY), "gradient is not finite"),
}


@pytest.mark.fault(12)
def test_a_skipped_step_takes_no_other_with_it_where_composer_would_scale_the_loss(
    corpus: Corpus, tmp_path: Path
) -> None:
    """On a GPU its scaler would skip the step, too, and what was called off would be the next one."""
    ends = []
    for name, changes in {"cpu": [], "gpu": [composer_as_on_gpu]}.items():
        arguments = [prepare(tmp_path / name, corpus)]
        disturbed = [*changes, partial(loss_becomes, NAN, steps=[5])]
        outcome = train(arguments, tmp_path / f"{name}.jsonl", changes=disturbed)
        assert outcome.exit_code == 0, outcome.output
        ends.append(fingerprint(tmp_path / name / "runs" / "phase1"))
    assert ends[0] == ends[1]


def is_finite(run_folder: Path) -> bool:
    """Whether weights and moments of the newest checkpoint are."""
    newest = newest_checkpoint(run_folder)
    files = [load_file(newest / name) for name in ("model.safetensors", "optimizer.safetensors")]
    return all(tensor.isfinite().all() for tensors in files for tensor in tensors.values())


def skipped(run_folder: Path) -> dict[int, str]:
    return {record.step: record.skipped for record in read_ledger(run_folder).steps if record.skipped}


@pytest.mark.fault(12)
@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=[] if case == "NaN gradient" else pytest.mark.long) for case in FAULTS]
)
def test_a_step_that_is_not_finite_is_skipped_and_the_run_goes_on_also_through_a_kill(
    corpus: Corpus, tmp_path: Path, case: str
) -> None:
    fault, reason = FAULTS[case]
    changes = [partial(fault, steps=[5, 9])]
    whole = train([prepare(tmp_path / "whole", corpus)], tmp_path / "whole.jsonl", changes=changes)
    assert whole.exit_code == 0, whole.output
    run_folder = tmp_path / "whole" / "runs" / "phase1"
    assert skipped(run_folder) == {5: reason, 9: reason}
    assert is_finite(run_folder)
    assert [step["optimizer_step"] for step in whole.steps[3:6]] == [4, 4, 5]
    yaml = prepare(tmp_path / "it", corpus)
    assert train([yaml], tmp_path / "steps.jsonl", kill_at=10, changes=changes).exit_code == -9
    assert train([yaml], tmp_path / "steps.jsonl", changes=changes).exit_code == 0
    check_same_end(tmp_path / "it" / "runs" / "phase1", run_folder)


@pytest.mark.fault(12)
@pytest.mark.parametrize(
    "fault", [loss_becomes, pytest.param(gradient_becomes, marks=pytest.mark.long)], ids=["loss", "gradient"]
)
def test_a_fault_of_one_rank_is_skipped_on_both(corpus: Corpus, tmp_path: Path, fault: Change) -> None:
    """They go on with the same weights: every save compares them."""
    changes = [partial(fault, NAN, steps=[5], rank=1)]
    outcomes = train_ranks([prepare(tmp_path / "it", corpus)], tmp_path / "steps.jsonl", changes=changes)
    assert [outcome.exit_code for outcome in outcomes] == [0, 0], outcomes[0].output
    run_folder = tmp_path / "it" / "runs" / "phase1"
    assert list(skipped(run_folder)) == [5]
    assert is_finite(run_folder)
    first, second = ([step["optimizer_step"] for step in outcome.steps] for outcome in outcomes)
    assert first == second


@pytest.mark.fault(12)
def test_the_fourth_step_of_a_hundred_ends_the_run_and_names_its_rows_however_often_it_is_started(
    corpus: Corpus, tmp_path: Path
) -> None:
    yaml, run_folder = prepare(tmp_path / "it", corpus), tmp_path / "it" / "runs" / "phase1"
    changes = [partial(loss_becomes, NAN, steps=[3, 6, 10, 11])]
    messages = []
    for _ in range(2):
        outcome = train([yaml], tmp_path / "steps.jsonl", changes=changes)
        assert outcome.exit_code == 1
        messages.append(outcome.output.strip().splitlines()[-1])
    assert messages[0] == messages[1]
    assert "error: step 11: loss is not finite, and so it was at steps 3, 6, 10" in messages[0]
    assert "invented/la" in messages[0]
    assert "at position 40" in messages[0]
    assert f"Look at them, python -m mmbert.show_rows {run_folder} 40 …, or lower optimizer.lr" in messages[0]
    assert is_finite(run_folder)
    assert train([yaml], tmp_path / "steps.jsonl").exit_code == 0  # without the fault it goes on


@pytest.mark.fault(12, control=True)
@pytest.mark.parametrize("case", ["NaN loss", pytest.param("NaN gradient", marks=pytest.mark.long)])
def test_without_the_check_one_bad_step_is_in_the_weights_for_good(corpus: Corpus, tmp_path: Path, case: str) -> None:
    """One NaN poisons the weights and every later checkpoint, and the run ends with exit status 0."""
    changes = [without_finite_steps, partial(FAULTS[case][0], steps=[5])]
    outcome = train([prepare(tmp_path / "it", corpus)], tmp_path / "steps.jsonl", changes=changes)
    assert outcome.exit_code == 0, outcome.output
    newest = next(iter((tmp_path / "it" / "runs" / "phase1").glob("step-*")))
    assert not all(tensor.isfinite().all() for tensor in load_file(newest / "model.safetensors").values())


SPIKES = "spikes={sigma: 8, window: 8, patience: 4}"


def train_through_a_spike(
    corpus: Corpus, folder: Path, arguments: list[str], changes: list[Change], kills: tuple[int, ...] = ()
) -> Outcome:
    """In step 12 the weights are thrown off, and the loss stays high."""
    yaml = prepare(folder, corpus)
    disturbed = [partial(disturb_weights, 12), *changes]
    for step in kills:
        assert train([yaml, *arguments], folder / "steps.jsonl", kill_at=step, changes=disturbed).exit_code == -9
    outcome = train([yaml, *arguments], folder / "steps.jsonl", changes=disturbed)
    assert outcome.exit_code == 0, outcome.output
    return outcome


@pytest.mark.fault(13)
def test_a_spike_is_rolled_back_and_its_rows_are_passed_over_the_same_after_kills(
    corpus: Corpus, tmp_path: Path
) -> None:
    train_through_a_spike(corpus, tmp_path / "whole", [SPIKES], [])
    whole = tmp_path / "whole" / "runs" / "phase1"
    events = [event for event in read_ledger(whole).events if event.name == "rolled_back"]
    assert [(event.step, event.values["to_step"]) for event in events] == [(15, 9)]
    assert [record.first_row for record in read_ledger(whole).steps] == list(range(0, 4 * 20, 4))  # none again
    check_tidy(whole)
    train_through_a_spike(corpus, tmp_path / "killed", [SPIKES], [], kills=(13, 15, 16))
    check_same_end(tmp_path / "killed" / "runs" / "phase1", whole)


@pytest.mark.fault(13)
@pytest.mark.parametrize(
    "broken, skipped, rolled_back",
    [(10, [], (14, 9)), (9, [], (13, 4)), pytest.param(9, [10], (14, 4), marks=pytest.mark.long)],
)
def test_weights_that_were_thrown_off_before_they_were_saved_are_not_gone_back_to(
    corpus: Corpus, tmp_path: Path, broken: int, skipped: list[int], rolled_back: tuple[int, int]
) -> None:
    """Steps 4 and 9 are saved; the first high loss is that of the step after the broken update."""
    changes = [partial(disturb_update, broken), partial(loss_becomes, NAN, skipped)]
    outcome = train([prepare(tmp_path / "it", corpus), SPIKES], tmp_path / "steps.jsonl", changes=changes)
    assert outcome.exit_code == 0, outcome.output
    events = [event for event in read_ledger(tmp_path / "it" / "runs" / "phase1").events if event.name == "rolled_back"]
    assert [(event.step, event.values["to_step"]) for event in events] == [rolled_back]


@pytest.mark.fault(13)
def test_a_step_that_is_skipped_in_a_spike_does_not_move_its_begin(corpus: Corpus, tmp_path: Path) -> None:
    """Every step is saved. Of steps 12 to 16 the second is skipped, so the fourth high one is step 16, the first 12."""
    every_step = "checkpoint={interval: 1, keep: 9}"
    train_through_a_spike(corpus, tmp_path, [SPIKES, every_step], [partial(loss_becomes, NAN, [13])])
    events = [event for event in read_ledger(tmp_path / "runs" / "phase1").events if event.name == "rolled_back"]
    assert [(event.step, event.values["to_step"]) for event in events] == [(16, 10)]  # 11 gave the loss of step 12


@pytest.mark.fault(13)
def test_a_checkpoint_within_a_spike_does_not_take_the_place_of_the_one_before(corpus: Corpus, tmp_path: Path) -> None:
    """One is kept, and every step is saved; the step before the spike is thrown away when the run has gone back."""
    train_through_a_spike(corpus, tmp_path, [SPIKES, "checkpoint={interval: 1, keep: 1}"], [], kills=(14,))
    run_folder = tmp_path / "runs" / "phase1"
    events = [event for event in read_ledger(run_folder).events if event.name == "rolled_back"]
    assert [(event.step, event.values["to_step"]) for event in events] == [(15, 11)]
    check_tidy(run_folder, keep=1)


@pytest.mark.fault(13)
def test_what_is_usual_for_older_weights_is_no_spike(corpus: Corpus, tmp_path: Path) -> None:
    """After a rollback far back the loss is higher than just before the spike; one spike must not end a run."""
    far_apart = ["global_train_batch_size=16", "checkpoint.interval=10000", "duration=30K"]
    arguments = [prepare(tmp_path / "it", corpus), "spikes={sigma: 3, window: 3, patience: 2}", *far_apart]
    outcome = train(arguments, tmp_path / "x.jsonl", changes=[partial(loss_becomes, 3.0, steps=[18, 19])])
    assert outcome.exit_code == 0, outcome.output
    events = [event for event in read_ledger(tmp_path / "it" / "runs" / "phase1").events if event.name == "rolled_back"]
    assert [event.step for event in events] == [19]


@pytest.mark.fault(13)
@pytest.mark.long
def test_where_spikes_are_not_asked_for_nothing_is_done(corpus: Corpus, tmp_path: Path) -> None:
    train_through_a_spike(corpus, tmp_path, [], [])
    assert "rolled_back" not in [event.name for event in read_ledger(tmp_path / "runs" / "phase1").events]


@pytest.mark.fault(13)
@pytest.mark.long
def test_a_spike_with_no_checkpoint_from_before_it_ends_the_run_with_the_remedy(corpus: Corpus, tmp_path: Path) -> None:
    arguments = [prepare(tmp_path / "it", corpus), SPIKES, "checkpoint.interval=1M"]
    outcome = train(arguments, tmp_path / "x.jsonl", changes=[partial(disturb_weights, 12)])
    assert outcome.exit_code == 1
    assert "the loss has been high since step 12" in outcome.output
    assert "has no checkpoint from before; lower checkpoint.interval" in outcome.output


@pytest.mark.fault(13, control=True)
@pytest.mark.long
def test_without_the_rollback_what_was_learned_is_lost(corpus: Corpus, tmp_path: Path) -> None:
    """What was learned is lost: the loss stays above twice what it is after a rollback."""
    back = train_through_a_spike(corpus, tmp_path / "back", [SPIKES], [])
    astray = train_through_a_spike(corpus, tmp_path / "astray", [SPIKES], [without_spike_rollback])
    after, without = (float.fromhex(outcome.steps[15]["loss"]) for outcome in (back, astray))
    assert without > 2 * after
    assert fingerprint(tmp_path / "back" / "runs" / "phase1") != fingerprint(tmp_path / "astray" / "runs" / "phase1")


@pytest.mark.fault(29)
def test_a_weight_bit_that_flips_on_one_rank_is_named_and_not_saved(
    corpus: Corpus, two_ranks: Path, tmp_path: Path
) -> None:
    yaml, run_folder = prepare(tmp_path / "it", corpus), tmp_path / "it" / "runs" / "phase1"
    outcomes = train_ranks([yaml], tmp_path / "steps.jsonl", changes=[partial(flip_weight_bit, step=10, rank=1)])
    for outcome in outcomes:
        assert outcome.exit_code == 1
        assert "the weights of rank 1 differ from rank 0's" in outcome.output
    assert [int(folder.name[5:]) for folder in step_folders(run_folder)] == [9, 4]
    assert [outcome.exit_code for outcome in train_ranks([yaml], tmp_path / "steps.jsonl")] == [0, 0]
    check_same_end(run_folder, two_ranks)


@pytest.mark.fault(29, control=True)
@pytest.mark.long
def test_without_the_comparison_drifted_ranks_train_and_save_on(
    corpus: Corpus, two_ranks: Path, tmp_path: Path
) -> None:
    """The ranks train and save on with different weights, and nobody knows."""
    changes = [without_rank_comparison, partial(flip_weight_bit, step=10, rank=1, bit=22)]
    yaml, run_folder = prepare(tmp_path / "it", corpus), tmp_path / "it" / "runs" / "phase1"
    assert [outcome.exit_code for outcome in train_ranks([yaml], tmp_path / "x.jsonl", changes=changes)] == [0, 0]
    assert fingerprint(run_folder) != fingerprint(two_ranks)


@pytest.mark.fault(12)
def test_the_check_sees_a_single_bad_element_of_any_gradient() -> None:
    from torch.nn.utils import get_total_norm

    for size, place in ((1, 0), (1000, 999)):
        for bad in (NAN, INFINITY, -INFINITY):
            gradients = [torch.zeros(7), torch.ones(size)]
            gradients[1][place] = bad
            assert not get_total_norm(gradients).isfinite()
