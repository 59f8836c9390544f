"""Imports that Python's collector leaves alone, in main.py, too."""
import subprocess
import sys

PROGRAM = """
import gc
from mmbert.command import lasting_imports
made = [[] for _ in range(1_000)]
try:
    with lasting_imports():
        assert not gc.isenabled()
        import no_such_module
except ImportError:
    print(gc.isenabled(), gc.get_freeze_count() > len(made), len(gc.get_objects()) < len(made))
"""


def test_what_was_imported_is_frozen_and_the_collector_goes_on() -> None:
    """In a process of its own: what this one holds must not be frozen."""
    ended = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=60, check=True)
    assert ended.stdout.split() == ["True"] * 3


def test_a_run_imports_in_this_way() -> None:
    script = """
import atexit, gc, main
atexit.register(lambda: print(gc.get_freeze_count()))
main.main(["no.yaml"])
"""
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300)
    assert "no such configuration" in ended.stderr
    assert int(ended.stdout) > 100_000
