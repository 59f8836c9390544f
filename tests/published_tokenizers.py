"""Tokenizers as others publish their own.

ModernBERT's: byte-level, [CLS] and [SEP] around a text, special tokens at the end. XLM-R's: SentencePiece's Unigram,
which has the special tokens among its pieces.
"""
import json
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

NAMES = {
    "cls_token": "[CLS]",
    "mask_token": "[MASK]",
    "pad_token": "[PAD]",
    "sep_token": "[SEP]",
    "unk_token": "[UNK]",
}


def modernbert_like(folder: Path, texts: list[str], config: dict[str, Any] | None = None) -> Path:
    """A folder with tokenizer.json and tokenizer_config.json, in which `config` stands for `NAMES`."""
    backend = Tokenizer(models.BPE())
    backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=500, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    backend.train_from_iterator(texts, trainer)
    backend.add_tokens([AddedToken(" " * 4, normalized=True)])  # ModernBERT has runs of spaces
    special = [AddedToken(token, lstrip=token == "[MASK]") for token in ("[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]")]
    backend.add_special_tokens(special)
    backend.add_tokens(["[unused0]"])
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(token, backend.token_to_id(token)) for token in ("[CLS]", "[SEP]")],
    )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(backend.to_str())
    settings = {
        "clean_up_tokenization_spaces": True,
        "model_input_names": ["input_ids", "attention_mask"],
        "model_max_length": 8192,
        "tokenizer_class": "PreTrainedTokenizerFast",
        **(NAMES if config is None else config),
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def xlmr_like(folder: Path, pieces: str) -> Path:
    """A folder with tokenizer.json and tokenizer_config.json; a piece for each of these characters, and `struck`."""
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    vocabulary = [(token, 0.0) for token in special] + [(piece, -8.0) for piece in ["\u2581", "struck", *pieces]]
    backend = Tokenizer(models.Unigram([*vocabulary, ("<mask>", 0.0)], unk_id=3))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    backend.add_special_tokens([AddedToken(token, lstrip=token == "<mask>") for token in (*special, "<mask>")])
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    folder.mkdir(parents=True)
    (folder / "tokenizer.json").write_text(backend.to_str())
    names = {"bos_token": "<s>", "cls_token": "<s>", "eos_token": "</s>", "sep_token": "</s>", "unk_token": "<unk>",
             "pad_token": "<pad>", "mask_token": "<mask>"}  # fmt: skip
    (folder / "tokenizer_config.json").write_text(json.dumps(names))
    return folder
