"""ModernBERT's own training code as a peer: its weights and input against ours, in fp32, flash_attn in plain torch."""

import importlib.metadata
import sys
from importlib.machinery import ModuleSpec
from importlib.util import find_spec, module_from_spec
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mmbert.benchmark import candidates, flexbert, step
from mmbert.benchmark.documents import synthetic_documents
from mmbert.model import MmBertForMaskedLM
from tests.test_benchmark_step import CPU, TINY

CHECKOUT = find_spec("src")  # a package where PYTHONPATH names a checkout; in this repository `src` is a mere folder
needs_checkout = pytest.mark.skipif(
    CHECKOUT is None or CHECKOUT.origin is None or find_spec("einops") is None,
    reason="needs einops and PYTHONPATH=<checkout of ModernBERT>",
)


def attention(qkv: Tensor, cu_seqlens: Tensor, max_seqlen: int, window_size: tuple[int, int], **_: float) -> Tensor:
    """flash_attn_varlen_qkvpacked_func: qkv (T, 3, H, K) -> (T, H, K)."""
    outs = []
    for document in qkv.split(cu_seqlens.diff().tolist()):
        assert len(document) <= max_seqlen
        q, k, v = document.permute(1, 2, 0, 3)  # (H, n, K) each
        distance = (torch.arange(len(document)) - torch.arange(len(document))[:, None]).abs()
        seen = distance <= window_size[0] if window_size[0] >= 0 else distance >= 0
        outs.append(nn.functional.scaled_dot_product_attention(q, k, v, seen).transpose(0, 1))
    return torch.cat(outs)


def apply_rotary(
    x: Tensor, cos: Tensor, sin: Tensor, cu_seqlens: Tensor, conjugate: bool = False, **options: Any
) -> None:
    """flash_attn.ops.triton.rotary's: turn x (T, any, K) in place; cos and sin are (longest, K/2)."""
    assert options["inplace"]
    assert not options["interleaved"]
    places = torch.cat([torch.arange(n) for n in cu_seqlens.diff().tolist()])
    cos, sin = cos[places, None], sin[places, None] * (-1 if conjugate else 1)
    first, second = x.chunk(2, dim=-1)
    x.copy_(torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1))


@pytest.fixture
def flash_attn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Modules of flash_attn with what ModernBERT's code takes from them."""
    contents = {
        "flash_attn": {"flash_attn_varlen_qkvpacked_func": attention, "flash_attn_qkvpacked_func": None},
        "flash_attn.layers.rotary": {"RotaryEmbedding": None},
        "flash_attn.ops.triton.rotary": {"apply_rotary": apply_rotary},
        "flash_attn.losses.cross_entropy": {"CrossEntropyLoss": nn.CrossEntropyLoss},
    }
    for name, members in contents.items():
        module = module_from_spec(ModuleSpec(name, None))
        vars(module).update(members)
        monkeypatch.setitem(sys.modules, name, module)
    version = importlib.metadata.version
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "2.8.3" if name == "flash_attn" else version(name))


@needs_checkout
def test_loss_and_gradients_are_ours(flash_attn: None, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    encoder, documents = MmBertForMaskedLM(TINY), synthetic_documents(900, 128, 300, 0.3)
    ours = candidates.our_candidate(encoder, documents, 2, "fp32", CPU)
    for rows in (3, 100):
        peer = flexbert.FlexBertPeer((rows,))
        theirs = peer.candidate(peer.build(encoder, CPU), documents, rows, "fp32")
        code = sys.modules["src.bert_layers.attention"]  # which rounds fp32 to bf16
        monkeypatch.setattr(code, "torch", SimpleNamespace(float16=torch.float16, bfloat16=torch.float32))
        with torch.compiler.set_stance("force_eager"):
            loss = theirs.backward()
        torch.testing.assert_close(loss, ours.backward(), rtol=1e-6, atol=0)
        expected = {flexbert.flexbert_name(name): gradient for name, gradient in step.gradients(ours).items()}
        assert step.worst_gradient(step.gradients(theirs), expected) < 1e-5
        assert theirs.fill == 1.0


def test_a_missing_checkout_is_told_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "src.bert_layers.model", None)
    with pytest.raises(ValueError, match=r"--peers flexbert: .* set PYTHONPATH=<checkout of ModernBERT>"):
        flexbert.FlexBertPeer((1,)).build(MmBertForMaskedLM(TINY), CPU)
