"""data_prep.prepare with several processes against one: the same text, the same bytes. Starting them is timed too."""
import argparse
import hashlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from data_prep.benchmark import texts as benchmark_texts
from data_prep.benchmark.pipeline import facts_of, prepare_and_verify
from data_prep.work import FOLDER, Settings
from mmbert.benchmark.result import OURS, Gate, check_gates, check_peers, document
from mmbert.benchmark.timing import measure


def add_options(parser: argparse.ArgumentParser) -> None:
    benchmark_texts.add_options(parser)
    parser.add_argument("--workers", type=int, default=2, help="processes of ours, against one (default: 2)")


def digests(root: Path) -> dict[str, str]:
    """Path -> sha256 of every file of a shards folder."""
    paths = [path for path in root.rglob("*") if path.is_file() and FOLDER not in path.parts]
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Write the texts, compare, time."""
    check_peers(options, ["one"])
    with TemporaryDirectory(prefix="mmbert-benchmark-") as temporary:
        folder = Path(temporary)
        megabytes = benchmark_texts.write_corpus(folder, options.input)
        candidates: dict[str, Callable[[], Any]] = {}
        made = []
        for name, workers in ((OURS, options.workers), ("one", 1)):
            settings = Settings(str(folder / name), str(options.tokenizer), benchmark_texts.ROW_LENGTH)
            candidates[name] = partial(prepare_and_verify, settings, folder / "text", workers)
            manifests = candidates[name]()
            made.append(digests(folder / name))
        different = sum(made[0].get(path) != made[1].get(path) for path in made[0].keys() | made[1].keys())
        gates = [Gate(f"files that differ between {options.workers} processes and one", different, 0)]
        check_gates(gates)
        samples = measure(candidates, options.repetitions, options.warmup)
    about: dict[str, dict[str, Any]] = {name: {"megabytes": megabytes} for name in samples}
    about[OURS]["note"] = f"{options.workers} processes, each of which imports and loads the tokenizer in every run"
    tokens = sum(manifest.tokens for manifest in manifests)
    return document("scaling", samples, tokens, gates, facts_of(manifests, megabytes), about)
