"""What torch.compile makes of the model: the same numbers and few graphs. Without its compiler, which takes minutes."""
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from tests.test_model import SMALLEST, batch_of, build


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> list[torch.fx.GraphModule]:
    """The graphs that are made; they are run as they are. What is not compiled computes as if it were."""
    made: list[torch.fx.GraphModule] = []
    compile_ = torch.compile

    def backend(graph: torch.fx.GraphModule, inputs: Any) -> Callable[..., Any]:
        made.append(graph)
        return graph.forward

    monkeypatch.setattr(torch, "compile", lambda function, **options: compile_(function, backend=backend, **options))
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    torch._dynamo.reset()
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
