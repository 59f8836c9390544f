"""Check every byte and every row of a shards folder.

    python -m data_prep.verify data/demo/shards-256

Prints one line for each broken stream and exits with status 1, or a table of totals.
"""
import argparse
import hashlib
import json
import sys
from pathlib import Path

import numpy as np
from streaming.base.format import reader_from_json
from tqdm import tqdm

from data_prep.totals import totals_table
from mmbert.command import errors_in_one_line
from mmbert.manifest import REMEDY, SPLITS, Manifest, check_stream, read_manifest
from mmbert.packing import WRAPPER_TOKENS, Row


def find_streams(root: Path) -> list[Path]:
    """All stream folders below `root`, sorted; ValueError if there are none."""
    streams = sorted(folder for split in SPLITS for folder in root.glob(f"{split}/*/[!.]*"))
    if not streams:
        raise ValueError(f"{root} holds no <split>/<source>/<language>: is it a folder of data_prep.prepare?")
    return streams


def verify_stream(folder: Path) -> Manifest:
    """Check one stream wholly: what training checks, then each shard's sha256, row count and rows.

    Raises:
        FileNotFoundError: the manifest, the index or a shard is missing.
        ValueError: something does not fit; the message names the file, the value and the remedy.
    """
    manifest = read_manifest(folder)
    check_stream(folder, manifest.row_length, manifest.tokenizer, manifest.vocab_size)
    num_tokens = 0
    for shard in json.loads((folder / "index.json").read_bytes())["shards"]:
        path = folder / shard["raw_data"]["basename"]
        record = manifest.shards[path.name]
        content = path.read_bytes()
        if hashlib.sha256(content).hexdigest() != record.sha256:
            raise ValueError(f"{path} was changed after it was written: its sha256 does not fit; {REMEDY}")
        # Streaming believes index.json and never looks at the count in the shard itself.
        if int.from_bytes(content[:4], "little") != record.rows:
            raise ValueError(f"{path} holds {int.from_bytes(content[:4], 'little')} rows, not {record.rows}; {REMEDY}")
        reader = reader_from_json(str(folder), "", shard)
        for index in range(record.rows):
            row = Row(**reader[index])
            if fault := find_fault(row, manifest):
                raise ValueError(f"{path} row {index}: {fault}; {REMEDY}")
            num_tokens += len(row.input_ids)
    if num_tokens != manifest.tokens:
        raise ValueError(f"{folder} holds {num_tokens} tokens, its manifest says {manifest.tokens}; {REMEDY}")
    return manifest


def find_fault(row: Row, manifest: Manifest) -> str:
    """What is wrong with a row, or the empty string."""
    input_ids, lengths = row.input_ids, row.lengths.astype(np.int64)
    if lengths.sum() != len(input_ids) or not 0 < len(input_ids) <= manifest.row_length:
        return f"{len(input_ids)} ids, lengths sum to {lengths.sum()}, row_length is {manifest.row_length}"
    if lengths.min() <= WRAPPER_TOKENS:
        return f"a document of {lengths.min()} tokens has no text"
    if input_ids.max() >= manifest.vocab_size:
        return f"id {input_ids.max()} is outside the vocabulary of {manifest.vocab_size}"
    ends = lengths.cumsum()
    for name, id_, places in (
        ("bos", manifest.bos_token_id, ends - lengths),
        ("eos", manifest.eos_token_id, ends - 1),
    ):
        if not np.array_equal(np.flatnonzero(input_ids == id_), places):
            return f"{name} (id {id_}) does not stand at the {len(lengths)} places where it must, and only there"
    return ""


def find_mixture(manifests: list[Manifest]) -> str:
    """Why streams cannot be trained on together, or the empty string."""
    kinds = sorted({(manifest.row_length, manifest.tokenizer[:12]) for manifest in manifests})
    return f"streams of several row lengths or tokenizers: {kinds}" if len(kinds) > 1 else ""


@errors_in_one_line()
def main() -> None:
    parser = argparse.ArgumentParser(description="Check every byte and every row of a shards folder.")
    parser.add_argument("root", type=Path, help="shards folder, made by data_prep.prepare")
    root = parser.parse_args().root
    manifests, faults = [], []
    for folder in tqdm(find_streams(root), unit="stream", disable=None):
        try:
            manifests.append(verify_stream(folder))
        except Exception as error:  # a decoder fed with garbage may raise anything; each is one line here
            faults.append(f"broken: {folder.relative_to(root)}: {error}")
    if mixture := find_mixture(manifests):
        faults.append(f"broken: {root}: {mixture}")
    if faults:
        sys.exit("\n".join(faults))
    print(totals_table(manifests))
    print(f"{len(manifests)} streams are whole")


if __name__ == "__main__":
    main()
