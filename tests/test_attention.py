"""Attention against a float64 reference that scores every pair of tokens, and the choice of its kernels."""

import logging
import sys
from itertools import accumulate
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from mmbert import attention
from mmbert.attention import Packing, Window, resolve_kernel, varlen_attention

AROUND_THE_WINDOW = [1, 63, 64, 65, 128, 129, 300]
SHORT = [5, 40, 1, 130, 64, 65, 90]


def packing_of(lengths: list[int]) -> Packing:
    return Packing.build(torch.tensor([0, *accumulate(lengths)], dtype=torch.int32), max(lengths))


def random_qkv(num_tokens: int, dtype: torch.dtype = torch.float64) -> Tensor:
    torch.manual_seed(0)
    return torch.randn(3, num_tokens, 2, 16, dtype=dtype).requires_grad_()


def reference(qkv: Tensor, lengths: list[int], window: Window | None) -> Tensor:
    """Softmax over all T x T pairs, with every pair that must not meet set to minus infinity."""
    q, k, v = (x.transpose(0, 1) for x in qkv)  # (H, T, K)
    document = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    place = torch.arange(len(document))
    offset = place[None, :] - place[:, None]
    visible = document[None, :] == document[:, None]
    if window is not None:
        visible &= (offset >= -window[0]) & (offset <= window[1])
    scores = (q @ k.transpose(1, 2) / q.shape[-1] ** 0.5).masked_fill(~visible, float("-inf"))
    return (scores.softmax(dim=-1) @ v).transpose(0, 1)


@pytest.mark.parametrize("window", [None, (64, 64), (8, 8), (3, 6)])
@pytest.mark.parametrize("lengths", [AROUND_THE_WINDOW, SHORT, [1], [257], [128, 128]], ids=str)
@pytest.mark.parametrize("path", ["loop", "band", "cheaper"])
def test_every_path_equals_the_reference_forward_and_backward(
    monkeypatch: pytest.MonkeyPatch, path: str, lengths: list[int], window: Window | None
) -> None:
    if path != "cheaper":
        monkeypatch.setattr(Packing, "loop_is_cheaper", lambda self, window: path == "loop")
    qkv = random_qkv(sum(lengths))
    out = varlen_attention(*qkv, packing_of(lengths), window, "cpu")
    expected = reference(qkv, lengths, window)
    torch.testing.assert_close(out, expected, rtol=1e-10, atol=1e-10)
    direction = torch.randn_like(out)
    gradient, expected_gradient = (torch.autograd.grad(x, qkv, direction)[0] for x in (out, expected))
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-10, atol=1e-10)


def test_window_is_inclusive_on_both_sides() -> None:
    """With equal scores a query averages its keys: 129 of them for (64, 64)."""
    qkv = torch.zeros(3, 400, 1, 8)
    qkv[2, :, 0, 0] = torch.eye(400)[200] * 129  # only token 200 has a value
    out = varlen_attention(*qkv, packing_of([400]), (64, 64), "cpu")[:, 0, 0]
    seen_from = out.nonzero().flatten()
    assert seen_from.tolist() == list(range(136, 265))
    assert torch.allclose(out[136:265], torch.ones(129))


def test_longer_documents_take_the_band_and_short_ones_the_loop() -> None:
    assert packing_of([130] * 8).loop_is_cheaper((64, 64))
    assert packing_of([256] * 4).loop_is_cheaper((64, 64))
    assert not packing_of([257] * 4).loop_is_cheaper((64, 64))


def test_mask_is_built_once_per_batch() -> None:
    packing = packing_of([300])
    assert packing.mask((64, 64)) is packing.mask((64, 64))
    assert packing.mask((64, 64)) is not packing.mask((8, 8))


@pytest.mark.parametrize("lengths", [[300], [257, 40], AROUND_THE_WINDOW])
def test_no_query_is_without_keys(lengths: list[int]) -> None:
    """Not even those that fill up the last block: a softmax over nothing is NaN, and its gradient spreads."""
    assert packing_of(lengths).mask((64, 64)).any(dim=-1).all()


