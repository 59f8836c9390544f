"""Peak memory of one call on the CPU, measured in a process of its own.

Linux counts what a process holds (VmRSS) and the most that it ever held (VmHWM), in counters that proc(5) calls
inaccurate: 20 kB less than was held at least was seen once. getrusage's ru_maxrss will not do: a child is born with its
parent's.
"""

import ctypes
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

SETTINGS = {
    "MALLOC_MMAP_THRESHOLD_": "131072",
    "MALLOC_TRIM_THRESHOLD_": "131072",
    "MALLOC_TOP_PAD_": "0",
    "MALLOC_ARENA_MAX": "1",
}
"""glibc gives every block of 128 kB and more back as soon as it is freed, so that the most held is the most needed. Set
for the child alone, in place of all other MALLOC_ variables."""


def held(field: str, status: Path = Path("/proc/self/status")) -> int:
    """Bytes of this process: VmRSS, now, or VmHWM, at most so far."""
    for line in status.read_text().splitlines():
        key, _, value = line.partition(":")
        if key == field:
            return int(value.split()[0]) * 1024
    raise OSError(f"{status} has no {field}: memory is measured on Linux only")


def peak_over_now(call: Callable[[], object]) -> int:
    """Bytes that `call` holds at most, beyond what the process holds before it."""
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the most held so far becomes what is held now
    before = held("VmRSS")
    call()
    return held("VmHWM") - before


def peak_in_child(module: str, arguments: Sequence[str]) -> int:
    """Run `python -m module arguments` with SETTINGS; it must print {"peak_bytes": n} and nothing else.

    Raises:
        OSError: the child failed.
    """
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    command = [sys.executable, "-m", module, *arguments]
    child = subprocess.run(command, env={**inherited, **SETTINGS}, capture_output=True, text=True, check=False)
    if child.returncode != 0:
        last = (child.stderr.strip().splitlines() or ["no message"])[-1]
        raise OSError(f"measuring memory failed with exit status {child.returncode} ({last}); out of memory?")
    return int(json.loads(child.stdout)["peak_bytes"])
