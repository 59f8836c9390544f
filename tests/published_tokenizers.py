"""A tokenizer as ModernBERT publishes its own: byte-level, [CLS] and [SEP] around a text, special tokens at the end."""
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
