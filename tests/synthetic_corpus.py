"""An invented corpus in up to 1,833 languages, for tests and benchmarks of data preparation; no text of it is real.

    python -m tests.synthetic_corpus --output data/synthetic/text --languages 1833 --bytes 1000000000

Sizes of languages follow Zipf's law, as do the words of a language; each language has its own letters, words and
habits in the script that it is written in, with spaces between words or without. Documents are log-normal in length,
a few are very long, some are exact copies. The same arguments give the same text, and a language's text depends on
its code, its size and the seed alone.
"""
import argparse
import csv
import hashlib
import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import orjson
import pyarrow
import pyarrow.parquet
import zstandard
from tqdm import tqdm

from mmbert import languages
from mmbert.streams import read_languages

LANGUAGE_LISTS = Path("yamls/languages")
# Consonants and vowels (or what comes nearest) of a script, and letters of which a language has a few; every other
# script takes Latin letters.
LETTERS = {
    "Latn": ("bcdfghjklmnpqrstvwxyz", "aeiou", "çñšžđłþßáéíóúàèìòùâêîôûäëïöüãõåæø"),
    "Cyrl": ("бвгджзйклмнпрстфхцчш", "аеиоуыэюя", "щґђћќѓіїєё"),
    "Grek": ("βγδζθκλμνξπρσςτφχψ", "αεηιουω", "άέήίόύώ"),
    "Arab": ("بتثجحخدذرزسشصضطظعغفقكلمنه", "اوي", "ىةئپچگ"),
    "Hebr": ("בגדהזחטכלמנסעפצקרשת", "אויה", "ךםןףץ"),
    "Deva": ("कखगघचछजझटठडढणतथदधनपफबभमयरलवशषसह", "ािीुूेो", "ृैौं"),
    "Beng": ("কখগঘচছজঝটঠডঢণতথদধনপফবভমযরলশষসহ", "ািীুূে", "ৃৈং"),
    "Telu": ("కఖగఘచఛజటఠడణతథదధనపఫబభమయరలవశషసహ", "ాిీుూెేొో", "ైం"),
    "Ethi": ("ሀለሐመሠረሰሸቀበተቸኀነኘአከወዐዘየደጀገጠጨ", "ሁሉሙሩሱሹቁቡቱቹኑኡኩውዙዩዱጁጉጡ", "ፀፈፐቨ"),
    "Geor": ("ბგდვზთკლმნპჟრსტფქღყშჩცძწჭხჯჰ", "აეიოუ", ""),
    "Armn": ("բգդզթժլխծկհձղճմյնշչպջռսվտրցփքֆ", "աեէըիոօ", ""),
    "Hang": ("".join(chr(0xAC00 + 28 * 21 * initial) for initial in range(19)), "은는이가을를의에로와도만서고하지", ""),
    "Thai": ("กขคฆงจฉชซญฐณดตถทนบปผฝพฟภมยรลวศษสหอฮ", "ะาิีึืุู", "เแโใไ"),
    "Hani": ("".join(chr(0x4E00 + 5 * number) for number in range(1600)), "的一是不了在人有我他这中大来上国", ""),
    "Jpan": ("".join(chr(0x4E00 + 7 * number) for number in range(900)), "あいうえおかきくけこさしすせそたちつ", ""),
}
WITHOUT_SPACES = {"Thai", "Hani", "Jpan"}
# What follows a word, and how often; the word joined to the next is a word that no vocabulary has.
ENDINGS, ENDING_RATES = (" ", "", ", ", ". ", ".\n", " 17 "), (0.80, 0.05, 0.06, 0.06, 0.01, 0.02)
LOG_MEDIAN_BYTES, LOG_SIGMA = float(np.log(1_500.0)), 1.1  # of a document
LONG_RATE, LONG_FACTOR, MAX_BYTES = 1 / 2_000, 100, 4_000_000  # a few documents are this much longer
COPY_RATE = 0.02
BATCH_WORDS = 2**20


@dataclass(frozen=True)
class Made:
    """What was written of a language; `text_bytes` are UTF-8, copies included.

    Attributes:
        path: its file or folder.
        copies: documents that are exact copies of another by plan; tiny documents may be equal by chance.
    """

    language: str
    path: Path
    documents: int
    copies: int
    text_bytes: int


# ------------------------------------------------------------------------------------------------------------ the text
def language_codes() -> list[str]:
    """The recipe's 1,833 languages, English and those of the first phases first: by rank of size."""
    lists = [str(LANGUAGE_LISTS / f"{name}.txt") for name in ("fineweb2-hq", "phase1", "phase2", "phase3")]
    listed = sorted(read_languages(lists[:2], "phase 1")) + read_languages(lists[2:], "later ones")
    return list(dict.fromkeys(["eng", *listed]))


