"""Which files hold the text of which stream: a folder of one language, or a tree of many."""
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec

from data_prep.language_codes import canonical
from mmbert.manifest import NAME

FORMATS = (".txt", ".jsonl", ".json", ".csv", ".parquet")
COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}
STAMPS = ("mtime", "ETag", "etag", "blob_id", "LastModified", "last_modified", "created")

Stream = tuple[str, str]  # source, language


@dataclass(frozen=True, order=True)
class InputFile:
    """A file of text.

    Attributes:
        path: a local path, or a URL that fsspec opens.
        size: bytes as stored.
        stamp: changes when the file does: time of modification, or what a store gives in its place.
    """

    path: str
    size: int
    stamp: str


Inputs = dict[Stream, tuple[InputFile, ...]]  # files sorted by path


def find_inputs(location: str, source: str, language: str | None = None) -> Inputs:
    """The input files of one corpus.

    Args:
        location: a file or a folder, local or a URL of fsspec.
        source: name of the corpus.
        language: of all the text; without it the location is a tree, whose files and folders are each called by a
            language: `fao.jsonl`, `fao/...` or `lang=fao/...`. Codes are made canonical.

    Raises:
        FileNotFoundError: no such location, or it holds no text.
        ValueError: a file is of an unknown format, or a name is no language.
    """
    if not NAME.fullmatch(source):
        raise ValueError(f"--source {source!r}: a name may hold only letters, digits, '_' and '-'")
    found = list_files(location)
    if not found:
        raise FileNotFoundError(f"--input {location} holds no file: give a folder with text")
    streams: dict[Stream, list[InputFile]] = {}
    for relative, file in sorted(found.items()):
        format_of(file.path)
        stream = (source, canonical(language) if language else language_of(relative, file.path))
        streams.setdefault(stream, []).append(file)
    return {stream: tuple(sorted(files)) for stream, files in sorted(streams.items())}


def list_files(location: str) -> dict[str, InputFile]:
    """Path below the location -> file; hidden ones are the system's. A single file stands for itself, by its name.

    Raises:
        FileNotFoundError: no such location.
    """
    system, root = fsspec.core.url_to_fs(location)
    try:
        info = system.info(root)
    except FileNotFoundError:
        raise FileNotFoundError(f"--input {location} does not exist") from None
    prefix = root.rstrip("/") + "/"
    if info["type"] == "file":
        infos, prefix = {root: info}, root.rpartition("/")[0] + "/"
    else:
        infos = system.find(root, detail=True)
    files = {}
    for path, details in infos.items():
        relative = path.removeprefix(prefix)
        if not any(part.startswith(".") for part in relative.split("/")):
            name = path if location == root or "://" not in location else system.unstrip_protocol(path)
            files[relative] = InputFile(name, details["size"], stamp_of(name, details))
    return files


def stamp_of(path: str, details: dict[str, Any]) -> str:
    """What tells one version of a file from another."""
    if "://" not in path:
        return str(Path(path).stat().st_mtime_ns)
    return next((f"{key} {details[key]}" for key in STAMPS if details.get(key)), "")


def language_of(relative: str, path: str) -> str:
    """The canonical language that the first part of a path names; ValueError names the file."""
    first, _, rest = relative.partition("/")
    name = (first if rest else first.partition(".")[0]).removeprefix("lang=")
    try:
        return canonical(name)
    except ValueError as error:
        raise ValueError(f"{path}: {error}; rename it, or give --language for the whole folder") from None


def format_of(path: str) -> tuple[str, str | None]:
    """Format and compression of a file, such as (".jsonl", "zstd").

    Raises:
        ValueError: they are none of ours.
    """
    stem, dot, last = path.rpartition(".")
    compression = COMPRESSIONS.get(dot + last)
    suffix = "." + stem.rpartition(".")[2] if compression else dot + last
    if suffix not in FORMATS or (compression and suffix == ".parquet"):
        raise ValueError(
            f"{path} is of no known format: text lies in {', '.join(FORMATS)}, the first three also with .gz or .zst; "
            "move other files away"
        )
    return suffix, compression
