"""GeGLU and its gradient against the formula in fp64."""
import pytest
import torch
import torch.nn.functional as F

from mmbert.geglu import geglu


@pytest.mark.parametrize("compiled", [False, True], ids=["own gradient", "as compiled"])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 5e-2)], ids=str
)
@pytest.mark.parametrize("rows", [0, 1, 37])
def test_value_and_gradient_are_exact(
    rows: int, dtype: torch.dtype, tolerance: float, compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mmbert.geglu.is_compiling", lambda: compiled)
    torch.manual_seed(0)
    x, grad = torch.randn(rows, 10).to(dtype).requires_grad_(), torch.randn(rows, 5).to(dtype)
    wide = x.detach().double().requires_grad_()
    expected = F.gelu(wide[:, :5]) * wide[:, 5:]
    own = geglu(x)
    assert own.dtype == dtype
    torch.testing.assert_close(own.double(), expected, rtol=0, atol=tolerance)
    gradients = torch.autograd.grad(own, x, grad)[0], torch.autograd.grad(expected, wide, grad.double())[0]
    torch.testing.assert_close(gradients[0].double(), gradients[1], rtol=0, atol=tolerance)


def test_its_own_gradient_is_that_of_the_plain_formula_bit_for_bit() -> None:
    torch.manual_seed(0)
    x, grad = torch.randn(64, 96, requires_grad=True), torch.randn(64, 48)
    own, plain = geglu(x), F.gelu(x[:, :48]) * x[:, 48:]
    assert own.equal(plain)
    (own_gradient,), (gradient,) = (torch.autograd.grad(output, x, grad) for output in (own, plain))
    assert own_gradient.equal(gradient)
