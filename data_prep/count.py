r"""Count text: documents, characters, bytes, words and tokens of every language; or what finished rows hold.

    python -m data_prep.count --input data/demo/text --source udhr --tokenizer data/demo/tokenizer \
        --output data/demo/counts
    python -m data_prep.count --shards data/demo/shards-256 --output data/demo/counts-256

Writes counts.csv, which `make plan COUNTS=...` reads, counts.png and, to the console, a table. With several tokenizers
each has a CSV of its own, counts-<name>.csv. A duplicate counts as often as it is there. A process holds as much text
as a batch, or one document; with --heldout-rate all of a small language, for its rule of what is held out needs that.
"""
import argparse
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data_prep.batches import batches
from data_prep.count_figure import draw_counts
from data_prep.count_table import counts_table
from data_prep.counts import Counts, counts_csv, total
from data_prep.documents import Reading, add_reading_options, chosen_reading, text_documents
from data_prep.fast_tokenizer import BACKENDS, Backend, Encoder, encoder
from data_prep.inputs import InputFile, Inputs, Stream, check_apart, find_inputs, text_bytes
from data_prep.parallel import spread
from data_prep.split import check_heldout_rate, heldout_mask
from data_prep.train_tokenizer import BYTE_TOKENS
from data_prep.verify import find_streams
from data_prep.work import StreamPlan, volumes_of
from mmbert.atomic import write_file
from mmbert.command import errors_in_one_line, local_folder
from mmbert.manifest import read_manifest
from mmbert.packing import WRAPPER_TOKENS
from mmbert.tokenizer import load_tokenizer

BATCH = 2**22  # characters that are encoded at a time

Tables = dict[str, dict[Stream, Counts]]  # of each tokenizer, by its name


@dataclass(frozen=True)
class Settings:
    """How text is counted; `heldout_rate` 0 counts all of it."""

    tokenizers: tuple[Path, ...]
    backend: Backend
    heldout_rate: float
    reading: Reading


@dataclass(frozen=True)
class Part:
    """Files that are counted together: all of a stream that `prepare` takes for small, or one of a large stream."""

    files: tuple[InputFile, ...]
    is_whole: bool


def parts_of(stream: Stream, files: tuple[InputFile, ...]) -> list[Part]:
    """The parts of a stream."""
    if StreamPlan(*stream, list(volumes_of(files, text_bytes))).is_small:
        return [Part(files, is_whole=True)]
    return [Part((file,), is_whole=False) for file in files]


def count_part(part: Part, settings: Settings) -> list[Counts]:
    """What some files hold, with each tokenizer."""
    sums = [Counts()] * len(settings.tokenizers)
    for texts in batches(documents_of(part, settings), len, BATCH):
        sums = [
            total([so_far, count_texts(texts, *loaded(folder, settings.backend))])
            for so_far, folder in zip(sums, settings.tokenizers, strict=True)
        ]
    return sums


def documents_of(part: Part, settings: Settings) -> Iterator[str]:
    """The documents of a part that hold text and are counted."""
    documents = (document for file in part.files for document in text_documents(file, settings.reading) if document)
    if not settings.heldout_rate:
        yield from documents
        return
    for texts in [list(documents)] if part.is_whole else batches(documents, len, BATCH):
        mask = heldout_mask(texts, settings.heldout_rate, part.is_whole)
        yield from (text for text, is_heldout in zip(texts, mask, strict=True) if not is_heldout)


def count_texts(texts: list[str], encode: Encoder, is_byte: NDArray[np.bool_]) -> Counts:
    """What some documents hold. What gives no token is left out, as `prepare` leaves it out.

    Args:
        is_byte: (vocabulary,) which tokens stand for one byte.
    """
    ids_of_each = encode(texts)
    kept = [text for text, ids in zip(texts, ids_of_each, strict=True) if len(ids)]
    ids = np.concatenate(ids_of_each)
    return Counts(
        tokens=len(ids) + WRAPPER_TOKENS * len(kept),
        documents=len(kept),
        characters=sum(map(len, kept)),
        bytes=sum(len(text.encode()) for text in kept),
        words=sum(len(text.split()) for text in kept),
        text_tokens=len(ids),
        unknown_tokens=int((ids == encode.tokenizer.unk_token_id).sum()),
        byte_tokens=int(is_byte[ids].sum()),
    )


@cache
def loaded(folder: Path, backend: Backend) -> tuple[Encoder, NDArray[np.bool_]]:
    """A tokenizer, and which of its ids stand for one byte."""
    tokenizer = load_tokenizer(folder)
    is_byte = np.zeros(tokenizer.vocab_size, dtype=bool)
    vocabulary = tokenizer.backend.get_vocab()
    is_byte[[vocabulary[token] for token in BYTE_TOKENS if token in vocabulary]] = True
    return encoder(tokenizer, backend), is_byte


