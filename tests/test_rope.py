"""Rotary position embedding against rotations of complex numbers, forward and backward."""
import pytest
import torch
from torch import Tensor

from mmbert import rope as rope_module
from mmbert.rope import Rope

THETA, HEADS, HEAD_DIM = 160_000.0, 3, 16
POSITIONS = torch.tensor([0, 1, 2, 700, 8191, 0, 1])
WIDTH = HEADS * HEAD_DIM


@pytest.fixture(params=[False, True], ids=["interleaved", "as compiled"])
def formula(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rope_module, "is_compiling", lambda: request.param)


def exact(x: Tensor, positions: Tensor) -> Tensor:
    """x (T, any, K): channels i and i + K/2 as one complex number, times e^(i position theta^(-2 i / K)), in fp64."""
    half = HEAD_DIM // 2
    angles = positions.double()[:, None, None] * THETA ** (-torch.arange(half, dtype=torch.float64) / half)
    pairs = torch.complex(x[..., :half].double(), x[..., half:].double())
    turned = pairs * torch.polar(torch.ones_like(angles), angles)
    return torch.cat((turned.real, turned.imag), dim=-1)


def numbers(dtype: torch.dtype) -> tuple[Tensor, list[Tensor]]:
    """qkv (T, 3, H, K) and gradients of queries, keys and values."""
    torch.manual_seed(0)
    shape = (len(POSITIONS), HEADS, HEAD_DIM)
    qkv = torch.randn(shape[0], 3, *shape[1:]).to(dtype).requires_grad_()
    return qkv, [torch.randn(shape).to(dtype) for _ in "qkv"]


def project(rope: Rope, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Rotated queries and keys with their channels in the usual order, and values."""
    q, k, v = rope.project(x, weight, HEADS)
    if rope_module.is_compiling():
        return q, k, v
    return *(torch.cat((turned[..., ::2], turned[..., 1::2]), dim=-1) for turned in (q, k)), v


def rotate(rope: Rope, qkv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The product with the identity is exact."""
    return project(rope, qkv.flatten(1), torch.eye(3 * WIDTH, dtype=qkv.dtype))


@pytest.mark.usefixtures("formula")
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-3), (torch.float32, 1e-3), (torch.bfloat16, 2e-2)], ids=str
)
def test_queries_and_keys_are_turned_and_gradients_turned_back(dtype: torch.dtype, tolerance: float) -> None:
    """At position 8,191 an angle in fp32 is good to 5e-4 radians."""
    qkv, grads = numbers(dtype)
    outputs = rotate(Rope.build(POSITIONS, THETA, HEAD_DIM), qkv)
    (gradient,) = torch.autograd.grad(outputs, qkv, grads)
    q, k, v = qkv.detach().unbind(dim=1)
    for own, expected in zip(outputs, (exact(q, POSITIONS), exact(k, POSITIONS), v), strict=True):
        assert own.dtype == dtype
        torch.testing.assert_close(own.double(), expected.double(), rtol=0, atol=tolerance)
    expected_gradient = (exact(grads[0], -POSITIONS), exact(grads[1], -POSITIONS), grads[2].double())
    torch.testing.assert_close(gradient.double(), torch.stack(expected_gradient, dim=1), rtol=0, atol=tolerance)


def test_its_own_gradient_is_that_of_the_plain_formula(monkeypatch: pytest.MonkeyPatch) -> None:
    qkv, grads = numbers(torch.float32)
    rope = Rope.build(POSITIONS, THETA, HEAD_DIM)
    results = []
    for is_compiling in (False, True):
        monkeypatch.setattr(rope_module, "is_compiling", lambda answer=is_compiling: answer)
        outputs = rotate(rope, qkv)
        results.append((*outputs, *torch.autograd.grad(outputs, qkv, grads)))
    for own, plain in zip(*results, strict=True):
        torch.testing.assert_close(own, plain, rtol=1e-6, atol=1e-6)


@pytest.mark.usefixtures("formula")
def test_the_weight_is_in_its_usual_order_and_so_is_its_gradient() -> None:
    """All that differs between positions is angles, and those of positions 0 are none."""
    torch.manual_seed(0)
    x = torch.randn(len(POSITIONS), WIDTH, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(3 * WIDTH, WIDTH, dtype=torch.float64, requires_grad=True)
    outputs = project(Rope.build(torch.zeros(len(POSITIONS)), THETA, HEAD_DIM), x, weight)
    expected = (x @ weight.T).view(-1, 3, HEADS, HEAD_DIM).unbind(dim=1)
    grads = [torch.randn_like(output) for output in expected]
    gradients = [torch.autograd.grad(found, (x, weight), grads) for found in (outputs, expected)]
    for own, plain in zip((*outputs, *gradients[0]), (*expected, *gradients[1]), strict=True):
        torch.testing.assert_close(own, plain, rtol=1e-12, atol=1e-12)


@pytest.mark.usefixtures("formula")
def test_length_and_relative_position_are_all_that_count() -> None:
    """Turned by the same angle, products of queries and keys stay; position 0 changes nothing."""
    qkv, _ = numbers(torch.float64)
    products = []
    for start in (0, 100):
        q, k, _ = rotate(Rope.build(torch.arange(len(POSITIONS)) + start, THETA, HEAD_DIM), qkv)
        products.append(torch.einsum("ahk,bhk->hab", q, k))
    torch.testing.assert_close(*products, rtol=0, atol=1e-4)
    assert rotate(Rope.build(torch.zeros(len(POSITIONS)), THETA, HEAD_DIM), qkv)[0].equal(qkv[:, 0])
