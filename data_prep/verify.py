"""Check every byte and every row of a shards folder.

    python -m data_prep.verify data/demo/shards-256

Prints one line for each broken stream and exits with status 1, or a table of totals.
"""
import argparse
import os
import sys
from pathlib import Path

from data_prep.batches import batches
from data_prep.parallel import spread
from data_prep.pieces import read_documents
from data_prep.totals import totals_table
from mmbert.command import errors_in_one_line, local_folder
from mmbert.manifest import REMEDY, SPLITS, Manifest, check_stream, read_manifest
from mmbert.shards import LanguageShards

ROWS = 1024  # that are read at a time: one alone costs as much as many


def find_streams(root: Path) -> list[Path]:
    """All stream folders below `root`, sorted; ValueError if there are none."""
    streams = sorted(folder for split in SPLITS for folder in root.glob(f"{split}/*/[!.]*"))
    if not streams:
        raise ValueError(f"{root} holds no <split>/<source>/<language>: is it a folder of data_prep.prepare?")
    return streams


def verify_stream(folder: Path) -> Manifest:
    """Check one stream wholly: what training checks, then each shard's sha256, row count, rows and documents.

    Raises:
        FileNotFoundError: the manifest, the index or a shard is missing.
        ValueError: something does not fit; the message names the file, the value and the remedy.
    """
    manifest = read_manifest(folder)
    check_stream(folder, manifest.row_length, manifest.tokenizer, manifest.vocab_size)
    shards = LanguageShards([folder], [manifest])
    parts = batches(((0, number) for number in range(manifest.rows)), lambda _: 1, ROWS)
    num_tokens = sum(len(shards.rows(part).input_ids) for part in parts)
    if num_tokens != manifest.tokens:
        raise ValueError(f"{folder} holds {num_tokens} tokens, its manifest says {manifest.tokens}; {REMEDY}")
    num_documents = sum(len(read_documents(shards, shard)) for shard in range(len(manifest.shards)))
    if num_documents != manifest.documents:
        raise ValueError(f"{folder} holds {num_documents} documents, its manifest says {manifest.documents}; {REMEDY}")
    return manifest


def manifest_or_fault(folder: Path) -> Manifest | str:
    """The manifest of a whole stream, or what is wrong with it."""
    try:
        return verify_stream(folder)
    except Exception as error:  # a decoder fed with garbage may raise anything; each is one line here
        return str(error)


def find_mixture(manifests: list[Manifest]) -> str:
    """Why streams cannot be trained on together, or the empty string."""
    kinds = sorted({(manifest.row_length, manifest.tokenizer[:12]) for manifest in manifests})
    return f"streams of several row lengths or tokenizers: {kinds}" if len(kinds) > 1 else ""


@errors_in_one_line()
def main() -> None:
    parser = argparse.ArgumentParser(description="Check every byte and every row of a shards folder.")
    parser.add_argument("root", type=local_folder, help="shards folder, made by data_prep.prepare")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes (default: all cores)")
    arguments = parser.parse_args()
    root, manifests, faults = arguments.root, [], []
    folders = find_streams(root)
    found = spread(manifest_or_fault, folders, arguments.workers, "verify", unit="stream")
    for folder, result in zip(folders, found, strict=True):
        if isinstance(result, Manifest):
            manifests.append(result)
        else:
            faults.append(f"broken: {folder.relative_to(root)}: {result}")
    if mixture := find_mixture(manifests):
        faults.append(f"broken: {root}: {mixture}")
    if faults:
        sys.exit("\n".join(faults))
    print(totals_table(manifests))
    print(f"{len(manifests)} streams are whole")


if __name__ == "__main__":
    main()
