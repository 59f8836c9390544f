"""Train a tokenizer on a sample of the training text of many languages.

    python -m data_prep.train_tokenizer --input data/demo/text --output data/demo/tokenizer --vocab-size 16384

Of more than `--characters`, each language gives a share p ~ n^tau (data_prep.sample_texts).

It is a BPE with byte fallback, as Gemma 2's is: a token is whole characters or, for characters too rare to be
learned, one byte. A byte-level BPE is as lossless and as short, but its tokens may begin or end inside a character,
and the answer to "fill the mask" then prints as a replacement sign: 5.9 % of the demo's tokens, against 0.5 % here
(both 16,384 tokens, 3.3 bytes per token). Unlike Gemma 2's, ours keeps spaces as spaces, so that a text which holds
Gemma's stand-in for them, U+2581, decodes to itself too.

The same text gives the same tokenizer.json, byte for byte, in any order of its files.
"""
import argparse
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from tqdm import tqdm

from data_prep.documents import add_reading_options, chosen_reading
from data_prep.inputs import check_apart, find_inputs
from data_prep.sample_texts import sample_texts
from data_prep.split import DEFAULT_HELDOUT_RATE, check_heldout_rate
from mmbert.command import errors_in_one_line, local_folder
from mmbert.tokenizer import SPECIAL_TOKENS, save_tokenizer

BYTE_TOKENS = [f"<0x{byte:02X}>" for byte in range(256)]
# The characters that make up this share of the text get a token; SentencePiece's default, and its reason: the
# other few in 10,000 characters are thousands of different ones.
CHARACTER_COVERAGE = 0.9995
# And of every single language this share, or a small one with a script of its own would be spelled in bytes.
LANGUAGE_COVERAGE = 0.98
# A space belongs to the word after it; words, digits one by one, and punctuation do not mix.
WORDS = r" ?[\p{L}\p{M}]+| ?\p{N}| ?[^\s\p{L}\p{M}\p{N}]+|\s"
WORD_SPLIT = {"type": "Split", "pattern": {"Regex": WORDS}, "behavior": "Isolated", "invert": False}


def frequent_characters(texts: Iterable[str], coverage: float) -> list[str]:
    """The fewest characters that make up the share `coverage` of all; equally frequent ones by code point."""
    counts = Counter[str]()
    for text in texts:
        counts.update(text)
    missing = coverage * counts.total()
    characters = []
    for character, count in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
        if missing <= 0:
            break
        characters.append(character)
        missing -= count
    return characters


def train(texts: list[str], vocab_size: int, needed: Iterable[str] = ()) -> dict[str, Any]:
    """Learn the merges: a parsed tokenizer.json of exactly `vocab_size` tokens, the special ones first.

    Args:
        needed: characters that get a token however rare they are.

    Raises:
        ValueError: `vocab_size` leaves no room for the characters, or the text is too small to fill it.
    """
    alphabet = frequent_characters(texts, CHARACTER_COVERAGE)
    alphabet += sorted(set(needed) - set(alphabet))
    reserved = [*SPECIAL_TOKENS.values(), *BYTE_TOKENS]
    if vocab_size <= len(reserved) + len(alphabet):
        raise ValueError(
            f"--vocab-size {vocab_size}: {len(reserved)} special and byte tokens and {len(alphabet)} characters "
            "leave no room for words; choose a larger one"
        )
    most = len(reserved) + len(alphabet) + sum(map(len, texts))  # a merge shortens the text by a token at least
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(WORDS), behavior="isolated")
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    # The trainer breaks ties between rare characters by the order of a hash map: hand it the final alphabet.
    trainer = trainers.BpeTrainer(
        vocab_size=min(vocab_size, most),  # tokenizers asks for the memory of so many first, and aborts
        special_tokens=reserved,
        initial_alphabet=alphabet,
        limit_alphabet=len(alphabet),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_batches(texts, "train"), trainer)
    if tokenizer.get_vocab_size() != vocab_size:
        raise ValueError(
            f"--vocab-size {vocab_size}: the text is so small that it gives only {tokenizer.get_vocab_size()} tokens; "
            "choose fewer, or add text"
        )
    spec: dict[str, Any] = json.loads(tokenizer.to_str())
    # Byte tokens are for the model's fallback alone: a text that spells "<0x41>" must not turn into one.
    spec["added_tokens"] = spec["added_tokens"][: len(SPECIAL_TOKENS)]
    return spec


def _batches(texts: list[str], what: str) -> Iterator[list[str]]:
    for start in tqdm(range(0, len(texts), 1000), desc=what, unit="k documents", disable=None):
        yield texts[start : start + 1000]


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m data_prep.train_tokenizer",
        description="Train a tokenizer on a sample of the text of many languages.",
    )
    parser.add_argument("--input", required=True, help="text: a file, or a folder with <language>.jsonl or <language>/")
    parser.add_argument("--language", help="of all the text, where its names say none")
    parser.add_argument("--output", type=local_folder, required=True, help="tokenizer folder to make")
    parser.add_argument("--vocab-size", type=int, required=True, help="tokens, special and byte tokens included")
    parser.add_argument("--characters", type=int, default=100_000_000, help="to train on (default: %(default)s)")
    parser.add_argument("--tau", type=float, default=0.3, help="shares are p ~ n^tau (default: %(default)s)")
    parser.add_argument("--heldout-rate", type=float, default=DEFAULT_HELDOUT_RATE, help="as for data_prep.prepare")
    add_reading_options(parser)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes (default: all cores)")
    return parser.parse_args()


@errors_in_one_line()
def main() -> None:
    arguments = parse_arguments()
    check_apart(arguments.input, arguments.output)
    check_heldout_rate(arguments.heldout_rate)
    if arguments.characters < 1:
        raise ValueError(f"--characters {arguments.characters}: must be at least 1, and is best some millions")
    if not 0.0 <= arguments.tau <= 1.0:
        raise ValueError(f"--tau {arguments.tau} lies outside [0, 1]: 0 gives each language the same share, 1 its own")
    sizes, sample = sample_texts(
        find_inputs(arguments.input, "text", arguments.language),
        arguments.tau,
        arguments.characters,
        arguments.heldout_rate,
        chosen_reading(arguments),
        arguments.workers,
    )
    texts = [text for of_language in sample.values() for text in of_language]
    num_characters = sum(map(len, texts))
    print(
        f"sample: {num_characters:,} of {sum(size.characters for size in sizes.values()):,} characters, {len(texts):,} "
        f"of {sum(size.documents for size in sizes.values()):,} documents, {len(sizes):,} languages"
    )
    needed = {each for of_one in sample.values() for each in frequent_characters(of_one, LANGUAGE_COVERAGE)}
    spec = train(texts, arguments.vocab_size, needed)
    tokenizer = save_tokenizer(spec, arguments.output, origin=Path(arguments.input))
    num_tokens = sum(len(ids) for batch in _batches(texts, "encode") for ids in tokenizer.encode_batch(batch))
    num_bytes = sum(len(text.encode()) for text in texts)
    print(
        f"{arguments.output}: {tokenizer.vocab_size:,} tokens, {num_bytes / num_tokens:.3f} bytes of training text "
        f"per token, digest {tokenizer.digest}"
    )


if __name__ == "__main__":
    main()
