"""Runs the tests in processes that share the files: python -m tests.run [arguments of pytest]."""
import sys
import tempfile
from pathlib import Path

from tests.sharing import run_shared

if __name__ == "__main__":
    with tempfile.TemporaryDirectory(prefix="tests-") as folder:
        sys.exit(0 if run_shared(Path(folder), sys.argv[1:]) else 1)
