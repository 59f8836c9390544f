"""Best-fit-decreasing packing of documents into rows. Pure functions of numbers and arrays.

A row holds whole documents, each wrapped as `<bos> text <eos>`, and never more than `row_length` token ids.
A document too long for one row becomes several chunks, each wrapped like a document; no token is dropped,
repeated or moved. Packing here, before training, leaves no packer state that a restart could lose.
"""
from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

TokenIds = npt.NDArray[np.uint32]

WRAPPER_TOKENS = 2  # <bos> and <eos> around every document or chunk
MIN_ROW_LENGTH = WRAPPER_TOKENS + 1
MAX_ROW_LENGTH = 2**16 - 1  # `lengths` is stored as uint16


@dataclass(frozen=True)
class Row:
    """One training sample.

    Attributes:
        input_ids: the ids of all documents of the row, one after the other, shape (tokens,).
        lengths: tokens of each document or chunk, <bos> and <eos> included, shape (documents,).
    """

    input_ids: TokenIds
    lengths: npt.NDArray[np.uint16]


@dataclass(frozen=True)
class Rows:
    """B rows laid end to end, with T ids and N documents in all.

    Attributes:
        input_ids: (T,).
        lengths: (N,) tokens of each document.
        row_tokens, row_documents: of each row.
    """

    input_ids: TokenIds
    lengths: npt.NDArray[np.uint16]
    row_tokens: list[int]
    row_documents: list[int]

    @classmethod
    def of(cls, rows: Sequence[Row]) -> "Rows":
        """At least one row."""
        return cls(
            np.concatenate([row.input_ids for row in rows]),
            np.concatenate([row.lengths for row in rows]),
            [len(row.input_ids) for row in rows],
            [len(row.lengths) for row in rows],
        )

    def documents(self) -> list[TokenIds]:
        """The ids of each document."""
        return np.split(self.input_ids, np.cumsum(self.lengths, dtype=np.int64)[:-1])


def check_row_length(row_length: int) -> None:
    """Raise ValueError if `row_length` (tokens) cannot be stored, or leaves no room for text."""
    if not MIN_ROW_LENGTH <= row_length <= MAX_ROW_LENGTH:
        raise ValueError(f"{row_length=} tokens: choose one in [{MIN_ROW_LENGTH}, {MAX_ROW_LENGTH}]")


def chunk_lengths(num_tokens: int, row_length: int) -> list[int]:
    """Text tokens of each chunk of a document, in order; their sum is `num_tokens`.

    Chunks fill a row, but for the last. A last one under row_length // 16 would teach little at the price of a
    full wrapper, so it shares evenly with the one before.

    Args:
        num_tokens: text tokens of the document, without <bos> and <eos>; at least 1.
        row_length: tokens of a row.
    """
    assert num_tokens > 0
    full = row_length - WRAPPER_TOKENS
    num_full, rest = divmod(num_tokens, full)
    if rest == 0:
        return [full] * num_full
    if num_full == 0 or rest >= row_length // 16:
        return [full] * num_full + [rest]
    pair = full + rest
    return [full] * (num_full - 1) + [pair - pair // 2, pair // 2]


def wrap_document(document: TokenIds, row_length: int, bos: int, eos: int) -> list[TokenIds]:
    """Cut a document into chunks that fit a row, and wrap each chunk as `<bos> text <eos>`."""
    wrapped = []
    start = 0
    for length in chunk_lengths(len(document), row_length):
        chunk = np.empty(length + WRAPPER_TOKENS, dtype=np.uint32)
        chunk[0], chunk[1:-1], chunk[-1] = bos, document[start : start + length], eos
        wrapped.append(chunk)
        start += length
    return wrapped


def best_fit_decreasing(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Place items, longest first, each into the fullest row that still has room for it.

    Equal lengths go in the order given, so the result depends on the arguments alone. Free space is an integer
    below `capacity`: rows are kept by free space, and a bisection over the values in use finds the best fit,
    O(n log n) in all.

    Args:
        lengths: size of each item, in [1, capacity].
        capacity: size of a row.

    Returns:
        The indices into `lengths` that each row holds.

    Source:
        D. S. Johnson, "Near-optimal bin packing algorithms", 1973: at most 11/9 of the fewest rows possible, + 4.
    """
    assert all(1 <= length <= capacity for length in lengths)
    rows: list[list[int]] = []
    rows_with_free: dict[int, list[int]] = {}
    free_values: list[int] = []  # the keys of rows_with_free, sorted
    for item in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        position = bisect_left(free_values, lengths[item])
        if position == len(free_values):
            row, free = len(rows), capacity
            rows.append([])
        else:
            free = free_values[position]
            row = rows_with_free[free].pop()
            if not rows_with_free[free]:
                del rows_with_free[free], free_values[position]
        rows[row].append(item)
        free -= lengths[item]
        if free not in rows_with_free:
            rows_with_free[free] = []
            insort(free_values, free)
        rows_with_free[free].append(row)
    return rows


def pack_documents(documents: Sequence[TokenIds], row_length: int, bos: int, eos: int) -> list[Row]:
    """Pack documents (text ids, without <bos> and <eos>) into rows of at most `row_length` token ids."""
    return pack_pieces(documents, row_length, bos, eos)[0]


def pack_pieces(
    documents: Sequence[TokenIds], row_length: int, bos: int, eos: int
) -> tuple[list[Row], list[npt.NDArray[np.uint32]]]:
    """Pack documents as `pack_documents` does, and say which piece of which document went where.

    A piece is a document or a chunk of one. Pieces are numbered through all documents, in their order.

    Returns:
        The rows; and for each row the piece at each of its places, shape (documents,): twice its number, and one more
        if it goes on with the document of the piece before it. `join_pieces` puts the documents together again.
    """
    check_row_length(row_length)
    wrapped = [wrap_document(document, row_length, bos, eos) for document in documents]
    chunks = [chunk for several in wrapped for chunk in several]
    lengths = [len(chunk) for chunk in chunks]
    firsts = np.cumsum([0, *map(len, wrapped)])[:-1]
    pieces: npt.NDArray[np.uint32] = np.arange(1, 2 * len(chunks), 2, dtype=np.uint32)
    pieces[firsts] -= np.uint32(1)
    packed = best_fit_decreasing(lengths, row_length)
    rows = [
        Row(
            input_ids=np.concatenate([chunks[item] for item in row]),
            lengths=np.array([lengths[item] for item in row], dtype=np.uint16),
        )
        for row in packed
    ]
    return rows, [pieces[row] for row in packed]


def join_pieces(rows: Rows, pieces: npt.NDArray[np.uint32]) -> list[TokenIds]:
    """The documents that were packed, in their order, without <bos> and <eos>: undoes `pack_pieces`.

    Args:
        rows: all of them, in any order.
        pieces: (N,) those of all their documents.

    Raises:
        ValueError: they are not the pieces of whole documents, each once.
    """
    numbers, continues = pieces >> 1, (pieces & 1).astype(bool)
    order = np.argsort(numbers)
    are_whole = len(pieces) == len(rows.lengths) and not continues[order[:1]].any()
    if not are_whole or (numbers[order] != np.arange(len(pieces))).any():
        raise ValueError("they are not the pieces of whole documents, each once")
    wrapped = rows.documents()
    documents: list[list[TokenIds]] = []
    for place in order:
        text = wrapped[place][1:-1]
        if continues[place]:
            documents[-1].append(text)
        else:
            documents.append([text])
    return [np.concatenate(parts) if len(parts) > 1 else parts[0] for parts in documents]
