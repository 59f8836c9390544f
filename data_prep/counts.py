"""What a stream of text holds, in numbers. Pure.

A word is what stands between white space, in every language: the one rule that needs no table of languages. Where a
script puts no spaces between words that counts phrases, so such text is said to have no words: `SPACED` characters a
word, on average, are more than any language of the demo has that does put them (the longest: Kalaallisut, 15.5; of
those that do not, Burmese and Mon, with spaces between phrases, pass with 12 and 14). Tokens a character compare them.
"""
import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

from mmbert.languages import script_of

SPACED = 16.0
Stream = tuple[str, str]  # source, language


@dataclass(frozen=True)
class Counts:
    """Sums over the documents of a stream, or of several; None where nobody counted.

    Attributes:
        tokens: as rows hold them, `<bos>` and `<eos>` of each document included.
        bytes: of UTF-8.
        words: stretches between white space.
        text_tokens: without `<bos>` and `<eos>`.
        unknown_tokens: `<unk>`, whose text is lost.
        byte_tokens: a byte each, of characters that the vocabulary lacks.
    """

    tokens: int | None = 0
    rows: int | None = None
    documents: int | None = 0
    characters: int | None = 0
    bytes: int | None = 0
    words: int | None = 0
    text_tokens: int | None = 0
    unknown_tokens: int | None = 0
    byte_tokens: int | None = 0

    @property
    def tokens_per_byte(self) -> float | None:
        """Of text; of rows with `<bos>` and `<eos>`."""
        return ratio(self.tokens if self.text_tokens is None else self.text_tokens, self.bytes)

    @property
    def tokens_per_character(self) -> float | None:
        return ratio(self.text_tokens, self.characters)

    @property
    def tokens_per_word(self) -> float | None:
        """Fertility; None for text whose script does not part words."""
        return ratio(self.text_tokens, self.words) if self.is_spaced else None

    @property
    def is_spaced(self) -> bool:
        length = ratio(self.characters, self.words)
        return length is not None and length <= SPACED


def ratio(part: int | None, whole: int | None) -> float | None:
    """part / whole, where both are known and there is a whole."""
    return None if part is None or not whole else part / whole


def total(counts: Sequence[Counts]) -> Counts:
    """The sum; None where one of them is."""
    columns = {field.name: [getattr(each, field.name) for each in counts] for field in fields(Counts)}
    return Counts(**{name: None if None in column else sum(column) for name, column in columns.items()})


def mean_tokens_per_word(counts: Sequence[Counts]) -> float | None:
    """Tokens a word of all text that has words."""
    return total([each for each in counts if each.is_spaced]).tokens_per_word


def by_script(counts: Mapping[Stream, Counts]) -> dict[str, dict[Stream, Counts]]:
    """The streams of each script, the script of most streams first, the unknown one last."""
    groups: dict[str, dict[Stream, Counts]] = {}
    for stream, each in sorted(counts.items()):
        groups.setdefault(script_of(stream[1]), {})[stream] = each
    return dict(sorted(groups.items(), key=lambda item: (item[0] == "unknown", -len(item[1]), item[0])))


def counts_csv(counts: Mapping[Stream, Counts]) -> str:
    """The table that mmbert.plan.counts reads: one line a stream, without columns that nobody counted."""
    whole = total(list(counts.values()))
    names = [field.name for field in fields(Counts) if getattr(whole, field.name) is not None]
    lines = io.StringIO()
    writer = csv.writer(lines, lineterminator="\n")
    writer.writerow(["source", "language", *names])
    writer.writerows([*stream, *(getattr(each, name) for name in names)] for stream, each in sorted(counts.items()))
    return lines.getvalue()
