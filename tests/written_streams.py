"""Streams of given documents, as data preparation leaves them."""
from collections.abc import Sequence
from pathlib import Path

from data_prep.rows import Shape, write_index, write_shard
from mmbert.manifest import Manifest, ShardRecord, shard_name, stream_folder, write_manifest
from mmbert.packing import TokenIds
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
