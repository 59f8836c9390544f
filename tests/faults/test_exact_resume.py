"""Row 14: however a run was stopped, and however often, it ends with the same bits."""
import random
import signal
from pathlib import Path

import pytest

from tests.conftest import PHASES, Corpus, Finished
from tests.faults.oracle import check_same_end, check_same_steps, check_tidy, fingerprint
from tests.guards import without_dropout_seed
from tests.training_runs import Change, prepare, train

STOPS = (signal.SIGKILL, signal.SIGTERM, signal.SIGUSR1, signal.SIGKILL, signal.SIGINT)


@pytest.mark.fault(14, 20, 30)
@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.long), pytest.param(2, marks=pytest.mark.long)])
def test_five_stops_at_random_steps_of_three_phases_change_no_bit(
    corpus: Corpus, finished: Finished, tmp_path: Path, figures: dict[str, float], seed: int
) -> None:
    """With 0 and with 2 loader workers in turn; each phase goes on from the one before in the same folder."""
    rng = random.Random(seed)
    yaml = prepare(tmp_path / "it", corpus)
    stops = [(rng.choice(PHASES), number) for number in rng.sample(STOPS, len(STOPS))]
    for phase in PHASES:
        record = tmp_path / f"{phase}.jsonl"
        steps = sorted(rng.randint(2, 19) for stopped, _ in stops if stopped == phase)
        for step, number in zip(steps, (number for stopped, number in stops if stopped == phase), strict=True):
            arguments = [yaml.with_stem(phase), f"data.num_workers={rng.choice((0, 2))}"]
            outcome = train(arguments, record, kill_at=step, number=number)
            assert outcome.exit_code in (85, -signal.SIGKILL), outcome.output
        outcome = train([yaml.with_stem(phase), f"data.num_workers={rng.choice((0, 2))}"], record)
        assert outcome.exit_code == 0, outcome.output
        check_same_steps(outcome, finished[1][phase])
        check_same_end(tmp_path / "it" / "runs" / phase, finished[0] / "runs" / phase)
        check_tidy(tmp_path / "it" / "runs" / phase)
    figures["stops at random steps"] = len(stops)


def end_of_a_run(corpus: Corpus, folder: Path, kills: list[int], changes: list[Change]) -> tuple[str, str]:
    yaml = prepare(folder, corpus)
    for step in kills:
        assert train([yaml], folder / "x.jsonl", kill_at=step, changes=changes).exit_code == -signal.SIGKILL
    assert train([yaml], folder / "x.jsonl", changes=changes).exit_code == 0
    return fingerprint(folder / "runs" / "phase1")


@pytest.mark.fault(14, control=True)
@pytest.mark.long
def test_dropout_that_is_not_drawn_by_step_makes_a_resumed_run_another(corpus: Corpus, tmp_path: Path) -> None:
    """Without a seed for every step, dropout differs from the first resumed step on, and so do the final weights."""
    changes = [without_dropout_seed]
    whole = [end_of_a_run(corpus, tmp_path / f"whole{number}", [], changes) for number in range(2)]
    assert whole[0] == whole[1]
    assert end_of_a_run(corpus, tmp_path / "killed", [10], changes) != whole[0]
