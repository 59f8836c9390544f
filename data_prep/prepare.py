r"""Turn a text folder into rows of token ids, one MDS folder per language and split.

    python -m data_prep.prepare --input data/demo/text --tokenizer data/demo/tokenizer --row-length 256 \
        --output data/demo/shards-256

Per language: cut the held-out documents, tokenise, pack, shuffle the rows, write. Each folder appears whole or not
at all; a run that was stopped goes on where it was, and a changed text file re-does that language alone. The text
of one language must fit in memory, once as text and once as ids.
"""
import argparse
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

import numpy as np
from streaming import MDSWriter
from tqdm import tqdm

from data_prep.documents import find_language_files, parse_documents, read_language_list
from data_prep.split import DEFAULT_HELDOUT_RATE, split_documents
from data_prep.totals import totals_table
from mmbert.atomic import partial_folder, publish_folder
from mmbert.command import errors_in_one_line
from mmbert.file_contents import sha256_of
from mmbert.manifest import (
    COLUMNS,
    SPLITS,
    Manifest,
    check_stream,
    read_manifest,
    shard_records,
    stream_folder,
    write_manifest,
)
from mmbert.packing import Row, check_row_length, pack_documents
from mmbert.tokenizer import Tokenizer, load_tokenizer

SHARD_BYTES = 64 * 2**20
OWN_FILES = re.compile(r"shard\.\d{5}\.mds|index\.json|manifest\.json")


@dataclass(frozen=True)
class Settings:
    """What all languages of one run share; lengths in tokens."""

    output: Path
    tokenizer: Path
    source: str
    row_length: int
    heldout_rate: float
    seed: int


@dataclass(frozen=True)
class Result:
    """The streams of one language, and whether they were written now or found finished."""

    manifests: list[Manifest]
    is_new: bool


def prepare_language(settings: Settings, language: str, path: Path) -> Result:
    """Write the streams of one language, unless they are there and made from the same inputs."""
    tokenizer = _tokenizer(settings.tokenizer)
    content = path.read_bytes()
    inputs = inputs_digest(settings, tokenizer.digest, path.suffix, content)
    if finished := find_finished(settings, tokenizer, language, inputs):
        return Result(finished, is_new=False)
    splits = split_documents(parse_documents(path, content), settings.heldout_rate)
    manifests = []
    for split, texts in splits.items():
        if texts:
            manifests.append(write_stream(settings, tokenizer, (split, language), texts, inputs))
        else:  # no longer split, if it ever was: Streaming refuses a stream without rows
            shutil.rmtree(stream_folder(settings.output, split, settings.source, language), ignore_errors=True)
    return Result(manifests, is_new=True)


def inputs_digest(settings: Settings, tokenizer_digest: str, suffix: str, content: bytes) -> str:
    """sha256, in hex, of everything that decides what the rows of a language are."""
    inputs = {
        "text": hashlib.sha256(content).hexdigest(),
        "suffix": suffix,
        "tokenizer": tokenizer_digest,
        "row_length": settings.row_length,
        "heldout_rate": settings.heldout_rate,
        "seed": settings.seed,
    }
    return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()


def find_finished(settings: Settings, tokenizer: Tokenizer, language: str, inputs: str) -> list[Manifest]:
    """The manifests of a language that is complete and made from `inputs`; empty if it is to be done."""
    manifests = []
    for split in SPLITS:
        folder = stream_folder(settings.output, split, settings.source, language)
        if not folder.exists():
            continue
        try:
            manifest = check_stream(folder, settings.row_length, tokenizer.digest, tokenizer.vocab_size)
        except (ValueError, FileNotFoundError):
            continue
        if manifest.inputs == inputs:
            manifests.append(manifest)
    only_document = len(manifests) == 1 and manifests[0].split == "train" and manifests[0].documents == 1
    return manifests if only_document or len(manifests) == len(SPLITS) else []


def write_stream(
    settings: Settings, tokenizer: Tokenizer, stream: tuple[str, str], texts: list[str], inputs: str
) -> Manifest:
    """Pack `texts` and write them as the stream (split, language)."""
    split, language = stream
    documents = tokenizer.encode_batch(texts)
    rows = pack_documents(documents, settings.row_length, tokenizer.bos_token_id, tokenizer.eos_token_id)
    shuffled = np.random.default_rng(shuffle_seed(settings.seed, settings.source, language)).permutation(len(rows))
    folder = stream_folder(settings.output, split, settings.source, language)
    with partial_folder(folder) as partial:
        write_shards(partial, [rows[index] for index in shuffled])
        manifest = Manifest(
            split=split,
            source=settings.source,
            language=language,
            row_length=settings.row_length,
            tokenizer=tokenizer.digest,
            vocab_size=tokenizer.vocab_size,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            documents=len(texts),
            rows=len(rows),
            tokens=sum(len(row.input_ids) for row in rows),
            text_bytes=sum(len(text.encode()) for text in texts),
            inputs=inputs,
            index_sha256=sha256_of(partial / "index.json"),
            shards=shard_records(partial),
        )
        write_manifest(partial, manifest)
        publish_folder(partial, folder)
    return manifest


