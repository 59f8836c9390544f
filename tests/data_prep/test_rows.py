"""From the documents of a bucket to a shard: what is counted is what is kept, and nothing strange is left behind."""
import hashlib
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from data_prep import partition, rows
from data_prep.batches import batches
from data_prep.inputs import InputFile
from data_prep.work import Settings
from mmbert.manifest import OWN_FILES
from mmbert.packing import TokenIds

SHAPE = rows.Shape(row_length=8, bos_token_id=2, eos_token_id=1, seed=0)
DOCUMENTS = [np.arange(3, 3 + number, dtype=np.uint32) for number in range(1, 20)]


class Letters:
    """A codec whose ids are bytes, but for spaces, of which it makes none."""

    def encode(self, documents: Sequence[bytes]) -> list[TokenIds]:
        return [np.frombuffer(document.replace(b" ", b""), np.uint8).astype(np.uint32) for document in documents]

    def text_bytes(self, documents: Sequence[bytes]) -> int:
        return sum(map(len, documents))


def test_what_gives_no_token_is_neither_kept_nor_counted() -> None:
    pairs = rows.sort_documents([b"a", b"bc ", b"  ", b"   "], distinct=True)
    train, heldout = rows.split_bucket(pairs, Letters(), 1e-9, is_whole=False).values()
    assert sorted(map(len, train.ids)) == [1, 2]
    assert train.text_bytes == len("a") + len("bc ")
    digests = [digest for digest, payload in pairs if payload.strip()]
    assert train.hashes == hashlib.sha256(b"".join(digests)).hexdigest()
    assert (heldout.ids, heldout.text_bytes) == ([], 0)


def test_while_a_shard_is_written_its_folder_holds_whole_files_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that a kill at any moment leaves nothing there that is not of a stream."""
    folder = tmp_path / "stream"
    real, looks = rows.sha256_of, []

    def looked(path: Path) -> str:
        looks.append(sorted(path.name for path in folder.iterdir()))
        return real(path)

    monkeypatch.setattr(rows, "sha256_of", looked)
    rows.write_shard(folder, 0, DOCUMENTS, SHAPE)
    rows.write_shard(folder, 3, DOCUMENTS, SHAPE)
    assert looks == [[], [], *2 * [["shard.00000.mds", "shard.00000.pieces.npy"]]]
    assert all(OWN_FILES.fullmatch(path.name) for path in folder.iterdir())
    assert list(tmp_path.iterdir()) == [folder]


def test_a_shard_that_mds_could_not_read_back_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    size = rows.write_shard(tmp_path / "whole", 0, DOCUMENTS, SHAPE)["record"]["bytes"]
    monkeypatch.setattr(rows, "LARGEST_SHARD", size)
    rows.write_shard(tmp_path / "again", 0, DOCUMENTS, SHAPE)
    monkeypatch.setattr(rows, "LARGEST_SHARD", size - 1)
    with pytest.raises(ValueError, match=rf"shard 0 of .*large has {size:,} bytes, and may have {size - 1:,}: cut doc"):
        rows.write_shard(tmp_path / "large", 0, DOCUMENTS, SHAPE)
    assert not list((tmp_path / "large").iterdir())


def test_what_a_kill_left_of_a_shard_is_no_obstacle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = rows.write_shard(tmp_path / "whole", 0, DOCUMENTS, SHAPE)
    with monkeypatch.context() as patch:
        patch.setattr(rows, "sha256_of", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
        patch.setattr(rows, "remove", lambda _: None)  # a kill cleans nothing up
        with pytest.raises(KeyboardInterrupt):
            rows.write_shard(tmp_path / "killed", 0, DOCUMENTS, SHAPE)
    assert rows.write_shard(tmp_path / "killed", 0, DOCUMENTS, SHAPE) == whole
    assert sorted(path.name for path in tmp_path.iterdir()) == ["killed", "whole"]


def test_a_run_holds_slices_of_a_bounded_size_each_sorted_by_bucket(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(partition, "RUN_BYTES", 100)
    texts = [f"text {number} " + "x" * (number % 30) for number in range(50)]
    file = text_file(tmp_path / "fao.txt", texts)
    read = partition.Read()
    found = list(partition.slices_of(file, 4, Settings("", "", 64), read))
    expected = []
    for batch in batches([text.strip().encode() for text in texts], sys.getsizeof, 100):
        for bucket in range(4):
            if members := [text for text in batch if partition.bucket_of(text, 4) == bucket]:
                expected.append((bucket, members))
    assert found == expected
    assert read == partition.Read(documents=50)


def test_copies_of_a_document_do_not_pile_up_in_its_bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(partition, "RUN_BYTES", 1000)
    texts = ["the same"] * 500 + ["another"]
    file = text_file(tmp_path / "fao.txt", texts)
    most = -(-sum(sys.getsizeof(text.encode()) for text in texts) // 1000) + 1
    for distinct, at_most in ((True, most), (False, 501)):
        read = partition.Read()
        found = list(partition.slices_of(file, 1, Settings("", "", 64, distinct=distinct), read))
        documents = [document for _, members in found for document in members]
        assert len(documents) <= at_most
        assert len(documents) + read.duplicates == read.documents == 501
        assert set(documents) == {b"the same", b"another"}


def text_file(path: Path, texts: Sequence[str]) -> InputFile:
    path.write_text("\n\n".join(texts))
    return InputFile(str(path), path.stat().st_size, "")
