"""Masked-language-model corruption of packed rows: a pure function of (seed, position of the row, rate).

Each token's random numbers come from hashing (seed, row position, index in the row), so they do not depend on which
rank, worker or microbatch holds the row, and a resumed run draws the same masks.
"""
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

IGNORE = -100  # the label of a token without loss, as in Hugging Face

# Of the chosen tokens 80 % become <mask>, 10 % a random id, 10 % stay (Devlin et al. 2019, arXiv:1810.04805).
MASKED, RANDOM = 0.8, 0.1

UInt64 = NDArray[np.uint64]
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

    @cached_property
    def ordinary_ids(self) -> NDArray[np.int64]:
        """The ids that a random replacement is drawn from."""
        return np.flatnonzero(self.maskable)


def mix(state: UInt64) -> UInt64:
    """SplitMix64's finaliser: a bijection of 64 bits whose output passes as random (Steele et al. 2014)."""
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))


def token_hashes(seed: int, row_positions: NDArray[np.int64], row_tokens: Sequence[int]) -> UInt64:
    """(T,) one 64-bit hash for each token of the rows laid end to end.

    Args:
        row_positions: (B,) position of each row in the phase.
        row_tokens: (B,) tokens of each row, T in all.
    """
    with np.errstate(over="ignore"):  # arithmetic modulo 2^64 is the point
        rows = mix(mix(np.array([seed], dtype=np.uint64) + GOLDEN) + row_positions.astype(np.uint64) * GOLDEN)
        index = np.arange(sum(row_tokens), dtype=np.uint64)
        first = np.cumsum([0, *row_tokens[:-1]]).astype(np.uint64)
        index -= np.repeat(first, row_tokens)
        return mix(np.repeat(rows, row_tokens) + (index + np.uint64(1)) * GOLDEN)


def mask_tokens(
    input_ids: NDArray[np.int64], hashes: UInt64, rate: float, vocabulary: Vocabulary
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Choose each maskable token with probability `rate` and corrupt the chosen.

    Args:
        input_ids: (T,) left as it is.
        hashes: (T,) from `token_hashes`.

    Returns:
        Corrupted ids (T,) and labels (T,): the original id where a token was chosen, IGNORE elsewhere.

    Raises:
        ValueError: an id lies outside the vocabulary.
    """
    if len(input_ids) and (input_ids.min() < 0 or input_ids.max() >= vocabulary.size):
        raise ValueError(f"ids from {input_ids.min()} to {input_ids.max()} exceed the vocabulary of {vocabulary.size}")
    chosen = np.flatnonzero((hashes < np.uint64(int(rate * 2.0**64))) & vocabulary.maskable[input_ids])
    labels = np.full_like(input_ids, IGNORE)
    labels[chosen] = input_ids[chosen]

    with np.errstate(over="ignore"):  # the choice used up the hash's order, so what follows takes a new one
        second = mix(hashes[chosen] + GOLDEN)
    fate = second / 2.0**64
    ordinary = vocabulary.ordinary_ids
    random_ids = ordinary[mix(second ^ GOLDEN) % np.uint64(len(ordinary))]
    corrupted = input_ids.copy()
    corrupted[chosen] = np.where(
        fate < MASKED, vocabulary.mask, np.where(fate < MASKED + RANDOM, random_ids, input_ids[chosen])
    )
    return corrupted, labels
