"""Collect the phases of a run into report.json, report.png and report.html.

    python -m mmbert.evaluation.report --run-root runs/demo --phases phase1 phase2 phase3 --output runs/demo

Reads, of every phase, RUN_ROOT/<phase>/bits_per_byte.json, RUN_ROOT/<phase>/hf/conversion.json and the state of the
newest checkpoint.
"""
import argparse
from collections.abc import Sequence
from pathlib import Path

from mmbert.atomic import write_file
from mmbert.command import errors_in_one_line, local_folder
from mmbert.evaluation.report_figure import draw_report
from mmbert.evaluation.report_html import render_page
from mmbert.evaluation.report_numbers import build_report, report_as_json
from mmbert.evaluation.report_summary import summarise
from mmbert.evaluation.run_records import read_phases
from mmbert.json_files import write_json


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Command line of the program."""
    parser = argparse.ArgumentParser(
        prog="python -m mmbert.evaluation.report", description="Report on the phases of a run."
    )
    parser.add_argument("--run-root", type=Path, required=True, help="folder with one folder for each phase")
    parser.add_argument("--phases", nargs="+", required=True, help="names of the phases, in the order of training")
    parser.add_argument("--output", type=local_folder, required=True, help="folder for report.json, .png and .html")
    return parser.parse_args(arguments)


def write_report(options: argparse.Namespace) -> list[str]:
    """Write the three files and return the report in sentences."""
    report = build_report(read_phases(options.run_root, options.phases))
    figure = draw_report(report)
    write_json(options.output / "report.json", report_as_json(report))
    write_file(options.output / "report.png", figure)
    write_file(options.output / "report.html", render_page(report, figure).encode())
    return summarise(report)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the program; a mistake of the user ends it with one line and exit code 1."""
    options = parse_arguments(arguments)
    with errors_in_one_line():
        sentences = write_report(options)
    print(*sentences, f"Written: {options.output / 'report.html'}, .json and .png", sep="\n")


if __name__ == "__main__":
    main()