def shuffle_seed(seed: int, source: str, language: str) -> int:
    """A seed of its own for each stream, so that no two languages share a permutation."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{source}/{language}".encode()).digest()[:8])


def write_shards(folder: Path, rows: list[Row]) -> None:
    """Write rows as MDS shards and index.json."""
    with MDSWriter(out=str(folder), columns=COLUMNS, size_limit=SHARD_BYTES) as writer:
        for row in rows:
            writer.write(asdict(row))


@cache
def _tokenizer(folder: Path) -> Tokenizer:
    return load_tokenizer(folder)


def check_output(settings: Settings, tokenizer: Tokenizer) -> None:
    """Refuse an output folder that holds anything but streams of this tokenizer and row length.

    Raises:
        FileExistsError: it does; nothing was touched.
    """
    if settings.output.exists() and not settings.output.is_dir():
        raise FileExistsError(f"{settings.output} is a file: choose another --output")
    for path in settings.output.glob("*"):
        if path.name not in SPLITS:
            raise FileExistsError(f"{path} is not of data_prep.prepare: choose another --output")
    for folder in sorted(settings.output.glob("*/*/[!.]*")):
        strangers = sorted(path.name for path in folder.iterdir() if not OWN_FILES.fullmatch(path.name))
        if strangers:
            raise FileExistsError(f"{folder / strangers[0]} is not of data_prep.prepare: choose another --output")
        try:
            manifest = read_manifest(folder)
        except (ValueError, FileNotFoundError):
            continue  # ours, but damaged: prepare_language replaces it
        if (manifest.row_length, manifest.tokenizer) != (settings.row_length, tokenizer.digest):
            raise FileExistsError(
                f"{folder} has row_length {manifest.row_length} and tokenizer {manifest.tokenizer[:12]}, not "
                f"{settings.row_length} and {tokenizer.digest[:12]}: choose another --output"
            )


def select_languages(files: dict[str, Path], listed: Path | None) -> dict[str, Path]:
    """The files of the languages in the list file, or all."""
    if listed is None:
        return files
    languages = read_language_list(listed)
    if missing := [language for language in languages if language not in files]:
        raise FileNotFoundError(f"{listed}: the text folder has no {', '.join(missing)}")
    return {language: files[language] for language in languages}


def prepare_all(settings: Settings, files: dict[str, Path], workers: int) -> Iterator[Result]:
    """Prepare languages in `workers` processes, in the order in which they finish."""
    if workers == 1:
        for language, path in files.items():
            yield prepare_language(settings, language, path)
        return
    # The largest first, so that no process is left alone with it at the end.
    ordered = sorted(files.items(), key=lambda item: item[1].stat().st_size, reverse=True)
    with ProcessPoolExecutor(workers, initializer=_one_thread_per_process) as pool:
        futures = [pool.submit(prepare_language, settings, language, path) for language, path in ordered]
        try:
            for future in as_completed(futures):
                yield future.result()
        finally:
            pool.shutdown(cancel_futures=True)


def _one_thread_per_process() -> None:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Turn a text folder into rows of token ids.")
    parser.add_argument("--input", type=Path, required=True, help="text folder: <language>.jsonl or <language>.txt")
    parser.add_argument("--tokenizer", type=Path, required=True, help="tokenizer folder")
    parser.add_argument("--row-length", type=int, required=True, help="most tokens in a row")
    parser.add_argument("--output", type=Path, required=True, help="shards folder")
    parser.add_argument("--source", default="udhr", help="name of the corpus")
    parser.add_argument("--languages", type=Path, help="list of languages, one a line (default: all)")
    parser.add_argument("--heldout-rate", type=float, default=DEFAULT_HELDOUT_RATE, help="share held out")
    parser.add_argument("--seed", type=int, default=0, help="order of the rows")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes (default: all cores)")
    return parser.parse_args()


@errors_in_one_line()
def main() -> None:
    arguments = parse_arguments()
    check_row_length(arguments.row_length)
    settings = Settings(
        output=arguments.output,
        tokenizer=arguments.tokenizer,
        source=arguments.source,
        row_length=arguments.row_length,
        heldout_rate=arguments.heldout_rate,
        seed=arguments.seed,
    )
    files = select_languages(find_language_files(arguments.input), arguments.languages)
    check_output(settings, _tokenizer(settings.tokenizer))
    progress = tqdm(prepare_all(settings, files, arguments.workers), total=len(files), unit="language", disable=None)
    results = list(progress)
    print(totals_table([manifest for result in results for manifest in result.manifests]))
    num_new = sum(result.is_new for result in results)
    print(f"{num_new} languages written, {len(results) - num_new} were up to date")


if __name__ == "__main__":
    main()
