"""The proof itself: a row that nothing decides is written as such, and cannot pass."""
import pytest

from tests.faults.page import undecided, write_page
from tests.faults.reliability import Result
from tests.faults.table import FAULTS


def whole() -> list[Result]:
    """A test and a control for every row."""
    tests = [Result("faults/test_a.py::test_it", (row,), False, "") for row in FAULTS]
    return tests + [Result("faults/test_a.py::test_without", (row,), True, "All is lost") for row in FAULTS]


def row_of(results: list[Result], number: int) -> str:
    return next(line for line in write_page(results, 1.0).splitlines() if line.startswith(f"| {number} |"))


def test_a_row_with_a_test_and_a_control_is_decided() -> None:
    assert undecided(whole()) == []
    assert "| 1 passed | harm seen: All is lost |" in row_of(whole(), 7)
    assert "30 of 30 faults decided by 60 tests" in write_page(whole(), 1.0)


@pytest.mark.parametrize(
    "is_control, outcome, words",
    [
        (False, "failed", "**FAILED**: `test_it`"),
        (True, "failed", "**FAILED**: `test_without`"),
        (False, "skipped", "**not run**: no tmpfs here"),
        (True, "skipped", "**not run**: no tmpfs here"),
    ],
)
def test_a_failure_and_a_test_that_was_not_run_leave_a_row_undecided(
    is_control: bool, outcome: str, words: str
) -> None:
    results = whole()
    for result in results:
        if result.rows == (7,) and result.is_control == is_control:
            result.outcome, result.reason = outcome, "no tmpfs here"
    assert undecided(results) == [7]
    assert words in row_of(results, 7)
    assert "29 of 30 faults decided" in write_page(results, 1.0)


@pytest.mark.parametrize("is_control, words", [(False, "**no test**"), (True, "**no control**")])
def test_a_row_without_a_test_or_a_control_is_undecided(is_control: bool, words: str) -> None:
    results = [result for result in whole() if result.rows != (7,) or result.is_control != is_control]
    assert undecided(results) == [7]
    assert words in row_of(results, 7)


def test_figures_are_summed_and_the_largest_of_some_is_kept() -> None:
    results = whole()
    results[6].figures = {"kills": 3, "most s to stop": 2.5}
    results.append(Result("faults/test_a.py::test_more", (7,), False, "", figures={"kills": 4, "most s to stop": 1.0}))
    assert "| 7 kills, 2.5 s to stop at most, 0 s |" in row_of(results, 7)
