"""The benchmarks of data preparation: gates that compare ids, a small run of each, and the section on the page."""
import json
from pathlib import Path

import pytest

from data_prep.benchmark.__main__ import PROGRAM, SUBCOMMANDS
from data_prep.benchmark.texts import read_languages, write_corpus
from mmbert.benchmark.__main__ import main
from mmbert.benchmark.page import section
from tests.synthetic_corpus import write_corpus as write_synthetic

# Stands for ModernBERT's src/convert_dataset.py: the same functions, without its dependencies.
STUB = """
import json
from enum import Enum
from pathlib import Path
import numpy as np

class ConcatMode(Enum):
    CONCAT_TOKENS = "CONCAT_TOKENS"

def build_hf_dataset(dataset_name, max_length, tokenizer, **_):
    for line in (Path(dataset_name) / "train.jsonl").read_text().splitlines():
        yield tokenizer(json.loads(line)["text"])["input_ids"], max_length

def build_dataloader(dataset, batch_size):
    ids = []
    for document, max_length in dataset:
        ids += document[:KEPT]
        while len(ids) >= max_length:
            yield ids[:max_length]
            ids = ids[max_length:]

def generate_samples(loader):
    for row in loader:
        yield {"tokens": np.asarray(row).tobytes()}
"""
QUICK = ["--repetitions", "1", "--warmup", "0"]


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    folder = tmp_path_factory.mktemp("benchmark") / "text"
    write_synthetic(folder, num_languages=3, num_bytes=150_000)
    return folder


def measure(subcommand: str, *options: object) -> dict:
    """Run the program; its document."""
    *options, path = options
    main([subcommand, *map(str, options), *QUICK, "--json", str(path)], PROGRAM, SUBCOMMANDS)
    return json.loads(Path(path).read_text())


def checkout(folder: Path, kept: str) -> Path:
    (folder / "src").mkdir(parents=True)
    (folder / "src" / "convert_dataset.py").write_text(STUB.replace("KEPT", kept))
    return folder


def test_the_text_has_each_document_once(text, tmp_path):
    languages = read_languages(str(text))
    assert list(languages) == sorted(["eng", "afr", "arb"])
    assert all(len(set(texts)) == len(texts) for texts in languages.values())
    megabytes = write_corpus(tmp_path, str(text))
    assert read_languages(str(tmp_path / "text")) == languages
    assert megabytes == sum(len(text.encode()) for texts in languages.values() for text in texts) / 1e6
    lines = (tmp_path / "whole" / "train.jsonl").read_text().splitlines()
    assert [json.loads(line)["text"] for line in lines] == [text for texts in languages.values() for text in texts]


def test_the_pipeline_is_timed_against_a_peer_that_makes_the_same_documents(text, corpus, tmp_path):
    modernbert = checkout(tmp_path / "modernbert", "None")
    options = ("--input", text, "--tokenizer", corpus.tokenizer, "--modernbert", modernbert)
    document = measure("pipeline", *options, tmp_path / "pipeline.json")
    assert list(document["candidates"]) == ["ours", "convert_dataset"]
    assert document["facts"]["languages"] == 3
    assert document["environment"]["command"].startswith("python -m data_prep.benchmark pipeline --input")
    page = section("pipeline", document)
    assert "CPU s/MB" in page
    assert "documents of convert_dataset that ours lacks: 0.0e+00, at most 0" in page


def test_a_peer_with_other_documents_is_not_timed(text, corpus, tmp_path):
    modernbert = checkout(tmp_path / "modernbert", "-2")  # the last token and <eos> are cut off
    options = ("--input", text, "--tokenizer", corpus.tokenizer, "--modernbert", modernbert)
    with pytest.raises(SystemExit, match=r"gate not passed, nothing was timed: .*convert_dataset"):
        measure("pipeline", *options, tmp_path / "pipeline.json")


def test_several_processes_are_compared_with_one(text, corpus, tmp_path):
    options = ("--input", text, "--tokenizer", corpus.tokenizer, "--workers", 2)
    document = measure("scaling", *options, tmp_path / "scaling.json")
    assert list(document["candidates"]) == ["ours", "one"]
    assert document["gates"][0] | {"name": ""} == {"name": "", "value": 0, "limit": 0}


def test_tokenising_is_timed_on_equal_ids(text, corpus, tmp_path, monkeypatch):
    tokenise = pytest.importorskip("data_prep.benchmark.tokenise")
    options = ("--input", text, "--tokenizer", corpus.tokenizer)
    document = measure("tokenise", *options, tmp_path / "tokenise.json")
    assert list(document["candidates"]) == ["ours", "tokenizers"]
    monkeypatch.setattr(tokenise, "encode_with", lambda _, parts: [[0] for part in parts for _ in part])
    with pytest.raises(SystemExit, match="texts whose ids differ, ours against tokenizers"):
        measure("tokenise", *options, tmp_path / "other.json")


def test_a_demand_names_a_peer_that_runs(text, corpus, tmp_path):
    options = ("--input", text, "--tokenizer", corpus.tokenizer, "--min-cpu-ratio", "nobody=4")
    with pytest.raises(SystemExit, match="--min-cpu-ratio nobody=4: no such peer here"):
        measure("pipeline", *options, tmp_path / "pipeline.json")
