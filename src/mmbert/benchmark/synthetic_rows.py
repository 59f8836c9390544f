"""Seeded rows in the format of data preparation, spread over any number of streams, and the same documents unpacked.

What the loader benchmark reads. Document lengths are log-normal and token ids uniform over the vocabulary, so that
nothing is cheaper than in real data; no text is involved.
"""
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from streaming import MDSWriter

from mmbert.config import (
    CheckpointConfig,
    LearningRateConfig,
    ModelConfig,
    OptimizerConfig,
    RunConfig,
)
from mmbert.data_config import DataConfig, GroupConfig
from mmbert.file_contents import sha256_of
from mmbert.manifest import COLUMNS, Manifest, shard_records, stream_folder, write_manifest
from mmbert.packing import WRAPPER_TOKENS, Row, TokenIds, pack_documents
from mmbert.schedules import Schedule
from mmbert.tokenizer import SPECIAL_TOKENS, Tokenizer, save_tokenizer

SOURCE = "synthetic"
SEED, MASK_RATE = 0, 0.3
SHARD_BYTES = 64 * 2**20  # as data preparation has it
# Of the natural logarithm of a document's tokens; median 300, mean 450 before documents are cut to rows.
LOG_MEDIAN, LOG_SIGMA = float(np.log(300.0)), 0.9


@dataclass(frozen=True)
class Shape:
    """What is read: `batches` of `rows` rows, each row packed to at most `row_length` tokens.

    Attributes:
        microbatches: how many of these our loader reads as one batch, to cut it: a step accumulates them.
        vocab_size: of the tokenizer; ids are uniform over all but the special ones.
    """

    row_length: int
    rows: int
    batches: int
    vocab_size: int
    microbatches: int = 1

    @property
    def total_rows(self) -> int:
        return self.rows * self.batches

    @property
    def steps(self) -> int:
        """Batches of our loader in one pass."""
        return self.batches // self.microbatches


def make_tokenizer(folder: Path, vocab_size: int) -> Tokenizer:
    """A tokenizer of invented words that keeps our contract; what `len(tokenizer)` costs depends on its size alone."""
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
    assert sorted(special) == sorted(SPECIAL_TOKENS.values())
    words = [*special, *(f"word{number:x}" for number in range(len(special), vocab_size))]
    spec = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": id_, "content": token, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
             "special": True}
            for id_, token in enumerate(special)
        ],
        "normalizer": None,
        "pre_tokenizer": {"type": "Whitespace"},
        "post_processor": None,
        "decoder": None,
        "model": {"type": "WordLevel", "vocab": {word: id_ for id_, word in enumerate(words)}, "unk_token": "<unk>"},
    }  # fmt: skip
    return save_tokenizer(spec, folder, origin=folder)


def make_rows(shape: Shape, tokenizer: Tokenizer) -> list[Row]:
    """Exactly `shape.total_rows` rows, packed as data preparation packs, in random order."""
    rng = np.random.default_rng(SEED)
    wanted, documents, tokens = shape.total_rows, [], 0
    first = len(tokenizer.special_token_ids)  # `make_tokenizer` gives them the lowest ids
    while tokens < wanted * shape.row_length * 1.01:  # a little more: packing leaves holes, and the last row its rest
        length = max(1, int(rng.lognormal(LOG_MEDIAN, LOG_SIGMA)))
        documents.append(rng.integers(first, shape.vocab_size, size=length, dtype=np.uint32))
        tokens += length + WRAPPER_TOKENS
    rows = pack_documents(documents, shape.row_length, tokenizer.bos_token_id, tokenizer.eos_token_id)
    rows = [rows[index] for index in rng.permutation(len(rows))]
    assert len(rows) >= wanted
    return rows[:wanted]


def documents_of(rows: Sequence[Row]) -> list[TokenIds]:
    """The documents in the rows, `<bos>` and `<eos>` included, in random order."""
    documents = [part for row in rows for part in np.split(row.input_ids, np.cumsum(row.lengths, dtype=np.int64)[:-1])]
    return [documents[index] for index in np.random.default_rng(SEED).permutation(len(documents))]


def language_name(stream: int) -> str:
    """So written that streams sorted by name are sorted by number."""
    return f"lang{stream:06d}"


def write_streams(root: Path, rows: Sequence[Row], num_streams: int, shape: Shape, tokenizer: Tokenizer) -> None:
    """Deal the rows out to the streams: row i is row i // num_streams of stream i % num_streams."""
    for stream in range(num_streams):
        folder = stream_folder(root, "train", SOURCE, language_name(stream))
        write_stream(folder, rows[stream::num_streams], shape, tokenizer)


def write_stream(folder: Path, rows: Sequence[Row], shape: Shape, tokenizer: Tokenizer) -> None:
    """One stream as data preparation leaves it: shards, index.json, manifest.json."""
    with MDSWriter(out=str(folder), columns=COLUMNS, size_limit=SHARD_BYTES) as writer:
        for row in rows:
            writer.write(asdict(row))
    manifest = Manifest(
        split="train",
        source=SOURCE,
        language=folder.name,
        row_length=shape.row_length,
        seed=SEED,
        tokenizer=tokenizer.digest,
        vocab_size=tokenizer.vocab_size,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        documents=sum(len(row.lengths) for row in rows),
        rows=len(rows),
        tokens=sum(len(row.input_ids) for row in rows),
        text_bytes=0,
        documents_sha256=f"synthetic, seed {SEED}",
        index_sha256=sha256_of(folder / "index.json"),
        shards=shard_records(folder),
    )
    write_manifest(folder, manifest)


def write_documents(folder: Path, documents: Sequence[TokenIds]) -> None:
    """One document a sample, as the peers' loaders want them."""
    with MDSWriter(out=str(folder), columns={"input_ids": "ndarray:uint32"}, size_limit=SHARD_BYTES) as writer:
        for document in documents:
            writer.write({"input_ids": document})


def make_config(root: Path, num_streams: int, shape: Shape, tokenizer: Tokenizer, workers: int) -> RunConfig:
    """A phase over all streams in which a period is one pass: every row once, shuffled."""
    tokens = shape.total_rows * shape.row_length
    group = GroupConfig(SOURCE, [language_name(stream) for stream in range(num_streams)], share=1.0)
    return RunConfig(
        name="benchmark",
        run_root=str(root),
        tokenizer=str(tokenizer.folder),
        max_seq_len=shape.row_length,
        duration=tokens,
        global_train_batch_size=shape.rows * shape.microbatches,
        device_train_microbatch_size=shape.rows,
        mask_rate=Schedule(MASK_RATE),
        model=ModelConfig(
            vocab_size=shape.vocab_size,
            hidden_size=2,
            intermediate_size=1,
            num_hidden_layers=1,
            num_attention_heads=1,
            max_position_embeddings=shape.row_length,
            global_rope_theta=1e4,
            local_rope_theta=1e4,
        ),
        data=DataConfig(str(root), {"all": group}, period_rows=shape.total_rows, num_workers=workers),
        optimizer=OptimizerConfig(lr=1e-3, betas=(0.9, 0.98), eps=1e-8, weight_decay=0.0),
        learning_rate=LearningRateConfig("warmup_stable_decay"),
        checkpoint=CheckpointConfig(interval=tokens),
        seed=SEED,
    )
