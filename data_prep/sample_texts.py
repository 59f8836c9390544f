"""A sample of the training text of many languages, at a temperature: what a tokenizer is trained on.

All text is read twice: to count it, and to choose. A document is chosen by its hash, so that the sample depends neither
on the order of files nor on the number of processes; memory holds the sample, and not the corpus.
"""
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np

from data_prep.documents import Reading, text_documents
from data_prep.inputs import InputFile, Inputs, Stream
from data_prep.parallel import spread
from data_prep.split import document_hash
from mmbert.mixture import Floats, Integers, bounded_shares, temperature_shares

FLOOR = 0.1  # of an even share: what every language has at least, if there is so much of it


@dataclass(frozen=True)
class Size:
    """What a file, or a stream, holds; hashes as numbers in [0, 1)."""

    documents: int = 0
    characters: int = 0
    smallest: float = 1.0
    largest: float = 0.0

    def __add__(self, other: "Size") -> "Size":
        return Size(
            self.documents + other.documents,
            self.characters + other.characters,
            min(self.smallest, other.smallest),
            max(self.largest, other.largest),
        )


def sample_rates(characters: Integers, tau: float, budget: int) -> Floats:
    """(S,) the share of each stream's documents that is taken, so that about `budget` characters come together.

    Shares of the sample are p ~ n^tau, n the characters that a stream has. None is taken more than once: what a small
    stream cannot give, the others do. And none has less than `FLOOR` of an even share, if there is so much of it.
    """
    if characters.sum() <= budget:
        return np.ones(len(characters))
    caps = characters / budget
    floors = np.minimum(caps, FLOOR / len(characters))
    shares = bounded_shares(temperature_shares(characters.astype(np.float64), tau), floors, caps)
    return np.minimum(shares / caps, 1.0)


def hashed_documents(file: InputFile, reading: Reading) -> Iterator[tuple[float, str]]:
    """Hash and text of each document; empty ones are left out."""
    return ((document_hash(document), document) for document in text_documents(file, reading) if document)


def measure(file: InputFile, reading: Reading) -> Size:
    """The size of one file."""
    size = Size()
    for hash_, document in hashed_documents(file, reading):
        size += Size(1, len(document), hash_, hash_)
    return size


@dataclass(frozen=True)
class Choice:
    """Which documents of a stream are taken: of its training split, the share `rate` with the largest hashes."""

    size: Size
    rate: float
    heldout_rate: float

    def takes(self, hash_: float) -> bool:
        """Held out is what data_prep.split holds out of a whole language; the largest hash is always taken."""
        is_heldout = hash_ < self.heldout_rate or hash_ == self.size.smallest
        return hash_ == self.size.largest or (hash_ >= 1.0 - self.rate and not is_heldout)


def choose(task: tuple[InputFile, Choice], reading: Reading) -> dict[float, str]:
    """Hash -> text of the documents of one file that are taken."""
    file, choice = task
    return {hash_: document for hash_, document in hashed_documents(file, reading) if choice.takes(hash_)}


def sample_texts(
    inputs: Inputs, tau: float, budget: int, heldout_rate: float, reading: Reading, workers: int = 1
) -> tuple[dict[Stream, Size], dict[Stream, list[str]]]:
    """What there is of each stream, and the documents taken of it, each once, by file and their order in it.

    Args:
        tau: temperature exponent, as in mmbert.mixture.
        budget: characters to take, about; everything where there is no more.
        heldout_rate, reading: as for `prepare`; nothing that it holds out is taken.
        workers: processes.

    Raises:
        ValueError: a file is damaged, or a stream has no text.
    """
    files = [(stream, file) for stream, of_stream in inputs.items() for file in of_stream]
    sizes = dict.fromkeys(inputs, Size())
    found = spread(partial(measure, reading=reading), [file for _, file in files], workers, "count")
    for (stream, _), size in zip(files, found, strict=True):
        sizes[stream] += size
    if empty := [language for (_, language), size in sizes.items() if not size.documents]:
        raise ValueError(f"no text in {', '.join(empty)}: fill the file, or remove it")
    rates = sample_rates(np.array([size.characters for size in sizes.values()]), tau, budget)
    choices = {
        stream: Choice(size, float(rate), heldout_rate)
        for (stream, size), rate in zip(sizes.items(), rates, strict=True)
    }
    texts: dict[Stream, dict[float, str]] = {stream: {} for stream in inputs}
    tasks = [(file, choices[stream]) for stream, file in files]
    taken = spread(partial(choose, reading=reading), tasks, workers, "read")
    for (stream, _), documents in zip(files, taken, strict=True):
        texts[stream] |= documents
    return sizes, {stream: list(documents.values()) for stream, documents in texts.items()}
