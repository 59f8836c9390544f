"""JSON files: written whole or not at all, read with an error that says which."""
import json
from pathlib import Path
from typing import Any

from mmbert.atomic import write_file
from mmbert.file_contents import parse_object


def read_json(path: Path, written_by: str) -> dict[str, Any]:
    """Read a JSON object.

    Args:
        written_by: the program that writes the file, for the error's remedy.

    Raises:
        FileNotFoundError: the file is missing.
        ValueError: it holds no JSON object.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; {written_by} writes it")
    return parse_object(path.read_bytes(), path, f"delete it, {written_by} writes it anew")


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Write indented JSON atomically; NaN and infinity, which JSON lacks, are refused.

    Of a file name that is no UTF-8 the odd bytes become escapes, which Python reads back as they were.

    Raises:
        ValueError: a number is not finite.
    """
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_file(path, f"{text}\n".encode(errors="backslashreplace"))
