"""The optimizer: its maths, and a step that is called off changes nothing."""
import pytest
import torch
from torch import Tensor, nn

from mmbert.config import OptimizerConfig
from mmbert.optim import build_optimizer


@pytest.mark.fault(12)
def test_a_step_called_off_inside_its_closure_leaves_no_trace() -> None:
    """As Composer does it: the gradients come, and are looked at, while the step has begun already."""
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    optimizer = build_optimizer(model, OptimizerConfig(1e-2, (0.9, 0.95), 1e-8, 1e-2), on_gpu=False)

    def closure(value: float, call_off: bool) -> Tensor:
        for parameter in model.parameters():
            parameter.grad = torch.full_like(parameter, value)
        if call_off:
            optimizer.call_off()
        return torch.tensor(value)

    def snapshot() -> list[Tensor]:
        moments = [optimizer.state[x][key] for x in model.parameters() for key in ("exp_avg", "exp_avg_sq")]
        steps = [group["step"] for group in optimizer.param_groups]
        return [x.detach().clone() for x in (*model.parameters(), *moments, *steps)]

    assert optimizer.step(lambda: closure(1.0, call_off=False)) == 1.0
    before = snapshot()
    assert optimizer.step(lambda: closure(2.0, call_off=True)) == 2.0
    assert all(map(torch.equal, before, snapshot()))
    optimizer.step(lambda: closure(3.0, call_off=False))
    assert not any(map(torch.equal, before, snapshot()))


def test_the_step_of_a_gpu_adds_nothing_up_by_atomics_and_gives_the_same_bits() -> None:
    """Ranks must stay the same to the bit; optimi's Triton kernels, its own choice on a GPU, do not."""
    weights = []
    for on_gpu in (False, True):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(30, 20), nn.LayerNorm(20))
        optimizer = build_optimizer(model, OptimizerConfig(1e-2, (0.9, 0.95), 1e-8, 1e-5), on_gpu)
        assert not any(group["triton"] for group in optimizer.param_groups)
        for step in range(20):
            for parameter in model.parameters():
                parameter.grad = torch.randn_like(parameter) * (1 + step % 3)
            optimizer.step()
        weights.append(torch.cat([parameter.detach().flatten() for parameter in model.parameters()]))
    assert torch.equal(*weights)


def stable_adamw(
    weights: Tensor, grads: list[Tensor], rates: list[float], weight_decay: float, config: OptimizerConfig
) -> Tensor:
    """`weights` after a step with each of these gradients and learning rates.

    Source:
        Wortsman et al. 2023, arXiv:2304.13013, algorithm 2, with the fully decoupled decay of torch-optimi.
    """
    mean = square = torch.zeros_like(weights)
    for step, (grad, rate) in enumerate(zip(grads, rates, strict=True), 1):
        beta1, beta2 = (beta * (1 - beta ** (step - 1)) / (1 - beta**step) for beta in config.betas)
        mean = beta1 * mean + (1 - beta1) * grad
        square = beta2 * square + (1 - beta2) * grad**2
        clipped = rate / max(1.0, float((grad**2 / square.clamp(min=config.eps**2)).mean().sqrt()))
        weights = (1 - clipped / config.lr * weight_decay) * weights - clipped * mean / (square.sqrt() + config.eps)
    return weights


@pytest.mark.parametrize("on_gpu", [False, True])
def test_steps_are_those_of_stable_adamw_and_only_matrices_and_embeddings_decay(on_gpu: bool) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(6, 4), nn.Linear(4, 3), nn.LayerNorm(3)).double()
    parameters = list(model.parameters())
    config = OptimizerConfig(8e-4, (0.9, 0.95), 1e-8, 8e-5)
    decays = [config.weight_decay, config.weight_decay, 0.0, 0.0, 0.0]  # embedding, matrix, bias; norm's weight, bias
    rates = [config.lr * (1 - abs(step - 5) / 7) for step in range(12)]  # up to the peak and down again
    grads = [[torch.randn_like(parameter) * 10 ** (step % 3) for step in range(12)] for parameter in parameters]
    expected = [
        stable_adamw(parameter.detach(), *rest, config)
        for parameter, *rest in zip(parameters, grads, [rates] * 5, decays, strict=True)
    ]
    optimizer = build_optimizer(model, config, on_gpu)
    for step, rate in enumerate(rates):
        for group in optimizer.param_groups:
            group["lr"] = rate
        for parameter, grad in zip(parameters, grads, strict=True):
            parameter.grad = grad[step]
        optimizer.step()
    for parameter, weights in zip(parameters, expected, strict=True):
        torch.testing.assert_close(parameter.detach(), weights, rtol=1e-12, atol=0.0)
