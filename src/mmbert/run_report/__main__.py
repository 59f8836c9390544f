"""Compare a run with its plan, at any time: `make report RUN=runs/mine/phase1`.

    python -m mmbert.run_report runs/mine/phase1 [--output DIR] [--data-root data/shards-1024] [--quick]

RUN is the folder of a run, or one with several phases, which then stand on one page in the order of their parents.
Writes run_report.html, which needs no network, and run_report.json.
"""
import argparse
from collections.abc import Sequence
from pathlib import Path

from mmbert.atomic import write_file
from mmbert.command import errors_in_one_line, local_folder
from mmbert.json_files import write_json
from mmbert.run_report.page import render_page
from mmbert.run_report.phase_run import in_order, phase_folders, read_phase
from mmbert.run_report.summary import as_json, summarise


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Command line of the program."""
    parser = argparse.ArgumentParser(prog="python -m mmbert.run_report", description="Compare a run with its plan.")
    parser.add_argument("run", type=Path, help="folder of a run, run_root/name; or run_root, for all its phases")
    parser.add_argument("--output", type=local_folder, help="folder for run_report.html and .json; else RUN itself")
    parser.add_argument("--data-root", help="folder of the shards, if they were moved (one phase only)")
    parser.add_argument("--quick", action="store_true", help="do not compare the rows of every step with the plan's")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the program; a mistake of the user ends it with one line and exit code 1."""
    options = parse_arguments(arguments)
    output = options.output or options.run
    with errors_in_one_line():
        phases = in_order(
            [read_phase(folder, options.data_root, options.quick) for folder in phase_folders(options.run)]
        )
        try:
            output.mkdir(parents=True, exist_ok=True)
            write_json(output / "run_report.json", {"phases": [as_json(phase) for phase in phases]})
            write_file(output / "run_report.html", render_page(phases).encode())
        except PermissionError as error:  # somebody else's run, say
            raise PermissionError(f"{output}: {error.strerror}; name another folder with --output") from None
    for phase in phases:
        print(*summarise(phase), sep="\n")
    print(f"Written: {output / 'run_report.html'} and .json")


if __name__ == "__main__":
    main()