def test_packing_numbers_documents_and_positions() -> None:
    packing = packing_of([2, 3, 1])
    assert packing.lengths == [2, 3, 1]
    assert packing.document_ids.tolist() == [0, 0, 1, 1, 1, 2]
    assert packing.positions.tolist() == [0, 1, 0, 1, 2, 0]
    assert packing.cu_seqlens.dtype == torch.int32


@pytest.mark.parametrize(
    "cu_seqlens, max_seqlen, message",
    [
        ([0, 4, 4], 4, "no empty document"),
        ([1, 4], 4, "rise from 0"),
        ([0], 4, "rise from 0"),
        ([0, 5], 4, "max_seqlen=4"),
    ],
)
def test_impossible_packing_is_refused(cu_seqlens: list[int], max_seqlen: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Packing.build(torch.tensor(cu_seqlens), max_seqlen)


def test_auto_takes_torch_on_a_cpu_and_says_so_once(caplog: pytest.LogCaptureFixture) -> None:
    resolve_kernel.cache_clear()
    with caplog.at_level(logging.INFO, logger="mmbert.attention"):
        assert [resolve_kernel("auto", torch.device("cpu")) for _ in range(3)] == ["cpu"] * 3
    assert caplog.messages == ["attention: auto on cpu runs the kernel cpu"]


def test_auto_takes_flash_attention_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "find_spec", lambda name: name)
    resolve_kernel.cache_clear()
    assert resolve_kernel("auto", torch.device("cuda")) == "flash_attn"
    assert resolve_kernel("cpu", torch.device("cuda")) == "cpu"


@pytest.mark.parametrize("name", ["auto", "flash_attn"])
def test_missing_flash_attention_is_an_error_with_its_remedy(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(attention, "find_spec", lambda name: None)
    resolve_kernel.cache_clear()
    with pytest.raises(ValueError, match=r"requirements-gpu.txt.*attention: cpu"):
        resolve_kernel(name, torch.device("cuda"))


def test_flash_attention_is_refused_on_a_cpu_and_in_fp32() -> None:
    with pytest.raises(ValueError, match="needs a GPU"):
        resolve_kernel("flash_attn", torch.device("cpu"))
    with pytest.raises(ValueError, match="amp_bf16"):
        varlen_attention(*random_qkv(4, torch.float32), packing_of([4]), None, "flash_attn")


@pytest.mark.parametrize("window, window_size", [(None, (-1, -1)), ((64, 64), (64, 64))])
def test_flash_attention_gets_the_packing_and_the_window(
    monkeypatch: pytest.MonkeyPatch, window: Window | None, window_size: tuple[int, int]
) -> None:
    calls: list[dict[str, Any]] = []

    def flash_attn_varlen_func(q: Tensor, k: Tensor, v: Tensor, **options: Any) -> Tensor:
        calls.append(options)
        return q

    monkeypatch.setitem(
        sys.modules, "flash_attn", SimpleNamespace(flash_attn_varlen_func=flash_attn_varlen_func)
    )
    packing = packing_of([3, 4])
    varlen_attention(*random_qkv(7, torch.bfloat16), packing, window, "flash_attn")
    assert calls == [
        {
            "cu_seqlens_q": packing.cu_seqlens,
            "cu_seqlens_k": packing.cu_seqlens,
            "max_seqlen_q": 4,
            "max_seqlen_k": 4,
            "window_size": window_size,
        }
    ]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("window", [None, (64, 64)])
def test_flash_attention_equals_the_reference(window: Window | None) -> None:
    pytest.importorskip("flash_attn")
    qkv = random_qkv(sum(AROUND_THE_WINDOW)).detach().cuda().bfloat16().requires_grad_()
    packing = Packing.build(torch.tensor([0, *accumulate(AROUND_THE_WINDOW)]).cuda(), max(AROUND_THE_WINDOW))
    out = varlen_attention(*qkv, packing, window, "flash_attn")
    exact = qkv.detach().cpu().double().requires_grad_()
    expected = reference(exact, AROUND_THE_WINDOW, window)
    direction = torch.randn_like(expected)
    (gradient,) = torch.autograd.grad(out, qkv, direction.to(out))
    (expected_gradient,) = torch.autograd.grad(expected, exact, direction)
    assert (out.cpu() - expected).abs().max() < 0.02  # bf16 has 8 bits
    assert (gradient.cpu() - expected_gradient).norm() < 0.02 * expected_gradient.norm()
