"""Check every byte and every row of a shards folder.

    python -m data_prep.verify data/demo/shards-256

Prints one line for each broken stream and exits with status 1, or a table of totals.
"""
import argparse
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

from data_prep.parallel import spread
from data_prep.pieces import documents_in, read_rows
from data_prep.totals import totals_table
from mmbert.command import errors_in_one_line, local_folder
from mmbert.manifest import REMEDY, SPLITS, Manifest, check_stream, read_manifest
from mmbert.shards import LanguageShards

SHARDS = 32  # of a stream in a part, about a gigabyte; for each part the manifest is read again

Task = TypeVar("Task")
Result = TypeVar("Result")


def find_streams(root: Path) -> list[Path]:
    """All stream folders below `root`, sorted; ValueError if there are none."""
    streams = sorted(folder for split in SPLITS for folder in root.glob(f"{split}/*/[!.]*"))
    if not streams:
        raise ValueError(f"{root} holds no <split>/<source>/<language>: is it a folder of data_prep.prepare?")
    return streams


@dataclass(frozen=True)
class Part:
    """Shards of a stream that are read by one task, and their numbers there."""

    folder: Path
    numbers: range


def check(folder: Path) -> Manifest:
    """The manifest of a stream, after what training checks of it; see `verify_stream`."""
    manifest = read_manifest(folder)
    return check_stream(folder, manifest.row_length, manifest.tokenizer, manifest.vocab_size)


def parts_of(folder: Path, manifest: Manifest) -> list[Part]:
    """All shards of a stream."""
    number = len(manifest.shards)
    return [Part(folder, range(first, min(first + SHARDS, number))) for first in range(0, number, SHARDS)]


def count_part(part: Part) -> tuple[int, int]:
    """Tokens and documents of some shards, each read and checked: sha256, row count, rows and documents."""
    shards = LanguageShards([part.folder], [read_manifest(part.folder)])
    tokens = documents = 0
    for number in part.numbers:
        rows = read_rows(shards, number)
        tokens += len(rows.input_ids)
        documents += len(documents_in(rows, shards, number))
    return tokens, documents


def check_counts(folder: Path, manifest: Manifest, counts: Iterable[tuple[int, int]]) -> Manifest:
    """The manifest, after its tokens and documents are found to be those of all parts."""
    tokens, documents = map(sum, zip(*counts, strict=True))
    for found, written, what in ((tokens, manifest.tokens, "tokens"), (documents, manifest.documents, "documents")):
        if found != written:
            raise ValueError(f"{folder} holds {found} {what}, its manifest says {written}; {REMEDY}")
    return manifest


def verify_stream(folder: Path) -> Manifest:
    """Check one stream wholly: what training checks, then each shard's sha256, row count, rows and documents.

    Raises:
        FileNotFoundError: the manifest, the index or a shard is missing.
        ValueError: something does not fit; the message names the file, the value and the remedy.
    """
    manifest = check(folder)
    return check_counts(folder, manifest, map(count_part, parts_of(folder, manifest)))


def or_fault(function: Callable[[Task], Result], task: Task) -> Result | str:
    """What the function finds of a task, or what is wrong, in words."""
    try:
        return function(task)
    except Exception as error:  # a decoder fed with garbage may raise anything; each is one line here
        return str(error)


def verify_all(folders: Sequence[Path], workers: int) -> dict[Path, Manifest | str]:
    """The manifest of each stream, or the first thing that `verify_stream` finds wrong with it.

    The workers share out parts of streams, for one stream may be larger than all others together.
    """
    found = dict(zip(folders, spread(partial(or_fault, check), folders, workers, "files", "stream"), strict=True))
    manifests = {folder: result for folder, result in found.items() if isinstance(result, Manifest)}
    parts = [part for folder, manifest in manifests.items() for part in parts_of(folder, manifest)]
    counts: dict[Path, list[tuple[int, int] | str]] = {folder: [] for folder in manifests}
    for part, result in zip(parts, spread(partial(or_fault, count_part), parts, workers, "rows", "part"), strict=True):
        counts[part.folder].append(result)
    for folder, results in counts.items():
        faults = [result for result in results if isinstance(result, str)]
        found[folder] = faults[0] if faults else or_fault(partial(check_counts, folder, manifests[folder]), results)
    return found


def find_mixture(manifests: list[Manifest]) -> str:
    """Why streams cannot be trained on together, or the empty string."""
    kinds = sorted({(manifest.row_length, manifest.tokenizer[:12]) for manifest in manifests})
    return f"streams of several row lengths or tokenizers: {kinds}" if len(kinds) > 1 else ""


@errors_in_one_line()
def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m data_prep.verify", description="Check every byte and every row of a shards folder."
    )
    parser.add_argument("root", type=local_folder, help="shards folder, made by data_prep.prepare")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes (default: all cores)")
    arguments = parser.parse_args()
    root: Path = arguments.root
    found = verify_all(find_streams(root), arguments.workers)
    manifests = [result for result in found.values() if isinstance(result, Manifest)]
    broken = {folder.relative_to(root): result for folder, result in found.items() if isinstance(result, str)}
    faults = [f"broken: {folder}: {result}" for folder, result in broken.items()]
    if mixture := find_mixture(manifests):
        faults.append(f"broken: {root}: {mixture}")
    if faults:
        sys.exit("\n".join(faults))
    print(totals_table(manifests))
    print(f"{len(manifests)} streams are whole")


if __name__ == "__main__":
    main()
