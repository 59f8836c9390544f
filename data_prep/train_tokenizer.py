"""Train the demo's tokenizer on the training split of a text folder.

    python -m data_prep.train_tokenizer --input data/demo/text --output data/demo/tokenizer --vocab-size 16384

It is a BPE with byte fallback, as Gemma 2's is: a token is whole characters or, for characters too rare to be
learned, one byte. A byte-level BPE is as lossless and as short, but its tokens may begin or end inside a character,
and the answer to "fill the mask" then prints as a replacement sign: 5.9 % of the demo's tokens, against 0.4 % here
(both 16,384 tokens, 3.29 bytes per token). Unlike Gemma 2's, ours keeps spaces as spaces, so that a text which holds
Gemma's stand-in for them, U+2581, decodes to itself too.

The same text gives the same tokenizer.json, byte for byte.
"""
import argparse
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from tqdm import tqdm

from data_prep.documents import find_language_files, parse_documents
from data_prep.split import DEFAULT_HELDOUT_RATE, split_documents
from mmbert.command import errors_in_one_line
from mmbert.tokenizer import SPECIAL_TOKENS, save_tokenizer

BYTE_TOKENS = [f"<0x{byte:02X}>" for byte in range(256)]
# The characters that make up this share of the text get a token; SentencePiece's default, and its reason: the
# other few in 10,000 characters are thousands of different ones.
CHARACTER_COVERAGE = 0.9995
# A space belongs to the word after it; words, digits one by one, and punctuation do not mix.
WORDS = r" ?[\p{L}\p{M}]+| ?\p{N}| ?[^\s\p{L}\p{M}\p{N}]+|\s"


def read_training_texts(folder: Path, heldout_rate: float) -> list[str]:
    """All training documents of all languages, in the order of language and file."""
    texts = []
    for path in tqdm(find_language_files(folder).values(), desc="read", unit="language", disable=None):
        texts += split_documents(parse_documents(path, path.read_bytes()), heldout_rate)["train"]
    return texts


def frequent_characters(texts: list[str], coverage: float) -> list[str]:
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


def train(texts: list[str], vocab_size: int) -> dict[str, Any]:
    """Learn the merges: a parsed tokenizer.json of exactly `vocab_size` tokens, the special ones first.

    Raises:
        ValueError: `vocab_size` leaves no room for the characters, or the text is too small to fill it.
    """
    alphabet = frequent_characters(texts, CHARACTER_COVERAGE)
    reserved = [*SPECIAL_TOKENS.values(), *BYTE_TOKENS]
    if vocab_size <= len(reserved) + len(alphabet):
        raise ValueError(
            f"--vocab-size {vocab_size}: {len(reserved)} special and byte tokens and {len(alphabet)} characters "
            "leave no room for words; choose a larger one"
        )
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(WORDS), behavior="isolated")
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    # The trainer breaks ties between rare characters by the order of a hash map: hand it the final alphabet.
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=reserved,
        initial_alphabet=alphabet,
        limit_alphabet=len(alphabet),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_batches(texts), trainer)
    if tokenizer.get_vocab_size() != vocab_size:
        raise ValueError(
            f"--vocab-size {vocab_size}: the text is so small that it gives only {tokenizer.get_vocab_size()} tokens; "
            "choose fewer, or add text"
        )
    spec: dict[str, Any] = json.loads(tokenizer.to_str())
    # Byte tokens are for the model's fallback alone: a text that spells "<0x41>" must not turn into one.
    spec["added_tokens"] = spec["added_tokens"][: len(SPECIAL_TOKENS)]
    return spec


def _batches(texts: list[str], size: int = 1000) -> Iterator[list[str]]:
    for start in tqdm(range(0, len(texts), size), desc="train", unit="k documents", disable=None):
        yield texts[start : start + size]


@errors_in_one_line()
def main() -> None:
    parser = argparse.ArgumentParser(description="Train the demo's tokenizer.")
    parser.add_argument("--input", type=Path, required=True, help="text folder")
    parser.add_argument("--output", type=Path, required=True, help="tokenizer folder to make")
    parser.add_argument("--vocab-size", type=int, required=True, help="tokens, special and byte tokens included")
    parser.add_argument("--heldout-rate", type=float, default=DEFAULT_HELDOUT_RATE, help="as for data_prep.prepare")
    arguments = parser.parse_args()
    texts = read_training_texts(arguments.input, arguments.heldout_rate)
    spec = train(texts, arguments.vocab_size)
    tokenizer = save_tokenizer(spec, arguments.output, origin=arguments.input)
    num_tokens = sum(len(ids) for ids in tokenizer.encode_batch(texts))
    num_bytes = sum(len(text.encode()) for text in texts)
    print(
        f"{arguments.output}: {tokenizer.vocab_size:,} tokens, {num_bytes / num_tokens:.3f} bytes of training text "
        f"per token, digest {tokenizer.digest}"
    )


if __name__ == "__main__":
    main()
