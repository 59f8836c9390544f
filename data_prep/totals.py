"""What prepare and verify end with: the table of totals, and lists of names."""
from collections.abc import Sequence

from mmbert.manifest import SPLITS, Manifest

FEW = 10


def few(names: Sequence[str]) -> str:
    """Names in a line; of many the first ones, and how many more there are."""
    return ", ".join(names[:FEW]) + (f" and {len(names) - FEW} more" if len(names) > FEW else "")


def undivided_line(paths: Sequence[str]) -> str:
    """What to do about .txt files that were taken as one document for want of a blank line."""
    named = few([path.encode(errors="backslashreplace").decode() for path in paths])  # a name may be no UTF-8
    return (
        f"{len(paths)} .txt files have no blank line, and each was taken as one document: {named}; blank lines "
        "tell documents apart: if each line is one, put them in (sed G); else give --whole-txt"
    )


def totals_table(manifests: Sequence[Manifest]) -> str:
    """One line per split; fill is the share of the rows' room that tokens take."""
    columns = ("languages", "documents", "rows", "tokens", "fill", "bytes/token")
    lines = [f"{'split':8}" + "".join(f"{column:>16}" for column in columns)]
    for split in SPLITS:
        streams = [manifest for manifest in manifests if manifest.split == split]
        if not streams:
            continue
        documents = sum(stream.documents for stream in streams)
        rows = sum(stream.rows for stream in streams)
        tokens = sum(stream.tokens for stream in streams)
        fill = tokens / sum(stream.rows * stream.row_length for stream in streams)
        density = sum(stream.text_bytes for stream in streams) / tokens
        counts = "".join(f"{count:16,}" for count in (len(streams), documents, rows, tokens))
        lines.append(f"{split:8}{counts}{fill:16.3f}{density:16.3f}")
    return "\n".join(lines)
