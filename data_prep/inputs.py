"""Which files hold the text of which stream: a folder of one language, or a tree of many."""
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from data_prep.language_codes import input_language
from mmbert.file_contents import seen_from
from mmbert.manifest import NAME

FORMATS = (".txt", ".jsonl", ".json", ".csv", ".parquet")
COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}
EXPANSION = {"gzip": 4, "zstd": 4, ".parquet": 3}  # about how much larger text is than its file
PART = re.compile(r"[-_][0-9]+[-_]of[-_][0-9]+$")
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
        stream = (source, input_language(language) if language else language_of(relative, file.path))
        streams.setdefault(stream, []).append(file)
    return {stream: tuple(sorted(files)) for stream, files in sorted(streams.items())}


def check_apart(location: str, output: Path) -> None:
    """Refuse to write below the input: the next run would take for input what is written there.

    Args:
        location: the input, a file or a folder; a URL is never refused.

    Raises:
        ValueError: the output folder is the input, or lies in it.
    """
    if "://" not in location and output.resolve().is_relative_to(Path(location).resolve()):
        raise ValueError(
            f"--output {output} lies in the input, {location}, and the next run would take it for a part of that: "
            "choose one outside"
        )


def list_files(location: str) -> dict[str, InputFile]:
    """Path below the location -> file; hidden ones are the system's. A single file stands for itself, by its name.

    Raises:
        FileNotFoundError: no location, none that exists, or a link below it leads nowhere.
    """
    if not location:  # which is the current folder, for fsspec
        raise FileNotFoundError("--input is empty: name a file or a folder")
    system, root = file_system(location)
    prefix = root.rstrip("/") + "/"
    with store_errors(location):
        try:
            info = system.info(root)
        except FileNotFoundError:
            where = "" if "://" in location else seen_from(Path(location))
            raise FileNotFoundError(f"--input {location} does not exist{where}") from None
        if info["type"] == "file":
            infos, prefix = {root: info}, root.rpartition("/")[0] + "/"
        else:
            infos = system.find(root, detail=True)
    relatives = {path: path.removeprefix(prefix) for path in infos}
    shown = {path: infos[path] for path, name in relatives.items() if "/." not in f"/{name}"}
    files = {}
    for path, details in files_alone(shown).items():
        name = path if location == root or "://" not in location else system.unstrip_protocol(path)
        files[relatives[path]] = InputFile(name, size_of(name, details), stamp_of(name, details))
    return files


@contextmanager
def store_errors(location: str) -> Iterator[None]:
    """Around what asks a store, whose client may have errors of its own: botocore's are no OSErrors.

    Raises:
        OSError: the store cannot be reached, or refuses; names the location.
    """
    try:
        yield
    except (ValueError, OSError):
        raise
    except Exception as error:
        if "://" not in location:
            raise
        reason = " ".join(str(error).split()) or type(error).__name__
        raise OSError(f"{location} cannot be read: {reason}; look at your network and credentials") from None


def file_system(location: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """The file system that a location is of, and its path there; of a local one links are followed.

    Raises:
        ValueError: it is of none that is known, or of one whose package is not installed; names that.
    """
    try:
        system, path = fsspec.core.url_to_fs(location)
    except (ImportError, ValueError) as error:
        raise ValueError(f"{location} cannot be listed: {error}") from None
    return LinkedFiles() if isinstance(system, LocalFileSystem) else system, path


class LinkedFiles(LocalFileSystem):
    """The local file system, where a link is listed as what it leads to: fsspec's lists it as neither file nor folder.

    A link to a folder that it lies in stays what it is, for listing that folder would not end. Hidden files and folders
    are not listed, and a folder that cannot be read is an error.
    """

    def walk(
        self, path: str, maxdepth: int | None = None, topdown: bool = True, on_error: Any = "raise", **options: Any
    ) -> Iterator[Any]:
        """fsspec's leaves out a folder that cannot be read, with all its text, unless it is told to raise."""
        return super().walk(path, maxdepth, topdown, on_error, **options)

    def ls(self, path: str, detail: bool = False, **options: Any) -> list[Any]:
        infos = super().ls(path, detail=True, **options)
        infos = [info for info in infos if not os.path.basename(info["name"]).startswith(".")]
        for info in infos:
            if info["islink"] and os.path.exists(info["name"]) and not _leads_up(info["name"]):
                info.update(self.info(info["name"]))
        return infos if detail else [info["name"] for info in infos]


def _leads_up(link: str) -> bool:
    """Whether a link leads to a folder that it lies in, be it by way of other links."""
    target = os.path.realpath(link)
    above = {os.path.realpath(folder) for folder in Path(link).parents}
    return any(folder == target or folder.startswith(target.rstrip("/") + "/") for folder in above)


def files_alone(infos: dict[str, Any]) -> dict[str, Any]:
    """The files of a listing; FileNotFoundError names a link that leads nowhere."""
    links = (path for path, info in infos.items() if info.get("islink"))  # such as only a local folder has
    if broken := next((path for path in links if not os.path.exists(path)), None):
        raise FileNotFoundError(f"{broken} is a link to nowhere: mend it, or remove it")
    return {path: info for path, info in infos.items() if info["type"] == "file"}


def size_of(path: str, details: dict[str, Any]) -> int:
    """Bytes of a file as stored, which decide how it is shuffled; ValueError if its server does not say."""
    size: int | None = details["size"]
    if size is None:
        raise ValueError(f"{path}: its server does not say how many bytes it has: download it, and name the file here")
    return size


def stamp_of(path: str, details: dict[str, Any]) -> str:
    """What tells one version of a file from another."""
    if "://" not in path:
        return str(Path(path).stat().st_mtime_ns)
    return next((f"{key} {details[key]}" for key in STAMPS if details.get(key)), "")


def language_of(relative: str, path: str) -> str:
    """The canonical language that the first part of a path names; ValueError names the file.

    `isl-00000-of-00003.jsonl`, as datasets names the parts of a file, is of isl.
    """
    first, _, rest = relative.partition("/")
    name = (first if rest else PART.sub("", first.partition(".")[0])).removeprefix("lang=")
    try:
        return input_language(name)
    except ValueError as error:
        raise ValueError(f"{path}: {error}; rename it, or give --language for the whole folder") from None


def format_of(path: str) -> tuple[str, str | None]:
    """Format and compression of a file, such as (".jsonl", "zstd"), however its name spells them: `.TXT` is `.txt`.

    Raises:
        ValueError: they are none of ours.
    """
    stem, dot, last = path.lower().rpartition(".")
    compression = COMPRESSIONS.get(dot + last)
    suffix = "." + stem.rpartition(".")[2] if compression else dot + last
    if suffix not in FORMATS or (compression and suffix == ".parquet"):
        raise ValueError(
            f"{path} is of no known format: text lies in {', '.join(FORMATS)}, also with .gz or .zst, but for the "
            "last; move other files away"
        )
    return suffix, compression


def text_bytes(file: InputFile) -> int:
    """About how much text a file holds."""
    suffix, compression = format_of(file.path)
    return file.size * EXPANSION.get(compression or suffix, 1)