def zipf_sizes(num_languages: int, num_bytes: int) -> list[int]:
    """Bytes of the language of each rank, proportional to 1 / rank; they sum to about `num_bytes`."""
    shares = 1.0 / np.arange(1, num_languages + 1)
    return [max(1, int(size)) for size in num_bytes * shares / shares.sum()]


def seeded(seed: int, *parts: object) -> np.random.Generator:
    """A generator of its own for each purpose."""
    return np.random.default_rng(list(hashlib.sha256(repr((seed, *parts)).encode()).digest()))


def make_vocabulary(rng: np.random.Generator, script: str, size: int) -> list[str]:
    """Invented words, the most frequent (and shortest) first: syllables of the letters that this language prefers."""
    consonants, vowels, rare = (
        rng.permutation(list(letters)) for letters in LETTERS.get(script, LETTERS["Latn"])
    )
    consonants, vowels = consonants[: max(14, len(consonants) * 2 // 3)], [*vowels[:8], *rare[:4]]
    syllables = [f"{c}{v}" for c, v in itertools.product(consonants[:200], vowels)] + [*consonants, *vowels]
    syllables = list(rng.permutation(syllables))
    frequent = np.log1p(np.arange(size)) / np.log1p(size)  # 0 to 1 over the ranks
    lengths = 1 + rng.poisson(0.2 + (1.2 if script in WITHOUT_SPACES else 2.4) * frequent)
    picks = (len(syllables) * rng.random(int(lengths.sum())) ** 2.5).astype(int)  # some syllables are common
    ends = np.cumsum(lengths)
    return ["".join(syllables[i] for i in picks[end - n : end]) for end, n in zip(ends, lengths, strict=True)]


def make_texts(language: str, num_bytes: int, seed: int) -> Iterator[str]:
    """Documents of a language, together about `num_bytes` of UTF-8; at least one."""
    found = languages.find(language)
    script = found.script if found else "Latn"
    rng = seeded(seed, language)
    vocabulary = make_vocabulary(rng, script, size=int(np.clip(num_bytes // 200, 300, 30_000)))
    endings = [ending.strip(" ") for ending in ENDINGS] if script in WITHOUT_SPACES else list(ENDINGS)
    pieces = np.array([word + ending for ending in endings for word in vocabulary], dtype=object)
    sample = pieces[_piece_numbers(rng, 2_000, len(vocabulary))]
    bytes_per_word = len("".join(sample).encode()) / len(sample)
    for lengths in _document_lengths(rng, num_bytes / bytes_per_word, bytes_per_word):
        words = pieces[_piece_numbers(rng, int(lengths.sum()), len(vocabulary))].tolist()
        end = 0
        for length in lengths:
            start, end = end, end + int(length)
            yield "".join(words[start:end]).strip()


def _piece_numbers(rng: np.random.Generator, count: int, vocabulary: int) -> np.ndarray:
    """Numbers of (ending, word): words by Zipf's law, p ~ 1 / rank, drawn by inverting its distribution function."""
    words = np.exp(rng.random(count, dtype=np.float32) * np.float32(np.log(vocabulary + 0.999))).astype(np.int32) - 1
    endings = np.searchsorted(np.cumsum(ENDING_RATES[:-1]), rng.random(count, dtype=np.float32))
    return endings * vocabulary + words


def _document_lengths(rng: np.random.Generator, num_words: float, bytes_per_word: float) -> Iterator[np.ndarray]:
    """Words of each document, about a million words at a time, until there are `num_words`."""
    while num_words > 0:
        count = 1 + int(min(num_words, BATCH_WORDS) * bytes_per_word / np.exp(LOG_MEDIAN_BYTES + LOG_SIGMA**2 / 2))
        num_bytes = rng.lognormal(LOG_MEDIAN_BYTES, LOG_SIGMA, count)
        num_bytes *= np.where(rng.random(count) < LONG_RATE, LONG_FACTOR, 1)
        lengths = np.maximum(1, np.minimum(num_bytes, MAX_BYTES) / bytes_per_word).astype(np.int64)
        before = np.cumsum(lengths) - lengths
        lengths = np.minimum(lengths, np.maximum(1, num_words - before).astype(np.int64))[before < num_words]
        num_words -= float(lengths.sum())
        yield lengths


def with_copies(texts: Iterable[str], rng: np.random.Generator, rate: float) -> Iterator[tuple[str, bool]]:
    """(text, is it a copy): after some texts a copy of one of the last hundred comes."""
    recent: list[str] = []
    for text in texts:
        yield text, False
        recent = [*recent[-99:], text]
        if rng.random() < rate:
            yield recent[int(rng.integers(len(recent)))], True


# ----------------------------------------------------------------------------------------------------------- the files
def _write_jsonl(path: Path, texts: Iterable[str]) -> None:
    with path.open("wb") as file:
        file.writelines(orjson.dumps({"text": text}) + b"\n" for text in texts)


def _write_jsonl_zst(path: Path, texts: Iterable[str]) -> None:
    with path.open("wb") as raw, zstandard.ZstdCompressor(level=1).stream_writer(raw) as file:
        for text in texts:
            file.write(orjson.dumps({"text": text}) + b"\n")


def _write_txt(path: Path, texts: Iterable[str]) -> None:
    with path.open("w", encoding="utf-8", newline="\n") as file:
        file.writelines(text + "\n\n" for text in texts)


def _write_csv(path: Path, texts: Iterable[str]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text"])
        writer.writerows([text] for text in texts)


def _write_parquet(path: Path, texts: Iterable[str]) -> None:
    schema = pyarrow.schema([("text", pyarrow.large_string())])
    with pyarrow.parquet.ParquetWriter(path, schema, compression="zstd", compression_level=1) as writer:
        texts = iter(texts)
        while group := list(itertools.islice(texts, 2_000)):
            writer.write_table(pyarrow.table({"text": group}, schema=schema))


WRITERS: dict[str, Callable[[Path, Iterable[str]], None]] = {
    ".jsonl": _write_jsonl,
    ".jsonl.zst": _write_jsonl_zst,
    ".txt": _write_txt,
    ".csv": _write_csv,
    ".parquet": _write_parquet,
}
# Layouts of a language below the corpus folder; a folder gets a file for each PART_DOCUMENTS documents.
LAYOUTS = (
    "{language}.jsonl",
    "{language}.txt",
    "lang={language}/part.parquet",
    "{language}/part.jsonl.zst",
    "{language}.parquet",
    "{language}.csv",
)
PART_DOCUMENTS = 5_000


def write_language(folder: Path, language: str, num_bytes: int, seed: int, layout: str) -> Made:
    """Write one language as `layout` says."""
    pattern = folder / layout.format(language=language)
    is_folder = pattern.parent != folder
    pattern.parent.mkdir(parents=True, exist_ok=True)
    suffix = pattern.name[pattern.name.index(".") :]
    counts = [0, 0, 0]  # documents, copies, bytes

    def counted(texts: Iterable[tuple[str, bool]]) -> Iterator[str]:
        for text, is_copy in texts:
            counts[0] += 1
            counts[1] += is_copy
            counts[2] += len(text.encode())
            yield text

    texts = counted(with_copies(make_texts(language, num_bytes, seed), seeded(seed, language, "copies"), COPY_RATE))
    for number in itertools.count():
        if (first := next(texts, None)) is None:
            break
        part = itertools.chain([first], itertools.islice(texts, PART_DOCUMENTS - 1) if is_folder else texts)
        WRITERS[suffix](pattern.with_name(f"part-{number:05d}{suffix}") if is_folder else pattern, part)
    return Made(language, pattern.parent if is_folder else pattern, *counts)


def write_corpus(folder: Path, num_languages: int, num_bytes: int, seed: int = 0) -> list[Made]:
    """Write a corpus of about `num_bytes` of text, the languages' layouts in turn; the largest language first.

    Raises:
        ValueError: more languages than there are.
    """
    codes = language_codes()
    if not 1 <= num_languages <= len(codes):
        raise ValueError(f"{num_languages=} must lie in [1, {len(codes)}]")
    plan = zip(codes[:num_languages], zipf_sizes(num_languages, num_bytes), itertools.cycle(LAYOUTS), strict=False)
    return [
        write_language(folder, language, size, seed, layout)
        for language, size, layout in tqdm(plan, total=num_languages, desc="corpus", unit="language", disable=None)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description="Write an invented corpus.")
    parser.add_argument("--output", type=Path, required=True, help="text folder to make")
    parser.add_argument("--languages", type=int, default=1833, help="how many (default: 1833)")
    parser.add_argument("--bytes", type=int, default=10**9, help="of UTF-8 text, in all (default: 1 GB)")
    arguments = parser.parse_args()
    if arguments.output.exists():
        parser.error(f"{arguments.output} exists: remove it, or choose another --output")
    made = write_corpus(arguments.output, arguments.languages, arguments.bytes)
    documents, copies = sum(one.documents for one in made), sum(one.copies for one in made)
    megabytes = sum(one.text_bytes for one in made) / 1e6
    print(f"{arguments.output}: {len(made)} languages, {documents:,} documents, {copies:,} copies, {megabytes:,.1f} MB")


if __name__ == "__main__":
    main()
