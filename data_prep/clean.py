r"""Drop documents before data_prep.prepare sees them: near duplicates, low quality, another language. All optional.

    python -m data_prep.clean --input my/text --output my/clean --quality repetition gopher fineweb --minhash
    python -m data_prep.prepare --input my/clean/text ...

The steps are datatrove's own, and change no text. OUTPUT/text/<language>/ has what is kept, OUTPUT/dropped/<language>/
what each step dropped and why (with --keep-dropped), OUTPUT/clean.json the counts. A run that was stopped goes on where
it was; a language whose files or settings changed is done anew.
"""
import argparse
import json
import os
import sys
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from hashlib import sha256
from importlib.metadata import version
from operator import attrgetter
from pathlib import Path
from typing import Any

from data_prep.batches import batches
from data_prep.clean_filters import QUALITY, Cleaning, check_known, read_thresholds
from data_prep.clean_language import WORK, Job, filter_part, finish_language, finished
from data_prep.documents import Reading, add_cutting_options
from data_prep.inputs import Inputs, check_apart, find_inputs
from data_prep.parallel import spread
from data_prep.totals import few, undivided_line
from mmbert.atomic import remove
from mmbert.command import errors_in_one_line, local_folder
from mmbert.file_contents import sha256_of
from mmbert.json_files import write_json
from mmbert.run_lock import sole_writer

PART_BYTES = 256 * 2**20  # of files that are read by one process at a time
Task = tuple[Job, Callable[[], None]]


def make_jobs(output: Path, cleaning: Cleaning, inputs: Inputs) -> list[Job]:
    """A job for each language; ValueError if the output holds languages that the input does not."""
    model = sha256_of(Path(cleaning.model)) if cleaning.model else None
    jobs = []
    for (_, language), files in inputs.items():
        settings = asdict(cleaning)
        if cleaning.thresholds:  # what they say decides, not where they lie
            settings["thresholds"] = read_thresholds(Path(cleaning.thresholds), language) or {}
        decides = [version("datatrove"), settings, model, [asdict(file) for file in files]]
        digest = sha256(json.dumps(decides).encode()).hexdigest()
        parts = tuple(map(tuple, batches(files, attrgetter("size"), PART_BYTES)))
        jobs.append(Job(str(output), language, cleaning, parts, digest))
    languages = {job.language for job in jobs}
    for path in sorted(output.glob("text/[!.]*")):
        if path.name not in languages:
            raise ValueError(f"{path} is of a language that --input has not: remove it, or choose another --output")
    return jobs


def run_tasks(tasks: list[Task], workers: int, what: str) -> dict[str, str]:
    """Do all tasks in `workers` processes; language -> error of those that failed on what a user can mend."""
    failed: dict[str, str] = {}
    errors = spread(error_of, [call for _, call in tasks], workers, what, "part")
    for (job, _), error in zip(tasks, errors, strict=True):
        if error is not None:
            failed.setdefault(job.language, error)
    return failed


def error_of(call: Callable[[], None]) -> str | None:
    """Do a task; why it failed on what a user can mend, or None."""
    try:
        call()
    except (ValueError, OSError) as error:
        return str(error)
    return None


def unfinished(jobs: list[Job]) -> list[Job]:
    """The languages that are to be done; what a kill left behind of others is removed."""
    todo = []
    for job in jobs:
        if finished(job) is None:
            todo.append(job)
        else:
            remove(job.work.parent)
    return todo


def clean_all(jobs: list[Job], workers: int) -> dict[str, str]:
    """Clean all languages that are not finished; language -> error of those that could not be."""
    todo = unfinished(jobs)
    parts = [(job, number) for job in todo for number in range(len(job.parts))]
    parts.sort(key=lambda item: -sum(file.size for file in item[0].parts[item[1]]))  # none is left alone at the end
    failed = run_tasks([(job, partial(filter_part, job, number)) for job, number in parts], workers, "filter")
    whole = [job for job in todo if job.language not in failed]
    return failed | run_tasks([(job, partial(finish_language, job)) for job in whole], workers, "finish")