def count_inputs(inputs: Inputs, settings: Settings, workers: int) -> Tables:
    """What each stream holds, with each tokenizer. Streams without text are left out."""
    parts = [(stream, part) for stream, files in inputs.items() for part in parts_of(stream, files)]
    tables: Tables = {folder.name: dict.fromkeys(inputs, Counts()) for folder in settings.tokenizers}
    found = spread(partial(count_part, settings=settings), [part for _, part in parts], workers, "count", unit="part")
    for (stream, _), counts in zip(parts, found, strict=True):
        for table, each in zip(tables.values(), counts, strict=True):
            table[stream] = total([table[stream], each])
    return {name: {stream: each for stream, each in table.items() if each.documents} for name, table in tables.items()}


def count_shards(root: Path) -> dict[Stream, Counts]:
    """What the training rows of a shards folder hold, by their manifests."""
    manifests = [read_manifest(folder) for folder in find_streams(root) if folder.parts[-3] == "train"]
    return {
        (manifest.source, manifest.language): Counts(
            tokens=manifest.tokens,
            rows=manifest.rows,
            documents=manifest.documents,
            characters=None,
            bytes=manifest.text_bytes,
            words=None,
            text_tokens=None,
            unknown_tokens=None,
            byte_tokens=None,
        )
        for manifest in manifests
    }


def write_counts(tables: Tables, output: Path) -> None:
    """A CSV for each tokenizer, and the figure of all."""
    for name, table in tables.items():
        path = output / ("counts.csv" if len(tables) == 1 else f"counts-{name}.csv")
        write_file(path, counts_csv(table).encode())
        print(f"{name}\n{counts_table(table)}\n{path}: {len(table):,} streams")
    write_file(output / "counts.png", draw_counts(tables))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m data_prep.count", description="Count text and its tokens, or finished rows."
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--input", help="text: a file, or a folder with <language>.jsonl or <language>/")
    what.add_argument("--shards", type=Path, help="a folder of data_prep.prepare: its manifests are read, nothing else")
    parser.add_argument("--tokenizer", type=Path, action="append", help="tokenizer folder; may be given several times")
    parser.add_argument("--output", type=local_folder, required=True, help="folder for counts.csv and counts.png")
    parser.add_argument("--source", default="mine", help="name of the corpus (default: %(default)s)")
    parser.add_argument("--language", help="of all the text, where its names say none")
    add_reading_options(parser)
    parser.add_argument("--heldout-rate", type=float, default=0.0, help="leave out what prepare holds out at this rate")
    parser.add_argument("--tokenizer-backend", choices=BACKENDS, default="auto", help="(default: %(default)s)")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes (default: all cores)")
    return parser.parse_args()


def count_text(arguments: argparse.Namespace) -> Tables:
    """The tables of --input.

    Raises:
        ValueError: no tokenizer was given, or two folders of one name; or the held-out rate is no share.
    """
    if arguments.heldout_rate:
        check_heldout_rate(arguments.heldout_rate)
    folders = tuple(arguments.tokenizer or ())
    names = [folder.name for folder in folders]
    if not folders or len(set(names)) < len(names):
        raise ValueError(f"--tokenizer {' '.join(names) or 'is missing'}: give one, or several of different names")
    for folder in folders:
        print(f"{folder}: encoded by {loaded(folder, arguments.tokenizer_backend)[0].description}")
    settings = Settings(folders, arguments.tokenizer_backend, arguments.heldout_rate, chosen_reading(arguments))
    inputs = find_inputs(arguments.input, arguments.source, arguments.language)
    tables = count_inputs(inputs, settings, arguments.workers)
    if empty := sorted("/".join(stream) for stream in inputs.keys() - tables[names[0]].keys()):
        print(f"no text in {', '.join(empty)}")
    return tables


@errors_in_one_line()
def main() -> None:
    arguments = parse_arguments()
    check_apart(arguments.input or str(arguments.shards), arguments.output)
    if arguments.shards:
        tables = {f"training rows in {arguments.shards}": count_shards(arguments.shards)}
    else:
        tables = count_text(arguments)
    if not any(tables.values()):
        raise ValueError(f"{arguments.input or arguments.shards} holds nothing to count")
    arguments.output.mkdir(parents=True, exist_ok=True)
    write_counts(tables, arguments.output)


if __name__ == "__main__":
    main()
