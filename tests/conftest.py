"""A small corpus in six invented languages, its tokenizer and its shards, made once a session."""
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from data_prep.prepare import Settings, prepare_all
from data_prep.train_tokenizer import train
from mmbert.tokenizer import save_tokenizer

torch.set_num_threads(1)  # tests run beside their own training processes


@dataclass(frozen=True)
class Corpus:
    """Folders of the session's corpus; rows of 64 and of 128 tokens."""

    tokenizer: Path
    shards: dict[int, Path]


def write_text(folder: Path) -> list[str]:
    """Six languages of 4 to 60 documents, each with words of its own; returns all documents."""
    rng = np.random.default_rng(0)
    texts: list[str] = []
    for number, (language, documents) in enumerate(zip("abcdef", (60, 40, 25, 12, 6, 4), strict=True)):
        words = ["".join(rng.choice(list("aeioubdgklmnprst"), size=rng.integers(2, 7))) for _ in range(40 + 5 * number)]
        lines = [" ".join(rng.choice(words, size=rng.integers(5, 90))) for _ in range(documents)]
        (folder / f"la{language}.txt").write_text("\n\n".join(lines) + "\n")
        texts += lines
    return texts


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    root = tmp_path_factory.mktemp("corpus")
    (root / "text").mkdir()
    texts = write_text(root / "text")
    save_tokenizer(train(texts, vocab_size=512), root / "tokenizer", origin=root / "text")
    shards = {}
    for row_length in (64, 128):
        shards[row_length] = root / f"shards-{row_length}"
        settings = Settings(shards[row_length], root / "tokenizer", "invented", row_length, 0.1, seed=0)
        list(prepare_all(settings, {path.stem: path for path in sorted((root / "text").iterdir())}, workers=1))
    return Corpus(root / "tokenizer", shards)
