"""Planned against realised: the tokens of each stream, and of each language and source. Pure functions of numbers."""
from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class StreamTokens:
    """What one stream was to have had, and had.

    Attributes:
        name: `source/language`; or a source, or a language, where streams were added up.
        planned: tokens; None where no plan is known.
        available: tokens that its shards hold; None without manifests.
        rows: of its shards; None without manifests.
        rows_read: in all, by the plan that every step was compared with; None where that was not done.
    """

    name: str
    realised: int
    planned: float | None = None
    available: int | None = None
    rows: int | None = None
    rows_read: int | None = None

    @property
    def difference(self) -> float | None:
        """Realised - planned, in tokens."""
        return None if self.planned is None else self.realised - self.planned

    @property
    def ratio(self) -> float | None:
        """Realised / planned."""
        return self.realised / self.planned if self.planned else None

    @property
    def repeats(self) -> float | None:
        """How often its tokens were seen."""
        return self.realised / self.available if self.available else None

    @property
    def difference_rows(self) -> float | None:
        """Realised - planned, in rows of the stream's mean length."""
        if self.difference is None or not self.available or not self.rows:
            return None
        return self.difference * self.rows / self.available


def total(numbers: Sequence[float | None]) -> float | None:
    """Their sum; None if one of them is not known."""
    return None if None in numbers else sum(number for number in numbers if number is not None)


def whole(number: float | None) -> int | None:
    """A count that may be unknown."""
    return None if number is None else round(number)


def add_up(streams: Sequence[StreamTokens], part: Callable[[str], str]) -> list[StreamTokens]:
    """Sum the streams whose names have the same part, in the order in which that first occurs."""
    parts: dict[str, list[StreamTokens]] = {}
    for stream in streams:
        parts.setdefault(part(stream.name), []).append(stream)
    return [
        StreamTokens(
            name,
            sum(stream.realised for stream in members),
            total([stream.planned for stream in members]),
            whole(total([stream.available for stream in members])),
            whole(total([stream.rows for stream in members])),
            whole(total([stream.rows_read for stream in members])),
        )
        for name, members in parts.items()
    ]


def worst(streams: Sequence[StreamTokens]) -> StreamTokens | None:
    """The stream furthest from its plan: in rows where they are known, else in tokens."""
    known = [stream for stream in streams if stream.difference is not None]
    if not known:
        return None
    in_rows = all(stream.difference_rows is not None for stream in known)
    return max(known, key=lambda stream: abs((stream.difference_rows if in_rows else stream.difference) or 0.0))


def share_distance(streams: Sequence[StreamTokens]) -> float | None:
    """Total variation between planned and realised shares: the part of all tokens that another stream should have had.

    None where no plan is known.
    """
    planned, realised = total([stream.planned for stream in streams]), sum(stream.realised for stream in streams)
    if not planned or not realised:
        return None
    return sum(abs(stream.realised / realised - (stream.planned or 0.0) / planned) for stream in streams) / 2.0
