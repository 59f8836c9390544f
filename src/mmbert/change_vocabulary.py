"""Give a published ModernBERT another tokenizer: a folder of the same kind, for `mmbert.import_from_hf`.

    python -m mmbert.change_vocabulary --model mmBERT-base --tokenizer data/mytokenizer --output mmBERT-base-mine

A token that both vocabularies have keeps its row of the embeddings and its bias, and so does each of the five special
ones, whatever it is called. Any other gets the mean of those of the old tokens that its text is spelled with (Gee et
al. 2022, arXiv:2402.09977). All other weights stay bit for bit; vocabulary.json counts what was done.
"""

import argparse
import json
import re
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from tokenizers.pre_tokenizers import ByteLevel
from torch import Tensor

from mmbert.atomic import partial_folder, publish_folder
from mmbert.checkpoint_files import write_tensors
from mmbert.command import errors_in_one_line, local_folder, refuse_existing
from mmbert.convert_to_hf import huggingface_config, write_config, write_tokenizer
from mmbert.file_contents import sha256_of
from mmbert.import_from_hf import read_model
from mmbert.published_model import DTYPES, EMBEDDINGS, VOCABULARY, digests_of, read_config
from mmbert.tokenizer import Tokenizer, adopt_tokenizer, load_tokenizer

BIAS = "decoder.bias"

LETTERS = sorted(ByteLevel.alphabet())
BYTES = dict(zip(LETTERS, sorted(range(256), key=lambda byte: chr(byte) not in LETTERS), strict=True))
"""Letter of a byte-level vocabulary -> the byte that it stands for: itself where it can be printed."""

Meaning = str | bytes | tuple[str]
"""What a token stands for: text, bytes that are not whole characters or a fallback's, or the role of a special one."""


def meanings(tokenizer: Tokenizer) -> list[Meaning]:
    """Of every token. Vocabularies spell one text in several ways, `\u2581born`, `\u0120born` or ` born`."""
    first = tokenizer.encode_batch(["a"])[0].tolist()  # a decoder may take a space from the first token of a text
    every = [first] + [[*first, token_id] for token_id in range(tokenizer.vocab_size)]
    start, *texts = tokenizer.backend.decode_batch(every, skip_special_tokens=False)
    found: list[Meaning] = []
    for token_id, text in enumerate(texts):
        piece, decoded = tokenizer.backend.id_to_token(token_id), text[len(start) :]
        if (byte := re.fullmatch("<0x([0-9A-F]{2})>", piece)) and decoded != piece:
            found.append(bytes.fromhex(byte[1]))
        elif "\ufffd" in decoded and BYTES.keys() >= set(piece):
            found.append(bytes(BYTES[letter] for letter in piece))
        else:
            found.append(decoded)
    for role, token in tokenizer.special_tokens.items():
        found[tokenizer.backend.token_to_id(token)] = (role,)
    return found


def spelled(meaning: str | bytes, tokenizer: Tokenizer, known: dict[Meaning, int]) -> list[int]:
    """The tokens that a text, or bytes, are spelled with; none where the vocabulary lacks a part.

    Where a tokenizer begins each text as after a space, as XLM-R's, a part of a word is spelled as a word.
    """
    if isinstance(meaning, bytes):
        parts: list[Meaning] = [chr(byte) if byte < 128 else bytes([byte]) for byte in meaning]
        return [known[part] for part in parts] if known.keys() >= set(parts) else []
    ids: list[int] = tokenizer.encode_batch([meaning])[0].tolist()
    return [] if tokenizer.unk_token_id in ids else ids


def old_tokens(old: Tokenizer, new: Tokenizer) -> list[list[int]]:
    """For each token of the new vocabulary the old ones that its row is the mean of: one for what both have."""
    theirs = meanings(old)
    # Of equals the last: an added token comes behind the others, and is found in a text before them.
    known = {meaning: token_id for token_id, meaning in enumerate(theirs)}
    found = []
    for token_id, meaning in enumerate(meanings(new)):
        twin = old.backend.token_to_id(new.backend.id_to_token(token_id))
        if twin is not None and theirs[twin] == meaning:  # among equals the one that is also spelled the same
            found.append([twin])
        elif meaning in known:
            found.append([known[meaning]])
        else:
            assert not isinstance(meaning, tuple)  # both tokenizers have all five roles
            found.append(spelled(meaning, old, known))
    return found


