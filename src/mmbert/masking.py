"""Masked-language-model corruption of packed rows: a pure function of (seed, position of the row, rate).

Each token's random numbers come from hashing (seed, row position, index in the row), so they do not depend on which
rank, worker or microbatch holds the row, and a resumed run draws the same masks.
"""
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

# Of the chosen tokens 80 % become <mask>, 10 % a random id, 10 % stay (Devlin et al. 2019, arXiv:1810.04805).
MASKED, RANDOM = 0.8, 0.1
LANES = 4  # tokens that share a hash, 16 bits each

UInt64 = NDArray[np.uint64]
Ids = NDArray[np.int32]
Integers = NDArray[np.int64]
GOLDEN = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True)
class Vocabulary:
    """What masking knows of the tokenizer: `size` ids, of which `special` are never masked nor drawn at random."""

    size: int
    mask: int
    special: tuple[int, ...]

    @cached_property
    def maskable(self) -> NDArray[np.bool_]:
        """(size,) true where an id may be masked."""
        table = np.ones(self.size, dtype=bool)
        table[list(self.special)] = False
        return table

    def special_places(self, input_ids: Ids) -> Integers:
        """Where in (T,) ids the special ones are; quick where these have low ids, as is the custom."""
        low = np.flatnonzero(input_ids <= max(self.special))
        return low[~self.maskable[input_ids[low]]]

    @cached_property
    def ordinary_ids(self) -> Ids:
        """The ids that a random replacement is drawn from."""
        return np.flatnonzero(self.maskable).astype(np.int32)


def mix(state: UInt64) -> UInt64:
    """SplitMix64's finaliser: a bijection of 64 bits whose output passes as random (Steele et al. 2014)."""
    state = state ^ (state >> np.uint64(30))
    state *= np.uint64(0xBF58476D1CE4E5B9)  # in place, for the arrays are large
    state ^= state >> np.uint64(27)
    state *= np.uint64(0x94D049BB133111EB)
    state ^= state >> np.uint64(31)
    return state


def token_hashes(seed: int, row_positions: Integers, row_length: int) -> UInt64:
    """(B, G) hashes of rows, little-endian, one for LANES tokens: G = row_length / LANES, rounded up.

    Args:
        row_positions: (B,) position of each row in the phase.
        row_length: tokens of the longest row.
    """
    with np.errstate(over="ignore"):  # arithmetic modulo 2^64 is the point
        rows = mix(mix(np.array([seed], dtype=np.uint64) + GOLDEN) + row_positions.astype(np.uint64) * GOLDEN)
        groups = np.arange(1, -(-row_length // LANES) + 1, dtype=np.uint64)
        return mix(rows[:, None] + groups * GOLDEN).astype("<u8", copy=False)


def mask_tokens(
    input_ids: Ids, row_positions: Integers, row_tokens: Sequence[int], seed: int, rate: float, vocabulary: Vocabulary
) -> tuple[Ids, Integers, Integers]:
    """Choose each maskable token with probability `rate`, to 16 bits, and corrupt the chosen.

    Of a row that would have none one becomes <mask>, for a batch in which nothing is predicted has no loss.

    Args:
        input_ids: (T,) rows laid end to end; left as they are.
        row_positions, row_tokens: (B,) position in the phase and tokens of each row, T in all.

    Returns:
        Corrupted ids (T,); places (M,) of the chosen tokens, ascending, and their original ids (M,).
    """
    sizes = np.asarray(row_tokens)
    hashes = token_hashes(seed, row_positions, int(sizes.max()))
    lanes = np.concatenate([row[:size] for row, size in zip(hashes.view("<u2"), sizes, strict=True)])  # (T,)
    # One number decides all: below the first bound <mask>, below the second a random id, below the third the id itself.
    bounds = [round(share * rate * 2**16) for share in (MASKED, MASKED + RANDOM, 1.0)]
    chosen = lanes < bounds[2]
    special = vocabulary.special_places(input_ids)
    chosen[special] = False
    places, ends = np.flatnonzero(chosen), np.cumsum(sizes)
    if (empty := np.flatnonzero(in_rows(places, ends) == 0)).size:
        ranks = lanes.astype(np.int64)
        ranks[special] = 2**16
        for row in map(slice, ends[empty] - sizes[empty], ends[empty]):
            first = row.start + ranks[row].argmin()
            chosen[first], lanes[first] = ranks[first] < 2**16, 0
        places = np.flatnonzero(chosen)
    originals, lots = input_ids.take(places), lanes.take(places)
    corrupted = (vocabulary.mask - originals) * (lots < bounds[0])  # NumPy is slow at selecting by booleans
    corrupted += originals
    randomised = np.flatnonzero((lots >= bounds[0]) & (lots < bounds[1]))
    corrupted[randomised] = draw_ids(places.take(randomised), sizes, ends, hashes, vocabulary)
    output = input_ids.copy()
    output[places] = corrupted
    return output, places, originals.astype(np.int64)


def mask_batch(batch: dict[str, Any], seed: int, rate: float, vocabulary: Vocabulary) -> dict[str, Any]:
    """The batch with corrupted `input_ids`, and with `masked`, `targets` (M,) and `num_labels`, M; see mask_tokens."""
    input_ids, masked, targets = mask_tokens(
        batch["input_ids"], batch["row_positions"], batch["row_tokens"], seed, rate, vocabulary
    )
    return {**batch, "input_ids": input_ids, "masked": masked, "targets": targets, "num_labels": len(targets)}


def in_rows(places: Integers, ends: Integers) -> Integers:
    """(B,) how many of these ascending places lie in each row; `ends` (B,) of the rows, laid end to end."""
    return np.diff(np.searchsorted(places, ends), prepend=0)


def draw_ids(places: Integers, sizes: Integers, ends: Integers, hashes: UInt64, vocabulary: Vocabulary) -> Ids:
    """A random id for each of these ascending places (R,).

    Args:
        sizes, ends: (B,) tokens of each row, and where it ends.
        hashes: (B, G) of the rows.
    """
    in_row = in_rows(places, ends)
    token = places - np.repeat(ends - sizes, in_row)
    group = token // LANES + np.repeat(np.arange(len(sizes)) * hashes.shape[1], in_row)
    with np.errstate(over="ignore"):  # the hashes decided what is random, so what follows takes new ones
        draws = mix(hashes.ravel().take(group) + (token % LANES).astype(np.uint64) + GOLDEN) >> np.uint64(32)
    ordinary = vocabulary.ordinary_ids
    return ordinary.take(((draws * np.uint64(len(ordinary))) >> np.uint64(32)).astype(np.int64))
