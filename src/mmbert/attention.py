"""Attention inside each document of a packed batch: FlashAttention's kernels on a GPU, plain torch elsewhere.

Shapes: T tokens of the batch, M of them whose output is wanted, H heads, K head size; N tiles of B queries and the R
keys in their reach, see banded_attention.py.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from importlib import import_module
from importlib.util import find_spec
from inspect import signature
from itertools import accumulate
from typing import Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from mmbert.banded_attention import BandedAttention, Window, reach_of, tile_visibility
from mmbert.config import Kernel

log = logging.getLogger(__name__)

GPU_KERNELS: tuple[Kernel, ...] = ("flash_attn", "torch_varlen", "torch_flash", "flash_attn_4")
"""In the order of `auto`. torch's own are FlashAttention-2 too; `torch_varlen` is its public function, `torch_flash`
what is below it since torch 2.7. Its neighbour _efficient_attention_forward takes a window too, and loses it in
backward. `flash_attn_4` should be the fastest; it is a beta, and comes last until somebody has run it."""
MAX_HEAD_DIM = 256  # of FlashAttention-2, flash_api.cpp
PACKAGES: dict[Kernel, tuple[str, str]] = {
    "flash_attn": ("flash_attn", "run `pip install --no-build-isolation -r requirements-gpu.txt`"),
    "flash_attn_4": ("flash_attn.cute", "run `pip install flash-attn-4==4.0.0b36` beside torch 2.8 or later"),
}
"""Kernel -> module with its flash_attn_varlen_func, and the remedy. flash-attn-4 alone leaves flash_attn empty."""


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
            if self.loop_is_cheaper(window):
                visible = _loop_visibility(self, window)
            else:
                visible = tile_visibility(self.document_ids, window)
            mask = torch.zeros(visible.shape, dtype=dtype, device=visible.device)
            self._masks[window, dtype] = mask.masked_fill_(~visible, float("-inf"))
        return self._masks[window, dtype]

    def loop_is_cheaper(self, window: Window) -> bool:
        """Whether a loop over documents costs less than the banded path, where a key costs 1.25 times as much.

        A query meets its whole document in the loop and R keys in the band, 160 for mmBERT's window. CPU time of
        forward and backward, 4,096 tokens, fp32, 4 heads of 64, one thread of an Intel Xeon (AVX-512), the least of 21:
        loop 20, 24, 26, 28, 32 ms for documents of 64, 128, 160, 192, 224 tokens, band 27 to 29 ms for all.
        """
        reach = reach_of(window)
        return sum(length * length for length in self.lengths) <= 1.25 * reach * sum(self.lengths)


def _send(x: Tensor, device: torch.device) -> Tensor:
    """Only from pinned memory does a copy to a GPU not wait for the work queued there."""
    return x.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else x.to(device)


@cache
def resolve_kernel(name: Kernel | Literal["auto"], device: str) -> Kernel:
    """Turn the configuration's `attention` into the kernel that serves on a device; log it once, with the reason.

    Args, Raises:
        See choose_kernel.
    """
    kernel, reason = choose_kernel(name, device)
    log.info("attention: %s on %s runs the kernel %s (%s)", name, device, kernel, reason)
    return kernel


def choose_kernel(name: Kernel | Literal["auto"], device: str) -> tuple[Kernel, str]:
    """The kernel, and why it is this one.

    Args:
        name: the configuration's `attention`.
        device: its torch.device's type.

    Raises:
        ValueError: the kernel that is asked for, or each that `auto` may take, cannot run.
    """
    on_gpu = device == "cuda"
    if name not in ("auto", "cpu") and not on_gpu:
        raise ValueError(f"attention: {name} needs a GPU, the model is on {device}; set attention: cpu")
    candidates: tuple[Kernel, ...] = (name,) if name != "auto" else GPU_KERNELS if on_gpu else ("cpu",)
    refused: list[str] = []
    for kernel in candidates:
        obstacle = _obstacle(kernel)
        if obstacle is None:
            reason = "; ".join(refused) or ("the first choice" if on_gpu else "no GPU")
            return kernel, reason if name == "auto" else "as asked"
        refused.append(f"{kernel}: {obstacle}")
    remedy = "or set attention: cpu (plain torch, slower)"
    raise ValueError(f"attention: {name} cannot run on {device}: {'; '.join(refused)}; {remedy}")


def check_kernel(name: Kernel | Literal["auto"], on_gpu: bool, precision: str, head_dim: int) -> None:
    """Refuse before a run begins what its first batch would refuse.

    Raises:
        ValueError: no kernel can run there, or not in that precision or with heads of that size.
    """
    kernel, _ = choose_kernel(name, "cuda" if on_gpu else "cpu")
    if kernel != "cpu" and precision == "fp32":
        raise ValueError(
            f"precision = fp32: attention: {kernel} has none; write precision: amp_bf16, or model.attention: cpu "
            "(plain torch, slower)"
        )
    if kernel != "cpu" and (head_dim % 8 or head_dim > MAX_HEAD_DIM):
        raise ValueError(
            f"model.hidden_size / model.num_attention_heads = {head_dim} must be a multiple of 8 and at most "
            f"{MAX_HEAD_DIM} for attention: {kernel}; write another number of heads, 64 channels each say"
        )


def _obstacle(kernel: Kernel) -> str | None:
    """Why this environment cannot run `kernel`, and the remedy; None if it can."""
    if kernel in PACKAGES and (obstacle := _package_obstacle(*PACKAGES[kernel])):
        return obstacle
    if kernel in ("torch_varlen", "torch_flash") and torch.version.hip:
        # its mha_varlen_fwd_aot drops the window in some versions, and took "none" for one in later ones (pull 173469)
        return "torch's own FlashAttention computes windows wrongly on AMD GPUs in several versions, install flash_attn"
    if kernel == "torch_varlen":
        module = "torch.nn.attention.varlen"
        if find_spec(module) is None or "window_size" not in signature(import_module(module).varlen_attn).parameters:
            return f"torch {torch.__version__} has no varlen_attn with windows, take 2.11 or later"
    schema = torch.ops.aten._flash_attention_forward.default._schema
    if kernel == "torch_flash" and (obstacle := _schema_obstacle(schema)):
        return obstacle
    if kernel == "cpu" or not torch.cuda.is_available():
        return None
    capability, name = torch.cuda.get_device_capability(), torch.cuda.get_device_name()
    if capability < (8, 0):
        return f"FlashAttention needs an Ampere GPU (A100, RTX 30) or later, here is a {name}"
    if kernel == "flash_attn_4" and capability < (9, 0):
        return f"FlashAttention-4 trains on Hopper GPUs (H100) and later, here is a {name}"
    return None


def _package_obstacle(module: str, remedy: str) -> str | None:
    """Why `module` cannot give its flash_attn_varlen_func; None if it can."""
    try:
        installed = hasattr(import_module(module), "flash_attn_varlen_func")
    except ModuleNotFoundError as error:
        if not module.startswith(str(error.name)):  # another package that it needs
            return f"the package cannot be imported ({error}), {remedy}"
        installed = False
    except (ImportError, AttributeError) as error:  # made for another torch, mostly
        return f"the package cannot be imported ({error}), {remedy}"
    return None if installed else f"the package is not installed, {remedy}"


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
        attend = {
            "flash_attn": _flash_attn, "torch_varlen": _torch_varlen, "torch_flash": _torch_flash,
            "flash_attn_4": _flash_attn_4,
        }[kernel]  # fmt: skip
        return attend(q, k, v, packing, cu_seqlens_q, (-1, -1) if window is None else window)
    if window is None or packing.loop_is_cheaper(window):
        lengths_q = packing.lengths if wanted is None else cu_seqlens_q.diff().tolist()
        return _loop_attention(q, k, v, packing, lengths_q, window)
    # Half precision is computed in fp32, whatever autocast says: the copies that the band needs anyway convert.
    mask = packing.mask(window, torch.promote_types(q.dtype, torch.float32))
    return BandedAttention.apply(q, k, v, mask, window[0])


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


def _flash_attn_4(
    q: Tensor, k: Tensor, v: Tensor, packing: Packing, cu_seqlens_q: Tensor, window_size: Window
) -> Tensor:
    from flash_attn.cute import flash_attn_varlen_func  # a GPU-only package

    output = flash_attn_varlen_func(
        q, k, v,
        cu_seqlens_q=cu_seqlens_q, cu_seqlens_k=packing.cu_seqlens,
        max_seqlen_q=packing.max_seqlen, max_seqlen_k=packing.max_seqlen,
        window_size=(None, None) if window_size == (-1, -1) else window_size,
    )  # fmt: skip
    return output[0] if isinstance(output, tuple) else output  # its betas differ in what stands beside it


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
    backward, for 4,096 tokens in 4 heads of 64 on two threads of an AMD EPYC. Probabilities kept for the backward
    win alone, and not in a step (docs/architecture.md).
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
