"""The CPU's attention within a window: its backward and its groups. Against a reference: test_attention.py."""

import pytest
import torch
from torch import Tensor

from mmbert import banded_attention
from mmbert.attention import Packing, varlen_attention
from mmbert.banded_attention import BandedAttention, Window, tile_visibility
from tests.test_attention import AROUND_THE_WINDOW, packing_of, random_qkv


@pytest.mark.parametrize("group", [1, 2, 32])
@pytest.mark.parametrize("window", [(64, 64), (3, 6), (70, 1), (0, 0)])
def test_band_has_the_gradient_of_its_output(window: Window, group: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """By finite differences: the banded path's backward is our own. Three tiles of queries are up to three groups."""
    monkeypatch.setattr(banded_attention, "GROUP", group)
    packing = packing_of([40, 1, 30])
    mask = packing_mask_of_the_band(packing, window)
    qkv = random_qkv(71, head_dim=3)
    assert torch.autograd.gradcheck(
        lambda x: BandedAttention.apply(*x, mask, window[0]), qkv, fast_mode=True
    )


def test_groups_of_tiles_change_the_band_by_rounding_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A key that two groups reach gets both their gradients; 30 tiles are 7 groups of 4 and one of 2."""
    packing = packing_of([700, 1, 250])
    mask = packing_mask_of_the_band(packing, (64, 64))
    qkv = random_qkv(951)
    direction = torch.randn(951, 2, 16, dtype=torch.float64)
    results = []
    for group in (32, 4):
        monkeypatch.setattr(banded_attention, "GROUP", group)
        out = BandedAttention.apply(*qkv, mask, 64)
        results.append((out, *torch.autograd.grad(out, qkv, direction)))
    for whole, grouped in zip(*results, strict=True):
        torch.testing.assert_close(grouped, whole, rtol=0, atol=1e-13)


def packing_mask_of_the_band(packing: Packing, window: Window) -> Tensor:
    visible = tile_visibility(packing.document_ids, window)
    return torch.zeros(visible.shape, dtype=torch.float64).masked_fill(~visible, float("-inf"))


def test_band_gives_the_same_bits_each_time() -> None:
    packing = packing_of([700, 1, 300])
    qkv = random_qkv(1001, torch.float32)
    direction = torch.randn(1001, 2, 16)
    runs = []
    for _ in range(3):
        out = varlen_attention(*qkv, packing, (64, 64), "cpu")
        runs.append((out, *torch.autograd.grad(out, qkv, direction)))
    assert all(torch.equal(x, y) for other in runs[1:] for x, y in zip(runs[0], other, strict=True))


def test_band_computes_half_precision_in_fp32_also_under_autocast() -> None:
    packing = packing_of([700])
    qkv = random_qkv(700, torch.bfloat16)
    direction = torch.randn(700, 2, 16).bfloat16()
    exact = qkv.detach().float().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        out = varlen_attention(*qkv, packing, (64, 64), "cpu")
        (gradient,) = torch.autograd.grad(out, qkv, direction)
    expected = varlen_attention(*exact, packing, (64, 64), "cpu")
    (expected_gradient,) = torch.autograd.grad(expected, exact, direction.float())
    assert torch.equal(out, expected.bfloat16())
    assert torch.equal(gradient, expected_gradient.bfloat16())


@pytest.mark.parametrize("lengths", [[300], [257, 40], AROUND_THE_WINDOW])
def test_no_query_is_without_keys(lengths: list[int]) -> None:
    """Not even those that fill up the last tile: a softmax over nothing is NaN, and its gradient spreads."""
    assert tile_visibility(packing_of(lengths).document_ids, (64, 64)).any(dim=-1).all()
