"""Attention inside each document of a packed batch: FlashAttention's kernels on a GPU, plain torch elsewhere.

Shapes: T tokens of the batch, M of them whose output is wanted, H heads, K head size. The banded path cuts the stream
into N tiles of B queries, each with R keys in its reach: left + B + right, rounded up to C tiles of B keys.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from importlib import import_module
from importlib.util import find_spec
from inspect import signature
from itertools import accumulate
from typing import Any, Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

log = logging.getLogger(__name__)

Kernel = Literal["cpu", "flash_attn", "torch_varlen", "torch_flash"]
GPU_KERNELS: tuple[Kernel, ...] = ("flash_attn", "torch_varlen", "torch_flash")
"""The best first. torch's own are FlashAttention-2 too; `torch_varlen` is its public function, `torch_flash` what is
below it since torch 2.7. Its neighbour _efficient_attention_forward takes a window too, and loses it in backward."""

Window = tuple[int, int]
"""Keys a query sees to its left and to its right, itself included either way; FlashAttention's `window_size`."""

BLOCK = 32
"""B. A query pays for R keys and sees R - B + 1 of them; below 32 the matrices are too small for MKL."""

GROUP = 32
"""Tiles of one head that the banded path computes at a time: what passes from one product to the next stays in the
cache. Forward and backward of 3,756 tokens, 4 heads of 64, two threads of an Intel Xeon (AVX-512): 14.4 ms, and 17.2
with 16 tiles, 15.7 with 64, 16.5 with all."""


@dataclass(frozen=True, eq=False)
class Packing:
    """Where the documents of a flat batch lie; built once per batch and shared by all layers.

    Attributes:
        cu_seqlens: (documents + 1,) int32, first token of each document, and T at the end.
        max_seqlen: tokens of the longest document, or a bound on it.
        lengths: tokens of each document.
        positions: (T,) the place of each token in its document, from 0.
    """

    cu_seqlens: Tensor
    max_seqlen: int
    lengths: list[int]
    positions: Tensor
    _masks: dict[tuple[Window, torch.dtype], Tensor] = field(default_factory=dict, repr=False)

    @classmethod
    def from_lengths(cls, lengths: Sequence[int], device: torch.device, max_seqlen: int | None = None) -> Self:
        """Lay documents of these lengths end to end, without waiting for the device.

        Args:
            lengths: tokens of each document.
            device: where attention runs.
            max_seqlen: a bound on the lengths that stays the same from batch to batch; None takes the longest.

        Raises:
            ValueError: there is no document, or an empty one, or one longer than `max_seqlen`.
        """
        if not lengths or min(lengths) < 1:
            raise ValueError(f"a batch must have documents, and no empty document, got {list(lengths)}")
        longest = max(lengths)
        if max_seqlen is None:
            max_seqlen = longest
        if longest > max_seqlen:
            raise ValueError(f"a document has {longest} tokens, more than {max_seqlen=}")
        cu_seqlens = torch.tensor([0, *accumulate(lengths)], dtype=torch.int32)
        positions = torch.cat([torch.arange(length) for length in lengths])
        return cls(_send(cu_seqlens, device), max_seqlen, list(lengths), _send(positions, device))

    @cached_property
    def document_ids(self) -> Tensor:
        """(T,) the document of each token; only masks of the banded path ask for it."""
        ids = torch.arange(len(self.lengths)).repeat_interleave(torch.tensor(self.lengths))
        return _send(ids, self.positions.device)

    def mask(self, window: Window, dtype: torch.dtype) -> Tensor:
        """What to add to the scores of the cheaper of the two paths: 0, or minus infinity where a key is not seen.

        (longest, longest) for the loop, (N, B, R) for the band.
        """
        if (window, dtype) not in self._masks:
            build = _loop_visibility if self.loop_is_cheaper(window) else _tile_visibility
            visible = build(self, window)
            mask = torch.zeros(visible.shape, dtype=dtype, device=visible.device)
            self._masks[window, dtype] = mask.masked_fill_(~visible, float("-inf"))
        return self._masks[window, dtype]

    def loop_is_cheaper(self, window: Window) -> bool:
        """Whether a loop over documents costs less than the banded path, where a key costs 1.25 times as much.

        A query meets its whole document in the loop and R keys in the band, 160 for mmBERT's window. CPU time of
        forward and backward, 4,096 tokens, fp32, 4 heads of 64, one thread of a busy AMD EPYC, the least of 15: loop
        38, 55, 57, 67, 76 ms for documents of 64, 128, 160, 192, 224 tokens, band 60 to 68 ms for all.
        """
        reach = sum(window) + BLOCK
        return sum(length * length for length in self.lengths) <= 1.25 * reach * sum(self.lengths)


