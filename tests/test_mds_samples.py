"""Samples that Streaming wrote are the rows they were made of, at every width of a length; others are refused."""
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from streaming.base.format.mds.writer import MDSWriter

from mmbert.manifest import COLUMNS, Manifest, read_manifest
from mmbert.mds_samples import decode
from mmbert.packing import Row
from tests.conftest import Corpus

BOS, EOS = 2, 1
WIDTHS = [[3], [255], [256], [4, 1020], [3] * 255, [3] * 256, [65_535]]
"""Documents of a row. The length of a column takes one byte or two."""


@pytest.fixture(scope="module")
def kind(corpus: Corpus) -> Manifest:
    manifest = read_manifest(corpus.shards[64] / "train" / "invented" / "laa")
    return replace(manifest, row_length=65_535, vocab_size=300, bos_token_id=BOS, eos_token_id=EOS)


def row_of(lengths: Sequence[int]) -> Row:
    """Whole documents, each `<bos> text <eos>`."""
    random = np.random.default_rng(len(lengths))
    documents = [np.array([BOS, *random.integers(3, 300, length - 2), EOS], np.uint32) for length in lengths]
    return Row(np.concatenate(documents), np.array(lengths, np.uint16))


def written(rows: Sequence[Row], folder: Path) -> list[bytes]:
    """The samples as Streaming encodes them."""
    with MDSWriter(out=str(folder), columns=COLUMNS) as writer:
        return [writer.encode_sample({"input_ids": row.input_ids, "lengths": row.lengths}) for row in rows]


def test_samples_are_the_rows_that_streaming_wrote(kind: Manifest, tmp_path: Path) -> None:
    rows = [row_of(lengths) for lengths in WIDTHS]
    found = decode(written(rows, tmp_path / "mds"), kind)
    assert np.array_equal(found.input_ids, np.concatenate([row.input_ids for row in rows]))
    assert np.array_equal(found.lengths, np.concatenate([row.lengths for row in rows]))
    assert found.row_tokens == [sum(lengths) for lengths in WIDTHS]
    assert found.row_documents == [len(lengths) for lengths in WIDTHS]
    found.input_ids[0] = found.lengths[0] = 7  # they may be written to


@pytest.mark.parametrize("lengths", WIDTHS, ids=lambda lengths: f"{len(lengths)} of {lengths[0]}")
def test_no_sample_is_taken_that_lacks_or_has_bytes(kind: Manifest, tmp_path: Path, lengths: list[int]) -> None:
    good = row_of([10])
    sample, other = written([row_of(lengths), good], tmp_path / "mds")
    for wrong in [sample[:end] for end in (*range(12), len(sample) // 2, len(sample) - 1)] + [sample + b"\0"]:
        for samples in ([wrong], [other, wrong], [wrong, other]):
            with pytest.raises(ValueError, match="bytes are no vectors of ids and lengths"):
                decode(samples, kind)


@pytest.mark.parametrize("place", range(12))
def test_a_wrong_byte_in_a_head_is_refused(kind: Manifest, tmp_path: Path, place: int) -> None:
    """Sizes, both kinds and both lengths."""
    (sample,) = written([row_of([20, 30])], tmp_path / "mds")
    middle = 8 + int.from_bytes(sample[:4], "little")
    place = [*range(10), middle, middle + 1][place]
    for value in set(range(256)) - {sample[place]}:
        with pytest.raises(ValueError, match="bytes are no vectors of ids and lengths"):
            decode([sample[:place] + bytes([value]) + sample[place + 1 :]], kind)


def test_ids_that_are_no_row_of_the_kind_are_refused(kind: Manifest, tmp_path: Path) -> None:
    good, unknown = row_of([10]), row_of([10, 20])
    unknown.input_ids[5] = 300
    with pytest.raises(ValueError, match="id 300 is outside the vocabulary of 300"):
        decode(written([good, unknown], tmp_path / "mds"), kind)
