"""Rows from the bytes of MDS samples: many at a time, for one alone would cost as much as reading it.

A sample is the sizes of its two columns (`manifest.COLUMNS`), uint32, and the columns. A column is a byte that says
that it has one dimension and how many bytes hold its length, the length, and the values.

Shapes: B samples, T ids and N documents in all.
"""
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from mmbert.manifest import Manifest
from mmbert.mixture import Integers
from mmbert.packing import WRAPPER_TOKENS, Rows

SIZES, HEAD = 8, 3  # bytes of the sizes; of a column, those that lie before its values and may hold its length
ONE_BYTE, TWO_BYTES = 4, 5  # first byte of a column whose length takes so many; no row has more than 65,535 ids
ID, LENGTH = np.dtype(np.uint32), np.dtype(np.uint16)
Bytes = NDArray[np.uint8]


def decode(samples: Sequence[bytes], kind: Manifest) -> Rows:
    """The rows of B samples, at least one, laid end to end.

    Raises:
        ValueError: one is no such sample, or no row of its kind; in words for the first.
    """
    sizes = np.array([len(sample) for sample in samples])
    heads = gather(samples, np.zeros_like(sizes), SIZES + HEAD)
    first, second = heads[:, :SIZES].copy().view(np.uint32).astype(np.int64).T
    middles = SIZES + first
    ids, are_ids = values(heads[:, SIZES:], SIZES, middles, ID)
    lengths, are_lengths = values(gather(samples, middles, HEAD), middles, sizes, LENGTH)
    if not ((middles + second == sizes) & are_ids & are_lengths).all():
        raise ValueError(f"cannot be decoded ({sizes[0]} bytes are no vectors of ids and lengths)")
    rows = Rows(
        lay(samples, ids, middles, ID),
        lay(samples, lengths, sizes, LENGTH),
        ((middles - ids) // ID.itemsize).tolist(),
        ((sizes - lengths) // LENGTH.itemsize).tolist(),
    )
    if fault := find_fault(rows, kind):
        raise ValueError(fault)
    return rows


def gather(samples: Sequence[bytes], begins: Integers, size: int) -> Bytes:
    """(B, size) so many bytes of each sample, zeros behind its end: no column begins with one."""
    parts = zip(samples, begins.tolist(), strict=True)
    found = b"".join([sample[begin : begin + size].ljust(size, b"\0") for sample, begin in parts])
    return np.frombuffer(found, np.uint8).reshape(-1, size)


def values(
    heads: Bytes, begins: Integers | int, ends: Integers, dtype: np.dtype
) -> tuple[Integers, NDArray[np.bool_]]:
    """Where the values begin in columns of [begin, end) by their heads (B, HEAD); and which of these are columns."""
    kinds, low, high = heads.astype(np.int64).T
    counts = np.where(kinds == ONE_BYTE, low, low + 256 * high)
    found = begins + 2 + (kinds == TWO_BYTES)
    return found, ((kinds == ONE_BYTE) | (kinds == TWO_BYTES)) & (found + counts * dtype.itemsize == ends)


def lay(samples: Sequence[bytes], begins: Integers, ends: Integers, dtype: np.dtype) -> np.ndarray:
    """The numbers in [begin, end) of all samples, in a bytearray, for arrays that may be written to."""
    parts = zip(samples, begins.tolist(), ends.tolist(), strict=True)
    return np.frombuffer(bytearray().join([sample[begin:end] for sample, begin, end in parts]), dtype)


def find_fault(rows: Rows, manifest: Manifest) -> str:
    """What is wrong with rows of one tokenizer and row length, in the words for a single one, or the empty string."""
    input_ids, lengths = rows.input_ids, rows.lengths.astype(np.int64)
    row_tokens, ends = np.array(rows.row_tokens), lengths.cumsum()
    sums = np.diff(np.append(0, ends)[np.append(0, np.cumsum(rows.row_documents))])
    if (sums != row_tokens).any() or not 0 < row_tokens.min() <= row_tokens.max() <= manifest.row_length:
        return f"{row_tokens[0]} ids, lengths sum to {sums[0]}, row_length is {manifest.row_length}"
    if lengths.min() <= WRAPPER_TOKENS:
        return f"a document of {lengths.min()} tokens has no text"
    if input_ids.max() >= manifest.vocab_size:
        return f"id {input_ids.max()} is outside the vocabulary of {manifest.vocab_size}"
    for name, id_, places in (
        ("bos", manifest.bos_token_id, ends - lengths),
        ("eos", manifest.eos_token_id, ends - 1),
    ):
        found = input_ids == id_
        if np.count_nonzero(found) != len(places) or not found.take(places).all():
            return f"{name} (id {id_}) does not stand at the {len(lengths)} places where it must, and only there"
    return ""
