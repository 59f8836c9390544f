"""Text to shards on one core: data_prep.prepare and data_prep.verify, against ModernBERT's src/convert_dataset.py.

Ours normalises, drops exact duplicates, holds out, tokenises, packs, shuffles, writes with sha256 and reads all again
to verify. The peer tokenises a document at a time, joins all of them and cuts the result into rows (--concat_tokens,
its only way to write tokens: src/data/hf_to_mds.py writes text, and leaves tokenising to every epoch's loader). It works
in two processes, so look at processor time. Start-up is timed on neither side. The text is made of the lines of a real
one, so words come again more often than in a corpus, which helps both tokenizers' caches.
"""
import argparse
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from data_prep.benchmark import convert_dataset
from data_prep.benchmark import texts as benchmark_texts
from data_prep.inputs import find_inputs
from data_prep.pieces import read_documents
from data_prep.prepare import prepare
from data_prep.verify import find_streams, verify_stream
from data_prep.work import Settings
from mmbert.benchmark.loader import work_folder
from mmbert.benchmark.result import OURS, Gate, check_gates, check_peers, document
from mmbert.benchmark.timing import measure
from mmbert.manifest import Manifest
from mmbert.packing import WRAPPER_TOKENS, TokenIds
from mmbert.shards import LanguageShards
from mmbert.tokenizer import load_tokenizer

PEER = "convert_dataset"


def add_options(parser: argparse.ArgumentParser) -> None:
    benchmark_texts.add_options(parser)
    add_size_options(parser)
    parser.add_argument("--modernbert", type=Path, metavar="PATH", help="checkout of ModernBERT (default: left out)")


def add_size_options(parser: argparse.ArgumentParser) -> None:
    """How much text, and what is made of it."""
    parser.add_argument("--languages", type=int, default=12, help="how many, of the largest (default: 12)")
    parser.add_argument("--megabytes", type=float, default=24.0, help="of text, in all (default: 24)")
    parser.add_argument("--row-length", type=int, default=1024, help="most tokens in a row (default: 1024)")
    parser.add_argument("--seed", type=int, default=0, help="of the text (default: 0)")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="write there, a new folder, and keep all")


def make_corpus(options: argparse.Namespace, folder: Path) -> float:
    """Write the text to folder/text and folder/text.jsonl; megabytes of it.

    Raises:
        ValueError: --keep names what is there already, or --input has too few languages.
    """
    found = benchmark_texts.read_languages(options.input)
    if len(found) < options.languages:
        raise ValueError(f"--languages {options.languages}: {options.input} has {len(found)}")
    largest = sorted(found, key=lambda language: (-sum(map(len, found[language])), language))[: options.languages]
    chosen = {language: found[language] for language in sorted(largest)}
    return benchmark_texts.write_corpus(folder / "text", chosen, int(options.megabytes * 1e6), options.seed) / 1e6


def prepare_and_verify(settings: Settings, source: Path, workers: int) -> list[Manifest]:
    """Ours, from nothing."""
    output = Path(settings.output)
    shutil.rmtree(output, ignore_errors=True)
    prepare(settings, find_inputs(str(source), "benchmark"), workers)
    return [verify_stream(folder) for folder in find_streams(output)]


def convert_anew(module: Any, tokenizer: Any, source: Path, output: Path, row_length: int) -> None:
    """The peer, from nothing."""
    shutil.rmtree(output, ignore_errors=True)
    convert_dataset.convert(module, tokenizer, source, output, row_length)


def our_documents(root: Path) -> Iterator[TokenIds]:
    """The ids of all documents in our rows."""
    for folder in find_streams(root):
        manifest = verify_stream(folder)
        shards = LanguageShards([folder], [manifest])
        for shard in range(len(manifest.shards)):
            yield from read_documents(shards, shard)


def compare(ours: Path, theirs: Path, row_length: int, eos_token_id: int) -> list[Gate]:
    """Whether both hold the same documents; the peer leaves out what would be its last, unfinished row."""
    mine = {ids.tobytes(): len(ids) + WRAPPER_TOKENS for ids in our_documents(ours)}
    peers = {ids.tobytes() for ids in convert_dataset.documents_of(theirs, eos_token_id)}
    missing = sum(length for ids, length in mine.items() if ids not in peers)
    return [
        Gate(f"documents of {PEER} that ours lacks", len(peers - mine.keys()), 0),
        Gate(f"tokens of documents that {PEER} lacks", missing, row_length + max(mine.values())),
    ]


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Make the text, compare, time."""
    check_peers(options, [PEER] if options.modernbert else [])
    if options.keep is not None and options.keep.exists():
        raise ValueError(f"--keep {options.keep} exists: name a new folder")
    tokenizer = load_tokenizer(options.tokenizer)
    gates: list[Gate] = []
    with work_folder(options.keep) as folder:
        megabytes = make_corpus(options, folder)
        settings = Settings(str(folder / "ours"), str(options.tokenizer), options.row_length)
        ours = partial(prepare_and_verify, settings, folder / "text", 1)
        candidates: dict[str, Callable[[], object]] = {OURS: ours}
        manifests = ours()
        if options.modernbert:
            module = convert_dataset.load_convert_dataset(options.modernbert)
            its_tokenizer = convert_dataset.load_its_tokenizer(tokenizer)
            (folder / "theirs-text").mkdir()
            (folder / "text.jsonl").rename(folder / "theirs-text" / "train.jsonl")
            theirs = partial(
                convert_anew, module, its_tokenizer, folder / "theirs-text", folder / "theirs", options.row_length
            )
            theirs()
            gates = compare(folder / "ours", folder / "theirs", options.row_length, tokenizer.eos_token_id)
            check_gates(gates)
            candidates[PEER] = theirs
        samples = measure(candidates, options.repetitions, options.warmup)
    facts = facts_of(options, megabytes, manifests)
    about = {name: {"megabytes": megabytes} for name in samples}
    about[OURS]["note"] = "prepare with one worker, and verify"  # type: ignore[assignment]
    return document("pipeline", samples, sum(manifest.tokens for manifest in manifests), gates, facts, about)


def facts_of(options: argparse.Namespace, megabytes: float, manifests: list[Manifest]) -> dict[str, Any]:
    """What was made."""
    return {
        "languages": options.languages,
        "text_MB": round(megabytes, 3),
        "documents": sum(manifest.documents for manifest in manifests),
        "rows": sum(manifest.rows for manifest in manifests),
        "row_length": options.row_length,
        "vocab_size": manifests[0].vocab_size,
        "seed": options.seed,
    }
