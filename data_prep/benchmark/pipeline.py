"""Text to shards on one core: data_prep.prepare and data_prep.verify, against ModernBERT's src/convert_dataset.py.

Ours normalises, drops exact duplicates, holds out, tokenises, packs, shuffles, writes with sha256 and reads all again
to verify. The peer tokenises a document at a time, joins all of them and cuts the result into rows (--concat_tokens,
its only way to write tokens: src/data/hf_to_mds.py writes text, and leaves tokenising to the loader of every epoch). It
works in two processes, so look at processor time. Start-up, imports and tokenizer, is timed on neither side.
"""
import argparse
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from data_prep.benchmark import convert_dataset
from data_prep.benchmark import texts as benchmark_texts
from data_prep.inputs import find_inputs
from data_prep.pieces import read_documents
from data_prep.prepare import prepare
from data_prep.verify import find_streams, verify_stream
from data_prep.work import Settings
from mmbert.benchmark.result import OURS, Gate, check_gates, check_peers, document
from mmbert.benchmark.timing import measure
from mmbert.manifest import Manifest
from mmbert.packing import WRAPPER_TOKENS, TokenIds
from mmbert.shards import LanguageShards
from mmbert.tokenizer import load_tokenizer

PEER = "convert_dataset"


def add_options(parser: argparse.ArgumentParser) -> None:
    benchmark_texts.add_options(parser)
    parser.add_argument("--modernbert", type=Path, metavar="PATH", help="checkout of ModernBERT (default: left out)")


def prepare_and_verify(settings: Settings, source: Path, workers: int) -> list[Manifest]:
    """Ours, from nothing."""
    output = Path(settings.output)
    shutil.rmtree(output, ignore_errors=True)
    prepare(settings, find_inputs(str(source), "benchmark"), workers)
    return [verify_stream(folder) for folder in find_streams(output)]


def convert_anew(convert: Callable[[Path], None], output: Path) -> None:
    """The peer, from nothing."""
    shutil.rmtree(output, ignore_errors=True)
    convert(output)


def our_documents(root: Path) -> Iterator[TokenIds]:
    """The ids of all documents in our rows."""
    for folder in find_streams(root):
        manifest = verify_stream(folder)
        shards = LanguageShards([folder], [manifest])
        for shard in range(len(manifest.shards)):
            yield from read_documents(shards, shard)


def compare(ours: Path, theirs: Path, eos_token_id: int) -> list[Gate]:
    """Whether both hold the same documents; the peer leaves out what would be its last, unfinished row."""
    mine = {ids.tobytes(): len(ids) + WRAPPER_TOKENS for ids in our_documents(ours)}
    peers = {ids.tobytes() for ids in convert_dataset.documents_of(theirs, eos_token_id)}
    missing = sum(length for ids, length in mine.items() if ids not in peers)
    return [
        Gate(f"documents of {PEER} that ours lacks", len(peers - mine.keys()), 0),
        Gate(f"tokens of documents that {PEER} lacks", missing, benchmark_texts.ROW_LENGTH + max(mine.values())),
    ]


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Write the texts, compare, time."""
    check_peers(options, [PEER] if options.modernbert else [])
    tokenizer = load_tokenizer(options.tokenizer)
    gates: list[Gate] = []
    with TemporaryDirectory(prefix="mmbert-benchmark-") as temporary:
        folder = Path(temporary)
        megabytes = benchmark_texts.write_corpus(folder, options.input)
        settings = Settings(str(folder / "ours"), str(options.tokenizer), benchmark_texts.ROW_LENGTH)
        candidates: dict[str, Callable[[], object]] = {
            OURS: partial(prepare_and_verify, settings, folder / "text", workers=1)
        }
        manifests = prepare_and_verify(settings, folder / "text", workers=1)
        if options.modernbert:
            convert = convert_dataset.converter(options.modernbert, tokenizer, folder / "whole")
            candidates[PEER] = partial(convert_anew, convert, folder / "theirs")
            candidates[PEER]()
            gates = compare(folder / "ours", folder / "theirs", tokenizer.eos_token_id)
            check_gates(gates)
        samples = measure(candidates, options.repetitions, options.warmup)
    about: dict[str, dict[str, Any]] = {name: {"megabytes": megabytes} for name in samples}
    about[OURS]["note"] = "prepare with one worker, and verify"
    tokens = sum(manifest.tokens for manifest in manifests)
    return document("pipeline", samples, tokens, gates, facts_of(manifests, megabytes), about)


def facts_of(manifests: list[Manifest], megabytes: float) -> dict[str, Any]:
    """What was made."""
    return {
        "languages": len({manifest.language for manifest in manifests}),
        "text_MB": round(megabytes, 3),
        "documents": sum(manifest.documents for manifest in manifests),
        "rows": sum(manifest.rows for manifest in manifests),
        "row_length": manifests[0].row_length,
        "vocab_size": manifests[0].vocab_size,
    }
