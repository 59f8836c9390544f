"""Streams of given documents, as data preparation leaves them, and tables of the sizes of others."""
from collections.abc import Sequence
from pathlib import Path

from data_prep.rows import Shape, write_index, write_shard
from mmbert.config import load_config
from mmbert.manifest import Manifest, ShardRecord, shard_name, stream_folder, write_manifest
from mmbert.packing import TokenIds
from mmbert.streams import mixture_streams
from mmbert.tokenizer import Tokenizer


def write_stream(
    root: Path, name: tuple[str, str, str], documents: Sequence[TokenIds], tokenizer: Tokenizer, text_bytes: int
) -> Path:
    """Write documents of text ids, in rows of 64 tokens, as the stream (split, source, language)."""
    split, source, language = name
    folder = stream_folder(root, split, source, language)
    written = write_shard(folder, 0, documents, Shape(64, tokenizer.bos_token_id, tokenizer.eos_token_id, seed=0))
    manifest = Manifest(
        split=split,
        source=source,
        language=language,
        row_length=64,
        seed=0,
        tokenizer=tokenizer.digest,
        vocab_size=tokenizer.vocab_size,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        documents=len(documents),
        rows=written["record"]["rows"],
        tokens=written["tokens"],
        text_bytes=text_bytes,
        documents_sha256="",
        index_sha256=write_index(folder, [written["entry"]]),
        shards={shard_name(0): ShardRecord(**written["record"])},
    )
    write_manifest(folder, manifest)
    return folder


def write_counts(path: Path, configs: list[str], tokens: int = 10**9) -> Path:
    """A table in which every stream of these YAMLs has some tokens, and no two the same."""
    names = dict.fromkeys(name for config in configs for name in mixture_streams(load_config(config))[0])
    lines = [f"{source},{language},{tokens + number}" for number, (source, language) in enumerate(names)]
    path.write_text("\n".join(["source,language,tokens", *lines]) + "\n")
    return path
