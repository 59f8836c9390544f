"""Reading MDS folders of token ids that others made, such as the published data of mmBERT, Ettin and ModernBERT.

Their pipeline writes one folder of shards for each piece of a corpus, `<piece>-tokenized-chunked-8192-512-32-...`,
with a column `input_ids` and often an `id`. A sample is a document, or a chunk of one: `<bos>` and the text, `<eos>`
where the document ends. Shards are compressed (zstd), or were unpacked later, and the index names both. Above the
pieces lie indexes of all of them together.

Shards are read here from memory, one at a time: StreamingDataset would leave shared memory and lock files behind.
"""
import json
from collections import Counter
from collections.abc import Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
from streaming.base.compression import decompress
from streaming.base.format.mds import MDSReader
from streaming.base.hashing import get_hash

from data_prep.formats import BrokenInputError
from data_prep.inputs import InputFile, Inputs, Stream, language_of, list_files, store_errors
from data_prep.language_codes import input_language
from mmbert.packing import TokenIds
from mmbert.tokenizer import Tokenizer

INDEX = "index.json"
COLUMN = "input_ids"
REMEDY = "copy the folder again"
TRIED, LIKE = 8, 0.98
"""So many of a folder's documents are made text and tokenised again, and this share of their ids must come back. Of the
demo's 532 texts all come back, and at most 0.93 where its own and Gemma 2's tokenizer are mistaken for each other."""


def find_mds_inputs(location: str, source: str, language: str | None = None) -> Inputs:
    """The MDS folders below a location, by stream: of each its path, bytes of samples, and the stamp of its index.

    Args:
        location: a folder, local or a URL of fsspec.
        source: name of the streams.
        language: of all the text. Without it the first folder below the location names it: `fao`, `lang=fao`, or
            FineWeb2's `fao_Latn` with more behind it.

    Raises:
        OSError: there is no such location, or no MDS folder in it.
        BrokenInputError: an index is broken.
        ValueError: a folder's name begins with no language.
    """
    streams: dict[Stream, list[InputFile]] = {}
    for relative, file in sorted(list_files(location).items()):
        if relative.rpartition("/")[2] == INDEX:
            folder = file.path.removesuffix(INDEX).rstrip("/")
            if shards := _own_shards(folder):
                stream = (source, input_language(language) if language else _language_of(relative, folder))
                size = sum(shard.raw_data.bytes for shard in shards)
                streams.setdefault(stream, []).append(InputFile(folder, size, file.stamp))
    if not streams:
        raise FileNotFoundError(f"{location} holds no MDS folder, that is one with shards and their {INDEX}")
    return {stream: tuple(sorted(folders)) for stream, folders in sorted(streams.items())}


def read_token_documents(folder: str | Path, tokenizer: Tokenizer) -> Iterator[TokenIds]:
    """The documents of an MDS folder, in its order: ids of their text, without <bos> and <eos>.

    A sample is cut at every <bos> and <eos>. A <pad> or <mask> is text that spells it, and is tokenised as such here.

    Raises:
        OSError: a file cannot be read.
        BrokenInputError: a file is not what the index says; names file and sample.
        ValueError: the ids are not this tokenizer's, or the folder holds none.
    """
    shards = _own_shards(folder)
    if not shards:
        raise ValueError(f"{folder}/{INDEX} lists no shard of its own folder: name the folders below it")
    respell = partial(_respell, spelled=_spellings(tokenizer))
    documents = (respell(text) for ids in _samples(folder, shards, tokenizer) for text in _texts(ids, tokenizer))
    first = list(islice(documents, TRIED))
    _check_tokenizer(folder, first, tokenizer)
    yield from first
    yield from documents


def _own_shards(folder: str | Path) -> list[MDSReader]:
    """The shards of a folder itself; an index of the folders below it has none.

    Raises:
        BrokenInputError: the index is broken, or its columns hold code.
    """
    try:
        shards = [MDSReader.from_json("", None, shard) for shard in json.loads(_read(f"{folder}/{INDEX}"))["shards"]]
        own = [shard for shard in shards if "/" not in shard.raw_data.basename]
        for shard in own:
            shard.validate(allow_unsafe_types=False)
            if shard.zip_data and "/" in shard.zip_data.basename:
                raise ValueError(f"{shard.zip_data.basename} lies elsewhere")
    except OSError:
        raise
    except Exception as error:  # whatever garbage leads to
        raise BrokenInputError(f"{folder}/{INDEX} is no index of MDS shards ({error!r}); {REMEDY}") from None
    return own


def _language_of(relative: str, folder: str) -> str:
    """The language that the first part of a path below the location names."""
    name = relative.partition("/")[0].removeprefix("lang=")
    subset = name[:8]  # fao_Latn-tokenized-chunked-8192-512-32-backfill-nodups
    if len(subset) == 8 and subset[3] == "_" and subset[4:].istitle() and not name[8:9].isalnum():
        name = subset
    return language_of(f"{name}/", folder)


def _read(path: str) -> bytes:
    with store_errors(path), fsspec.open(path, "rb") as file:
        content: bytes = file.read()
    return content


