"""Rotary position embedding against rotations of complex numbers, forward and backward."""
import pytest
import torch
from torch import Tensor

from mmbert.rope import Rope

THETA, HEADS, HEAD_DIM = 160_000.0, 3, 16
POSITIONS = torch.tensor([0, 1, 2, 700, 8191, 0, 1])


WIDTH = HEADS * HEAD_DIM


@pytest.fixture(params=[False, True], ids=["interleaved", "as compiled"])
def formula(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: request.param)


def exact(x: Tensor, positions: Tensor) -> Tensor:
    """x (T, any, K): channels i and i + K/2 as one complex number, times e^(i position theta^(-2 i / K)), in fp64."""
    half = HEAD_DIM // 2
    angles = positions.double()[:, None, None] * THETA ** (-torch.arange(half, dtype=torch.float64) / half)
    pairs = torch.complex(x[..., :half].double(), x[..., half:].double())
    turned = pairs * torch.polar(torch.ones_like(angles), angles)
    return torch.cat((turned.real, turned.imag), dim=-1)


def numbers(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """x (T, D) and Wqkv's weight (3 D, D)."""
    torch.manual_seed(0)
    x, weight = torch.randn(len(POSITIONS), WIDTH), torch.randn(3 * WIDTH, WIDTH) / WIDTH**0.5
    return x.to(dtype).requires_grad_(), weight.to(dtype).requires_grad_()


def apart(x: Tensor) -> Tensor:
    """The channels of queries or keys (T, H, K) in their usual order."""
    return x if torch.compiler.is_compiling() else torch.cat((x[..., ::2], x[..., 1::2]), dim=-1)


@pytest.mark.usefixtures("formula")
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-3), (torch.float32, 1e-3), (torch.bfloat16, 4e-2)], ids=str
)
def test_queries_and_keys_are_turned_and_gradients_turned_back(dtype: torch.dtype, tolerance: float) -> None:
    """At position 8,191 an angle in fp32 is good to 5e-4 radians."""
    x, weight = numbers(dtype)
    q, k, v = Rope.build(POSITIONS, THETA, HEAD_DIM).project(x, weight, HEADS)
    outputs = (apart(q), apart(k), v)
    grads = [torch.randn(output.shape).to(dtype) for output in outputs]
    own_gradients = torch.autograd.grad(outputs, (x, weight), grads)

    x, weight = (each.detach().double().requires_grad_() for each in (x, weight))
    q, k, v = (x @ weight.T).view(-1, 3, HEADS, HEAD_DIM).unbind(dim=1)
    expected = (exact(q, POSITIONS), exact(k, POSITIONS), v)
    gradients = torch.autograd.grad(expected, (x, weight), [grad.double() for grad in grads])
    for own, right in zip((*outputs, *own_gradients), (*expected, *gradients), strict=True):
        assert own.dtype == dtype
        torch.testing.assert_close(own.double(), right, rtol=0, atol=tolerance * right.abs().max().item())


def test_both_formulas_give_the_same_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight = numbers(torch.float32)
    rope = Rope.build(POSITIONS, THETA, HEAD_DIM)
    grads = [torch.randn(len(POSITIONS), HEADS, HEAD_DIM) for _ in "qkv"]
    results = []
    for is_compiling in (False, True):
        monkeypatch.setattr(torch.compiler, "is_compiling", lambda answer=is_compiling: answer)
        q, k, v = rope.project(x, weight, HEADS)
        outputs = (apart(q), apart(k), v)
        results.append((*outputs, *torch.autograd.grad(outputs, (x, weight), grads)))
    for own, plain in zip(*results, strict=True):
        torch.testing.assert_close(own, plain, rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("formula")
def test_length_and_relative_position_are_all_that_count() -> None:
    """Turned by the same angle, products of queries and keys stay; position 0 changes nothing."""
    x, weight = numbers(torch.float64)
    products = []
    for start in (0, 100):
        q, k, _ = Rope.build(torch.arange(len(POSITIONS)) + start, THETA, HEAD_DIM).project(x, weight, HEADS)
        products.append(torch.einsum("ahk,bhk->hab", q, k))
    torch.testing.assert_close(*products, rtol=0, atol=1e-4)
    unturned, _, _ = Rope.build(torch.zeros(len(POSITIONS)), THETA, HEAD_DIM).project(x, weight, HEADS)
    torch.testing.assert_close(apart(unturned).flatten(1), x @ weight[:WIDTH].T, rtol=1e-12, atol=1e-12)
