"""Linear layers on a CPU equal torch's in value and gradients, and take oneDNN where it serves."""
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from mmbert.linear import ONEDNN, Linear, product
from tests.test_model import SMALLEST, batch_of, build

ROWS, IN, OUT = 37, 24, 50
OF_ONEDNN = "mkldnn._linear_pointwise.default"


class Calls(TorchDispatchMode):
    """Names of the operators that ran; asserts that oneDNN gets no slice of a matrix, at which it is slow."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):  # type: ignore[no-untyped-def]
        self.names.append(str(function))
        if str(function) == OF_ONEDNN:
            assert all(x.is_contiguous() or x.T.is_contiguous() for x in arguments[:2])
        return function(*arguments, **keywords or {})


def layer_and_input(dtype: torch.dtype = torch.float32) -> tuple[Linear, Tensor]:
    torch.manual_seed(0)
    return Linear(IN, OUT).to(dtype), torch.randn(ROWS, IN, dtype=dtype, requires_grad=True)


def exact(layer: Linear, x: Tensor, grad: Tensor) -> tuple[Tensor, ...]:
    """Output, gradient of x and gradient of the weight, in fp64."""
    x, weight, grad = (each.detach().double() for each in (x, layer.weight, grad))
    return x @ weight.T, grad @ weight, grad.T @ x


@pytest.mark.skipif(not ONEDNN, reason="this torch is without MKL or oneDNN")
def test_onednn_computes_output_and_gradient_of_the_input() -> None:
    layer, x = layer_and_input()
    with Calls() as calls:
        layer(x).sum().backward()
    assert calls.names.count(OF_ONEDNN) == 2


@pytest.mark.skipif(not ONEDNN, reason="this torch is without MKL or oneDNN")
def test_onednn_computes_all_layers_and_the_head_of_a_step() -> None:
    """Two of three products: of Wqkv, Wo, Wi and Wo in four layers, of the head's own and of its one chunk."""
    model, (input_ids, packing, masked, targets) = build(SMALLEST), batch_of([50, 150])
    with Calls() as calls:
        model.loss(input_ids, packing, masked, targets).total.backward()
    assert calls.names.count(OF_ONEDNN) == 2 * (4 * 4 + 1 + 1)


@pytest.mark.parametrize("layout", ["plain", "transposed", "columns"])
@pytest.mark.parametrize("spread", [False, True], ids=["", "gradient of one number"])
def test_output_and_gradients_are_exact(layout: str, spread: bool) -> None:
    layer, plain = layer_and_input()
    x = {
        "plain": plain,
        "transposed": torch.randn(IN, ROWS).T.requires_grad_(),
        "columns": torch.randn(ROWS, 3 * IN)[:, IN : 2 * IN].requires_grad_(),
    }[layout]
    grad = torch.ones(()).expand(ROWS, OUT) if spread else torch.randn(ROWS, OUT)
    with Calls():
        output = layer(x)
        gradients = torch.autograd.grad(output, (x, layer.weight), grad)
    for own, expected in zip((output, *gradients), exact(layer, x, grad), strict=True):
        torch.testing.assert_close(own.double(), expected, rtol=1e-5, atol=1e-5)


def test_a_frozen_weight_or_input_gets_no_gradient() -> None:
    layer, x = layer_and_input()
    layer.weight.requires_grad_(False)
    layer(x).sum().backward()
    assert layer.weight.grad is None
    assert x.grad is not None
    layer.weight.requires_grad_(True)
    with Calls() as calls:
        layer(x.detach()).sum().backward()
    assert layer.weight.grad is not None
    assert calls.names.count(OF_ONEDNN) == ONEDNN


def test_no_rows_give_no_rows() -> None:
    layer, _ = layer_and_input()
    output = layer(torch.empty(0, IN))
    output.sum().backward()
    assert output.shape == (0, OUT)
    assert not layer.weight.grad.any()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_numbers_are_torchs(dtype: torch.dtype) -> None:
    layer, x = layer_and_input(dtype)
    with Calls() as calls:
        assert layer(x).equal(F.linear(x, layer.weight))
    assert OF_ONEDNN not in calls.names


def test_autocast_is_heeded() -> None:
    layer, x = layer_and_input()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16
        assert product(x, layer.weight).dtype == torch.bfloat16


def test_bias_and_transposed_weights() -> None:
    x, weight, bias = torch.randn(ROWS, IN), torch.randn(IN, OUT), torch.randn(OUT)
    torch.testing.assert_close(product(x, weight.T, bias), x @ weight + bias, rtol=1e-5, atol=1e-5)
