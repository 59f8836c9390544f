"""Programs of data_prep run as from the command line, on a small text; and what they wrote, read back."""
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from streaming.base.format import reader_from_json

from data_prep import work
from data_prep.pieces import read_documents
from mmbert.manifest import read_manifest, stream_folder
from mmbert.packing import Row
from mmbert.run_lock import hold_run
from mmbert.shards import LanguageShards
from mmbert.tokenizer import load_tokenizer
from tests.conftest import Corpus


def call(monkeypatch: pytest.MonkeyPatch, main: Callable[[], None], *arguments: object) -> int:
    """Run a program of data_prep as from the command line; its exit status."""
    monkeypatch.setattr(sys, "argv", ["program", *map(str, arguments)])
    try:
        main()
    except SystemExit as exit_:
        if isinstance(exit_.code, int):
            return exit_.code
        raise
    return 0


@contextmanager
def written_by_another(output: Path) -> Iterator[int]:
    """Another process, whose id this is, holds a shards folder."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        hold_run(output / work.FOLDER)
        os.write(writing, b"x")
        signal.pause()
    os.read(reading, 1)
    try:
        yield child
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def tree(root: Path) -> dict[str, bytes]:
    """Every file that a user sees below `root`."""
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in root.rglob("*")
        if path.is_file() and ".prepare" not in path.parts
    }


def write_jsonl(path: Path, texts: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))


def documents_of(language: str) -> list[str]:
    return [f"{language} beda gola {number} " * (1 + number % 40) for number in range(60)]


def arguments_of(text: Path, corpus: Corpus, output: Path, *more: object) -> list[object]:
    return [
        *("--input", text, "--tokenizer", corpus.tokenizer, "--row-length", 64, "--output", output, "--source", "own"),
        *("--workers", 1, *more),
    ]


def read_rows(folder: Path) -> list[Row]:
    """Rows as Streaming reads them."""
    index = json.loads((folder / "index.json").read_bytes())
    readers = [reader_from_json(str(folder), "", shard) for shard in index["shards"]]
    return [Row(**reader[number]) for reader in readers for number in range(reader.samples)]


def read_back(folder: Path) -> list[bytes]:
    """The documents of a stream, as the bytes of their ids, sorted."""
    manifest = read_manifest(folder)
    shards = LanguageShards([folder], [manifest])
    return sorted(ids.tobytes() for shard in range(len(manifest.shards)) for ids in read_documents(shards, shard))


def of_both_splits(output: Path) -> list[bytes]:
    """What `read_back` gives of own/fao, held out or not."""
    train, heldout = (read_back(stream_folder(output, split, "own", "fao")) for split in work.SPLITS)
    return sorted(train + heldout)


def encoded(corpus: Corpus, texts: list[str]) -> list[bytes]:
    """What `read_back` gives of texts."""
    return sorted(ids.tobytes() for ids in load_tokenizer(corpus.tokenizer).encode_batch(texts))
