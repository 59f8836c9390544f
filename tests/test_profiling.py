"""The profile's table, and a profile of a real phase."""
from pathlib import Path

import pytest

from callbacks.profiling import ROWS, main, table
from tests.conftest import Corpus
from tests.training_runs import write_yamls


def test_the_longest_operations_stand_first_and_the_rest_in_one_line() -> None:
    rows = [(f"op{number}", 0.01 * (ROWS + 2 - number), 6) for number in range(ROWS + 2)]
    lines = table(rows, steps=2).splitlines()
    assert lines[2] == "| op0 | 110.00 | 8.7% | 3 |"  # 22 of 253 parts
    assert len(lines) == 2 + ROWS + 1
    assert lines[-1] == "| 2 others | 15.00 | 1.2% | |"


def test_a_phase_is_profiled_and_its_run_left_alone(
    corpus: Corpus, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_yamls(tmp_path, corpus)
    main([str(tmp_path / "phase1.yaml"), "--steps", "2", "--output", str(tmp_path / "profile")])
    assert "| aten::mm |" in capsys.readouterr().out
    assert (tmp_path / "profile" / "trace.json").stat().st_size > 1000
    assert not (tmp_path / "runs").exists()


def test_no_step_is_no_profile() -> None:
    with pytest.raises(SystemExit, match="--steps 0 must be at least 1"):
        main(["any.yaml", "--steps", "0"])
