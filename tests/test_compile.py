"""What torch.compile makes of the model: the same numbers and few graphs, most of it without its compiler."""
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from mmbert import geglu, rope
from mmbert.model import MmBertForMaskedLM
from tests.test_model import SMALLEST, batch_of, build


class WithLoss(torch.nn.Module):
    """DDP calls `forward`."""

    def __init__(self, encoder: MmBertForMaskedLM) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, *batch: Any) -> torch.Tensor:
        return self.encoder.loss(*batch).total


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[torch.fx.GraphModule]:
    """The graphs that are made; they are run as they are."""
    made: list[torch.fx.GraphModule] = []
    compile_ = torch.compile

    def backend(graph: torch.fx.GraphModule, inputs: Any) -> Callable[..., Any]:
        made.append(graph)
        return graph.forward

    monkeypatch.setattr(torch, "compile", lambda function, **options: compile_(function, backend=backend, **options))
    torch._dynamo.reset()
    return made


@pytest.fixture
def graphs(made: list[torch.fx.GraphModule], monkeypatch: pytest.MonkeyPatch) -> list[torch.fx.GraphModule]:
    """The same, and what is not compiled computes as if it were."""
    for module in (geglu, rope):
        monkeypatch.setattr(module, "is_compiling", lambda: True)
    return made


def test_all_layers_share_two_graphs_whatever_the_documents(graphs: list[torch.fx.GraphModule]) -> None:
    """Before the first attention, and from one to the next. Dropout is on: the same seed draws the same."""
    config = replace(SMALLEST, num_hidden_layers=8, attn_out_dropout=0.1)
    compiled, plain = build(config).train(), build(config).train()
    compiled.model.compile_layers()
    for lengths in ([50, 150], [100, 60, 40], [200], [10] * 20):
        input_ids, packing, masked, targets = batch_of(lengths)
        losses = []
        for model in (compiled, plain):
            torch.manual_seed(0)
            loss = model.loss(input_ids, packing, masked, targets).total
            loss.backward()
            losses.append(loss.item())
        assert losses[0] == losses[1]
        assert len(graphs) == 2
    for own, expected in zip(compiled.parameters(), plain.parameters(), strict=True):
        assert own.grad.equal(expected.grad)


@pytest.mark.usefixtures("no_process_group")
def test_the_layers_of_a_rank_share_two_graphs_too(
    made: list[torch.fx.GraphModule], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Left to itself, torch would cut them where DDP's buckets of gradients end."""
    monkeypatch.setattr(torch.distributed, "_DEFAULT_FIRST_BUCKET_BYTES", 1000)
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        with torch._dynamo.config.patch(optimize_ddp=True):  # torch's own choice
            compiled = build(replace(SMALLEST, num_hidden_layers=8)).train()
            compiled.model.compile_layers()
            wrapped = torch.nn.parallel.DistributedDataParallel(WithLoss(compiled), bucket_cap_mb=0.01)
            wrapped(*batch_of([50, 150])).backward()
    finally:
        torch.distributed.destroy_process_group()
    assert len(made) == 2


def test_a_validation_makes_its_graphs_once_and_leaves_trainings(graphs: list[torch.fx.GraphModule]) -> None:
    compiled = build(replace(SMALLEST, attn_out_dropout=0.1)).train()
    compiled.model.compile_layers()
    made = []
    for _ in range(2):
        compiled.train().loss(*batch_of([50, 150])).total.backward()
        with torch.no_grad():
            compiled.eval().loss(*batch_of([100, 100]))
        made.append(len(graphs))
    assert made == [4, 4]


def test_compiled_layers_keep_their_names_in_a_checkpoint(graphs: list[torch.fx.GraphModule]) -> None:
    model = build(SMALLEST)
    names = list(model.state_dict())
    model.model.compile_layers()
    assert list(model.state_dict()) == names


@pytest.mark.skipif(torch.version.cuda is None, reason="needs a torch that is built for CUDA, and Triton with it")
def test_torchs_compiler_makes_machine_code_for_an_h100_that_is_not_there() -> None:
    """Two graphs for training and two for validation; GELU's error function once in each kernel that needs it."""
    command = [sys.executable, "-m", "tests.code_for_a_gpu", "90"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    graphs = [json.loads(line) for line in done.stdout.splitlines()]
    assert [graph["backward"] for graph in graphs] == [False, False, True, True, False, False]
    assert [sorted(graph["erf"].values())[-2:] for graph in graphs] == [[0, 0], [0, 1], [0, 1], [0, 0], [0, 0], [0, 1]]
