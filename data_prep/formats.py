"""Reading texts, strictly: of a file that is damaged anywhere, the place is named.

* `.jsonl`, which Dolma calls `.json`: one object a line, with the text under a key.
* `.csv`: with a head line that names a column of text.
* `.parquet`: with a column of text.
* `.txt`: documents separated by blank lines, as in CC-100, or the whole file.

The first three may hold other keys and columns. datatrove's readers are not used: they leave out what they cannot read,
and go on (docs/architecture.md).
"""
import csv
import io
import json
import sys
import textwrap
from codecs import BOM_UTF8
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import BinaryIO

import fsspec
import orjson
import pyarrow
import pyarrow.parquet

from data_prep.inputs import InputFile, format_of, store_errors

BATCH_ROWS = 1000  # of Parquet, decoded at a time
LONGEST = 2**25  # characters of a .txt without a blank line: as one document they would take gigabytes of memory


class BrokenInputError(ValueError):
    """An input file that cannot be read to its end; the message names the file and the place."""


def read_texts(file: InputFile, text_key: str = "text", whole_txt: bool = False) -> Iterator[str]:
    """The texts of a file in their order, empty ones too. Of a compressed or large file a piece is in memory at a time.

    Args:
        file: of a format in `inputs.FORMATS`.
        text_key: key or column of the text.
        whole_txt: a .txt file is one document.

    Raises:
        BrokenInputError: the file is damaged, or not of its format.
        OSError: it cannot be opened or read.
    """
    suffix, compression = format_of(file.path)
    with store_errors(file.path):
        try:
            with (fsspec.open if "://" in file.path else open)(file.path, "rb") as raw:  # fsspec takes `a::b` for a URL
                stream = decompressed(raw, compression)
                if suffix == ".txt" and whole_txt:
                    yield "\n".join(lines_of(file.path, stream))
                else:
                    yield from READERS[suffix](file.path, stream, text_key)
        except (pyarrow.ArrowException, EOFError, UnicodeDecodeError) as error:  # the last of Parquet's texts and names
            raise BrokenInputError(f"{file.path} is damaged: {in_short(error)}") from None
        except OSError as error:  # Arrow's streams say in this way that they end too soon
            if error.errno is not None or type(error) is not OSError:  # the system, or a network: not the file's fault
                raise
            raise BrokenInputError(f"{file.path} is damaged: {in_short(error)}") from None


def in_short(what: object) -> str:
    """In one line, and not a long one: a file of one column without a head line has a document in its place."""
    return textwrap.shorten(str(what), 200)


def decompressed(raw: BinaryIO, compression: str | None) -> BinaryIO:
    """A stream of what `raw` holds. Arrow's, unlike others, notices a file that was cut off."""
    if compression is None:
        return raw
    stream = pyarrow.CompressedInputStream(pyarrow.PythonFile(raw, "r"), compression)
    return io.BufferedReader(stream, 2**20)


def lines_of(path: str, stream: BinaryIO) -> Iterator[str]:
    """Lines without their ends. Only a line feed ends one: U+2028 and its like may stand inside a text."""
    for number, line in enumerate(stream, start=1):
        try:
            yield line.decode("utf-8-sig" if number == 1 else "utf-8").removesuffix("\n").removesuffix("\r")
        except UnicodeDecodeError as error:
            raise BrokenInputError(
                f"{path}:{number} is not UTF-8 (byte {error.start} of the line): convert the file, say with iconv"
            ) from None


def read_txt(path: str, stream: BinaryIO, _: str) -> Iterator[str]:
    """Documents between blank lines."""
    document: list[str] = []
    length = 0
    for line in lines_of(path, stream):
        if line.strip():
            document.append(line)
            length += len(line)
        elif document:
            yield "\n".join(document)
            document, length = [], 0
        if length > LONGEST:
            raise BrokenInputError(
                f"{path} has no blank line in {LONGEST:,} characters, and blank lines tell documents apart: if each "
                "line is one, put them in (sed G)"
            )
    if document:
        yield "\n".join(document)


