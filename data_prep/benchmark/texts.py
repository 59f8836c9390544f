"""The texts that are measured on: real ones, or as many as are asked for made of the lines of real ones."""
import argparse
import json
from pathlib import Path

import numpy as np

from data_prep.formats import read_texts
from data_prep.inputs import find_inputs
from data_prep.normalise import normalise

LINES = 12  # of a made document; of the Universal Declaration of Human Rights, about 2 kB


def add_options(parser: argparse.ArgumentParser) -> None:
    """Where text and tokenizer are."""
    parser.add_argument("--input", default="data/demo/text", help="text folder (default: data/demo/text)")
    parser.add_argument("--tokenizer", type=Path, required=True, help="tokenizer folder, say of data_prep.gemma2")


def read_languages(location: str) -> dict[str, list[str]]:
    """Language -> its texts, normalised."""
    found: dict[str, list[str]] = {}
    for (_, language), files in find_inputs(location, "benchmark").items():
        texts = [normalise(text) for file in files for text in read_texts(file)]
        found[language] = [text for text in texts if text]
    return found


def make_documents(texts: list[str], num_bytes: int, rng: np.random.Generator) -> list[str]:
    """Different documents of about `num_bytes` together, each of LINES lines drawn from `texts` with replacement.

    Raises:
        ValueError: there are too few lines for so many different documents.
    """
    lines = [line for text in texts for line in text.split("\n")]
    documents: dict[str, None] = {}
    size, draws = 0, 0
    while size < num_bytes:
        document = "\n".join(lines[number] for number in rng.integers(len(lines), size=LINES))
        if document not in documents:
            documents[document] = None
            size += len(document.encode())
        draws += 1
        if draws > 10 * len(documents) + 1000:
            raise ValueError(f"{len(lines)} lines are too few for {num_bytes} bytes of different documents")
    return list(documents)


def write_corpus(folder: Path, languages: dict[str, list[str]], num_bytes: int, seed: int) -> int:
    """Write `<language>.jsonl` with equally much made text of each language, and all in one file beside the folder.

    Returns:
        Bytes of UTF-8 text.
    """
    folder.mkdir()
    size = 0
    with folder.with_suffix(".jsonl").open("w", encoding="utf-8") as whole:
        for number, (language, texts) in enumerate(languages.items()):
            documents = make_documents(texts, num_bytes // len(languages), np.random.default_rng([seed, number]))
            content = "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in documents)
            (folder / f"{language}.jsonl").write_text(content, encoding="utf-8")
            whole.write(content)
            size += sum(len(text.encode()) for text in documents)
    return size