def _samples(folder: str | Path, shards: list[MDSReader], tokenizer: Tokenizer) -> Iterator[TokenIds]:
    """Ids of every sample, checked; all begin with <bos>, or none does."""
    begins: bool | None = None
    for shard in shards:
        content = _shard_content(folder, shard)
        for number, sample in enumerate(_cut(folder, shard, content)):
            where = f"{folder}/{shard.raw_data.basename} sample {number}"
            ids = _ids(where, shard, sample, tokenizer)
            begins = ids[0] == tokenizer.bos_token_id if begins is None else begins
            if begins != (ids[0] == tokenizer.bos_token_id):
                raise BrokenInputError(f"{where}: begins with id {ids[0]}; all samples must begin with <bos>, or none")
            yield ids


def _shard_content(folder: str | Path, shard: MDSReader) -> bytes:
    """A shard's bytes, unpacked, after the checks that the index allows: its size, and its hashes if it has some."""
    path = f"{folder}/{shard.raw_data.basename}"
    if shard.zip_data is None or _exists(path):
        content = _checked(path, shard.raw_data)
    else:
        packed = f"{folder}/{shard.zip_data.basename}"
        zipped = _checked(packed, shard.zip_data)
        try:
            content = decompress(shard.compression, zipped)
        except Exception as error:  # zstandard's, brotli's...
            raise BrokenInputError(f"{packed} cannot be unpacked ({error}); {REMEDY}") from None
        _check(packed, content, shard.raw_data)
    return content


def _exists(path: str) -> bool:
    system, name = fsspec.core.url_to_fs(path)
    return bool(system.exists(name))


def _checked(path: str, record: Any) -> bytes:
    content = _read(path)
    _check(path, content, record)
    return content


def _check(path: str, content: bytes, record: Any) -> None:
    """Compare bytes with their record in the index."""
    if len(content) != record.bytes:
        raise BrokenInputError(f"{path} has {len(content)} bytes of data, its index says {record.bytes}; {REMEDY}")
    for algorithm, value in record.hashes.items():
        if get_hash(algorithm, content) != value:
            raise BrokenInputError(f"{path}: its {algorithm} is not that of the index; {REMEDY}")


def _cut(folder: str | Path, shard: MDSReader, content: bytes) -> Iterator[bytes]:
    """The samples of a shard. It begins with their number and the places where each begins and the last ends."""
    places = np.frombuffer(content, np.uint32, count=min(2 + shard.samples, len(content) // 4))
    if len(places) < 2 + shard.samples or places[0] != shard.samples:
        raise BrokenInputError(f"{folder}/{shard.raw_data.basename} is no shard of {shard.samples} samples; {REMEDY}")
    for begin, end in zip(places[1:-1].tolist(), places[2:].tolist(), strict=True):
        yield content[begin:end]


def _ids(where: str, shard: MDSReader, sample: bytes, tokenizer: Tokenizer) -> TokenIds:
    """Ids of one sample."""
    try:
        columns = shard.decode_sample(sample)
    except Exception as error:  # garbage may raise anything
        raise BrokenInputError(f"{where} cannot be decoded ({error}); {REMEDY}") from None
    ids = columns.get(COLUMN)
    if not isinstance(ids, np.ndarray) or ids.ndim != 1 or not np.issubdtype(ids.dtype, np.integer) or not len(ids):
        raise ValueError(f"{where} has no column {COLUMN!r} of ids; its columns: {', '.join(columns)}")
    if ids.min() < 0 or ids.max() >= tokenizer.vocab_size:
        raise ValueError(
            f"{where}: id {ids.max() if ids.min() >= 0 else ids.min()} is outside the vocabulary of "
            f"{tokenizer.vocab_size}: name the tokenizer that made these ids"
        )
    return ids.astype(np.uint32)


def _texts(ids: TokenIds, tokenizer: Tokenizer) -> Iterator[TokenIds]:
    """What stands between <bos> and <eos>."""
    ends = np.flatnonzero((ids == tokenizer.bos_token_id) | (ids == tokenizer.eos_token_id))
    for begin, end in zip([-1, *ends.tolist()], [*ends.tolist(), len(ids)], strict=True):
        if end > begin + 1:
            yield ids[begin + 1 : end]


def _spellings(tokenizer: Tokenizer) -> dict[int, TokenIds]:
    """Id of a special token that text can spell -> ids of its letters."""
    tokens = tokenizer.special_tokens
    names = {tokenizer.pad_token_id: tokens["pad_token"], tokenizer.mask_token_id: tokens["mask_token"]}
    return dict(zip(names, tokenizer.encode_batch(list(names.values())), strict=True))


def _respell(ids: TokenIds, spelled: dict[int, TokenIds]) -> TokenIds:
    """Ids with every special token replaced by those of its letters."""
    if not np.isin(ids, list(spelled)).any():
        return ids
    return np.concatenate([spelled.get(id_, np.array([id_], np.uint32)) for id_ in ids.tolist()])


def _check_tokenizer(folder: str | Path, documents: list[TokenIds], tokenizer: Tokenizer) -> None:
    """Refuse ids of another tokenizer: their text, tokenised again, gives other ids. Chunks differ at their ends."""
    texts = [tokenizer.backend.decode(ids.tolist(), skip_special_tokens=False) for ids in documents]
    pairs = zip(documents, tokenizer.encode_batch(texts), strict=True)
    same = sum((Counter(ids.tolist()) & Counter(again.tolist())).total() for ids, again in pairs)
    total = sum(len(ids) for ids in documents)
    if same < LIKE * total:
        raise ValueError(
            f"{folder}: of {total} ids, made text and tokenised again, only {same} come back: {tokenizer.folder} is "
            "not the tokenizer that made them"
        )