def read_jsonl(path: str, stream: BinaryIO, text_key: str) -> Iterator[str]:
    """One text a line, one that is null or NaN is empty; blank lines are none."""
    for number, line in enumerate(stream, start=1):
        line = line.removeprefix(BOM_UTF8) if number == 1 else line
        if not line.strip():
            continue
        try:
            value = json_of(line)
        except orjson.JSONDecodeError as error:
            reason = f"is not valid JSON: {error}; one object a line is expected"
            raise BrokenInputError(f"{path}:{number} {reason}") from None
        if not isinstance(value, dict):
            raise BrokenInputError(f"{path}:{number} is no JSON object: one object a line is expected")
        if text_key not in value:
            keys = in_short(", ".join(value))
            raise BrokenInputError(f"{path}:{number} has no text under {text_key!r} (keys: {keys}): give --text-key")
        text = value[text_key]
        if not isinstance(text, str | None):
            reason = f"has no text under {text_key!r}, but what JSON reads as {type(text).__name__}: make it a string"
            raise BrokenInputError(f"{path}:{number} {reason}")
        yield text or ""


def json_of(line: bytes) -> object:
    """The value of a line; NaN and infinities, which JSON has not and Python writes for a missing value, are null.

    Raises:
        orjson.JSONDecodeError: it is not JSON for another reason.
    """
    try:
        return orjson.loads(line)
    except orjson.JSONDecodeError:
        if b"NaN" not in line and b"Infinity" not in line:
            raise
        with suppress(ValueError, TypeError, RecursionError):
            return orjson.loads(orjson.dumps(json.loads(line)))  # dumps refuses what else Python's reader lets pass
        raise


def read_csv(path: str, stream: BinaryIO, text_key: str) -> Iterator[str]:
    """One text a record."""
    csv.field_size_limit(sys.maxsize)
    rows = csv.DictReader(io.TextIOWrapper(stream, encoding="utf-8-sig", newline=""), strict=True)
    try:
        if rows.fieldnames is None:
            raise BrokenInputError(f"{path} has no column {text_key!r}, for it is empty: fill it, or remove it")
        if not rows.fieldnames:
            raise BrokenInputError(f"{path}:1 is blank, and must name the columns: remove this line")
        if text_key not in rows.fieldnames:
            heads = in_short(", ".join(rows.fieldnames))
            raise BrokenInputError(
                f"{path} has no column {text_key!r} (columns: {heads}): give --text-key; only commas part columns"
            )
        check_alone(path, rows.fieldnames, text_key)
        for row in rows:
            if None in row or None in row.values():
                raise BrokenInputError(
                    f"{path}:{rows.line_num} has another number of fields than the head line: quote what holds commas"
                )
            yield row[text_key]
    except csv.Error as error:
        raise BrokenInputError(f"{path}:{rows.line_num} is damaged: {error}") from None
    except UnicodeDecodeError:  # of some lines at a time
        raise BrokenInputError(f"{path} is not UTF-8 behind line {rows.line_num}: convert it, say with iconv") from None


def read_parquet(path: str, stream: BinaryIO, text_key: str) -> Iterator[str]:
    """One text a row; one that is null is empty."""
    table = pyarrow.parquet.ParquetFile(stream)
    names = table.schema_arrow.names
    kind = dict(zip(names, table.schema_arrow.types, strict=True)).get(text_key)
    if kind is None:
        heads = in_short(", ".join(names))
        raise BrokenInputError(f"{path} has no column {text_key!r} of strings (columns: {heads}): give --text-key")
    if kind not in (pyarrow.string(), pyarrow.large_string(), pyarrow.string_view()):
        kind = in_short(kind)
        raise BrokenInputError(f"{path} has no column {text_key!r} of strings, but one of {kind}: write it as strings")
    check_alone(path, names, text_key)
    for batch in table.iter_batches(BATCH_ROWS, columns=[text_key], use_threads=False):
        yield from (text or "" for text in batch.column(text_key).to_pylist())


def check_alone(path: str, heads: Sequence[str], text_key: str) -> None:
    """BrokenInputError if several columns have the name of the text's."""
    if heads.count(text_key) > 1:
        raise BrokenInputError(f"{path} has {heads.count(text_key)} columns {text_key!r}: rename all but one")


READERS: dict[str, Callable[[str, BinaryIO, str], Iterator[str]]] = {
    ".txt": read_txt,
    ".jsonl": read_jsonl,
    ".json": read_jsonl,
    ".csv": read_csv,
    ".parquet": read_parquet,
}
