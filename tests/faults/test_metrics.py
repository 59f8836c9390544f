"""Row 30: what a run did is written down once, however often it was killed."""
import csv
import json
import signal
from collections import Counter
from pathlib import Path

import pytest

from mmbert.ledger import FILE, Step, read_ledger
from mmbert.ledger_audit import audit, main
from tests.conftest import Corpus, Finished
from tests.faults.oracle import check_same_end
from tests.training_runs import prepare, train

pytestmark = pytest.mark.fault(30)
KILLS = (7, 12, 18)
EVERY_LINE = "logging.interval_batches=1"  # so that also the lines of steps that are done again reach the file


@pytest.fixture(scope="module")
def killed(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run folder of a phase 1 that was killed three times between its checkpoints, and then finished."""
    folder = tmp_path_factory.mktemp("killed")
    yaml = prepare(folder / "it", corpus)
    for step in KILLS:
        outcome = train([yaml, EVERY_LINE], folder / "steps.jsonl", kill_at=step)
        assert outcome.exit_code == -signal.SIGKILL, outcome.output
    assert train([yaml, EVERY_LINE], folder / "steps.jsonl").exit_code == 0
    return folder / "it" / "runs" / "phase1"


def metrics(record: Step) -> dict[str, object]:
    """All of a record but the attempt that made it, and where it stands."""
    return {name: getattr(record, name) for name in Step.__slots__ if name not in ("attempt", "place")}


def test_three_kills_leave_each_step_once_with_the_metrics_of_an_uninterrupted_run(
    killed: Path, finished: Finished, figures: dict[str, float]
) -> None:
    whole, history = read_ledger(finished[0] / "runs" / "phase1"), read_ledger(killed)
    assert [record.step for record in history.steps] == list(range(1, len(whole.steps) + 1))
    assert [metrics(record) for record in history.steps] == [metrics(record) for record in whole.steps]
    assert history.attempts == [1, 2, 3, 4]
    assert all(metrics(one) == metrics(other) for one, other in history.repeated)
    check_same_end(killed, finished[0] / "runs" / "phase1")
    figures["kills"] = len(KILLS)
    figures["steps done again and counted once"] = len(history.repeated)


def test_the_exported_metrics_have_one_line_a_step(
    killed: Path, finished: Finished, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main([str(killed), "--csv", str(tmp_path / "metrics.csv")])
    assert "nothing lost, nothing extra" in capsys.readouterr().out
    with (tmp_path / "metrics.csv").open() as file:
        lines = list(csv.DictReader(file))
    steps = read_ledger(finished[0] / "runs" / "phase1").steps
    assert [int(line["step"]) for line in lines] == [record.step for record in steps]
    assert [float(line["loss"]) for line in lines] == [record.loss for record in steps]
    assert [int(line["tokens"]) for line in lines] == [record.tokens for record in steps]


@pytest.mark.fault(30, control=True)
def test_the_lines_of_all_attempts_have_steps_more_than_once(killed: Path) -> None:
    """Taken as they were written, the metrics have steps twice, and their sum is not the run's."""
    values = [json.loads(line) for line in (killed / FILE).read_text().splitlines()]
    times = Counter(value["step"] for value in values if "event" not in value)
    assert max(times.values()) > 1
    total = sum(sum(value["streams"].values()) for value in values if "event" not in value)
    assert total > read_ledger(killed).steps[-1].tokens
    assert audit(killed).faults == []