def _send(x: Tensor, device: torch.device) -> Tensor:
    """Only from pinned memory does a copy to a GPU not wait for the work queued there."""
    return x.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else x.to(device)


@cache
def resolve_kernel(name: Kernel | Literal["auto"], device: torch.device) -> Kernel:
    """Turn the configuration's `attention` into the kernel that serves on `device`; log it once, with the reason.

    Raises:
        ValueError: the kernel that is asked for, or each that `auto` may take, cannot run.
    """
    on_gpu = device.type == "cuda"
    if name not in ("auto", "cpu") and not on_gpu:
        raise ValueError(f"attention: {name} needs a GPU, the model is on {device}; set attention: cpu")
    candidates: tuple[Kernel, ...] = (name,) if name != "auto" else GPU_KERNELS if on_gpu else ("cpu",)
    refused: list[str] = []
    for kernel in candidates:
        obstacle = _obstacle(kernel)
        if obstacle is None:
            reason = "; ".join(refused) or ("the first choice" if on_gpu else "no GPU")
            reason = reason if name == "auto" else "as asked"
            log.info("attention: %s on %s runs the kernel %s (%s)", name, device, kernel, reason)
            return kernel
        refused.append(f"{kernel}: {obstacle}")
    remedy = "or set attention: cpu (plain torch, slower)"
    raise ValueError(f"attention: {name} cannot run on {device}: {'; '.join(refused)}; {remedy}")


def _obstacle(kernel: Kernel) -> str | None:
    """Why this environment cannot run `kernel`, and the remedy; None if it can."""
    if kernel == "flash_attn" and find_spec("flash_attn") is None:
        return "the package is not installed, run `pip install --no-build-isolation -r requirements-gpu.txt`"
    if kernel == "torch_varlen":
        module = "torch.nn.attention.varlen"
        if find_spec(module) is None or "window_size" not in signature(import_module(module).varlen_attn).parameters:
            return f"torch {torch.__version__} has no varlen_attn with windows, take 2.11 or later"
    if kernel == "torch_flash":
        return _schema_obstacle(torch.ops.aten._flash_attention_forward.default._schema)
    return None


def _schema_obstacle(schema: torch.FunctionSchema) -> str | None:
    """Why the call in _torch_flash, which names its arguments, would not fit `schema`; newer torch adds some.

    One with a default may be left out. One without is unknown here and may change the numbers.
    """
    names = {argument.name for argument in schema.arguments}
    needed = {argument.name for argument in schema.arguments if not argument.has_default_value()}
    known = {"query", "key", "value", "cum_seq_q", "cum_seq_k", "max_q", "max_k", "dropout_p", "is_causal"}
    known |= {"return_debug_mask", "window_size_left", "window_size_right"}
    if needed <= known <= names:
        return None
    difference = f"lacks {sorted(known - names)} and demands {sorted(needed - known)}"
    return f"{schema.name} of torch {torch.__version__} {difference}, install flash_attn"


