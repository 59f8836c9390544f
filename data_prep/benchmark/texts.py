"""The texts that are measured on."""
import argparse
import json
from pathlib import Path

from data_prep.documents import Reading, text_documents
from data_prep.inputs import find_inputs

ROW_LENGTH = 1024


def add_options(parser: argparse.ArgumentParser) -> None:
    """Where text and tokenizer are."""
    parser.add_argument("--input", required=True, help="text folder; repeated text would make caches look good")
    parser.add_argument("--tokenizer", type=Path, required=True, help="tokenizer folder, say of data_prep.gemma2")


def read_languages(location: str) -> dict[str, list[str]]:
    """Language -> its texts, normalised, each once: what data_prep.prepare would leave of them."""
    found: dict[str, list[str]] = {}
    for (_, language), files in find_inputs(location, "benchmark").items():
        texts = (text for file in files for text in text_documents(file, Reading()))
        found[language] = [text for text in dict.fromkeys(texts) if text]
    return found


def write_corpus(folder: Path, location: str) -> float:
    """Write the texts to folder/text/<language>.jsonl, and all in one file as folder/whole/train.jsonl.

    Returns:
        Megabytes of UTF-8 text.
    """
    languages = read_languages(location)
    (folder / "text").mkdir()
    (folder / "whole").mkdir()
    with (folder / "whole" / "train.jsonl").open("w", encoding="utf-8") as whole:
        for language, texts in languages.items():
            content = "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts)
            (folder / "text" / f"{language}.jsonl").write_text(content, encoding="utf-8")
            whole.write(content)
    return sum(len(text.encode()) for texts in languages.values() for text in texts) / 1e6
