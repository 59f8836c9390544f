r"""Turn text into rows of token ids: one folder of MDS shards per split, source and language.

    python -m data_prep.prepare --input mydata/ --language fao --tokenizer data/tokenizer-gemma2 --output data/rows-1024

Texts are normalised, exact duplicates dropped, a share held out, the rest tokenised, packed and shuffled. A stream
appears whole or not at all. A run that was stopped goes on where it was, with the same bytes in the end; when input
files change, their streams alone are made anew. docs/data.md says what it makes and why.
"""
import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from data_prep.documents import Reading, add_reading_options, chosen_reading
from data_prep.executors import run_locally, submit_to_slurm
from data_prep.fast_tokenizer import BACKENDS
from data_prep.from_mds import find_mds_inputs
from data_prep.inputs import Inputs, check_apart, find_inputs
from data_prep.language_codes import canonical
from data_prep.queued import check_not_queued
from data_prep.sources import corpus_inputs, hf_inputs
from data_prep.split import DEFAULT_HELDOUT_RATE, check_heldout_rate
from data_prep.totals import few, totals_table, undivided_line
from data_prep.work import Settings, StreamPlan, Work, check_output, plan, write_plan
from mmbert.command import errors_in_one_line, local_folder
from mmbert.manifest import SPLITS, read_manifest, stream_folder
from mmbert.packing import check_row_length
from mmbert.run_lock import sole_writer
from mmbert.streams import read_languages

QUARANTINED = 3  # exit status: there are rows, but for input files that could not be read


def prepare(settings: Settings, inputs: Inputs, workers: int) -> None:
    """Make all streams on this machine, in `workers` processes."""
    make_all(plan(settings, inputs), workers)


def make_all(work: Work, workers: int) -> list[StreamPlan]:
    """Make the streams of a plan that are not finished; which those were."""
    with to_do(work) as rest:
        run_locally(rest, workers)
    return rest.streams


@contextmanager
def to_do(work: Work) -> Iterator[Work]:
    """The part of a plan that is not finished, written where its tasks read it; no other process may begin meanwhile.

    Raises:
        FileExistsError: the output folder is not ours alone, or jobs in the queue are to make some of these streams.
        ValueError: another process is writing into it.
    """
    with sole_writer(work.folder):
        check_rows(work)
        rest = Work(work.settings, work.tokenizer_digest, [s for s in work.streams if work.read_record(s) is None])
        check_not_queued(rest)
        write_plan(rest)
        yield rest


def check_rows(work: Work) -> None:
    """Refuse an output folder that holds anything but streams of this tokenizer and row length.

    Raises:
        FileExistsError: it does; nothing was touched.
    """
    settings = work.settings
    for folder in check_output(work.output):
        try:
            manifest = read_manifest(folder)
        except (ValueError, FileNotFoundError):
            continue  # ours, but damaged: it is made anew; or a job is replacing it
        if (manifest.row_length, manifest.tokenizer) != (settings.row_length, work.tokenizer_digest):
            raise FileExistsError(
                f"{folder} has row_length {manifest.row_length} and tokenizer {manifest.tokenizer[:12]}, not "
                f"{settings.row_length} and {work.tokenizer_digest[:12]}: choose another --output"
            )


def chosen_inputs(arguments: argparse.Namespace) -> Inputs:
    """The input files that the command line names."""
    languages = read_languages(arguments.languages, "--languages") if arguments.languages else None
    if arguments.corpus:
        if given := [f"--{name}" for name in ("source", "language", "files") if getattr(arguments, name)]:
            raise ValueError(f"{' and '.join(given)}: --corpus {arguments.corpus} has its own; give --languages of it")
        return corpus_inputs(arguments.corpus, languages, arguments.mirror, arguments.revision)
    source = arguments.source or "mine"
    if arguments.dataset:
        if not arguments.revision or not arguments.files:
            raise ValueError(f"--dataset {arguments.dataset}: give its --revision and the pattern of its --files, too")
        where = (arguments.dataset, arguments.revision, arguments.files, source)
        return hf_inputs(*where, arguments.language or "", languages, arguments.mirror)
    if arguments.revision or arguments.files or arguments.mirror:
        raise ValueError("--revision, --files and --mirror belong to --dataset or --corpus")
    location = arguments.mds or arguments.input
    check_apart(location, arguments.output)
    find = find_mds_inputs if arguments.mds else find_inputs
    inputs = find(location, source, arguments.language)
    return select(inputs, languages) if languages else inputs


def select(inputs: Inputs, languages: Sequence[str]) -> Inputs:
    """The streams of some languages; FileNotFoundError if one has no text."""
    wanted = {canonical(language) for language in languages}
    if missing := sorted(wanted - {language for _, language in inputs}):
        raise FileNotFoundError(f"--languages: there is no text in {', '.join(missing)}")
    return {stream: files for stream, files in inputs.items() if stream[1] in wanted}


def print_names(line: str, names: Sequence[str]) -> None:
    """A line with the names in it; none where there are none."""
    if names:
        print(line.format(few(names)))


