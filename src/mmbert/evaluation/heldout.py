"""Held-out documents of every language, from the shards that data preparation wrote."""
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mmbert.manifest import Manifest, check_stream, list_languages, read_manifest, stream_folder
from mmbert.packing import TokenIds
from mmbert.shards import LanguageShards
from mmbert.tokenizer import Tokenizer


@dataclass(frozen=True)
class HeldoutLanguage:
    """The held-out split of one language.

    Attributes:
        documents: token ids of every document, (L,) each, `<bos> … <eos>`, in the order of the shards.
        text_bytes: UTF-8 bytes of the text of all the documents.
    """

    language: str
    documents: list[TokenIds]
    text_bytes: int


def check_heldout(shards: Path, source: str, tokenizer: Tokenizer) -> list[Manifest]:
    """Manifest of every held-out language of `source`, its files checked.

    Raises:
        FileNotFoundError, ValueError: there is no language, or one is damaged or has tokens of another tokenizer than
            the model's.
    """
    languages = list_languages(shards, "heldout", source)
    if not languages:
        raise ValueError(f"{shards / 'heldout' / source} is empty; prepare the data, or fix --shards or --source")
    folders = [stream_folder(shards, "heldout", source, language) for language in languages]
    return [
        # A row may have any length here: its documents are scored one by one.
        check_stream(folder, read_manifest(folder).row_length, tokenizer.digest, tokenizer.vocab_size)
        for folder in folders
    ]


def read_heldout(shards: Path, manifest: Manifest) -> HeldoutLanguage:
    """Read all documents of one held-out language.

    Raises:
        OSError, ValueError: a shard cannot be read, or is not what was written.
    """
    folder = stream_folder(shards, manifest.split, manifest.source, manifest.language)
    rows = LanguageShards([folder], [manifest]).rows([(0, number) for number in range(manifest.rows)])
    return HeldoutLanguage(manifest.language, split_row(rows.input_ids, rows.lengths), manifest.text_bytes)


def split_row(input_ids: TokenIds, lengths: NDArray[np.uint16]) -> list[TokenIds]:
    """Documents of packed rows: input_ids (sum of lengths,) -> one array for each length."""
    ends = np.cumsum(lengths, dtype=np.int64)
    return np.split(input_ids, ends[:-1])
