"""Attention inside each document of a packed batch: FlashAttention's kernels, or plain torch.

Shapes: T tokens of the batch, H heads, K head size; N blocks of B queries in the banded path.
"""

import logging
from dataclasses import dataclass, field
from functools import cache
from importlib.util import find_spec
from itertools import pairwise
from typing import Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor

log = logging.getLogger(__name__)

Kernel = Literal["cpu", "flash_attn"]
Window = tuple[int, int]
"""Keys a query sees to its left and to its right, itself included either way; FlashAttention's `window_size`."""


@dataclass(frozen=True, eq=False)
class Packing:
    """Where the documents of a flat batch lie; built once per batch and shared by all layers.

    Attributes:
        cu_seqlens: (documents + 1,) int32, first token of each document, and T at the end.
        max_seqlen: tokens of the longest document, or a bound on it.
        lengths: tokens of each document.
        document_ids: (T,) the document of each token.
        positions: (T,) the place of each token in its document, from 0.
    """

    cu_seqlens: Tensor
    max_seqlen: int
    lengths: list[int]
    document_ids: Tensor
    positions: Tensor
    _masks: dict[Window, Tensor] = field(default_factory=dict, repr=False)

    @classmethod
    def build(cls, cu_seqlens: Tensor, max_seqlen: int) -> Self:
        """Derive what attention needs. On a GPU this waits for the device, once per batch.

        Raises:
            ValueError: `cu_seqlens` does not rise from 0, or a document is longer than `max_seqlen`.
        """
        starts = cu_seqlens.tolist()
        lengths = [end - start for start, end in pairwise(starts)]
        if starts[0] != 0 or not lengths or min(lengths) < 1:
            raise ValueError(f"cu_seqlens must rise from 0 with no empty document, got {starts}")
        if max(lengths) > max_seqlen:
            raise ValueError(f"a document has {max(lengths)} tokens, more than {max_seqlen=}")
        tokens = torch.arange(starts[-1], device=cu_seqlens.device)
        document_ids = torch.bucketize(tokens, cu_seqlens[1:], right=True)
        positions = tokens - cu_seqlens[document_ids]
        return cls(cu_seqlens.to(torch.int32), max_seqlen, lengths, document_ids, positions)

    def mask(self, window: Window) -> Tensor:
        """The mask of `window` for the cheaper of the two paths: (longest, longest) or (N, 1, B, 2B)."""
        if window not in self._masks:
            build = _band_mask if self.loop_is_cheaper(window) else _banded_mask
            self._masks[window] = build(self, window)
        return self._masks[window]

    def loop_is_cheaper(self, window: Window) -> bool:
        """Whether a loop over documents scores fewer keys in all than the banded path does.

        A query meets its whole document in the loop and 2B keys in the band, 256 for mmBERT's window. CPU time of
        forward and backward, 4,096 tokens, fp32, 4 heads of 64, one thread of an AMD EPYC: loop 64, band 104 ms at
        50 keys a query in the loop; 97 and 102 ms at 246; 133 and 106 ms at 337.
        """
        return sum(length * length for length in self.lengths) <= 2 * sum(window) * sum(self.lengths)


@cache
def resolve_kernel(name: str, device: torch.device) -> Kernel:
    """Turn the configuration's `attention` into the kernel that serves on `device`, and log it once.

    Raises:
        ValueError: FlashAttention is asked for, or meant by `auto`, where it cannot run.
    """
    on_gpu = device.type == "cuda"
    kernel: Kernel = "flash_attn" if name == "flash_attn" or (name == "auto" and on_gpu) else "cpu"
    if kernel == "flash_attn" and not on_gpu:
        raise ValueError(f"attention: {name} needs a GPU, the model is on {device}; set attention: cpu")
    if kernel == "flash_attn" and find_spec("flash_attn") is None:
        raise ValueError(
            f"attention: {name} on {device} needs the package flash_attn, which is not installed; "
            "run `pip install -r requirements-gpu.txt`, or set attention: cpu (plain torch, slower)"
        )
    log.info("attention: %s on %s runs the kernel %s", name, device, kernel)
    return kernel


def varlen_attention(
    q: Tensor, k: Tensor, v: Tensor, packing: Packing, window: Window | None, kernel: Kernel
) -> Tensor:
    """Attend in both directions inside each document.

    Args:
        q, k, v: (T, H, K), queries and keys already rotated.
        packing: where the documents lie.
        window: keys seen to the left and right of a query; None for the whole document.
        kernel: from resolve_kernel.

    Returns:
        (T, H, K), in the dtype of q.
    """
    if kernel == "flash_attn":
        return _flash_attention(q, k, v, packing, window)
    if window is None or packing.loop_is_cheaper(window):
        return _loop_attention(q, k, v, packing, window)
    return _banded_attention(q, k, v, packing, window)


