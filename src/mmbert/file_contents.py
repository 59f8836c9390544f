"""What files hold: a sha256, and JSON with errors that name the file; and where a file was looked for."""
import hashlib
import json
from pathlib import Path
from typing import Any


def sha256_of(path: Path) -> str:
    """sha256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def seen_from(path: Path) -> str:
    """For the error that a path does not exist: where it was looked for, if it is relative; else nothing."""
    return "" if path.is_absolute() else f" below {Path.cwd()} (run this in the root of the repository)"


def parse_object(content: bytes, path: Path, remedy: str) -> dict[str, Any]:
    """Parse the JSON object that `path` holds.

    Args:
        content: the file's bytes.
        path: for the error.
        remedy: what to do about a broken one, for the error.

    Raises:
        ValueError: it is no JSON, is nested deeper than Python's stack, or holds something else than an object.
    """
    try:
        value = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no JSON: {error}; {remedy}") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path} holds no JSON object; {remedy}")
    return value
