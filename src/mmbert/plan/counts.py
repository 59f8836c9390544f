"""What the streams of a phase hold: from their manifests, or from a table of counts where no rows exist yet.

The streams of the paper have such a table in the repository, of estimates.
"""
import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np

from mmbert.config import RunConfig
from mmbert.data_config import is_remote
from mmbert.manifest import Manifest
from mmbert.mixture import Integers
from mmbert.remote_rows import find_rows
from mmbert.tokenizer import tokenizer_of_run

Name = tuple[str, str]
ESTIMATES = Path("yamls/published-sizes.csv")
REQUIRED, OPTIONAL = ("source", "language", "tokens"), ("rows",)
# What data_prep.count writes besides; a plan needs none of it.
BESIDES = ("documents", "characters", "bytes", "words", "text_tokens", "unknown_tokens", "byte_tokens")
loaded = cache(tokenizer_of_run)  # once for all phases: Gemma 2's takes a second


@dataclass(frozen=True)
class Count:
    """One stream. Rows are full but for the last where the table does not give them."""

    tokens: int
    rows: int | None = None


@dataclass(frozen=True)
class Counts:
    """All streams of a phase.

    Attributes:
        origin: where the numbers come from, in words.
        tokens, rows: (S,) of each.
        manifests: what they come from, if from rows; empty otherwise.
        estimated: whether nobody has counted them.
    """

    origin: str
    tokens: Integers
    rows: Integers
    manifests: tuple[Manifest, ...] = ()
    estimated: bool = False


def read_counts(path: Path) -> dict[Name, Count]:
    """The table of counts: a CSV with the columns source, language, tokens, and optionally rows.

    Those that data_prep.count writes besides are passed over.

    Raises:
        FileNotFoundError, ValueError: names the file, the line and the remedy.
    """
    if not path.is_file():
        raise FileNotFoundError(f"--counts {path}: no such file; a CSV with the columns {', '.join(REQUIRED)} is meant")
    counts: dict[Name, Count] = {}
    try:
        text = path.read_text(encoding="utf-8-sig")  # Windows begins a file with a byte order mark
    except UnicodeDecodeError:
        raise ValueError(f"--counts {path} is not UTF-8: convert it, say with iconv") from None
    try:
        reader = csv.DictReader(io.StringIO(text, newline=""))
        heads, lines = reader.fieldnames or [], [(reader.line_num, line) for line in reader]
    except csv.Error as error:
        raise ValueError(f"--counts {path} is no table: {error}") from None
    if not set(REQUIRED) <= set(heads) <= {*REQUIRED, *OPTIONAL, *BESIDES}:
        raise ValueError(
            f"--counts {path}: columns {', '.join(heads)}; must be {', '.join(REQUIRED)} and may be "
            f"{', '.join(OPTIONAL)}"
        )
    for number, line in lines:
        where = f"--counts {path} line {number}"
        if None in line:
            raise ValueError(f"{where} has more fields than the head line: write 285000000 for 285,000,000")
        name = (line["source"], line["language"])
        if name in counts:
            raise ValueError(f"{where}: {'/'.join(name)} stands there twice")
        numbers = {key: whole(line[key], f"{where}: {key}") for key in ("tokens", *OPTIONAL) if key in heads}
        counts[name] = Count(**numbers)
    return counts


def whole(text: str | None, what: str) -> int:
    """A number above 0.

    Raises:
        ValueError: it is none; begins with `what`.
    """
    if text is None or not text.strip().isdecimal() or int(text) == 0:
        raise ValueError(f"{what} = {text!r} must be a whole number above 0; leave a stream without text out")
    return int(text)


def counts_of_phase(config: RunConfig, streams: Sequence[Name], table: Mapping[Name, Count] | None) -> Counts | None:
    """What each stream of a phase holds; None where no table has it and there is no folder of rows.

    Raises:
        FileNotFoundError, ValueError: a stream is missing in the table or the folder, or does not fit.
    """
    if table is not None:
        missing = ["/".join(name) for name in streams if name not in table]
        if missing:
            raise ValueError(
                f"--counts has no line for {len(missing)} of {len(streams)} streams of {config.name}: "
                f"{', '.join(missing[:8])}{', ...' if len(missing) > 8 else ''}; add them, or take them out of the "
                "mixture"
            )
        return gather([table[name] for name in streams], "the table of --counts", config.max_seq_len)
    if not is_remote(config.data.root) and not Path(config.data.root).is_dir():
        estimates = read_counts(ESTIMATES) if ESTIMATES.is_file() else {}
        if not estimates.keys() >= set(streams):
            return None
        return replace(
            gather([estimates[name] for name in streams], f"the estimates in {ESTIMATES}", config.max_seq_len),
            estimated=True,
        )
    tokenizer = loaded(config.tokenizer, config.model.vocab_size)
    _, manifests, _ = find_rows(config.data, streams, config.max_seq_len, tokenizer, is_whole=False)
    each = [Count(manifest.tokens, manifest.rows) for manifest in manifests]
    return replace(gather(each, f"the manifests in {config.data.root}", config.max_seq_len), manifests=manifests)


def gather(counts: Sequence[Count], origin: str, row_length: int) -> Counts:
    """Arrays of the streams' numbers.

    Raises:
        ValueError: a stream has more tokens than its rows can hold.
    """
    tokens = np.array([count.tokens for count in counts], dtype=np.int64)
    rows = np.array([count.rows or -(-count.tokens // row_length) for count in counts], dtype=np.int64)
    if (tokens > rows * row_length).any():
        worst = int(np.argmax(tokens - rows * row_length))
        raise ValueError(
            f"{origin}: {tokens[worst]:,} tokens cannot lie in {rows[worst]:,} rows of max_seq_len = {row_length}; "
            "leave the column `rows` out, or give the rows of this length"
        )
    return Counts(origin, tokens, rows)
