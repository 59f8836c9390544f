"""The peers of the loader benchmark: ModernBERT's packer with its masking, and Hugging Face's masking collator."""
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from streaming import LocalDataset
from transformers import DataCollatorForLanguageModeling, PreTrainedTokenizerFast

from mmbert.benchmark.result import Gate
from mmbert.benchmark.synthetic_rows import MASK_RATE, SEED, Shape
from mmbert.tokenizer import Tokenizer

# Documents of an incoming batch and the packer's buffer, in multiples of the rows of a batch; its own default is 1, 5.
PACKER_SETTINGS = ((1, 5), (1, 2), (2, 10), (4, 20), (5, 10))
PACKER, HUGGING_FACE = "modernbert", ("hf", "hf-patched", "hf-tuned")
HF_BATCHES = 5  # of a run of Hugging Face


class ConstantLength(PreTrainedTokenizerFast):
    """A tokenizer that knows how many tokens it has; the original counts them anew for every batch."""

    length = 0

    def __len__(self) -> int:
        return self.length


class DocumentBatches:
    """`size` documents at a time, read one by one as ModernBERT's loader does, without DataLoader's cost."""

    def __init__(self, documents: LocalDataset, size: int) -> None:
        self.documents, self.size = documents, size

    def __len__(self) -> int:
        return -(-len(self.documents) // self.size)

    def __iter__(self) -> Iterator[list[dict[str, Any]]]:
        for first in range(0, len(self.documents), self.size):
            yield [self.documents[i] for i in range(first, min(first + self.size, len(self.documents)))]


@dataclass
class Peers:
    """All peers over one folder of documents.

    Attributes:
        tokens: name -> real tokens of one run, once it has run.
        facts: name -> fill, and a note of how it was tuned.
    """

    folder: Path
    tokenizer: Tokenizer
    shape: Shape
    packer: ModuleType | None
    tokens: dict[str, int] = field(default_factory=dict)
    facts: dict[str, dict[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.documents = LocalDataset(local=str(self.folder))
        self.packer_setting = PACKER_SETTINGS[0]
        slow = PreTrainedTokenizerFast.from_pretrained(self.tokenizer.folder)
        patched = PreTrainedTokenizerFast.from_pretrained(self.tokenizer.folder)
        patched.__class__ = ConstantLength
        patched.length = len(slow)
        self.collators = {
            name: DataCollatorForLanguageModeling(tokenizer, mlm_probability=MASK_RATE, return_tensors=kind)
            for name, tokenizer, kind in (
                ("hf", slow, "pt"), ("hf-patched", patched, "pt"), ("hf-tuned", patched, "np")
            )
        }
        sizes = [len(self.documents[index]["input_ids"]) for index in range(len(self.documents))]
        per_batch = max(1, round(len(sizes) / self.shape.batches))  # so that a batch has as many tokens as ours
        count = min(len(sizes), per_batch * HF_BATCHES)
        self.hf_order = [list(range(first, min(first + per_batch, count))) for first in range(0, count, per_batch)]
        by_length = sorted(range(count), key=sizes.__getitem__)
        self.sorted_order = [by_length[first : first + per_batch] for first in range(0, count, per_batch)]
        self.hf_tokens = sum(sizes[:count])

    def candidates(self) -> dict[str, Callable[[], object]]:
        """Name -> one run of the peer."""
        found: dict[str, Callable[[], object]] = {}
        if self.packer is not None:
            found["modernbert"] = self.modernbert
        found["hf"] = lambda: self.hugging_face("hf", self.hf_order)
        found["hf-patched"] = lambda: self.hugging_face("hf-patched", self.hf_order)
        found["hf-tuned"] = lambda: self.hugging_face("hf-tuned", self.sorted_order)
        return found

    def gates(self, tokens: int) -> list[Gate]:
        """Run each once, tune the packer, and compare how many tokens came out with how many were written."""
        for candidate in self.candidates().values():
            candidate()
        if self.packer is not None:
            self.tune_packer()
        expected = {"modernbert": tokens}
        return [
            # What does not fill the packer's last batch it drops, by design.
            Gate(f"{name}: share of the tokens missing", abs(1 - found / expected.get(name, self.hf_tokens)),
                 0.02 if name == "modernbert" else 0.0)
            for name, found in self.tokens.items()
        ]  # fmt: skip

    def tune_packer(self) -> None:
        """Choose the setting with the least processor time per token, of two runs each."""
        costs = {}
        for setting in PACKER_SETTINGS:
            self.packer_setting = setting
            runs = []
            for _ in range(2):
                began = time.process_time()
                self.modernbert()
                runs.append((time.process_time() - began) / max(1, self.tokens["modernbert"]))
            costs[setting] = min(runs)
        self.packer_setting = min(costs, key=costs.__getitem__)
        self.modernbert()

    def modernbert(self) -> None:
        """Documents, packed to whole microbatches of our batch's size and masked."""
        assert self.packer is not None
        documents, buffer = (self.shape.rows * factor for factor in self.packer_setting)
        packed = self.packer.GreedyBestFitSequencePacker.from_composer(
            DocumentBatches(self.documents, documents),
            batch_size=documents,
            micro_batch_size=self.shape.rows,
            max_seq_len=self.shape.row_length,
            buffer_size=buffer,
            pad_token_id=self.tokenizer.pad_token_id,
            mask_token_id=self.tokenizer.mask_token_id,
            mask_prob=MASK_RATE,
            seed=SEED,
        )
        slots = 0
        for batch in packed:
            slots += batch["input_ids"].numel()
        tokens = packed._token_count  # it counts them itself; counting again would cost it time
        self.tokens["modernbert"] = tokens
        self.facts["modernbert"] = {
            "fill": tokens / max(1, slots),
            "note": f"no worker or buffer thread, LocalDataset, {documents} documents at a time, buffer {buffer}",
        }

    def hugging_face(self, name: str, order: Sequence[Sequence[int]]) -> None:
        """Batches of documents, padded to the longest and masked."""
        collate, slots, tokens = self.collators[name], 0, 0
        for batch in order:
            features = [{"input_ids": self.documents[index]["input_ids"].astype(np.int64)} for index in batch]
            tokens += sum(len(feature["input_ids"]) for feature in features)
            masked = collate(features)
            slots += int(np.prod(masked["input_ids"].shape))
        self.tokens[name] = tokens
        tuned = {"hf": "", "hf-patched": ", len(tokenizer) a constant",
                 "hf-tuned": ", len(tokenizer) a constant, documents sorted by length, NumPy"}  # fmt: skip
        self.facts[name] = {"fill": tokens / slots, "note": f"no worker{tuned[name]}"}
