"""Held-out documents of every language, from the shards that data preparation wrote, under masks that never change.

Bits per byte in training (`validation.py`) and of converted models (`evaluation/`) are of the same documents and masks.
"""
# L tokens of one document, `<bos> … <eos>`; M of them masked
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mmbert.config import RunConfig
from mmbert.fixed_masks import fixed_mask, maskable_positions
from mmbert.manifest import Manifest, check_stream, list_languages, read_manifest, stream_folder
from mmbert.packing import TokenIds
from mmbert.remote_rows import RemoteRows, place_of
from mmbert.shards import LanguageShards
from mmbert.streams import read_languages
from mmbert.tokenizer import Tokenizer

MASK_RATE = 0.15
"""Of every document, in all phases, whatever they train at."""

LISTED = 12  # languages that a line may name
FEW_TOKENS = 1000


@dataclass(frozen=True)
class HeldoutLanguage:
    """The held-out split of one language.

    Attributes:
        documents: token ids of every document, (L,) each, `<bos> … <eos>`, in the order of the shards.
        text_bytes: UTF-8 bytes of the text of all the documents; in proportion to tokens where it is not read whole.
    """

    language: str
    documents: list[TokenIds]
    text_bytes: int


@dataclass(frozen=True)
class MaskedDocument:
    """One document under its mask.

    Attributes:
        language: index of its language.
        input_ids: (L,) as written.
        masked: (M,) positions that the mask hides.
    """

    language: int
    input_ids: TokenIds
    masked: NDArray[np.int64]


def check_heldout(
    shards: Path,
    source: str,
    tokenizer: Tokenizer,
    languages: Sequence[str] | None = None,
    remote: RemoteRows | None = None,
    is_whole: bool = True,
) -> list[Manifest]:
    """Manifest of every held-out language of `source`, its files checked.

    Args:
        languages: those that are wanted; None for all that are there.
        remote: where the shards come from, if `shards` is its folder; it cannot tell what languages are there.
        is_whole: whether all files of a folder must be there, and not the manifests alone.

    Raises:
        FileNotFoundError, ValueError: there is no language, or one is damaged or has tokens of another tokenizer than
            the model's.
    """
    languages = list_languages(shards, "heldout", source) if languages is None else languages
    if not languages:
        raise ValueError(f"{shards / 'heldout' / source} is empty; prepare the data, or fix --shards or --source")
    folders = [stream_folder(shards, "heldout", source, language) for language in languages]

    def check(folder: Path) -> Manifest:
        """A row may have any length here: its documents are scored one by one."""
        row_length = read_manifest(folder).row_length
        return check_stream(folder, row_length, tokenizer.digest, tokenizer.vocab_size, is_whole and not remote)

    return list(remote.open_streams(folders, check) if remote else map(check, folders))


def check_validation(config: RunConfig, tokenizer: Tokenizer, is_whole: bool = True) -> tuple[Manifest, ...]:
    """Manifest of every language to validate, all checked; none where the configuration has no validation.

    Args:
        is_whole: see `check_heldout`.

    Raises:
        ValueError: one is missing, damaged, of another tokenizer, or of longer rows than the run's, or cannot be had.
    """
    if (validation := config.validation) is None:
        return ()
    languages = read_languages(validation.languages, "validation.languages")
    try:
        folder, remote = place_of(validation.root, config.data)
        manifests = check_heldout(folder, validation.source, tokenizer, languages, remote, is_whole)
    except (OSError, ValueError) as error:
        raise ValueError(f"validation: {error}") from None
    longest = max(manifest.row_length for manifest in manifests)
    if longest > config.max_seq_len:
        raise ValueError(
            f"validation.root = {validation.root} has rows of {longest} tokens, the run's max_seq_len is "
            f"{config.max_seq_len}: name shards whose rows are no longer"
        )
    return tuple(manifests)


def read_heldout(
    shards: Path, manifest: Manifest, most_rows: int | None = None, remote: RemoteRows | None = None
) -> HeldoutLanguage:
    """Read the documents of one held-out language.

    Args:
        most_rows: read the first so many; rows were shuffled when they were written. None for all.

    Raises:
        OSError, ValueError: a shard cannot be read, or is not what was written.
    """
    folder = stream_folder(shards, manifest.split, manifest.source, manifest.language)
    num_rows = manifest.rows if most_rows is None else min(most_rows, manifest.rows)
    rows = LanguageShards([folder], [manifest], remote).rows([(0, number) for number in range(num_rows)])
    documents = rows.documents()
    num_tokens = sum(len(ids) for ids in documents)
    return HeldoutLanguage(manifest.language, documents, round(manifest.text_bytes * num_tokens / manifest.tokens))


def num_maskable_tokens(heldout: HeldoutLanguage, tokenizer: Tokenizer) -> int:
    """Tokens of a language's text, special ones apart.

    Raises:
        ValueError: there are none, so the language has no bits per byte.
    """
    count = sum(len(maskable_positions(ids, tokenizer.special_token_ids)) for ids in heldout.documents)
    if not count:
        raise ValueError(f"the held-out text of {heldout.language} holds special tokens only; prepare it again")
    return count


def mask_documents(
    languages: Sequence[HeldoutLanguage], tokenizer: Tokenizer, part: slice = slice(None)
) -> list[MaskedDocument]:
    """Documents under their masks; those without a maskable token are left out.

    A mask follows from the document's language, place and length.

    Args:
        part: which of all of them, in order; the others cost nothing.
    """
    keys = [
        (number, ids, f"0/{heldout.language}/{document}/0/{len(ids)}")  # zeros: else all masks would be others
        for number, heldout in enumerate(languages)
        for document, ids in enumerate(heldout.documents)
    ]
    masked = [
        MaskedDocument(number, ids, fixed_mask(ids, tokenizer.special_token_ids, MASK_RATE, key))
        for number, ids, key in keys[part]
    ]
    return [document for document in masked if len(document.masked)]


def listed(scores: Mapping[str, tuple[float, int]]) -> str:
    """Bits per byte of each of a few languages for the end of a line, in brackets; "" where there are many.

    Args:
        scores: bits per byte and masked tokens of each; of few tokens they are marked as little to rely on.
    """
    if len(scores) > LISTED:
        return ""
    few = {name for name, (_, masked_tokens) in scores.items() if masked_tokens < FEW_TOKENS}
    each = ", ".join(f"{name} {bits:.2f}{'*' if name in few else ''}" for name, (bits, _) in scores.items())
    return f" ({each}{f'; *: fewer than {FEW_TOKENS:,} masked tokens' if few else ''})"


def bits_per_byte(nll_per_token: float, num_tokens: int, text_bytes: int) -> float:
    """Bits that a model needs for each byte of a text, at its mean loss per token.

    Dividing by bytes takes the tokenizer out of the number, so that languages and vocabularies compare. A masked
    model's loss is conditional on both sides, so this is a pseudo-likelihood: it orders models that share masks,
    and is not the size of a compressed file.

    Args:
        nll_per_token: mean negative log-likelihood, in nats.
        num_tokens: tokens of the text.
        text_bytes: its UTF-8 bytes.

    Source:
        Gao et al. 2020 (The Pile), arXiv:2101.00027, section 3.1: BPB = (tokens / bytes) * loss / ln 2; for masked
        models with the pseudo-log-likelihood of Salazar et al. 2020, arXiv:1910.14659, estimated from random masks.
    """
    return nll_per_token * num_tokens / text_bytes / math.log(2)
