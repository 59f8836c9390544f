"""What a masked language model makes of held-out text: log-likelihood and accuracy of masked tokens.

Every masked position shows <mask>. The 80/10/10 corruption of BERT regularises training; an evaluation measures
reconstruction, where a token left in place would be read off and a random one would add noise of its own.
"""
# B documents of a batch, L tokens of the longest, D hidden size, M masked tokens, V vocabulary
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import cross_entropy
from tqdm import tqdm
from transformers import ModernBertForMaskedLM

from mmbert.heldout import HeldoutLanguage, MaskedDocument, bits_per_byte, mask_documents, num_maskable_tokens
from mmbert.tokenizer import Tokenizer


@dataclass(frozen=True)
class LanguageScore:
    """Sums over the masked tokens of one language, and what turns them into bits per byte.

    Attributes:
        nll: negative log-likelihood of all masked tokens together, in nats.
        correct: masked tokens whose likeliest prediction is right.
        masked_tokens: number of masked tokens.
        maskable_tokens: tokens of the text, each counted once.
        text_bytes: UTF-8 bytes of the text.
    """

    nll: float
    correct: int
    masked_tokens: int
    maskable_tokens: int
    text_bytes: int

    @property
    def bits_per_byte(self) -> float:
        """See `bits_per_byte`."""
        return bits_per_byte(self.nll / self.masked_tokens, self.maskable_tokens, self.text_bytes)

    @property
    def accuracy(self) -> float:
        """Share of the masked tokens that the model predicts right."""
        return self.correct / self.masked_tokens


def batches_of_like_length(documents: list[MaskedDocument], batch_tokens: int) -> Iterator[list[MaskedDocument]]:
    """Batches of at most `batch_tokens` tokens with padding, longest documents first.

    The first batch is the largest, so that memory runs out at once or never. A document longer than `batch_tokens`
    makes a batch of its own.
    """
    batch: list[MaskedDocument] = []
    for document in sorted(documents, key=lambda document: -len(document.input_ids)):
        if batch and (len(batch) + 1) * len(batch[0].input_ids) > batch_tokens:
            yield batch
            batch = []
        batch.append(document)
    if batch:
        yield batch


def pad_batch(batch: list[MaskedDocument], tokenizer: Tokenizer) -> tuple[Tensor, Tensor, Tensor]:
    """Stack a batch: token ids as written (B, L), attention_mask (B, L), masked (B, L) booleans."""
    shape = (len(batch), max(len(document.input_ids) for document in batch))
    original = np.full(shape, tokenizer.pad_token_id, dtype=np.int64)
    attention_mask = np.zeros(shape, dtype=np.int64)
    masked = np.zeros(shape, dtype=bool)
    for row, document in enumerate(batch):
        original[row, : len(document.input_ids)] = document.input_ids
        attention_mask[row, : len(document.input_ids)] = 1
        masked[row, document.masked] = True
    return torch.from_numpy(original), torch.from_numpy(attention_mask), torch.from_numpy(masked)


def masked_logits(model: ModernBertForMaskedLM, input_ids: Tensor, attention_mask: Tensor, masked: Tensor) -> Tensor:
    """Logits of the masked positions alone, (M, V) in row-major order.

    The head and the decoder see one token in seven; the model's own forward would compute all (B, L, V) logits.
    """
    hidden = model.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state  # (B, L, D)
    return model.decoder(model.head(hidden[masked]))


def score_batch(
    model: ModernBertForMaskedLM, batch: list[MaskedDocument], tokenizer: Tokenizer
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Negative log-likelihood in nats (M,) and correctness (M,) of a batch's masked tokens, document by document."""
    original, attention_mask, masked = (tensor.to(model.device) for tensor in pad_batch(batch, tokenizer))
    input_ids = original.masked_fill(masked, tokenizer.mask_token_id)
    logits = masked_logits(model, input_ids, attention_mask, masked)  # (M, V)
    targets = original[masked]  # (M,)
    nll = cross_entropy(logits, targets, reduction="none")
    return nll.double().cpu().numpy(), (logits.argmax(dim=-1) == targets).cpu().numpy()


@torch.inference_mode()
def score_languages(
    model: ModernBertForMaskedLM, languages: list[HeldoutLanguage], tokenizer: Tokenizer, batch_tokens: int
) -> dict[str, LanguageScore]:
    """Score every language; documents of all languages share batches, the sums are kept apart.

    Args:
        batch_tokens: tokens of a batch, padding included; changes speed and memory, not the numbers.

    Raises:
        ValueError: a language has no maskable token.
    """
    maskable = [num_maskable_tokens(heldout, tokenizer) for heldout in languages]
    nll, correct, counts = (np.zeros(len(languages)) for _ in range(3))
    documents = mask_documents(languages, tokenizer)
    num_tokens = sum(len(document.input_ids) for document in documents)
    with tqdm(total=num_tokens, unit="tok", unit_scale=True, disable=None) as progress:
        for batch in batches_of_like_length(documents, batch_tokens):
            owner = np.repeat([document.language for document in batch], [len(document.masked) for document in batch])
            batch_nll, batch_correct = score_batch(model, batch, tokenizer)
            np.add.at(nll, owner, batch_nll)
            np.add.at(correct, owner, batch_correct)
            np.add.at(counts, owner, 1)
            progress.update(sum(len(document.input_ids) for document in batch))
    return {
        heldout.language: LanguageScore(float(nll[i]), int(correct[i]), int(counts[i]), maskable[i], heldout.text_bytes)
        for i, heldout in enumerate(languages)
    }
