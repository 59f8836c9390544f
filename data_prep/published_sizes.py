"""About how many tokens each stream of the paper has: yamls/published-sizes.csv, from which its runs can be planned.

    python -m data_prep.published_sizes --fineweb2 fineweb2-language-distribution.csv --text data/demo/text \
        --tokenizer data/tokenizer-gemma2 --output yamls/published-sizes.csv

FineWeb2 publishes the bytes of every language, but no tokens. A language has as many tokens a byte as in its
Declaration of Human Rights, or the median of all where it has none. docs/data.md has the sources and what is a guess.
"""
import argparse
import csv
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from statistics import median

from data_prep.formats import read_texts
from data_prep.inputs import find_inputs
from mmbert.atomic import write_file
from mmbert.command import errors_in_one_line
from mmbert.streams import read_languages
from mmbert.tokenizer import Tokenizer, load_tokenizer

HQ = "yamls/languages/fineweb2-hq.txt"
LISTS = (HQ, *(f"yamls/languages/phase{number}.txt" for number in (1, 2, 3)))
HQ_SHARE = 0.1
"""FineWeb2-HQ's part of FineWeb2: the best tenth of a language's documents, by its card."""

BILLIONS = {
    ("dclm", "eng"): 600.0,
    ("dclm-filtered", "eng"): 40.0,
    ("starcoder", "code"): 100.6,
    ("code-prolong", "code"): 5.8,
    ("arxiv", "eng"): 27.8,
    ("pes2o", "eng"): 8.4,
    ("stackexchange", "eng"): 18.6,
    ("stackexchange-filtered", "code"): 2.8,
    ("tulu-flan", "eng"): 15.3,
    ("dolmino-math", "eng"): 11.2,
    ("books", "eng"): 4.3,
    ("textbooks-prolong", "eng"): 3.1,
}
"""The most tokens, in billions, that a phase of the paper took of the source (docs/recipe.md, section 4)."""

WIKIPEDIA = 9.5
"""The same of MegaWika, over 60 languages. How it divides among them is not published: evenly, here."""


def fineweb2_bytes(table: Path) -> Counter[str]:
    """UTF-8 bytes of each language's training text, all scripts together.

    Raises:
        ValueError: the file is another table.
    """
    with table.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    if not rows or not {"subset", "split", "code", "utf8_bytes"} <= rows[0].keys():
        raise ValueError(f"--fineweb2 {table} is not FineWeb2's table of languages: take it from its repository")
    sizes: Counter[str] = Counter()
    for row in rows:
        if row["split"] == "train" and not row["subset"].endswith("_removed"):
            sizes[row["code"]] += int(row["utf8_bytes"])
    return sizes


def tokens_per_byte(text: Path, tokenizer: Tokenizer) -> dict[str, float]:
    """Of every language of a text folder, by the three letters that its name begins with."""
    num_bytes: Counter[str] = Counter()
    num_tokens: Counter[str] = Counter()
    for (_, name), files in find_inputs(str(text), "text").items():
        documents = [document for file in files for document in read_texts(file)]
        num_bytes[name[:3]] += sum(len(document.encode()) for document in documents)
        num_tokens[name[:3]] += sum(map(len, tokenizer.encode_batch(documents)))
    return {code: num_tokens[code] / num_bytes[code] for code in num_bytes}


def stream_sizes(sizes: Counter[str], density: dict[str, float]) -> Iterator[tuple[str, str, int]]:
    """Source, language and tokens of every stream that a run of the paper names."""
    languages = read_languages([*LISTS], "--languages")
    usual, least = median(density.values()), min(sizes.values())
    fineweb2 = {code: max(1, round(sizes.get(code, least) * density.get(code, usual))) for code in sorted(languages)}
    for code, tokens in fineweb2.items():
        yield "fineweb2", code, tokens
    for code in read_languages([HQ], "--languages"):
        yield "fineweb2-hq", code, round(HQ_SHARE * fineweb2[code])
    for (source, language), billions in BILLIONS.items():
        yield source, language, round(billions * 1e9)
    of_wikipedia = ["eng", *read_languages(LISTS[:2], "--languages")]
    for code in of_wikipedia:
        yield "megawika", code, round(WIKIPEDIA * 1e9 / len(of_wikipedia))


@errors_in_one_line()
def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m data_prep.published_sizes", description="Estimate the tokens of the paper's streams."
    )
    parser.add_argument("--fineweb2", type=Path, required=True, help="fineweb2-language-distribution.csv")
    parser.add_argument("--text", type=Path, required=True, help="text folder: tokens a byte are counted in it")
    parser.add_argument("--tokenizer", type=Path, required=True, help="tokenizer folder")
    parser.add_argument("--output", type=Path, required=True, help="the table to write")
    arguments = parser.parse_args()
    density = tokens_per_byte(arguments.text, load_tokenizer(arguments.tokenizer))
    streams = list(stream_sizes(fineweb2_bytes(arguments.fineweb2), density))
    lines = ["source,language,tokens", *(f"{source},{language},{tokens}" for source, language, tokens in streams)]
    write_file(arguments.output, "\n".join(lines).encode() + b"\n")
    print(f"{arguments.output}: {len(streams):,} streams, {sum(tokens for *_, tokens in streams) / 1e9:,.0f}B tokens")


if __name__ == "__main__":
    main()
