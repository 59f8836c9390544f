"""The sizes from which the paper's runs are planned: every stream has one, and where they come from."""
import csv
import json
from collections import Counter
from pathlib import Path

import pytest

from data_prep.published_sizes import fineweb2_bytes, stream_sizes, tokens_per_byte
from mmbert.config import load_config
from mmbert.recipe_table import BASE, SMALL
from mmbert.streams import read_languages
from mmbert.tokenizer import load_tokenizer
from tests.conftest import Corpus

TABLE = Path("yamls/published-sizes.csv")


@pytest.mark.parametrize("path", BASE + SMALL)
def test_every_stream_of_the_recipe_has_a_size(path: str) -> None:
    with TABLE.open(newline="") as file:
        sizes = {(row["source"], row["language"]): int(row["tokens"]) for row in csv.DictReader(file)}
    assert min(sizes.values()) > 0
    for name, group in load_config(path).data.groups().items():
        streams = {(group.source, language) for language in read_languages(group.languages, name)}
        assert streams <= sizes.keys()


def test_scripts_of_a_language_are_added_up_and_removed_text_is_not(tmp_path: Path) -> None:
    table = tmp_path / "table.csv"
    table.write_text(
        "subset,split,code,utf8_bytes\n"
        "srp_Cyrl,train,srp,70\nsrp_Latn,train,srp,30\nsrp_Latn,test,srp,5\nsrp_Latn_removed,train,srp,900\n"
    )
    assert fineweb2_bytes(table) == {"srp": 100}


def test_another_table_is_refused(tmp_path: Path) -> None:
    table = tmp_path / "table.csv"
    table.write_text("language,bytes\nsrp,100\n")
    with pytest.raises(ValueError, match="FineWeb2's table"):
        fineweb2_bytes(table)


def test_a_language_without_a_declaration_takes_the_median_and_one_without_text_the_least() -> None:
    sizes = dict.fromkeys(("fra", "fao", "xho"), 1000) | {"deu": 10**6}
    density = {"fra": 0.25, "deu": 0.2, "xho": 0.5}
    found = {(source, code): tokens for source, code, tokens in stream_sizes(Counter(sizes), density)}
    assert found["fineweb2", "deu"] == 200_000
    assert found["fineweb2-hq", "deu"] == 20_000
    assert ("fineweb2-hq", "xho") not in found
    assert found["fineweb2", "xho"] == 500
    assert found["fineweb2", "fao"] == 250
    assert found["fineweb2", "abk"] == 250  # 1,000 bytes, as the least
    assert found["dclm", "eng"] == 600 * 10**9


def test_tokens_a_byte_are_counted_over_all_scripts_of_a_language(tmp_path: Path, corpus: Corpus) -> None:
    tokenizer = load_tokenizer(corpus.tokenizer)
    texts = {"uzn_cyrl": "ўзбек тили", "uzn_latn": "o'zbek tili"}
    for name, text in texts.items():
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({"text": text}) + "\n")
    tokens = sum(len(ids) for ids in tokenizer.encode_batch(list(texts.values())))
    assert tokens_per_byte(tmp_path, tokenizer) == {"uzn": tokens / sum(len(text.encode()) for text in texts.values())}