def varlen_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    packing: Packing,
    window: Window | None,
    kernel: Kernel,
    wanted: Tensor | None = None,
) -> Tensor:
    """Attend in both directions inside each document.

    Args:
        q, k, v: (T, H, K), queries and keys already rotated.
        packing: where the documents lie.
        window: keys seen to the left and right of a query; None for the whole document.
        kernel: from resolve_kernel.
        wanted: (M,) ascending, the tokens whose output is wanted; None for all. Without a window only they are
            queries; a document may have none.

    Returns:
        (T, H, K), or (M, H, K), in the dtype of q.

    Raises:
        ValueError: a GPU kernel is given fp32.
    """
    if wanted is not None and window is not None:
        # A kernel places a window by the query's place among all of its document.
        return varlen_attention(q, k, v, packing, window, kernel).index_select(0, wanted)
    cu_seqlens_q = packing.cu_seqlens
    if wanted is not None:
        q = q.index_select(0, wanted)
        cu_seqlens_q = torch.searchsorted(wanted, cu_seqlens_q.to(wanted.dtype), out_int32=True)
    if kernel != "cpu":
        if q.dtype not in (torch.bfloat16, torch.float16):
            raise ValueError(f"attention: {kernel} cannot run in {q.dtype}; set precision: amp_bf16")
        attend = {"flash_attn": _flash_attn, "torch_varlen": _torch_varlen, "torch_flash": _torch_flash}[kernel]
        return attend(q, k, v, packing, cu_seqlens_q, (-1, -1) if window is None else window)
    if window is None or packing.loop_is_cheaper(window):
        lengths_q = packing.lengths if wanted is None else cu_seqlens_q.diff().tolist()
        return _loop_attention(q, k, v, packing, lengths_q, window)
    # Half precision is computed in fp32, whatever autocast says: the copies that the band needs anyway convert.
    mask = packing.mask(window, torch.promote_types(q.dtype, torch.float32))
    return _BandedAttention.apply(q, k, v, mask, window[0])


def _flash_attn(
    q: Tensor, k: Tensor, v: Tensor, packing: Packing, cu_seqlens_q: Tensor, window_size: Window
) -> Tensor:
    from flash_attn import flash_attn_varlen_func  # a GPU-only package

    return flash_attn_varlen_func(
        q, k, v,
        cu_seqlens_q=cu_seqlens_q, cu_seqlens_k=packing.cu_seqlens,
        max_seqlen_q=packing.max_seqlen, max_seqlen_k=packing.max_seqlen,
        window_size=window_size,
    )  # fmt: skip


def _torch_varlen(
    q: Tensor, k: Tensor, v: Tensor, packing: Packing, cu_seqlens_q: Tensor, window_size: Window
) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn  # not in every torch

    cu_seqlens, max_seqlen = packing.cu_seqlens, packing.max_seqlen
    return varlen_attn(q, k, v, cu_seqlens_q, cu_seqlens, max_seqlen, max_seqlen, window_size=window_size)


def _torch_flash(
    q: Tensor, k: Tensor, v: Tensor, packing: Packing, cu_seqlens_q: Tensor, window_size: Window
) -> Tensor:
    output, *_ = torch.ops.aten._flash_attention_forward(
        query=q, key=k, value=v,
        cum_seq_q=cu_seqlens_q, cum_seq_k=packing.cu_seqlens,
        max_q=packing.max_seqlen, max_k=packing.max_seqlen,
        dropout_p=0.0, is_causal=False, return_debug_mask=False,
        window_size_left=window_size[0], window_size_right=window_size[1],
    )  # fmt: skip
    return output


def _loop_attention(
    q: Tensor, k: Tensor, v: Tensor, packing: Packing, lengths_q: list[int], window: Window | None
) -> Tensor:
    """One kernel call per document. Padding documents into groups was slower at every shape measured.

    So were tiles of queries with oneDNN's products and torch's softmax: 64 GFLOP/s where this has 95, forward and
    backward, for 4,096 tokens in 4 heads of 64 on two threads of an AMD EPYC.
    """
    mask = None if window is None else packing.mask(window, q.dtype)
    outputs = []
    lengths = packing.lengths
    for document in zip(q.split(lengths_q), k.split(lengths), v.split(lengths), strict=True):
        query, key, value = (x.transpose(0, 1).unsqueeze(0) for x in document)  # (1, H, tokens, K)
        length = query.shape[2]
        visible = None if mask is None else mask[:length, :length]
        output = F.scaled_dot_product_attention(query, key, value, attn_mask=visible)
        outputs.append(output.squeeze(0).transpose(0, 1))
    return torch.cat(outputs)


