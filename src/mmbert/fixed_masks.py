"""Masks of the evaluation: the same positions of the same documents for every model, phase and batch size."""
# L tokens of one document, `<bos> … <eos>`; N of them maskable; M of those masked
import hashlib

import numpy as np
from numpy.typing import NDArray

from mmbert.packing import TokenIds


def maskable_positions(input_ids: TokenIds, special_token_ids: tuple[int, ...]) -> NDArray[np.int64]:
    """Positions of the tokens that stand for text: input_ids (L,) -> (N,)."""
    return np.flatnonzero(~np.isin(input_ids, special_token_ids))


def num_masked_tokens(num_maskable: int, mask_rate: float) -> int:
    """How many of a document's maskable tokens one mask hides: the rounded share, at least one if there is one."""
    return min(num_maskable, max(1, round(mask_rate * num_maskable)))


def fixed_mask(
    input_ids: TokenIds, special_token_ids: tuple[int, ...], mask_rate: float, key: str
) -> NDArray[np.int64]:
    """Positions that one mask hides in a document, ascending; they depend on nothing but the arguments.

    The words of a PCG64 bit generator rank the tokens and the lowest are hidden. NumPy keeps the stream of a bit
    generator the same in every version, and promises nothing of the kind for `Generator` (NEP 19).

    Args:
        input_ids: (L,) token ids of the document.
        special_token_ids: ids that are never masked.
        mask_rate: share of the maskable tokens to hide, in (0, 1].
        key: name of the mask.

    Returns:
        (M,) positions; empty only when no token of the document is maskable.
    """
    maskable = maskable_positions(input_ids, special_token_ids)  # (N,)
    seed = int.from_bytes(hashlib.sha256(key.encode()).digest(), "big")
    priorities = np.random.PCG64(seed).random_raw(len(input_ids))  # (L,)
    ranked = maskable[np.argsort(priorities[maskable], kind="stable")]
    return np.sort(ranked[: num_masked_tokens(len(maskable), mask_rate)])
