"""Check that a tokenizer folder keeps the contract of mmbert.tokenizer, and show what else one should know of it.

    python -m data_prep.check_tokenizer data/demo/tokenizer
"""
import argparse
import sys
import unicodedata
from functools import cache
from pathlib import Path

from mmbert.command import errors_in_one_line
from mmbert.tokenizer import Tokenizer, load_tokenizer

SPACES = (" a", "a ", "a  a", "a\n\na", "a\t\ta", "a \n a")
NO_TEXT = {"Cc", "Cn", "Co", "Cs"}  # controls, unassigned, private and surrogate code points
GROUP = 512  # characters that are looked at together
SHOWN = 8


@cache
def assigned() -> list[str]:
    """The characters of Unicode."""
    return [chr(point) for point in range(sys.maxunicode + 1) if unicodedata.category(chr(point)) not in NO_TEXT]


def decoded(tokenizer: Tokenizer, texts: list[str]) -> list[str]:
    """Each text after it was encoded."""
    ids = [each.tolist() for each in tokenizer.encode_batch(texts)]
    return tokenizer.backend.decode_batch(ids, skip_special_tokens=False)


def lost_texts(tokenizer: Tokenizer) -> dict[str, str]:
    """What decoding does not give back -> what it gives: of all characters of Unicode, and some runs of white space."""
    lost = {text: back for text, back in zip(SPACES, decoded(tokenizer, list(SPACES)), strict=True) if back != text}
    for start in range(0, len(assigned()), GROUP):
        framed = [f"a{character}b" for character in assigned()[start : start + GROUP]]
        if decoded(tokenizer, ["".join(framed)]) != ["".join(framed)]:  # then one by one
            pairs = zip(framed, decoded(tokenizer, framed), strict=True)
            lost |= {text[1:-1]: back[1:-1] for text, back in pairs if back != text}
    return lost


def spelled(text: str) -> str:
    """Code points with the name of the first: "U+2581 LOWER ONE EIGHTH BLOCK"."""
    points = " ".join(f"U+{ord(character):04X}" for character in text) or "nothing"
    return f"{points} {unicodedata.name(text, '')}".rstrip() if len(text) == 1 else points


def description(tokenizer: Tokenizer) -> str:
    """What the program prints."""
    backend = tokenizer.backend
    special = ", ".join(f"{token} {backend.token_to_id(token)}" for token in tokenizer.special_tokens.values())
    start, inside = (" ".join(backend.encode(text, add_special_tokens=False).tokens) for text in ("word", "a word"))
    lost = lost_texts(tokenizer)
    lines = [
        f"{tokenizer.folder} keeps the contract",
        f"vocabulary     {tokenizer.vocab_size:,} tokens, digest {tokenizer.digest}",
        f"special ids    {special}",
        f"prefix space   {'yes' if tokenizer.prefix_space else 'no'}: 'word' is {start}, 'a word' is {inside}",
        f"decoding       {f'does not give back {len(lost):,} of' if lost else 'gives back'} all characters of Unicode",
    ]
    lines += [f"               {spelled(text)} becomes {spelled(back)}" for text, back in list(lost.items())[:SHOWN]]
    if len(lost) > SHOWN:
        lines.append("               ...")
    return "\n".join(lines)


@errors_in_one_line()
def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m data_prep.check_tokenizer",
        description="Check a tokenizer folder, and show what one should know of it.",
    )
    parser.add_argument("folder", type=Path, help="tokenizer folder")
    print(description(load_tokenizer(parser.parse_args().folder)))


if __name__ == "__main__":
    main()
