"""What a folder of rows holds, written once by data preparation and checked by every reader.

Rows live in `<root>/<split>/<source>/<language>/`: MDS shards, their `index.json`, and `manifest.json`. Streaming
accepts a wrong row count, a shard listed twice and a basename that points outside the folder; so the manifest
records what was written, and nothing is read that differs from it.
"""
import difflib
import hashlib
import json
import os
import re
import stat
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

from mmbert.atomic import write_file
from mmbert.file_contents import parse_object, seen_from, sha256_of
from mmbert.typed import build

FORMAT = 2
SPLITS = ("train", "heldout")
COLUMNS = {"input_ids": "ndarray:uint32", "lengths": "ndarray:uint16"}
NAME = re.compile(r"[A-Za-z0-9_-]+")
BASENAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*")
OWN_FILES = re.compile(r"shard\.\d{5,}\.(mds|pieces\.npy)|index\.json|manifest\.json")
REMEDY = "remove this folder and run `python -m data_prep.prepare` again"


@dataclass(frozen=True)
class ShardRecord:
    """One shard file: sha256 in hex, size in bytes, and rows; and the sha256 of its pieces, which only `repack` reads.

    "" stands for none: then its documents cannot be put together again.
    """

    sha256: str
    bytes: int
    rows: int
    pieces_sha256: str = ""


@dataclass(frozen=True)
class Manifest:
    """One (split, source, language).

    Attributes:
        split: "train" or "heldout".
        source: name of the corpus.
        language: name of the language.
        row_length: most token ids that a row holds.
        seed: of the order of rows.
        tokenizer: digest of the tokenizer, `Tokenizer.digest`.
        vocab_size: every token id is below it.
        bos_token_id: first id of every document.
        eos_token_id: last id of every document.
        documents: documents before chunking.
        rows: rows in all shards.
        tokens: ids in all rows, <bos> and <eos> included.
        text_bytes: UTF-8 bytes of the documents' text.
        documents_sha256: sha256, in hex, over the hashes of all documents: which texts the rows were made from.
        index_sha256: sha256, in hex, of index.json's bytes.
        shards: basename -> its record.
        format: version of this layout.
    """

    split: str
    source: str
    language: str
    row_length: int
    seed: int
    tokenizer: str
    vocab_size: int
    bos_token_id: int
    eos_token_id: int
    documents: int
    rows: int
    tokens: int
    text_bytes: int
    documents_sha256: str
    index_sha256: str
    shards: dict[str, ShardRecord]
    format: int = FORMAT

    @cached_property
    def digest(self) -> str:
        """sha256, in hex, of the manifest as canonical JSON."""
        return _digest(vars(self) | {"shards": {name: vars(record) for name, record in self.shards.items()}})


def shard_name(number: int) -> str:
    """Basename of a shard file."""
    return f"shard.{number:05d}.mds"


def pieces_name(number: int) -> str:
    """Basename of the file beside a shard that says which pieces of documents it holds (`packing.pack_pieces`)."""
    return f"shard.{number:05d}.pieces.npy"


def stream_folder(root: Path, split: str, source: str, language: str) -> Path:
    """The folder of one stream; ValueError if a part of the name could leave `root`."""
    if split not in SPLITS:
        raise ValueError(f"{split=}: must be one of {', '.join(SPLITS)}")
    for key, name in (("source", source), ("language", language)):
        if not NAME.fullmatch(name):
            raise ValueError(f"{key}={name!r}: a name may hold only letters, digits, '_' and '-'")
    return root / split / source / language