def mean_rows(rows: Tensor, numbers: Sequence[Sequence[int]]) -> Tensor:
    """Row i of the result is the mean of those rows that numbers[i] names, of all where it names none.

    A single one is copied bit for bit. rows (V, ...) -> (len(numbers), ...).
    """
    result = rows.new_empty(len(numbers), *rows.shape[1:])
    of_all = rows.mean(dim=0)
    for row, chosen in enumerate(numbers):
        if len(chosen) == 1:
            result[row] = rows[chosen[0]]
        else:
            result[row] = rows[list(chosen)].mean(dim=0) if chosen else of_all
    return result


def own_tokenizer(folder: Path) -> Tokenizer:
    """The model's own, which may not keep the contract, with its vocabulary as it is.

    Raises:
        FileNotFoundError, ValueError: there is none, or it is broken.
    """
    with tempfile.TemporaryDirectory() as name:
        return replace(adopt_tokenizer(folder, Path(name) / "adopted"), folder=folder)


@torch.no_grad()
def change_vocabulary(folder: Path, tokenizer_folder: Path, output: Path) -> dict[str, int]:
    """Write the folder `output`, whole or not at all.

    Args:
        folder: config.json, safetensors and tokenizer.json of a ModernBertForMaskedLM.
        tokenizer_folder: the new tokenizer.
        output: a new folder.

    Returns:
        How many tokens the new vocabulary has of each kind.

    Raises:
        OSError, ValueError: an input is missing or unfit, or `output` exists.
    """
    refuse_existing(output)
    new, written = load_tokenizer(tokenizer_folder), read_config(folder / "config.json")
    old = own_tokenizer(folder)
    stored, model = read_model(folder, written, old)
    numbers = old_tokens(old, new)
    weights: dict[str, Tensor] = dict(model.named_parameters())
    for name in (EMBEDDINGS, BIAS):
        weights[name] = mean_rows(weights[name][: old.vocab_size], numbers)  # without rows of padding
    lengths = Counter(min(len(chosen), 2) for chosen in numbers)
    special = len(new.special_token_ids)
    counts = {"copied": lengths[1] - special, "averaged": lengths[2], "special": special, "unknown": lengths[0]}
    config = huggingface_config(replace(model.config, vocab_size=new.vocab_size), new)
    config.dtype = DTYPES[stored[EMBEDDINGS].dtype]
    record = {
        **counts,
        "model": str(folder),
        "model_sha256": digests_of(stored),
        "old_tokenizer_sha256": sha256_of(folder / "tokenizer.json"),
        "tokenizer_digest": new.digest,
    }
    with partial_folder(output) as partial:
        write_config(config, partial)
        tensors = {name: tensor.to(DTYPES[stored[name].dtype]) for name, tensor in weights.items()}
        write_tensors(partial / "model.safetensors", tensors)
        write_tokenizer(new, partial, model.config.max_position_embeddings)
        (partial / VOCABULARY).write_text(json.dumps(record, indent=2) + "\n")
        publish_folder(partial, output)
    return counts


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Command line of the program."""
    parser = argparse.ArgumentParser(
        prog="python -m mmbert.change_vocabulary", description="Give a published ModernBERT another tokenizer."
    )
    parser.add_argument("--model", type=Path, required=True, help="folder with the model and its tokenizer.json")
    parser.add_argument("--tokenizer", type=Path, required=True, help="the new tokenizer")
    parser.add_argument("--output", type=local_folder, required=True, help="folder to write")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the program; a mistake of the user ends it with one line and exit code 1."""
    options = parse_arguments(arguments)
    with errors_in_one_line():
        counts = change_vocabulary(options.model, options.tokenizer, options.output)
    print(f"{options.output}: {', '.join(f'{count:,} {kind}' for kind, count in counts.items())}")


if __name__ == "__main__":
    main()
