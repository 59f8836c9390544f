"""Synthetic documents with masked tokens: the same for every candidate, whole, in rows or in padded batches.

T tokens in all, N documents, M masked tokens.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from mmbert.data import Batch, lay_end_to_end
from mmbert.masking import Vocabulary, mask_batch
from mmbert.packing import Rows, TokenIds, pack_documents

PAD, EOS, BOS, UNK, MASK = range(5)
"""Special ids as Gemma 2's tokenizer has them; all others are drawn alike."""
SIGMA = 0.9
"""Of the logarithm of a document's length; web text is about so uneven."""
MEDIAN = 1 / 3
"""Median length of a document, in the longest that fits; what is longer than that is cut."""
SHORTEST = 8
NOT_MASKED = -100
"""transformers' label of a token that is not predicted."""


@dataclass(frozen=True, eq=False)
class Documents:
    """The input of a step.

    Attributes:
        rows: the documents packed into rows and masked, as the training loader and MaskRatio leave them.
        alone: of each document, in the order of the rows, its corrupted ids and its labels, (length,) int64 each.
    """

    rows: Batch
    alone: list[tuple[NDArray[np.int64], NDArray[np.int64]]]

    @property
    def lengths(self) -> list[int]:
        """Tokens of each document."""
        return [len(input_ids) for input_ids, _ in self.alone]

    @property
    def num_tokens(self) -> int:
        return sum(self.lengths)

    @property
    def num_masked(self) -> int:
        return len(self.rows["masked"])


def even_lengths(num_tokens: int, longest: int) -> list[int]:
    """Lengths that sum to `num_tokens`: evenly spaced quantiles of a log-normal cut to [SHORTEST, longest].

    Drawn at random, the few documents of a step on a CPU are longer or shorter than the law's by chance, and a ratio
    of speeds with them: attention costs by the square of a length. The lengths are scaled to sum up.
    """
    assert SHORTEST <= longest <= num_tokens
    law = NormalDist(math.log(longest * MEDIAN), SIGMA)
    for number in itertools.count(num_tokens // longest):
        quantiles = (law.inv_cdf((place + 0.5) / number) for place in range(number))
        lengths = [min(max(math.exp(quantile), SHORTEST), longest) for quantile in quantiles]
        total = sum(lengths)
        if total >= num_tokens or (number + 1) * SHORTEST > num_tokens:
            break
    borders = [round(end * num_tokens / total) for end in itertools.accumulate(lengths)]
    return [end - start for start, end in itertools.pairwise([0, *borders])]


def synthetic_documents(num_tokens: int, seq: int, vocab_size: int, mask_rate: float) -> Documents:
    """Documents of random ids, packed best-fit into rows of at most `seq` tokens.

    Args:
        num_tokens: T, <bos> and <eos> of every document included.
        mask_rate: share of the other tokens that is masked.
    """
    rng = np.random.default_rng(0)
    lengths = rng.permutation(even_lengths(num_tokens, seq))
    texts: list[TokenIds] = [rng.integers(MASK + 1, vocab_size, n - 2).astype(np.uint32) for n in lengths]
    packed = pack_documents(texts, seq, BOS, EOS)
    positions = np.arange(len(packed))
    laid = lay_end_to_end(np.stack([positions, np.zeros_like(positions), positions], axis=1), Rows.of(packed))
    vocabulary = Vocabulary(vocab_size, MASK, tuple(range(MASK + 1)))
    rows = mask_batch(laid, 0, mask_rate, vocabulary)
    input_ids = rows["input_ids"].astype(np.int64)
    labels = np.full(len(input_ids), NOT_MASKED, dtype=np.int64)
    labels[rows["masked"]] = rows["targets"]
    borders = np.cumsum(rows["lengths"])[:-1]
    alone = list(zip(np.split(input_ids, borders), np.split(labels, borders), strict=True))
    return Documents(rows, alone)


def padded_batches(
    documents: Sequence[tuple[NDArray[np.int64], NDArray[np.int64]]], order: Sequence[int], size: int
) -> list[dict[str, NDArray[np.int64]]]:
    """transformers' batches: `size` documents each, in this order, padded to the longest of their batch.

    Returns:
        Of each batch input_ids, attention_mask and labels, (documents, longest).
    """
    batches = []
    for start in range(0, len(order), size):
        members = [documents[number] for number in order[start : start + size]]
        shape = (len(members), max(len(input_ids) for input_ids, _ in members))
        batch = {
            "input_ids": np.full(shape, PAD, dtype=np.int64),
            "attention_mask": np.zeros(shape, dtype=np.int64),
            "labels": np.full(shape, NOT_MASKED, dtype=np.int64),
        }
        for row, (input_ids, labels) in enumerate(members):
            batch["input_ids"][row, : len(input_ids)] = input_ids
            batch["attention_mask"][row, : len(input_ids)] = 1
            batch["labels"][row, : len(input_ids)] = labels
        batches.append(batch)
    return batches
