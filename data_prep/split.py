"""The held-out split: which documents are never learned from. Pure.

A document is held out by its hash, before anything is learned, the tokenizer included. The choice depends on the
text alone: not on the order of the file, nor on the other documents (but for the two rules that keep both sides
from being empty, of one stream each). So exact duplicates fall on one side; those in two varieties of a language too,
which is why the language takes no part in the hash.
"""
import hashlib
from collections.abc import Sequence

DEFAULT_HELDOUT_RATE = 0.1


def document_hash(text: str) -> float:
    """A number in [0, 1), uniform over documents: the first 53 bits of the text's sha256."""
    return share_of(hashlib.sha256(text.encode()).digest())


def share_of(digest: bytes) -> float:
    """The same of a text's sha256."""
    return (int.from_bytes(digest[:8]) >> 11) / 2**53


def heldout_mask(texts: Sequence[str], heldout_rate: float, is_whole: bool = True) -> list[bool]:
    """True where a document of one language is held out; see `heldout_documents`."""
    return heldout_documents([hashlib.sha256(text.encode()).digest() for text in texts], heldout_rate, is_whole)


def heldout_documents(digests: Sequence[bytes], heldout_rate: float, is_whole: bool = True) -> list[bool]:
    """True where a document is held out: all whose hash is below `heldout_rate`.

    If `is_whole`, they are all the documents of a language, and of two different ones or more neither side may be
    empty. If none is below the rate, those of the smallest hash are held out; if that would be all of them, those of
    the largest hash stay in training.

    Args:
        digests: sha256 of each document's text.
    """
    hashes = [share_of(digest) for digest in digests]
    if not is_whole or not hashes:
        return [hash_ < heldout_rate for hash_ in hashes]
    smallest, largest = min(hashes), max(hashes)
    if smallest == largest:
        return [False] * len(hashes)
    return [hash_ != largest and (hash_ < heldout_rate or hash_ == smallest) for hash_ in hashes]


def check_heldout_rate(heldout_rate: float) -> None:
    """Raise ValueError if it is no share of documents."""
    if not 0.0 < heldout_rate < 1.0:
        raise ValueError(f"{heldout_rate=} lies outside (0, 1): choose the share of documents to hold out, say 0.1")


def split_documents(texts: Sequence[str], heldout_rate: float) -> dict[str, list[str]]:
    """The documents of one language by split, "train" and "heldout", in the order given."""
    splits: dict[str, list[str]] = {"train": [], "heldout": []}
    for text, is_heldout in zip(texts, heldout_mask(texts, heldout_rate), strict=True):
        splits["heldout" if is_heldout else "train"].append(text)
    return splits