def report(work: Work, tried: Sequence[StreamPlan]) -> int:
    """Print what there is now; the exit status.

    Args:
        tried: the streams that this run was to make.
    """
    manifests, quarantined, undivided, textless = [], [], [], []
    documents = empty = duplicates = 0
    for stream in work.streams:
        record = work.read_record(stream)
        assert record is not None
        quarantined += record["quarantined"]
        undivided += record["undivided"]
        documents, empty = documents + record["documents"], empty + record["empty"]
        duplicates += record["duplicates"]
        if not record["splits"] and not record["quarantined"]:
            textless.append(f"{stream.source}/{stream.language}")
        for split in record["splits"]:
            manifests.append(read_manifest(stream_folder(work.output, split, stream.source, stream.language)))
    print(totals_table(manifests))
    print(f"{documents:,} documents read; left out: {duplicates:,} exact duplicates, {empty:,} without text")
    names = {split: {f"{one.source}/{one.language}" for one in manifests if one.split == split} for split in SPLITS}
    print_names("no rows were made of {}: there is no text in their files", textless)
    print_names(
        "no text is held out of {}: nothing can be measured there, which takes two documents",
        sorted(names["train"] - names["heldout"]),
    )
    if undivided:
        print(undivided_line(undivided))
    there = {(manifest.source, manifest.language) for manifest in manifests}
    new = there & {(stream.source, stream.language) for stream in tried}
    print(f"{len(new)} streams made, {len(there - new)} were up to date")
    train = {(folder.parent.name, folder.name) for folder in work.output.glob("train/*/[!.]*")}
    if others := sorted(map("/".join, train - there)):
        print(f"{len(others)} streams of other text are there, too, and stay as they were: {few(others)}")
    for reason in quarantined:
        print(f"quarantined: {reason}", file=sys.stderr)
    if not quarantined and not manifests:
        print("error: there are no rows, for no input file holds text: fill them, and run this again", file=sys.stderr)
        return 1
    if not quarantined:
        return 0
    num_files = sum(len(volume.files) for stream in work.streams for volume in stream.volumes)
    print(
        f"error: nothing was taken of {len(quarantined)} of {num_files} input files, see above: mend or remove them, "
        "and run the same command again",
        file=sys.stderr,
    )
    return QUARANTINED if manifests else 1


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m data_prep.prepare", description="Turn text into rows of token ids."
    )
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--input", help="file or folder with text: .txt .jsonl .csv .parquet, .gz .zst")
    where.add_argument("--corpus", help="one of the paper's corpora, by its name in data_prep/sources.yaml")
    where.add_argument("--dataset", help="any data set of Hugging Face; with --revision and --files")
    where.add_argument("--mds", help="folder of MDS shards with token ids, such as mmBERT's published data")
    parser.add_argument("--revision", help="branch, tag or commit of --dataset or --corpus")
    parser.add_argument("--files", help="pattern of the files of --dataset, such as 'data/{language}/*.parquet'")
    parser.add_argument("--mirror", help="folder that holds copies of what --corpus or --dataset name")
    parser.add_argument("--language", help="of all the text (default: files and folders are called by languages)")
    parser.add_argument("--languages", nargs="+", default=[], help="only these; or a .txt with one a line")
    parser.add_argument("--source", help="name of the corpus, as in the YAML (default: mine)")
    parser.add_argument("--tokenizer", required=True, help="tokenizer folder")
    parser.add_argument(
        "--tokenizer-backend", choices=BACKENDS, default="auto", help="auto: gigatoken, if it is installed and fits"
    )
    parser.add_argument("--row-length", type=int, default=1024, help="most tokens in a row (default: 1024)")
    parser.add_argument("--output", type=local_folder, required=True, help="shards folder")
    parser.add_argument(
        "--heldout-rate", type=float, default=DEFAULT_HELDOUT_RATE, help="share to hold out (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the order of the rows (default: %(default)s)")
    add_reading_options(parser)
    parser.add_argument("--keep-duplicates", action="store_true", help="take a document as often as it stands there")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes (default: all cores)")
    parser.add_argument("--dry-run", action="store_true", help="check input and output alone: needs no tokenizer yet")
    parser.add_argument("--slurm", metavar="PARTITION", help="submit job arrays instead of working here")
    parser.add_argument("--slurm-time", default="12:00:00", help="limit of a task (default: 12:00:00)")
    parser.add_argument("--tasks", type=int, default=1000, help="most tasks of an array (default: 1000)")
    parser.add_argument("--memory", type=int, default=4, help="GB for each task on Slurm (default: 4)")
    return parser.parse_args()


@errors_in_one_line()
def main() -> None:
    arguments = parse_arguments()
    check_row_length(arguments.row_length)
    check_heldout_rate(arguments.heldout_rate)
    for option in ("workers", "tasks", "memory"):
        if (number := getattr(arguments, option)) < 1:
            raise ValueError(f"--{option} {number}: must be at least 1")
    reading = chosen_reading(arguments)
    if arguments.mds and reading != Reading():
        raise ValueError("--text-key, --whole-txt and --keep-spelling say how text is read; what --mds names holds ids")
    inputs = chosen_inputs(arguments)
    if arguments.dry_run:
        check_output(arguments.output)
        print(f"found {sum(map(len, inputs.values())):,} files of {len(inputs):,} languages; nothing was read or made")
        return
    settings = Settings(
        output=str(arguments.output),
        tokenizer=arguments.tokenizer,
        row_length=arguments.row_length,
        heldout_rate=arguments.heldout_rate,
        seed=arguments.seed,
        backend=arguments.tokenizer_backend,
        reading=None if arguments.mds else reading,
        distinct=not arguments.keep_duplicates,
    )
    work = plan(settings, inputs)
    if arguments.slurm:
        with to_do(work) as rest:
            jobs = submit_to_slurm(rest, arguments.slurm, arguments.slurm_time, arguments.tasks, arguments.memory)
        print(f"submitted: {' '.join(jobs) or 'nothing is left to do'}; run this command without --slurm when they end")
        return
    sys.exit(report(work, make_all(work, arguments.workers)))


if __name__ == "__main__":
    main()