def list_languages(root: Path, split: str, source: str) -> list[str]:
    """Names of all languages of one source, sorted."""
    folder = stream_folder(root, split, source, "any").parent
    if not folder.is_dir():
        raise FileNotFoundError(_missing(folder))
    return sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def read_manifest(folder: Path) -> Manifest:
    """Read `folder`/manifest.json.

    Raises:
        FileNotFoundError: no such folder, or it holds no manifest.
        ValueError: the manifest is damaged, or of another format.
    """
    if not folder.is_dir():
        raise FileNotFoundError(_missing(folder))
    path = folder / "manifest.json"
    if not path.is_file():
        raise FileNotFoundError(f"{folder} holds no manifest.json; {REMEDY}")
    values = parse_object(path.read_bytes(), path, REMEDY)
    if values.get("format") != FORMAT:
        raise ValueError(f"{path} is not of format {FORMAT}; {REMEDY}")
    digest = values.pop("digest", None)
    if digest != _digest(values) or values.keys() != {field.name for field in fields(Manifest)}:
        raise ValueError(f"{path} was changed after it was written: its digest does not fit; {REMEDY}")
    try:
        manifest = build(Manifest, values)
    except ValueError as error:
        raise ValueError(f"{path}: {error}; {REMEDY}") from None
    for name in manifest.shards:
        if not BASENAME.fullmatch(name):
            raise ValueError(f"{path}: shard {name!r} is no plain file in this folder; {REMEDY}")
    return manifest


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write `folder`/manifest.json, whole or not at all."""
    write_file(folder / "manifest.json", manifest_bytes(manifest))


def manifest_bytes(manifest: Manifest) -> bytes:
    """The content of manifest.json."""
    return (json.dumps(asdict(manifest) | {"digest": manifest.digest}, indent=2) + "\n").encode()


def shard_records(folder: Path) -> dict[str, ShardRecord]:
    """Basename -> record of each shard that `folder`/index.json lists."""
    index = folder / "index.json"
    listed = parse_object(index.read_bytes(), index, REMEDY)["shards"]
    rows = {folder / shard["raw_data"]["basename"]: shard["samples"] for shard in listed}
    return {path.name: ShardRecord(sha256_of(path), path.stat().st_size, rows[path]) for path in rows}


def check_stream(
    folder: Path, row_length: int, tokenizer_digest: str, vocab_size: int, is_whole: bool = True
) -> Manifest:
    """The cheap check before training: right folder, right tokenizer, complete files. Reads no shard.

    Args:
        folder: `<root>/<split>/<source>/<language>`.
        row_length: most token ids that the run allows in a row.
        tokenizer_digest: `Tokenizer.digest` of the run's tokenizer.
        vocab_size: its vocabulary.
        is_whole: whether index and shards must be there; of an object store the index is not needed, and shards are
            checked when they come.

    Raises:
        FileNotFoundError: the folder or one of its files is missing.
        ValueError: anything else that does not fit; the message names the file, the value and the remedy.
    """
    manifest = read_manifest(folder)
    path = folder / "manifest.json"
    if (manifest.split, manifest.source, manifest.language) != folder.absolute().parts[-3:]:
        raise ValueError(
            f"{path} is of {manifest.split}/{manifest.source}/{manifest.language}: the folder was moved; move it back"
        )
    if manifest.row_length != row_length:
        raise ValueError(
            f"{path}: row_length is {manifest.row_length}, the run wants {row_length}; name a folder with rows of that "
            f"length, or make one of this: python -m data_prep.repack --row-length {row_length}"
        )
    if (manifest.tokenizer, manifest.vocab_size) != (tokenizer_digest, vocab_size):
        raise ValueError(
            f"{path}: tokenizer {manifest.tokenizer[:12]} ({manifest.vocab_size} tokens), the run has "
            f"{tokenizer_digest[:12]} ({vocab_size} tokens); name the tokenizer that made the rows, or {REMEDY}"
        )
    if not 1 <= manifest.rows < manifest.tokens <= manifest.rows * row_length:
        raise ValueError(f"{path}: {manifest.tokens} tokens in {manifest.rows} rows of at most {row_length}; {REMEDY}")
    if sum(record.rows for record in manifest.shards.values()) != manifest.rows:
        raise ValueError(f"{path}: the rows of its shards are not {manifest.rows}; {REMEDY}")
    if is_whole:
        _check_index(folder, manifest)
        for name, record in manifest.shards.items():
            _check_shard_file(folder, name, record)
    return manifest


def check_shard(folder: Path, name: str, record: ShardRecord) -> None:
    """Read one shard file whole: its sha256, and the row count that its own header states.

    Streaming believes index.json and never looks at the count in the shard itself.

    Raises:
        FileNotFoundError: it is missing.
        ValueError: it is not the file that was written.
    """
    _check_shard_file(folder, name, record)
    path = folder / name
    with path.open("rb") as file:
        rows = int.from_bytes(file.read(4), "little")
    if sha256_of(path) != record.sha256:
        raise ValueError(f"{path} was changed after it was written: its sha256 does not fit; {REMEDY}")
    if rows != record.rows:
        raise ValueError(f"{path} holds {rows} rows, not {record.rows}; {REMEDY}")


def _check_index(folder: Path, manifest: Manifest) -> None:
    """index.json is the one that was written, and names these shards, columns and row counts and no others."""
    path = folder / "index.json"
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; {REMEDY}")
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != manifest.index_sha256:
        raise ValueError(f"{path} was changed after it was written: its sha256 does not fit; {REMEDY}")
    shards = parse_object(content, path, REMEDY).get("shards")
    try:
        if not isinstance(shards, list):
            raise TypeError
        kinds = {(*shard["column_names"], *shard["column_encodings"], bool(shard["zip_data"])) for shard in shards}
        listed = [(shard["raw_data"]["basename"], shard["raw_data"]["bytes"], shard["samples"]) for shard in shards]
    except (KeyError, TypeError):
        raise ValueError(f"{path} is no index of Streaming; {REMEDY}") from None
    for found in kinds - {(*COLUMNS, *COLUMNS.values(), False)}:
        raise ValueError(f"{path}: columns {found}, must be {COLUMNS}, uncompressed; {REMEDY}")
    expected = [(name, record.bytes, record.rows) for name, record in manifest.shards.items()]
    if listed != expected:
        raise ValueError(f"{path} and manifest.json disagree on shards or rows; {REMEDY}")


def _check_shard_file(folder: Path, name: str, record: ShardRecord) -> None:
    """One question to the file system: a corpus has hundreds of thousands of shards, and every rank asks for each."""
    path = f"{folder}/{name}"
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} is missing; {REMEDY}") from None
    if not stat.S_ISREG(status.st_mode):
        raise ValueError(f"{path} is no plain file in this folder; {REMEDY}")
    if status.st_size != record.bytes:
        raise ValueError(f"{path} holds {status.st_size} bytes, must be {record.bytes}: copy it again, or {REMEDY}")


def _digest(values: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _missing(folder: Path) -> str:
    """`folder` does not exist, and the existing name most like it."""
    if not folder.parent.is_dir():
        nor = f"{folder.parent}{seen_from(folder)}"
        return f"{folder} does not exist, nor does {nor}: check the path, or make it with data_prep.prepare"
    siblings = sorted(path.name for path in folder.parent.iterdir() if not path.name.startswith("."))
    nearest = difflib.get_close_matches(folder.name, siblings, n=1, cutoff=0.0)
    there = f"did you mean {nearest[0]}?" if nearest else f"{folder.parent} is empty."
    return f"{folder} does not exist; {there} Make it with data_prep.prepare, or leave {folder.name} out"
