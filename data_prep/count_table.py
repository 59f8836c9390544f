"""The table of counts on the console."""
from collections.abc import Mapping, Sequence

from data_prep.counts import Counts, Stream, by_script, mean_tokens_per_word, ratio, total

FEW = 40  # streams that are listed one by one; of more, the scripts
HEADS = ("", "streams", "documents", "rows", "characters", "bytes", "tokens", "tokens/byte", "/character", "/word",
         "<unk>", "in bytes")  # fmt: skip


def cells(name: str, counts: Sequence[Counts]) -> list[str]:
    """One line of the table, of one stream or several."""
    whole = total(counts)
    numbers = (whole.documents, whole.rows, whole.characters, whole.bytes, whole.tokens)
    ratios = (whole.tokens_per_byte, whole.tokens_per_character, mean_tokens_per_word(counts))
    shares = (ratio(part, whole.text_tokens) for part in (whole.unknown_tokens, whole.byte_tokens))
    return [
        name,
        f"{len(counts):,}",
        *("-" if number is None else f"{number:,}" for number in numbers),
        *("-" if number is None else f"{number:.3f}" for number in ratios),
        *("-" if share is None else f"{share:.2%}" for share in shares),
    ]


def counts_table(counts: Mapping[Stream, Counts]) -> str:
    """Every stream, or every script where there are many, and all together; without columns that nobody counted."""
    if len(counts) <= FEW:
        lines = [cells("/".join(stream), [each]) for stream, each in sorted(counts.items())]
    else:
        lines = [cells(script, list(streams.values())) for script, streams in by_script(counts).items()]
    lines.append(cells("all", list(counts.values())))
    columns = [(head, *column) for head, *column in zip(HEADS, *lines, strict=True) if set(column) != {"-"}]
    widths = [max(map(len, column)) + 2 for column in columns]
    return "\n".join(
        cell[0].ljust(widths[0]) + "".join(text.rjust(width) for text, width in zip(cell[1:], widths[1:], strict=True))
        for cell in zip(*columns, strict=True)
    )
