"""Attention within a window, in plain torch, at a cost per token that does not depend on the documents' lengths.

Shapes: T tokens of the batch, H heads, K head size. The stream is cut into N tiles of B queries, each with R keys in
its reach: left + B + right, rounded up to C tiles of B keys. Of keys there are N + C - 1 tiles, the first begins `left`
keys before the stream; each is in the reach of R queries, those of C tiles.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

Window = tuple[int, int]
"""Keys a query sees to its left and to its right, itself included either way; FlashAttention's `window_size`."""

BLOCK = 32
"""B. A query pays for R keys and sees left + 1 + right; below 32 the matrices are too small for MKL."""

GROUP = 32
"""Tiles of one head that are computed at a time: what passes from one product to the next stays in the cache. Forward
and backward of 3,756 tokens, 4 heads of 64, two threads of an Intel Xeon (AVX-512): 14.4 ms, and 17.2 with 16 tiles,
15.7 with 64, 16.5 with all."""


def reach_of(window: Window) -> int:
    """R."""
    return BLOCK + -(-sum(window) // BLOCK) * BLOCK


def tile_visibility(document_ids: Tensor, window: Window) -> Tensor:
    """(N, B, R) bool: the keys in reach that are in the window and in the query's document; document_ids (T,)."""
    left, right = window
    reach = reach_of(window)
    num_tiles = -(-len(document_ids) // BLOCK)
    after = num_tiles * BLOCK - len(document_ids)
    # The queries that fill up the last tile see each other: a query without any key would give NaN.
    queries = F.pad(document_ids, (0, after), value=-1).view(num_tiles, BLOCK, 1)
    keys = F.pad(document_ids, (left, after + reach - BLOCK - left), value=-1).unfold(0, reach, BLOCK).unsqueeze(1)
    key = torch.arange(reach, device=document_ids.device)
    query = key[:BLOCK].unsqueeze(1)
    in_window = (key >= query) & (key <= query + left + right)  # key 0 lies `left` before query 0
    return (queries == keys) & in_window


class BandedAttention(torch.autograd.Function):
    """q, k, v (T, H, K), mask (N, B, R) of 0 and minus infinity, `left` of the window -> (T, H, K).

    Tiles of keys overlap, and are views of a padded stream. Computed in the mask's dtype. The probabilities, H x R
    numbers a token, are kept: forming them anew would make backward 30 % longer.
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
        output = mask.new_empty(num_heads, num_queries, head_dim)
        query_tiles, output_tiles = (_tiles(x, block) for x in (queries[:, edge : edge + num_queries], output))
        key_tiles, value_tiles = (_tiles(x, reach) for x in (keys, values))
        for start in range(0, num_tiles, GROUP):
            tiles = slice(start, start + GROUP)
            scores = torch.empty_like(mask[tiles])
            for head in range(num_heads):
                query, key, value, probability, out = (
                    x[head, tiles] for x in (query_tiles, key_tiles, value_tiles, probabilities, output_tiles)
                )
                torch.baddbmm(mask[tiles], query, key.mT, alpha=head_dim**-0.5, out=scores)
                torch.softmax(scores, dim=-1, out=probability)
                torch.bmm(probability, value, out=out)
        ctx.save_for_backward(queries, keys, values, probabilities)
        ctx.left, ctx.num_tokens = left, num_tokens
        return output[:, :num_tokens].transpose(0, 1).to(q.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        queries, keys, values, probabilities = ctx.saved_tensors
        num_heads, num_tiles, block, reach = probabilities.shape
        head_dim = queries.shape[-1]
        num_queries, edge, scale = num_tiles * block, reach - block, head_dim**-0.5
        grad_outputs = _by_head(grad_output, queries.dtype, edge, num_queries - ctx.num_tokens + edge)
        grad_queries = queries.new_empty(num_heads, num_queries, head_dim)
        grad_keys, grad_values = torch.zeros_like(keys), torch.zeros_like(values)
        key_tiles, value_tiles = (_tiles(x, reach) for x in (keys, values))
        grad_query_tiles, grad_output_tiles = (
            _tiles(x, block) for x in (grad_queries, grad_outputs[:, edge : edge + num_queries])
        )
        grad_key_tiles, grad_value_tiles = (_tiles(x, block) for x in (grad_keys, grad_values))
        queries_of_keys, grad_outputs_of_keys = (_tiles(x, reach) for x in (queries, grad_outputs))
        for start in range(0, num_tiles, GROUP):
            num = min(GROUP, num_tiles - start)
            tiles, reached = slice(start, start + num), slice(start, start + num + edge // block)
            if start == 0 or num < GROUP:
                probability_by_query, probability_by_key = _two_views(queries, num, block, reach)
                grad_score_by_query, grad_score_by_key = _two_views(queries, num, block, reach)
                grad_probability = torch.empty_like(probabilities[0, tiles])
            for head in range(num_heads):
                key, value, probability, grad_query, grad_out = (
                    x[head, tiles]
                    for x in (key_tiles, value_tiles, probabilities, grad_query_tiles, grad_output_tiles)
                )
                torch.bmm(grad_out, value.mT, out=grad_probability)
                grad_score = torch._softmax_backward_data(grad_probability, probability, -1, probability.dtype)
                torch.baddbmm(grad_query, grad_score, key, beta=0, alpha=scale, out=grad_query)
                grad_score_by_query.copy_(grad_score)
                grad_key_tiles[head, reached].baddbmm_(grad_score_by_key, queries_of_keys[head, reached], alpha=scale)
                probability_by_query.copy_(probability)
                grad_value_tiles[head, reached].baddbmm_(probability_by_key, grad_outputs_of_keys[head, reached])
        inside = slice(ctx.left, ctx.left + ctx.num_tokens)
        grads = (grad_queries[:, : ctx.num_tokens], grad_keys[:, inside], grad_values[:, inside])
        return *(x.transpose(0, 1).to(grad_output.dtype) for x in grads), None, None


def _two_views(like: Tensor, num_tiles: int, block: int, reach: int) -> tuple[Tensor, Tensor]:
    """The same memory, zeros, by tiles of queries (N, B, R) and by the tiles of keys that they reach (N + C - 1, B, R).

    The second gives the keys' gradients in one product, which adds up what C tiles of queries give. A tile of queries
    begins B keys after the one before it; where it also begins B (R + 1) numbers after it, the R queries of a tile of
    keys lie R numbers apart, as rows of one matrix. Before the first tile and behind the last are C - 1 of zeros.
    """
    edge = reach - block
    num_edge_tiles = edge // block
    step = block * (reach + 1)
    memory = like.new_zeros((num_tiles + 2 * num_edge_tiles) * step)
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
