"""Token ids of other people's MDS folders: the same documents come out, or the file and the sample are named."""
import json
import shutil
from collections.abc import Sequence
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from filelock import FileLock
from streaming import MDSWriter
from streaming.base.compression import decompress

from data_prep.formats import BrokenInputError
from data_prep.from_mds import find_mds_inputs, read_token_documents
from data_prep.train_tokenizer import train
from mmbert.packing import TokenIds
from mmbert.tokenizer import Tokenizer, adopt_tokenizer, load_tokenizer, save_tokenizer
from tests.conftest import Corpus, write_text
from tests.published_tokenizers import modernbert_like

PIECE = "split_{}-tokenized-chunked-8192-512-32-backfill-nodups"
COLUMNS = {"input_ids": "ndarray:uint32", "id": "str"}


@pytest.fixture(scope="module")
def tokenizer(corpus: Corpus) -> Tokenizer:
    return load_tokenizer(corpus.tokenizer)


@pytest.fixture(scope="module")
def documents(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> list[TokenIds]:
    """147 documents, without <bos> and <eos>."""
    return tokenizer.encode_batch(write_text(tmp_path_factory.mktemp("text")))


def wrapped(documents: Sequence[TokenIds], tokenizer: Tokenizer) -> list[TokenIds]:
    """As published: <bos> before each, <eos> behind all but the first, which is a chunk that goes on elsewhere."""
    bos, eos = (np.array([id_], np.uint32) for id_ in (tokenizer.bos_token_id, tokenizer.eos_token_id))
    return [np.concatenate([bos, ids] if number == 0 else [bos, ids, eos]) for number, ids in enumerate(documents)]


def write_mds(
    folder: Path,
    samples: Sequence[Any],
    columns: dict[str, str] = COLUMNS,
    compression: str | None = "zstd",
    hashes: list[str] | None = None,
) -> Path:
    """Several shards, compressed as published."""
    with MDSWriter(
        out=str(folder), columns=columns, compression=compression, hashes=hashes, size_limit=4096
    ) as writer:
        for number, ids in enumerate(samples):
            writer.write({"input_ids": ids, "id": str(number)})
    return folder


def unpack(folder: Path) -> None:
    """Leave the shards as they are published: uncompressed, under an index that names both files."""
    for path in sorted(folder.glob("*.zstd")):
        path.with_suffix("").write_bytes(decompress("zstd", path.read_bytes()))
        path.unlink()


def assert_same(found: Sequence[TokenIds], expected: Sequence[TokenIds]) -> None:
    assert len(found) == len(expected)
    assert all(ids.dtype == np.uint32 for ids in found)
    assert all(np.array_equal(one, other) for one, other in zip(found, expected, strict=True))


@pytest.mark.parametrize("kind", ["zstd", "zstd:9", "unpacked", "plain", "hashed", "int64", "without <bos>"])
def test_documents_of_every_published_shape_come_back(
    tmp_path: Path, tokenizer: Tokenizer, documents: list[TokenIds], kind: str
) -> None:
    samples = documents if kind == "without <bos>" else wrapped(documents, tokenizer)
    if kind == "int64":
        write_mds(tmp_path / "a", [ids.astype(np.int64) for ids in samples], COLUMNS | {"input_ids": "ndarray"})
    elif kind == "hashed":
        write_mds(tmp_path / "a", samples, hashes=["sha256", "xxh64"])
    else:
        write_mds(tmp_path / "a", samples, compression={"plain": None, "zstd:9": kind}.get(kind, "zstd"))
    if kind == "unpacked":
        unpack(tmp_path / "a")
    before = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert len(before) > 5
    assert_same(list(read_token_documents(tmp_path / "a", tokenizer)), documents)
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == before


def test_no_shared_memory_and_no_lock_is_used(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tokenizer: Tokenizer, documents: list[TokenIds]
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("shared memory or a lock file")

    write_mds(tmp_path / "a", wrapped(documents, tokenizer))
    monkeypatch.setattr(SharedMemory, "__init__", refuse)
    monkeypatch.setattr(FileLock, "acquire", refuse)
    assert_same(list(read_token_documents(tmp_path / "a", tokenizer)), documents)


def test_a_sample_of_several_documents_is_cut_and_a_spelled_token_is_text(tmp_path: Path, tokenizer: Tokenizer) -> None:
    first, second, spelled = tokenizer.encode_batch(["dabe gilo", "mu pade", "a <mask> b <pad>"])
    mask, pad = np.uint32(tokenizer.mask_token_id), np.uint32(tokenizer.pad_token_id)
    letters = tokenizer.encode_batch(["<mask>", "<pad>"])
    bos, eos = np.uint32(tokenizer.bos_token_id), np.uint32(tokenizer.eos_token_id)
    sample = np.concatenate([[bos], first, [eos, bos], second, [mask], first, [pad, eos]]).astype(np.uint32)
    write_mds(tmp_path / "a", [sample, np.array([bos, eos], np.uint32)])
    expected = [first, np.concatenate([second, letters[0], first, letters[1]])]
    assert_same(list(read_token_documents(tmp_path / "a", tokenizer)), expected)
    assert tokenizer.backend.decode(expected[1].tolist()) == "mu pade<mask>dabe gilo<pad>"
    assert len(spelled) > 4  # and data_prep.prepare makes letters of them, too


def test_a_token_is_spelled_as_its_tokenizer_spells_it(tmp_path: Path) -> None:
    source = modernbert_like(tmp_path / "source", ["dabe gilo mu pade"])
    tokenizer = adopt_tokenizer(source, tmp_path / "tokenizer")
    first, mask, pad = tokenizer.encode_batch(["dabe gilo", "[MASK]", "[PAD]"])
    ids = (tokenizer.bos_token_id, *first, tokenizer.mask_token_id, tokenizer.pad_token_id, tokenizer.eos_token_id)
    write_mds(tmp_path / "a", [np.array(ids, np.uint32)])
    assert_same(list(read_token_documents(tmp_path / "a", tokenizer)), [np.concatenate([first, mask, pad])])


def test_shards_are_read_one_at_a_time(tmp_path: Path, tokenizer: Tokenizer, documents: list[TokenIds]) -> None:
    folder = write_mds(tmp_path / "a", wrapped(documents, tokenizer))
    last = sorted(folder.glob("*.zstd"))[-1]
    last.unlink()
    found: list[TokenIds] = []
    with pytest.raises(FileNotFoundError, match=last.name):
        found.extend(read_token_documents(folder, tokenizer))
    reader = read_token_documents(folder, tokenizer)
    assert_same([next(reader) for _ in range(20)], documents[:20])


def test_folders_of_a_published_tree_are_found_by_language(
    tmp_path: Path, tokenizer: Tokenizer, documents: list[TokenIds]
) -> None:
    folders = [f"fao_Latn-sampled/{PIECE.format(0)}", f"fao_Latn-sampled/{PIECE.format(1)}", "lang=zh", "deu/a/b"]
    for folder in folders:
        write_mds(tmp_path / folder, wrapped(documents[:40], tokenizer))
        (tmp_path / folder / "stats.json").write_text('{"total_tokens_written": 1}')
    for above, below in (("fao_Latn-sampled", folders[:2]), (".", folders)):
        shards = [
            shard | {"raw_data": shard["raw_data"] | {"basename": f"{folder}/{shard['raw_data']['basename']}"}}
            for folder in below
            for shard in json.loads((tmp_path / folder / "index.json").read_text())["shards"]
        ]
        (tmp_path / above / "index.json").write_text(json.dumps({"version": 2, "shards": shards}))
    inputs = find_mds_inputs(str(tmp_path), "fineweb2")
    assert {stream: [file.path for file in files] for stream, files in inputs.items()} == {
        ("fineweb2", "cmn"): [str(tmp_path / "lang=zh")],
        ("fineweb2", "deu"): [str(tmp_path / "deu/a/b")],
        ("fineweb2", "fao"): [str(tmp_path / folder) for folder in folders[:2]],
    }
    sizes = [file.size for files in inputs.values() for file in files]
    assert all(size > sum(map(len, documents[:40])) * 4 for size in sizes)
    (files,) = find_mds_inputs(str(tmp_path), "books", "en").values()
    assert len(files) == 4
    with pytest.raises(ValueError, match=r"index.json lists no shard of its own folder"):
        list(read_token_documents(tmp_path, tokenizer))


def test_a_folder_that_names_no_language_and_a_place_without_mds_are_refused(
    tmp_path: Path, tokenizer: Tokenizer, documents: list[TokenIds]
) -> None:
    with pytest.raises(FileNotFoundError, match="holds no MDS folder"):
        find_mds_inputs(str(tmp_path), "mine")
    write_mds(tmp_path / PIECE.format(3), wrapped(documents, tokenizer))
    with pytest.raises(ValueError, match=r"split_3-.*give --language for the whole folder"):
        find_mds_inputs(str(tmp_path), "mine")
    (tmp_path / PIECE.format(3)).rename(tmp_path / "fao_Latn2")  # a variant, not the script
    assert list(find_mds_inputs(str(tmp_path), "mine")) == [("mine", "fao_latn2")]


def test_other_file_systems_are_read_too(tmp_path: Path, tokenizer: Tokenizer, documents: list[TokenIds]) -> None:
    folder = write_mds(tmp_path / "a", wrapped(documents, tokenizer))
    memory = fsspec.filesystem("memory")
    memory.put(str(folder), "/published/fao", recursive=True)
    try:
        inputs = find_mds_inputs("memory://published", "mine")
        (file,) = inputs["mine", "fao"]
        assert_same(list(read_token_documents(file.path, tokenizer)), documents)
    finally:
        memory.rm("/published", recursive=True)


def damages(content: bytes, kind: str) -> dict[str, bytes]:
    """What the error says -> a damaged shard."""
    size = {f"{len(content) - 1} bytes of data, its index says {len(content)}": content[:-1], "has 0 bytes": b""}
    if kind == "zstd":
        return size | {"cannot be unpacked": bytes(len(content))}
    if kind == "hashed":
        return size | {"its sha1 is not that of the index": content[:-1] + bytes([content[-1] ^ 1])}
    return size | {
        "is no shard of": content[:1] + b"\1" + content[2:],
        "sample 0 cannot be decoded": content[:8] + content[4:8] + content[12:],  # it ends where it begins
    }


@pytest.mark.parametrize("kind", ["zstd", "unpacked", "hashed"])
def test_a_damaged_shard_is_named(tmp_path: Path, tokenizer: Tokenizer, documents: list[TokenIds], kind: str) -> None:
    folder = write_mds(tmp_path / "a", wrapped(documents, tokenizer), hashes=["sha1"] if kind == "hashed" else None)
    if kind == "unpacked":
        unpack(folder)
    path = sorted(folder.glob("shard.*"))[1]
    content = path.read_bytes()
    for message, damaged in damages(content, kind).items():
        path.write_bytes(damaged)
        with pytest.raises(BrokenInputError, match=rf"{path}.*{message}.*copy the folder again"):
            list(read_token_documents(folder, tokenizer))
    path.unlink()
    with pytest.raises(FileNotFoundError, match=path.name):
        list(read_token_documents(folder, tokenizer))
    path.write_bytes(content)
    assert_same(list(read_token_documents(folder, tokenizer)), documents)


def test_what_a_shard_unpacks_to_is_checked(tmp_path: Path, tokenizer: Tokenizer, documents: list[TokenIds]) -> None:
    folder = write_mds(tmp_path / "a", wrapped(documents, tokenizer))
    index = json.loads((folder / "index.json").read_text())
    index["shards"][0]["raw_data"]["bytes"] += 1
    (folder / "index.json").write_text(json.dumps(index))
    with pytest.raises(BrokenInputError, match=r"shard.00000.mds.zstd has \d+ bytes of data, its index says"):
        list(read_token_documents(folder, tokenizer))


def test_a_sample_of_garbage_is_named(tmp_path: Path, tokenizer: Tokenizer, documents: list[TokenIds]) -> None:
    folder = write_mds(tmp_path / "a", wrapped(documents, tokenizer), compression=None)
    path = folder / "shard.00000.mds"
    content = path.read_bytes()
    begin = int.from_bytes(content[8:12], "little")  # of the second sample
    path.write_bytes(content[: begin + 8] + b"\xff\xff\xff" + content[begin + 11 :])
    with pytest.raises(BrokenInputError, match=rf"{path} sample 1 .*"):
        list(read_token_documents(folder, tokenizer))


def test_samples_must_agree_in_whether_they_begin_with_bos(
    tmp_path: Path, tokenizer: Tokenizer, documents: list[TokenIds]
) -> None:
    write_mds(tmp_path / "a", [*wrapped(documents[:10], tokenizer), documents[10]])
    with pytest.raises(BrokenInputError, match=r"shard.0000\d.mds sample \d+: begins with id \d+"):
        list(read_token_documents(tmp_path / "a", tokenizer))


def test_ids_outside_the_vocabulary_are_refused(
    tmp_path: Path, tokenizer: Tokenizer, documents: list[TokenIds]
) -> None:
    strange = np.array([tokenizer.bos_token_id, 7, tokenizer.vocab_size], np.uint32)
    write_mds(tmp_path / "a", [*wrapped(documents[:10], tokenizer), strange])
    with pytest.raises(ValueError, match=rf"sample \d+: id {tokenizer.vocab_size} is outside the vocabulary of 512"):
        list(read_token_documents(tmp_path / "a", tokenizer))
    write_mds(tmp_path / "b", [np.array([7, -1])], {"input_ids": "ndarray", "id": "str"})
    with pytest.raises(ValueError, match=r"id -1 is outside"):
        list(read_token_documents(tmp_path / "b", tokenizer))


def test_ids_of_another_tokenizer_of_the_same_size_are_refused(
    tmp_path: Path, tokenizer: Tokenizer, documents: list[TokenIds]
) -> None:
    rng = np.random.default_rng(0)
    texts = [" ".join("".join(rng.choice(list("äöüyxvwqhjfz"), size=5)) for _ in range(200)) for _ in range(20)]
    other = save_tokenizer(train(texts, vocab_size=512), tmp_path / "other", origin=tmp_path)
    write_mds(tmp_path / "a", wrapped(documents, tokenizer))
    with pytest.raises(ValueError, match=r"made text and tokenised again, only \d+ come back: .*other is not"):
        list(read_token_documents(tmp_path / "a", other))


@pytest.mark.parametrize(("columns", "message"), [
    ({"tokens": "ndarray:uint32"}, r"no column 'input_ids' of ids; its columns: tokens"),
    ({"input_ids": "str"}, r"no column 'input_ids' of ids"),
    ({"input_ids": "ndarray:float32"}, r"no column 'input_ids' of ids"),
    ({"input_ids": "pkl"}, r"index.json is no index of MDS shards .*unsafe type"),
])  # fmt: skip
def test_other_columns_and_columns_that_hold_code_are_refused(
    tmp_path: Path, tokenizer: Tokenizer, columns: dict[str, str], message: str
) -> None:
    ((name, kind),) = columns.items()
    value: Any = "text" if kind == "str" else np.arange(3, dtype="float32" if "float" in kind else "uint32")
    with MDSWriter(out=str(tmp_path / "a"), columns=columns) as writer:
        writer.write({name: value})
    with pytest.raises(ValueError, match=message):
        list(read_token_documents(tmp_path / "a", tokenizer))


@pytest.mark.parametrize("index", ["", "[]", "{}", '{"shards": [{}]}', '{"shards": [{"version": 1}]}'])
def test_a_broken_index_is_named(tmp_path: Path, tokenizer: Tokenizer, index: str) -> None:
    (tmp_path / "index.json").write_text(index)
    with pytest.raises(BrokenInputError, match=rf"{tmp_path}/index.json is no index of MDS shards"):
        list(read_token_documents(tmp_path, tokenizer))


def test_an_index_cannot_point_outside_its_folder(
    tmp_path: Path, tokenizer: Tokenizer, documents: list[TokenIds]
) -> None:
    folder = write_mds(tmp_path / "a", wrapped(documents, tokenizer))
    shutil.copytree(folder, tmp_path / "b")
    index = json.loads((folder / "index.json").read_text())
    index["shards"][0]["zip_data"]["basename"] = "../b/shard.00000.mds.zstd"
    (folder / "index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match="lies elsewhere"):
        list(read_token_documents(folder, tokenizer))
