"""From the documents of a bucket to one shard of rows for each split."""
import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from streaming import MDSWriter

from data_prep.codec import Codec
from data_prep.split import heldout_documents
from mmbert.atomic import remove
from mmbert.file_contents import sha256_of
from mmbert.manifest import COLUMNS, SPLITS, pieces_name, shard_name
from mmbert.packing import TokenIds, pack_pieces

LARGEST_SHARD = 2**32 - 1  # bytes: MDS says in 32 bits where a sample begins, and its writer does not notice more


@dataclass(frozen=True)
class Shape:
    """What decides the rows of given documents.

    Attributes:
        row_length: most tokens of a row.
        bos_token_id, eos_token_id: what every document is wrapped in.
        seed: of the order of rows; one for each bucket of each stream.
    """

    row_length: int
    bos_token_id: int
    eos_token_id: int
    seed: int


@dataclass(frozen=True)
class Documents:
    """Documents of one split of one bucket, in the order of their hashes.

    Attributes:
        ids: of each, without <bos> and <eos>.
        hashes: sha256 over the hashes of all, in hex.
        text_bytes: UTF-8 bytes of their text.
    """

    ids: list[TokenIds]
    hashes: str
    text_bytes: int


def sort_documents(payloads: Sequence[bytes], distinct: bool) -> list[tuple[bytes, bytes]]:
    """Hash and payload of each document, sorted by hash; of equal ones the first only if `distinct`."""
    pairs = sorted((hashlib.sha256(payload).digest(), payload) for payload in payloads)
    return list(dict(pairs).items()) if distinct else pairs


def split_bucket(
    pairs: Sequence[tuple[bytes, bytes]], codec: Codec, heldout_rate: float, is_whole: bool
) -> dict[str, Documents]:
    """The documents of each split, tokenised. What gives no token is left out.

    Args:
        pairs: hash and payload of each document.
        codec: from payloads to ids.
        heldout_rate: share of the documents that is held out.
        is_whole: the bucket holds the whole stream, so that neither split of it may be empty.
    """
    mask = heldout_documents([digest for digest, _ in pairs], heldout_rate, is_whole)
    splits = {}
    for split, wanted in zip(SPLITS, (False, True), strict=True):
        members = [pair for pair, is_heldout in zip(pairs, mask, strict=True) if is_heldout == wanted]
        ids = codec.encode([payload for _, payload in members])
        kept = [(pair, one) for pair, one in zip(members, ids, strict=True) if len(one)]
        hashes = hashlib.sha256(b"".join(digest for (digest, _), _ in kept)).hexdigest()
        text_bytes = codec.text_bytes([payload for (_, payload), _ in kept])
        splits[split] = Documents([one for _, one in kept], hashes, text_bytes)
    return splits


def write_shard(folder: Path, number: int, documents: Sequence[TokenIds], shape: Shape) -> dict[str, Any]:
    """Pack documents and write the rows as shard `number` of a folder, with its pieces beside it, without fsync.

    Args:
        documents: ids of each, without <bos> and <eos>; at least one.

    Returns:
        The shard's entry for index.json, its record for the manifest, and its tokens.

    Raises:
        ValueError: the shard would be larger than MDS can be.
    """
    rows, pieces = pack_pieces(documents, shape.row_length, shape.bos_token_id, shape.eos_token_id)
    order = np.random.default_rng(shape.seed).permutation(len(rows))
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder.with_name(f"{folder.name}.{number:05d}")  # not in the folder: a kill must leave nothing there
    remove(partial)
    partial.mkdir()
    try:
        with MDSWriter(out=str(partial / "mds"), columns=COLUMNS, size_limit=None) as writer:
            for index in order:
                writer.write(asdict(rows[index]))
        np.save(partial / "pieces.npy", np.concatenate([pieces[index] for index in order]))
        shard = partial / "mds" / shard_name(0)
        if (size := shard.stat().st_size) > LARGEST_SHARD:
            raise ValueError(
                f"shard {number} of {folder} has {size:,} bytes, and may have {LARGEST_SHARD:,}: cut documents of more "
                "than a gigabyte, and unpack compressed files, whose text is far more than their size says"
            )
        [entry] = json.loads((partial / "mds" / "index.json").read_text())["shards"]
        entry["raw_data"]["basename"] = shard_name(number)
        record = {
            "sha256": sha256_of(shard),
            "bytes": shard.stat().st_size,
            "rows": len(rows),
            "pieces_sha256": sha256_of(partial / "pieces.npy"),
        }
        (partial / "pieces.npy").replace(folder / pieces_name(number))
        shard.replace(folder / shard_name(number))
    finally:
        remove(partial)
    return {"entry": entry, "record": record, "tokens": sum(len(row.input_ids) for row in rows)}


def write_index(folder: Path, entries: Sequence[dict[str, Any]]) -> str:
    """Write Streaming's index.json over the shards of a folder; its sha256 in hex."""
    content = json.dumps({"shards": entries, "version": 2}).encode()
    (folder / "index.json").write_bytes(content)
    return hashlib.sha256(content).hexdigest()


def shuffle_seed(seed: int, source: str, language: str, bucket: int) -> int:
    """A seed of its own for each bucket, so that no two share a permutation."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{source}/{language}/{bucket}".encode()).digest()[:8])
