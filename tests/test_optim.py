"""The optimizer: a step that is called off changes nothing."""
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
