"""Runs the whole fault suite and writes docs/reliability.md: python -m tests.faults.run --kills 60.

Exit status 1 when a test fails, or a row of the table has no test or no control that passes.
"""
import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.faults.page import undecided, write_page
from tests.faults.reliability import read_results

PROCESSES = 2  # a run of the trainer keeps one core busy


def main() -> int:
    """Run the tests, write the page, and say what is not decided."""
    parser = argparse.ArgumentParser(description="Break real runs in every way that docs/reliability.md lists.")
    parser.add_argument("--kills", type=int, default=60, help="runs to kill at random points; default 60")
    parser.add_argument("--page", type=Path, default=Path("docs/reliability.md"))
    options = parser.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="faults-") as shared:
        command = [sys.executable, "-m", "pytest", "-m", "fault", "--long", f"--kills={options.kills}"]
        own = [[f"--shared={shared}", f"--process={i}", f"--basetemp={shared}/runs-{i}"] for i in range(PROCESSES)]
        processes = [subprocess.Popen([*command, *arguments, "-p", "no:cacheprovider"]) for arguments in own]
        has_failed = any(code for code in [process.wait() for process in processes])
        results, num_tests = read_results(Path(shared))
    options.page.write_text(write_page(results, time.monotonic() - began))
    rows = undecided(results)
    if rows:
        print(f"not decided: {', '.join(map(str, rows))}; see {options.page}", file=sys.stderr)
    if len(results) != num_tests:
        print(f"{num_tests - len(results)} of {num_tests} tests were not run to their end", file=sys.stderr)
    return int(has_failed or bool(rows) or len(results) != num_tests)


if __name__ == "__main__":
    sys.exit(main())
