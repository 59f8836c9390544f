"""What a bad disk does to a file."""
import os
from pathlib import Path


def truncate(path: Path, share: float) -> None:
    """Keep the file's first `share`."""
    os.truncate(path, int(share * path.stat().st_size))


def flip(path: Path, bit: int | None = None) -> bytes:
    """Flip one bit, by default in the middle; returns the former content."""
    content = path.read_bytes()
    changed, place = bytearray(content), 4 * len(content) if bit is None else bit
    changed[place // 8] ^= 1 << place % 8
    path.write_bytes(changed)
    return content
