"""Runs the whole fault suite and writes docs/reliability.md: python -m tests.faults.run --kills 60.

Exit status 1 when a test fails, or a row of the table has no test or no control that passes.
"""
import argparse
import sys
import tempfile
import time
from pathlib import Path

from tests.faults.page import undecided, write_page
from tests.faults.reliability import read_results
from tests.sharing import run_shared


def main() -> int:
    """Run the tests, write the page, and say what is not decided."""
    parser = argparse.ArgumentParser(description="Break real runs in every way that docs/reliability.md lists.")
    parser.add_argument("--kills", type=int, default=60, help="runs to kill at random points; default 60")
    parser.add_argument("--page", type=Path, default=Path("docs/reliability.md"))
    options = parser.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="faults-") as shared:
        passed = run_shared(Path(shared), ["-m", "fault", "--long", f"--kills={options.kills}"])
        results = read_results(Path(shared))
    options.page.write_text(write_page(results, time.monotonic() - began))
    rows = undecided(results)
    if rows:
        print(f"not decided: {', '.join(map(str, rows))}; see {options.page}", file=sys.stderr)
    return int(not passed or bool(rows))


if __name__ == "__main__":
    sys.exit(main())
