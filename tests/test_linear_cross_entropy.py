"""The chunked head loss equals torch's, in value and gradients, and holds one chunk of logits at a time."""
import os
import subprocess
import sys
from importlib.util import find_spec

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mmbert.head_chunks import rows_of_a_chunk
from mmbert.linear_cross_entropy import linear_cross_entropy

M, D, V = 10, 6, 23


def inputs(dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    hidden, weight, bias = (torch.randn(*shape, dtype=dtype) for shape in ((M, D), (V, D), (V,)))
    return hidden.requires_grad_(), weight.requires_grad_(), bias.requires_grad_(), torch.randint(V, (M,))


def reference(hidden: Tensor, weight: Tensor, bias: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(F.linear(hidden, weight, bias), targets, reduction="sum")


@pytest.mark.parametrize("chunk_rows", [1, 3, 10, 64])
def test_loss_and_gradients_are_torchs_whatever_the_chunk(chunk_rows: int) -> None:
    hidden, weight, bias, targets = inputs(torch.float64)
    expected = reference(hidden, weight, bias, targets)
    gradients = torch.autograd.grad(3.0 * expected, (hidden, weight, bias))
    loss = linear_cross_entropy(hidden, weight, bias, targets, chunk_rows).total
    assert loss.item() == pytest.approx(expected.item(), rel=1e-14)
    for own, theirs in zip(torch.autograd.grad(3.0 * loss, (hidden, weight, bias)), gradients, strict=True):
        torch.testing.assert_close(own, theirs, rtol=1e-12, atol=1e-12)


def test_large_logits_do_not_overflow() -> None:
    hidden, weight, bias, targets = inputs(torch.float32)
    loss = linear_cross_entropy(1e4 * hidden, weight, bias, targets).total
    assert loss.item() == pytest.approx(reference(1e4 * hidden, weight, bias, targets).item(), rel=1e-6)
    assert all(gradient.isfinite().all() for gradient in torch.autograd.grad(loss, (hidden, weight, bias)))


def test_under_autocast_only_the_products_are_bf16() -> None:
    hidden, weight, bias, targets = inputs(torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = linear_cross_entropy(hidden, weight, bias, targets, 4).total
    assert loss.dtype == torch.float32
    gradients = torch.autograd.grad(loss, (hidden, weight, bias))
    assert all(gradient.dtype == torch.float32 for gradient in gradients)
    exact = torch.autograd.grad(reference(hidden, weight, bias, targets), (hidden, weight, bias))
    for own, theirs in zip(gradients, exact, strict=True):
        torch.testing.assert_close(own, theirs, rtol=0.05, atol=0.05)


def test_no_gradient_is_formed_where_none_is_wanted() -> None:
    hidden, weight, bias, targets = inputs(torch.float64)
    with torch.no_grad():
        loss = linear_cross_entropy(hidden, weight, bias, targets, 4).total
    assert not loss.requires_grad
    assert loss.item() == pytest.approx(reference(hidden, weight, bias, targets).item(), rel=1e-14)


def test_a_batch_without_masked_tokens_has_no_loss_and_zero_gradients() -> None:
    hidden, weight, bias, targets = inputs(torch.float64)
    loss = linear_cross_entropy(hidden[:0], weight, bias, targets[:0]).total
    assert loss.item() == 0.0
    assert not torch.autograd.grad(loss, weight)[0].any()


@pytest.mark.parametrize("chunk_rows", [1, 3, 64])
@pytest.mark.parametrize("gradient", [True, False])
def test_every_token_has_its_own_loss_and_whether_it_was_predicted_right(chunk_rows: int, gradient: bool) -> None:
    hidden, weight, bias, targets = inputs(torch.float64)
    logits = F.linear(hidden, weight, bias).detach()
    targets[::3] = logits.argmax(dim=1)[::3]
    with torch.set_grad_enabled(gradient):
        losses = linear_cross_entropy(hidden, weight, bias, targets, chunk_rows)
    torch.testing.assert_close(losses.each, F.cross_entropy(logits, targets, reduction="none"), rtol=1e-13, atol=1e-13)
    assert losses.correct.tolist() == (logits.argmax(dim=1) == targets).tolist()
    assert losses.total.item() == pytest.approx(losses.each.sum().item(), rel=1e-14)
    assert losses.total.requires_grad == gradient
    assert not losses.each.requires_grad


@pytest.mark.parametrize(("num_rows", "rows"), [(0, 1), (1, 1), (393, 393), (394, 197), (1200, 300), (14_746, 389)])
def test_chunks_are_as_few_as_memory_allows_and_of_one_size(num_rows: int, rows: int) -> None:
    assert rows_of_a_chunk(num_rows, 256_000, "cpu") == rows


@pytest.mark.parametrize(("num_rows", "rows"), [(1, 128), (1200, 1280), (4194, 4194), (4195, 2176), (14_746, 3712)])
def test_a_gpus_chunks_are_whole_tiles_unless_memory_ends(num_rows: int, rows: int) -> None:
    assert rows_of_a_chunk(num_rows, 256_000, "cuda") == rows


def test_bf16_logits_are_scored_in_fp32_without_gradients_too() -> None:
    """In bf16 the loss would be off by 4e-3 of itself."""
    hidden, weight, bias, targets = (x.detach() for x in inputs(torch.float32))
    half = [x.bfloat16() for x in (hidden, weight, bias)]
    losses = linear_cross_entropy(*half, targets)
    logits = (half[0] @ half[1].T).float() + half[2]
    assert losses.each.dtype == torch.float32
    torch.testing.assert_close(losses.each, F.cross_entropy(logits, targets, reduction="none"), rtol=1e-5, atol=1e-5)


IN_THE_INTERPRETER = """
import torch
from mmbert.head_kernel import losses_of
torch.manual_seed(0)
for dtype, tolerance in ((torch.float32, 1e-5), (torch.bfloat16, 8e-3)):
    logits, bias, targets = (4 * torch.randn(5, 9001)).to(dtype), torch.randn(9001), torch.randint(9001, (5,))
    scores = (logits.float() + bias).requires_grad_()
    targets[3:] = scores[3:].argmax(dim=1)
    expected = torch.nn.functional.cross_entropy(scores, targets, reduction="none")
    (gradient,) = torch.autograd.grad(expected.sum(), scores)
    untouched = logits.clone()
    for differentiate in (False, True):
        each, correct = losses_of(logits, bias, targets, differentiate)
        torch.testing.assert_close(each, expected.detach(), rtol=1e-5, atol=1e-5)
        assert correct.equal(scores.argmax(dim=1) == targets) and correct[3:].all()
        assert differentiate or logits.equal(untouched)
    torch.testing.assert_close(logits.float(), gradient, rtol=tolerance, atol=1e-5)
"""


@pytest.mark.skipif(find_spec("triton") is None, reason="needs Triton, which a torch without CUDA may lack")
def test_the_gpus_kernel_computes_the_same_in_tritons_interpreter() -> None:
    """Several blocks of the vocabulary, the last not full; a process of its own, for Triton is told as it is loaded."""
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    done = subprocess.run([sys.executable, "-c", IN_THE_INTERPRETER], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