def _flash_attention(q: Tensor, k: Tensor, v: Tensor, packing: Packing, window: Window | None) -> Tensor:
    if q.dtype not in (torch.bfloat16, torch.float16):
        raise ValueError(f"attention: flash_attn cannot run in {q.dtype}; set precision: amp_bf16")
    from flash_attn import flash_attn_varlen_func  # a GPU-only package

    return flash_attn_varlen_func(
        q, k, v,
        cu_seqlens_q=packing.cu_seqlens, cu_seqlens_k=packing.cu_seqlens,
        max_seqlen_q=packing.max_seqlen, max_seqlen_k=packing.max_seqlen,
        window_size=(-1, -1) if window is None else window,
    )  # fmt: skip


def _loop_attention(q: Tensor, k: Tensor, v: Tensor, packing: Packing, window: Window | None) -> Tensor:
    """One kernel call per document. Padding documents into groups was slower at every shape measured."""
    mask = None if window is None else packing.mask(window)
    outputs = []
    for document in zip(*(x.split(packing.lengths) for x in (q, k, v)), strict=True):
        query, key, value = (x.transpose(0, 1).unsqueeze(0) for x in document)  # (1, H, tokens, K)
        length = query.shape[2]
        visible = None if mask is None else mask[:length, :length]
        output = F.scaled_dot_product_attention(query, key, value, attn_mask=visible)
        outputs.append(output.squeeze(0).transpose(0, 1))
    return torch.cat(outputs)


def _band_mask(packing: Packing, window: Window) -> Tensor:
    """(longest, longest) bool: the keys each query of one document sees; its corners serve shorter ones."""
    left, right = window
    tokens = torch.arange(max(packing.lengths), device=packing.cu_seqlens.device)
    offset = tokens - tokens.unsqueeze(1)  # key minus query
    return (offset >= -left) & (offset <= right)


def _banded_attention(q: Tensor, k: Tensor, v: Tensor, packing: Packing, window: Window) -> Tensor:
    """One kernel call for the whole stream, at a cost that does not depend on the documents' lengths."""
    num_tokens, num_heads, head_dim = q.shape
    mask = packing.mask(window)  # (N, 1, B, 2B)
    num_blocks, _, block, _ = mask.shape
    queries = F.pad(q, (0, 0, 0, 0, 0, num_blocks * block - num_tokens))
    queries = queries.view(num_blocks, block, num_heads, head_dim)
    output = F.scaled_dot_product_attention(
        queries.transpose(1, 2),  # (N, H, B, K)
        _keys_in_reach(k, num_blocks, window, padding=0).transpose(1, 2),  # (N, H, 2B, K)
        _keys_in_reach(v, num_blocks, window, padding=0).transpose(1, 2),
        attn_mask=mask,
    )
    return output.transpose(1, 2).reshape(-1, num_heads, head_dim)[:num_tokens]


def _keys_in_reach(x: Tensor, num_blocks: int, window: Window, padding: int) -> Tensor:
    """Every block of B = left + right queries with the 2B keys in its reach: (T, ...) -> (N, 2B, ...).

    The queries [n B, n B + B) reach the keys [n B - left, n B + B + right). In the stream shifted by `left` and
    cut into blocks of B these are exactly the blocks n and n + 1.
    """
    block, left = sum(window), window[0]
    after = (num_blocks + 1) * block - left - len(x)
    x = F.pad(x, (0, 0) * (x.dim() - 1) + (left, after), value=padding)
    blocks = x.view(num_blocks + 1, block, *x.shape[1:])
    return torch.cat([blocks[:-1], blocks[1:]], dim=1)


def _banded_mask(packing: Packing, window: Window) -> Tensor:
    """(N, 1, B, 2B) bool: the keys in reach that are in the window and in the query's document."""
    block = sum(window)
    ids = packing.document_ids
    num_blocks = -(-len(ids) // block)
    # The queries that fill up the last block see each other: a query without any key would give NaN.
    queries = F.pad(ids, (0, num_blocks * block - len(ids)), value=-1).view(num_blocks, block, 1)
    keys = _keys_in_reach(ids, num_blocks, window, padding=-1).unsqueeze(1)
    key = torch.arange(2 * block, device=ids.device)
    query = key[:block].unsqueeze(1)
    in_window = (key >= query) & (key <= query + block)  # key 0 lies `left` before query 0
    return ((queries == keys) & in_window).unsqueeze(1)
