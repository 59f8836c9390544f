"""Text to ids on one thread: what data_prep.prepare encodes with, against `tokenizers` itself.

The peer is tuned: `encode_batch_fast`, and the batch size that is fastest in a trial. Every text is encoded once in a
run. Caches of words are the candidates' own, and live as long as they make them: those of `tokenizers` from run to run.
"""
import argparse
import os
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from data_prep.batches import batches
from data_prep.benchmark import texts as benchmark_texts
from data_prep.codec import BATCH_BYTES
from data_prep.fast_tokenizer import encoder
from mmbert.benchmark.result import OURS, Gate, check_gates, check_peers, document
from mmbert.benchmark.timing import measure
from mmbert.packing import TokenIds
from mmbert.tokenizer import Tokenizer, load_tokenizer

PEER = "tokenizers"
BATCH_SIZES = (1, 16, 256, 4096)
TRIAL_TEXTS = 4096


def add_options(parser: argparse.ArgumentParser) -> None:
    benchmark_texts.add_options(parser)


def encode_with(encode: Callable[[list[str]], list[TokenIds]], parts: Sequence[list[str]]) -> list[TokenIds]:
    """Ours: one part after the other, as data_prep.prepare does."""
    return [ids for part in parts for ids in encode(part)]


def encode_with_tokenizers(tokenizer: Tokenizer, texts: list[str], batch_size: int) -> list[list[int]]:
    """The peer, `batch_size` texts at a time."""
    return [
        encoding.ids
        for start in range(0, len(texts), batch_size)
        for encoding in tokenizer.backend.encode_batch_fast(texts[start : start + batch_size], add_special_tokens=False)
    ]


def best_batch_size(tokenizer: Tokenizer, texts: list[str]) -> tuple[int, str]:
    """The fastest of BATCH_SIZES over the first texts, and what each took."""
    seconds = {}
    for size in BATCH_SIZES:
        began = time.process_time()
        encode_with_tokenizers(tokenizer, texts[:TRIAL_TEXTS], size)
        seconds[size] = time.process_time() - began
    trial = ", ".join(f"{size}: {taken:.2f} s" for size, taken in seconds.items())
    return min(seconds, key=lambda size: seconds[size]), trial


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Compare the ids of all texts, then time."""
    check_peers(options, [PEER])
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    languages = benchmark_texts.read_languages(options.input)
    texts = [text for several in languages.values() for text in several]
    parts = list(batches(texts, lambda text: len(text.encode()), BATCH_BYTES))
    tokenizer = load_tokenizer(options.tokenizer)
    encode = encoder(tokenizer)
    theirs, ours = encode_with_tokenizers(tokenizer, texts, 256), encode_with(encode, parts)
    different = sum(not np.array_equal(a, b) for a, b in zip(theirs, ours, strict=True))
    gates = [Gate(f"texts whose ids differ, ours against {PEER}", different, 0)]
    check_gates(gates)
    size, trial = best_batch_size(tokenizer, texts)
    candidates: dict[str, Callable[[], object]] = {
        OURS: partial(encode_with, encode, parts),
        PEER: partial(encode_with_tokenizers, tokenizer, texts, size),
    }
    samples = measure(candidates, options.repetitions, options.warmup)
    megabytes = sum(len(text.encode()) for text in texts) / 1e6
    facts = {
        "languages": len(languages),
        "documents": len(texts),
        "text_MB": round(megabytes, 3),
        "threads": 1,
        "vocab_size": tokenizer.vocab_size,
    }
    about = {
        OURS: {"megabytes": megabytes, "note": encode.description},
        PEER: {"megabytes": megabytes, "note": f"encode_batch_fast of {size} texts, the best of a trial: {trial}"},
    }
    return document("tokenise", samples, sum(map(len, theirs)), gates, facts, about)
