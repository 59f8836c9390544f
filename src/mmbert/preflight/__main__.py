"""What would stop a job, found in a minute: python -m mmbert.preflight yamls/phase1.yaml [key.sub=value ...].

Once a rank, under the launcher that will start main.py, as in
`python -m mmbert.launch --nproc 8 -m mmbert.preflight --gpus 8 yamls/phase1.yaml`. Every rank looks at its own machine,
the first gathers what they found, and then they add up a number together. Exit status 1, and one line for each fault
with the node's name. It needs torch, but not Composer, whose import takes longer than all of this.
"""
import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from mmbert.command import errors_in_one_line
from mmbert.config import RunConfig, load_config
from mmbert.preflight.checks import check_port, look, on_gpus, versions
from mmbert.preflight.meeting import Meeting, Place, add_up, exchange, node_name, tell
from mmbert.preflight.report import Report
from mmbert.watchdog import Watchdog

WAIT_SECONDS = 40.0  # for another rank, and for a sum of all


def preflight(config: RunConfig, place: Place, gpus: int, seconds: float) -> list[str]:
    """All faults; empty if training can begin.

    Raises:
        OSError: the ranks cannot talk to each other.
    """
    watchdog = Watchdog(seconds + 15)  # for what has no limit of its own, a file system that hangs, say
    watchdog.start()
    try:
        if place.rank == 0:
            check_port(place)
        meeting = Meeting(place, seconds)
        report = Report(node_name(), look(config, place, gpus), versions())
        watchdog.beat(f"rank {place.rank}: comparing with the others")
        faults = exchange(meeting, report, Path(config.run_root))
        for backend in [] if faults else (["gloo", "nccl"] if on_gpus(config, gpus) else ["gloo"]):
            watchdog.beat(f"rank {place.rank}: adding up over {backend}")
            add_up(place, meeting, backend)
        meeting.close()
    finally:
        watchdog.stop()
    return faults


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Command line of the program."""
    parser = argparse.ArgumentParser(prog="python -m mmbert.preflight", description="What would stop a job.")
    parser.add_argument("--gpus", type=int, default=0, help="GPUs that every node must have; default one a rank")
    parser.add_argument("--wait", type=float, default=WAIT_SECONDS, help="for another rank; default %(default)g s")
    parser.add_argument("config", help="YAML of the phase")
    parser.add_argument("overrides", nargs="*", metavar="key.sub=value", help="as for main.py")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the program; faults end it with one line each and exit code 1."""
    options, began, place = parse_arguments(arguments), time.monotonic(), Place.from_environment()
    with errors_in_one_line():
        faults = preflight(load_config(options.config, options.overrides), place, options.gpus, options.wait)
    if faults:
        sys.exit(1)
    if place.rank == 0:
        tell([f"{place.world_size} ranks can train, found in {time.monotonic() - began:.1f} s"])


if __name__ == "__main__":
    main()
