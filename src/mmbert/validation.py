"""Held-out bits per byte while a model trains: the documents, masks and numbers of `mmbert.evaluation.bits_per_byte`.

S languages. A rank has some of the documents of all of them.
"""
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np

from mmbert.config import RunConfig
from mmbert.data import Batch, Microbatches
from mmbert.heldout import (
    MaskedDocument,
    bits_per_byte,
    mask_documents,
    num_maskable_tokens,
    read_heldout,
)
from mmbert.manifest import Manifest
from mmbert.mixture import Integers
from mmbert.ranks import Ranks
from mmbert.remote_rows import THREADS, place_of
from mmbert.scores import to_scores
from mmbert.tokenizer import Tokenizer


@dataclass(frozen=True)
class LanguageBits:
    """What a model needs for the held-out text of one language.

    Attributes:
        bits: for all of the text, at the mean loss of the masked tokens.
        text_bytes: its UTF-8 bytes.
        labels: masked tokens.
    """

    bits: float
    text_bytes: int
    labels: int


@dataclass(frozen=True)
class HeldoutSet:
    """What a rank validates on.

    Attributes:
        names: `source/language`, (S,).
        num_tokens, text_bytes: maskable tokens and bytes of each language's text, (S,), on all ranks together.
        microbatches: of this rank.
    """

    names: tuple[str, ...]
    num_tokens: list[int]
    text_bytes: list[int]
    microbatches: list[Batch]

    @classmethod
    def read(
        cls, config: RunConfig, manifests: Sequence[Manifest], tokenizer: Tokenizer, ranks: Ranks,
        microbatches: Microbatches,
    ) -> "HeldoutSet":  # fmt: skip
        """Read the languages, and mask every n-th document on each of n ranks.

        Raises:
            OSError, ValueError: a shard cannot be read, or is not what was written.
        """
        validation = config.validation
        assert validation is not None
        folder, remote = place_of(validation.root, config.data)
        with ThreadPoolExecutor(THREADS if remote else 1) as pool:
            read = partial(read_heldout, folder, most_rows=validation.rows, remote=remote)
            languages = list(pool.map(read, manifests))
        documents = mask_documents(languages, tokenizer, slice(ranks.rank, None, ranks.world_size))
        most_tokens = config.device_train_microbatch_size * config.max_seq_len
        parts = filled([len(document.input_ids) for document in documents], most_tokens)
        return cls(
            tuple(f"{manifest.source}/{manifest.language}" for manifest in manifests),
            [num_maskable_tokens(language, tokenizer) for language in languages],
            [language.text_bytes for language in languages],
            microbatches.at(masked_batch(documents, tokenizer.mask_token_id), parts) if documents else [],
        )

    def bits(self, sums: Integers) -> dict[str, LanguageBits]:
        """By name; `sums` (S, 3) of all ranks, see `mmbert.scores`."""
        scores = to_scores(self.names, sums)
        texts = zip(self.names, self.num_tokens, self.text_bytes, strict=True)
        return {
            name: LanguageBits(
                bits_per_byte(scores[name].loss / scores[name].labels, num_tokens, text_bytes) * text_bytes,
                text_bytes,
                scores[name].labels,
            )
            for name, num_tokens, text_bytes in texts
        }


def filled(sizes: Sequence[int], most: int) -> list[range]:
    """Neighbours together, as many as fit into `most`; one that does not fit stands alone."""
    parts, first, total = [], 0, 0
    for number, size in enumerate(sizes):
        if total + size > most and number > first:
            parts.append(range(first, number))
            first, total = number, 0
        total += size
    return [*parts, range(first, len(sizes))] if sizes else []


def masked_batch(documents: Sequence[MaskedDocument], mask_token_id: int) -> Batch:
    """Documents end to end as `Microbatches` takes them, a row each; all masked tokens show <mask>."""
    lengths = [len(document.input_ids) for document in documents]
    starts = np.cumsum([0, *lengths[:-1]])
    input_ids = np.concatenate([document.input_ids for document in documents]).astype(np.int32)
    masked = np.concatenate([start + document.masked for start, document in zip(starts, documents, strict=True)])
    targets = input_ids[masked].astype(np.int64)
    input_ids[masked] = mask_token_id
    return {
        "input_ids": input_ids,
        "lengths": np.array(lengths),
        "row_tokens": lengths,
        "row_documents": [1] * len(lengths),
        "row_streams": np.array([document.language for document in documents]),
        "masked": masked,
        "targets": targets,
    }