def _loop_visibility(packing: Packing, window: Window) -> Tensor:
    """(longest, longest) bool: the keys each query of one document sees; its corners serve shorter ones."""
    left, right = window
    tokens = torch.arange(max(packing.lengths), device=packing.positions.device)
    offset = tokens - tokens.unsqueeze(1)  # key minus query
    return (offset >= -left) & (offset <= right)


def _tile_visibility(packing: Packing, window: Window) -> Tensor:
    """(N, B, R) bool: the keys in reach that are in the window and in the query's document."""
    left, right = window
    ids = packing.document_ids
    num_tiles = -(-len(ids) // BLOCK)
    reach = -(-(left + right) // BLOCK) * BLOCK + BLOCK
    after = num_tiles * BLOCK - len(ids)
    # The queries that fill up the last tile see each other: a query without any key would give NaN.
    queries = F.pad(ids, (0, after), value=-1).view(num_tiles, BLOCK, 1)
    keys = F.pad(ids, (left, after + reach - BLOCK - left), value=-1).unfold(0, reach, BLOCK).unsqueeze(1)
    key = torch.arange(reach, device=ids.device)
    query = key[:BLOCK].unsqueeze(1)
    in_window = (key >= query) & (key <= query + left + right)  # key 0 lies `left` before query 0
    return (queries == keys) & in_window


class _BandedAttention(torch.autograd.Function):
    """Attention at a cost per token that does not depend on the documents' lengths.

    Tiles overlap in keys but not in queries, so tiles of keys are views of a padded stream. The probabilities,
    H x R numbers a token, are kept: forming them anew would make backward 30 % longer.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor, left: int) -> Tensor:
        num_tiles, block, reach = mask.shape
        num_tokens, num_heads, head_dim = q.shape
        num_queries, edge = num_tiles * block, reach - block
        after = num_queries - num_tokens + edge
        queries = _by_head(q, mask.dtype, edge, after)  # backward looks for queries beyond both ends
        keys, values = (_by_head(x, mask.dtype, left, after - left) for x in (k, v))
        probabilities = mask.new_empty(num_heads, *mask.shape)
        output = mask.new_empty(num_heads, num_tiles, block, head_dim)
        query_tiles = _tiles(queries[:, edge : edge + num_queries], block)
        key_tiles, value_tiles = _tiles(keys, reach), _tiles(values, reach)
        for start in range(0, num_tiles, GROUP):
            tiles = slice(start, start + GROUP)
            scores = torch.empty_like(mask[tiles])
            for head in range(num_heads):
                probability = probabilities[head, tiles]
                query, key, value = (x[head, tiles] for x in (query_tiles, key_tiles, value_tiles))
                torch.baddbmm(mask[tiles], query, key.mT, alpha=head_dim**-0.5, out=scores)
                torch.softmax(scores, dim=-1, out=probability)
                torch.bmm(probability, value, out=output[head, tiles])
        ctx.save_for_backward(queries, keys, values, probabilities)
        ctx.left, ctx.num_tokens = left, num_tokens
        return output.flatten(1, 2)[:, :num_tokens].transpose(0, 1).to(q.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        queries, keys, values, probabilities = ctx.saved_tensors
        num_heads, num_tiles, block, reach = probabilities.shape
        head_dim = queries.shape[-1]
        num_queries, edge, scale = num_tiles * block, reach - block, head_dim**-0.5
        grad_outputs = _by_head(grad_output, queries.dtype, edge, num_queries - ctx.num_tokens + edge)
        grad_query_tiles = queries.new_empty(num_heads, num_tiles, block, head_dim)
        # Of keys there are C - 1 tiles more than of queries. Each is reached by R queries: those of C tiles.
        grad_key_tiles, grad_value_tiles = (_tiles(torch.zeros_like(x), block) for x in (keys, values))
        queries_of_keys, grad_outputs_of_keys = _tiles(queries, reach), _tiles(grad_outputs, reach)
        grad_output_tiles = _tiles(grad_outputs[:, edge : edge + num_queries], block)
        key_tiles, value_tiles = _tiles(keys, reach), _tiles(values, reach)
        for start in range(0, num_tiles, GROUP):
            tiles = slice(start, min(start + GROUP, num_tiles))
            num = tiles.stop - start
            reached = slice(start, tiles.stop + edge // block)
            if start == 0 or num < GROUP:
                probability_by_query, probability_by_key = _two_views(num, block, reach, queries.dtype)
                grad_score_by_query, grad_score_by_key = _two_views(num, block, reach, queries.dtype)
                grad_probability = torch.empty_like(probabilities[0, tiles])
            for head in range(num_heads):
                probability, grad_query = probabilities[head, tiles], grad_query_tiles[head, tiles]
                torch.bmm(grad_output_tiles[head, tiles], value_tiles[head, tiles].mT, out=grad_probability)
                grad_score = torch._softmax_backward_data(grad_probability, probability, -1, probability.dtype)
                torch.baddbmm(grad_query, grad_score, key_tiles[head, tiles], beta=0, alpha=scale, out=grad_query)
                grad_score_by_query.copy_(grad_score)
                grad_key_tiles[head, reached].baddbmm_(grad_score_by_key, queries_of_keys[head, reached], alpha=scale)
                probability_by_query.copy_(probability)
                grad_value_tiles[head, reached].baddbmm_(probability_by_key, grad_outputs_of_keys[head, reached])
        inside = slice(ctx.left, ctx.left + ctx.num_tokens)
        grads = (
            grad_query_tiles.flatten(1, 2)[:, : ctx.num_tokens],
            grad_key_tiles.flatten(1, 2)[:, inside],
            grad_value_tiles.flatten(1, 2)[:, inside],
        )
        return *(x.transpose(0, 1).to(grad_output.dtype) for x in grads), None, None


def _two_views(num_tiles: int, block: int, reach: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The same memory, zeros, by tiles of queries (N, B, R) and by the tiles of keys that they reach (N + C - 1, B, R).

    The second gives the keys' gradients in one product, which adds up what C tiles of queries give. A tile of queries
    begins B keys after the one before it; where it also begins B (R + 1) numbers after it, the R queries of a tile of
    keys lie R numbers apart, as rows of one matrix. Before the first tile and behind the last are C - 1 of zeros.
    """
    edge = reach - block
    num_edge_tiles = edge // block
    step = block * (reach + 1)
    memory = torch.zeros((num_tiles + 2 * num_edge_tiles) * step, dtype=dtype)
    by_query = memory.as_strided((num_tiles, block, reach), (step, reach, 1), num_edge_tiles * step)
    by_key = memory.as_strided((num_tiles + num_edge_tiles, block, reach), (step, 1, reach), edge)
    return by_query, by_key


def _by_head(x: Tensor, dtype: torch.dtype, before: int, after: int) -> Tensor:
    """(T, H, K) to (H, before + T + after, K), zero outside x."""
    num_tokens, num_heads, head_dim = x.shape
    padded = x.new_empty(num_heads, before + num_tokens + after, head_dim, dtype=dtype)
    padded[:, :before] = 0
    padded[:, before + num_tokens :] = 0
    padded[:, before : before + num_tokens] = x.transpose(0, 1)
    return padded


def _tiles(x: Tensor, length: int) -> Tensor:
    """Views of `length` rows, one each BLOCK, which may overlap: (H, tokens, K) -> (H, tiles, length, K)."""
    return x.unfold(1, length, BLOCK).mT
