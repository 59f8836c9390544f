"""The arithmetic of a plan: steps, parameters, bytes and checkpoints. Pure functions of numbers."""
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import ceil

from mmbert.config import CheckpointConfig, ModelConfig
from mmbert.head_chunks import rows_of_a_chunk
from mmbert.schedules import BatchSizes

FP32, BF16 = 4, 2  # bytes


@dataclass(frozen=True)
class Stretch:
    """Steps with one size of the global batch."""

    batch_rows: int
    steps: int


def stretches(sizes: BatchSizes, needed_rows: float) -> list[Stretch]:
    """The steps of a phase that ends with the first whole batch at which `needed_rows` are consumed."""
    found = []
    for (start, end), size in zip(pairwise([*sizes.starts, float("inf")]), sizes.sizes, strict=True):
        if needed_rows > start:
            steps = ceil((min(needed_rows, end) - start) / size - 1e-9)
            found.append(Stretch(size, steps))
    return found


def num_parameters(model: ModelConfig) -> int:
    """Parameters of MmBertForMaskedLM; the decoder's weight is the embeddings'."""
    hidden, inner, layers = model.hidden_size, model.intermediate_size, model.num_hidden_layers
    layer = 4 * hidden * hidden + 3 * inner * hidden + 2 * hidden
    encoder = layers * layer - hidden + 2 * hidden  # the first layer has one norm; embeddings and end have one each
    head = hidden * hidden + hidden + model.vocab_size
    return model.vocab_size * hidden + encoder + head


def activation_bytes(model: ModelConfig, tokens: int, masked: int) -> int:
    """What autograd keeps of one microbatch in bf16 autocast, but for the head's loss and the weights' bf16 copies.

    Of the layers as torch.compile takes them, but for what it should form anew instead. Measured on the CPU alone.

    Args:
        tokens: of the microbatch.
        masked: of them are to be predicted; only these go on behind the last layer's attention.
    """
    hidden, inner, layers = model.hidden_size, model.intermediate_size, model.num_hidden_layers
    norm = FP32 * hidden + 2 * FP32  # its input, and mean and deviation
    projection = BF16 * hidden + BF16 * 3 * hidden + BF16 * 2 * hidden  # input; queries, keys, values; q and k rotated
    attention = BF16 * hidden + FP32 * model.num_attention_heads  # output, log of the sums of exponents
    dropout = hidden if model.attn_out_dropout else 0
    mlp = BF16 * hidden + BF16 * 2 * inner + BF16 * inner  # input; both branches; product
    activated = BF16 * inner  # of the last layer, which is not compiled
    before, after = norm + projection + attention, dropout + norm + mlp
    rope = 2 * 2 * FP32 * (hidden // model.num_attention_heads // 2)  # cos and sin, of global and local layers
    embeddings = norm + 8
    every_token = layers * before - norm + (layers - 1) * after + rope + embeddings
    head = norm + 2 * BF16 * hidden + norm + norm  # final norm; dense layer's input and output; norm; loss's gradient
    return tokens * every_token + masked * (after + activated + BF16 * hidden + 8 + head)


@dataclass(frozen=True)
class Memory:
    """Bytes on one GPU."""

    weights: int
    gradients: int
    moments: int
    buckets: int
    half_weights: int
    activations: int
    head: int

    @property
    def total(self) -> int:
        """All of it at once."""
        return sum(vars(self).values())


def memory(model: ModelConfig, microbatch_tokens: int, mask_rate: float, gpus: int) -> Memory:
    """What training takes of one GPU's memory in bf16, without the allocator's and the libraries' own.

    The head holds its gradient of the embeddings, in bf16 them and what a chunk adds to it, and a chunk of logits in
    fp32 and, twice, in bf16.
    """
    parameters, masked = num_parameters(model), round(mask_rate * microbatch_tokens)
    matrices = parameters - model.vocab_size * (model.hidden_size + 1)
    chunk = rows_of_a_chunk(masked, model.vocab_size, "cuda")
    embeddings = model.vocab_size * model.hidden_size
    return Memory(
        weights=FP32 * parameters,
        gradients=FP32 * parameters,
        moments=2 * FP32 * parameters,
        buckets=FP32 * parameters if gpus > 1 else 0,  # DistributedDataParallel's copy of the gradients
        half_weights=BF16 * matrices,
        activations=activation_bytes(model, microbatch_tokens, masked),
        head=(FP32 + 2 * BF16) * embeddings + chunk * model.vocab_size * (FP32 + 2 * BF16),
    )


def count_checkpoints(rule: CheckpointConfig, duration: int, step_tokens: float) -> tuple[int, int]:
    """How many checkpoints of a phase stay at its end, and the most there are at a time."""
    return checkpoints_that_stay(saves(duration, rule.interval, step_tokens), rule.keep, rule.keep_every)


def saves(duration: int, interval: int, step_tokens: float) -> list[int]:
    """Tokens at the end of every step that saves a checkpoint: the first behind each multiple, and the last."""
    last = ceil(duration / step_tokens)
    if interval < step_tokens:  # all; an interval without its unit, `100` for 100M, would have billions of multiples
        steps: Iterable[int] = range(1, last + 1)
    else:
        multiples = range(interval, duration + interval, interval)
        steps = sorted({min(ceil(multiple / step_tokens), last) for multiple in multiples})
    return [round(step * step_tokens) for step in steps]


def checkpoints_that_stay(saved: Sequence[int], keep: int, keep_every: int | None) -> tuple[int, int]:
    """How many of these stay at the end, and the most there are at a time, one that is being written included."""
    lasting = 0
    before = 0
    milestones: list[int] = []
    most = 0
    for number, tokens in enumerate(saved):
        if keep_every is not None and tokens // keep_every > before // keep_every:
            milestones.append(number)
        before = tokens
        most = max(most, lasting + 1)
        lasting = min(keep, number + 1) + bisect_right(milestones, number - keep)
    return lasting, most
