"""What a document is: the options of every program that reads text, so that all of them see what `prepare` sees.

A document is held out by the hash of its text (data_prep.split). Where a program cuts files otherwise than `prepare`,
or spells them otherwise, its documents have other hashes: it would learn from text that is held out.
"""
import argparse
from collections.abc import Iterator
from dataclasses import dataclass

from data_prep.formats import read_texts
from data_prep.inputs import InputFile, format_of, text_bytes
from data_prep.normalise import normalise

UNDIVIDED_BYTES = 5_000  # of a .txt: who writes one document of that size leaves a blank line somewhere in it


@dataclass(frozen=True)
class Reading:
    """How documents are read.

    Attributes:
        text_key: key or column of the text.
        whole_txt: whether a .txt file is one document.
        normalise: whether texts are normalised.
    """

    text_key: str = "text"
    whole_txt: bool = False
    normalise: bool = True


def text_documents(file: InputFile, reading: Reading) -> Iterator[str]:
    """The documents of a file in their order, empty ones too; errors are those of `read_texts`."""
    for text in read_texts(file, reading.text_key, reading.whole_txt):
        yield normalise(text) if reading.normalise else text


def is_undivided(file: InputFile, num_documents: int, reading: Reading) -> bool:
    """Whether a file most likely has a document on each line, and was read as a single one for want of blank lines."""
    is_one = num_documents == 1 and not reading.whole_txt
    return is_one and format_of(file.path)[0] == ".txt" and text_bytes(file) >= UNDIVIDED_BYTES


def add_cutting_options(parser: argparse.ArgumentParser) -> None:
    """Options that say where a document begins and ends."""
    parser.add_argument("--text-key", default="text", help="key or column of the text (default: text)")
    parser.add_argument("--whole-txt", action="store_true", help="a .txt is one document, not one between blank lines")


def add_reading_options(parser: argparse.ArgumentParser) -> None:
    """The options of `chosen_reading`."""
    add_cutting_options(parser)
    parser.add_argument("--keep-spelling", action="store_true", help="do not normalise the text")


def chosen_reading(arguments: argparse.Namespace) -> Reading:
    """What the command line says."""
    return Reading(arguments.text_key, arguments.whole_txt, not arguments.keep_spelling)