def write_report(output: Path, jobs: list[Job], failed: dict[str, str]) -> str:
    """Write clean.json; a summary of it, and what one should look at."""
    records: dict[str, Any] = {job.language: finished(job) for job in jobs if job.language not in failed}
    for record in records.values():
        del record["digest"], record["files"]
    settings = asdict(jobs[0].cleaning) | {"datatrove": version("datatrove")}
    write_json(output / "clean.json", {"settings": settings, "languages": records, "failed": failed})
    read, kept = (sum(record[what]["documents"] for record in records.values()) for what in ("read", "kept"))
    steps: dict[str, int] = {}
    for record in records.values():
        for step, drops in record["dropped"].items():
            steps[step] = steps.get(step, 0) + drops["documents"]
    dropped = ", ".join(f"{step} dropped {number:,}" for step, number in steps.items())
    lines = [f"{output}: {len(records)} languages, {read:,} documents, {kept:,} kept; {dropped}"]
    if emptied := [language for language, record in records.items() if not record["kept"]["documents"]]:
        lines.append(f"nothing was kept of {few(emptied)}")
    if undivided := [path for record in records.values() for path in record["undivided"]]:
        lines.append(undivided_line(undivided))
    return "\n".join(lines)


def check_places(location: str, output: Path) -> None:
    """Refuse to write below the input, and to replace what is not ours: a language's text is when it is cleaned.

    Raises:
        ValueError: the output lies in the input, or the input in the text of the output.
        FileExistsError: the output holds what no run of ours made; hidden files are the system's.
    """
    check_apart(location, output)
    if "://" not in location and Path(location).resolve().is_relative_to((output / "text").resolve()):
        raise ValueError(f"--input {location} is text of --output {output}, and would be replaced: choose another one")
    ours = ("text", "dropped", "clean.json") if (output / WORK).exists() else ()
    for path in sorted(output.glob("[!.]*")):
        if path.name not in ours:
            raise FileExistsError(f"{path} is not of data_prep.clean: choose another --output")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m data_prep.clean", description="Drop documents before data_prep.prepare sees them."
    )
    parser.add_argument("--input", required=True, help="text folder, as for data_prep.prepare")
    parser.add_argument("--output", type=local_folder, required=True, help="folder to make; its `text` is for prepare")
    parser.add_argument("--language", help="of all the text (default: the names of files and folders say it)")
    add_cutting_options(parser)
    parser.add_argument("--minhash", action="store_true", help="drop near duplicates within a language")
    parser.add_argument("--quality", nargs="+", choices=QUALITY, default=(), help="filters of quality")
    parser.add_argument("--thresholds", metavar="FOLDER", help="FineWeb2's `configs`: thresholds of each language")
    parser.add_argument("--language-id", metavar="MODEL", help="fastText's model, say GlotLID's, in a file")
    parser.add_argument("--min-score", type=float, help="least probability of the language (default: of --thresholds)")
    parser.add_argument("--skip-unknown", action="store_true", help="a language that a step does not know skips it")
    parser.add_argument(
        "--words", choices=["unicode", "datatrove"], default="unicode", help="what cuts words (default: unicode)"
    )
    parser.add_argument("--keep-dropped", action="store_true", help="write what is dropped, and why")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes (default: all cores)")
    arguments = parser.parse_args()
    if arguments.language_id and arguments.min_score is None and not arguments.thresholds:
        parser.error("--language-id needs --min-score, or --thresholds that say it for each language")
    if not (arguments.minhash or arguments.quality or arguments.language_id):
        parser.error("nothing to do: give --minhash, --quality or --language-id")
    return arguments


@errors_in_one_line()
def main() -> None:
    arguments = parse_arguments()
    check_places(arguments.input, arguments.output)
    cleaning = Cleaning(
        quality=tuple(name for name in QUALITY if name in arguments.quality),
        thresholds=arguments.thresholds,
        words=arguments.words,
        model=arguments.language_id,
        min_score=arguments.min_score,
        skip_unknown=arguments.skip_unknown,
        minhash=arguments.minhash,
        reading=Reading(arguments.text_key, arguments.whole_txt, normalise=False),
        keep_dropped=arguments.keep_dropped,
    )
    inputs = find_inputs(arguments.input, "clean", arguments.language)
    check_known(cleaning, [language for _, language in inputs])
    with sole_writer(arguments.output / WORK):
        jobs = make_jobs(arguments.output, cleaning, inputs)
        failed = clean_all(jobs, arguments.workers)
        print(write_report(arguments.output, jobs, failed))
    if failed:
        sys.exit("\n".join(f"error: {language} was not cleaned: {error}" for language, error in failed.items()))


if __name__ == "__main__":
    main()
