"""Copy a tokenizer to a folder that keeps the contract of mmbert.tokenizer, and say what had to be changed.

    python -m data_prep.adopt_tokenizer its/folder data/my-tokenizer

Its vocabulary and ids stay as they are, and so do the names of its tokens: ModernBERT's `[MASK]`, for one, is still
called so. A Unigram model, XLM-R's for one, makes a special token of every text that spells it; here it no longer does,
by these tokens' scores. In some of Gemma 2's published files, for one, `<mask>` has its id but is no special token, and
no file of transformers names it as the mask token; and the template has no `<eos>`.
"""
import argparse
import json
from pathlib import Path
from typing import Any

from mmbert.command import errors_in_one_line
from mmbert.tokenizer import MODEL_INPUT_NAMES, adopt_tokenizer, named_tokens

TOLD = 100  # characters of a value


def read(path: Path) -> dict[str, Any]:
    """A JSON object, empty where there is no file."""
    values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return values


def template(post_processor: dict[str, Any] | None, of: str = "single") -> str:
    """`<bos> A <eos>`, or what else is written around a text; or, `of` a "pair", around two."""
    if post_processor is None or of not in post_processor:
        return f"{post_processor and post_processor['type']}"
    return " ".join(next(iter(piece.values()))["id"] for piece in post_processor[of])


def pieces(spec: dict[str, Any]) -> list[list[Any]]:
    """Pieces and scores of a Unigram model; no other has scores."""
    return list(spec["model"]["vocab"]) if spec["model"].get("type") == "Unigram" else []


def changes(source: Path, target: Path) -> list[str]:
    """What differs between two tokenizer folders, one line each."""
    before, after = (read(folder / "tokenizer.json") for folder in (source, target))
    entries = {token["content"]: token for token in before["added_tokens"]}
    pairs: list[tuple[str, Any, Any]] = [
        (f"{token['content']} (id {token['id']}): {key}", entries[token["content"]].get(key), value)
        for token in after["added_tokens"]
        for key, value in token.items()
    ]
    pairs += [
        (f"{piece}: score", score, now)
        for (piece, score), (_, now) in zip(pieces(before), pieces(after), strict=True)
    ]
    wrapped, wraps = before.get("post_processor"), after["post_processor"]
    pairs.append(("template", template(wrapped), template(wraps)))
    if template(wrapped) == template(wraps):  # else it goes without saying that pairs are wrapped otherwise, too
        pairs.append(("template of a pair", template(wrapped, "pair"), template(wraps, "pair")))
    pairs += [(key, before.get(key), None) for key in ("truncation", "padding")]
    config = read(source / "tokenizer_config.json")
    names = named_tokens(config)
    pairs += [
        (key, names.get(key), token) for key, token in named_tokens(read(target / "tokenizer_config.json")).items()
    ]
    pairs.append(("model_input_names", config.get("model_input_names"), MODEL_INPUT_NAMES))
    return [f"{what}: {str(old)[:TOLD]} -> {new}" for what, old, new in pairs if old != new]


@errors_in_one_line()
def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m data_prep.adopt_tokenizer", description="Copy a tokenizer to a folder that keeps our contract."
    )
    parser.add_argument("source", type=Path, help="folder with a tokenizer.json")
    parser.add_argument("target", type=Path, help="tokenizer folder to make")
    arguments = parser.parse_args()
    tokenizer = adopt_tokenizer(arguments.source, arguments.target)
    found = changes(arguments.source, arguments.target)
    print("\n".join(["vocabulary and ids are as they were; changed:", *found] if found else ["nothing was changed"]))
    print(f"{arguments.target}: {tokenizer.vocab_size:,} tokens, digest {tokenizer.digest}")


if __name__ == "__main__":
    main()
