"""FLOP counts against counting one by one, and against the figures published for the real shapes."""
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from mmbert.config import load_config
from mmbert.flops import forward_flops, scored_pairs, training_flops
from tests.test_model import SMALLEST, batch_of, build

OPERATORS = {
    torch.ops.mkldnn._linear_pointwise: lambda x, weight, *_, **options: 2 * x[0] * x[1] * weight[0],
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, *_, **options: (
        4 * q[1] * q[2] * q[3] * k[2]
    ),
}
"""FLOPs of those that torch's counter does not know, from the shapes of their arguments."""


@pytest.mark.parametrize("window", [None, 0, 1, 3, 64])
def test_scored_pairs_are_those_that_a_mask_would_show(window: int | None) -> None:
    lengths = np.array([1, 2, 5, 63, 64, 65, 130])
    counted = sum(
        window is None or abs(query - key) <= window
        for length in lengths
        for query in range(length)
        for key in range(length)
    )
    assert scored_pairs(lengths, window) == counted


@pytest.mark.parametrize(
    "recipe, seq, mask, gigaflops",
    [("phase1", 1024, 0.30, 1.088), ("phase2", 8192, 0.15, 1.379), ("small/phase1", 1024, 0.30, 0.467)],
)
def test_a_token_of_the_papers_models_costs_what_was_worked_out_by_hand(
    recipe: str, seq: int, mask: float, gigaflops: float
) -> None:
    """Worked out with full rows, 129 keys a query in local layers, and in the last layer only masked tokens as queries
    and behind them.
    """
    config = load_config(Path("yamls") / f"{recipe}.yaml").model
    per_token = training_flops(config, np.full(10, seq), int(mask * 10 * seq)) / (10 * seq)
    assert per_token / 1e9 == pytest.approx(gigaflops, rel=0.005)


@pytest.mark.parametrize("layers, keys", [(22, 66), (21, 0)], ids=["last is global", "last is local"])
def test_a_batch_without_labels_pays_nothing_for_queries_of_a_global_last_layer_and_behind(
    layers: int, keys: int
) -> None:
    """Of documents of 40 and 80 tokens a label stands in either; a query scores 40 * 1/3 + 80 * 2/3 keys, rounded."""
    config = replace(load_config(Path("yamls/phase1.yaml")).model, num_hidden_layers=layers)
    lengths = np.array([40, 80])
    label = forward_flops(config, lengths, 1) - forward_flops(config, lengths, 0)
    behind = 2 * (768 * 768 + 768 * 2 * 1152 + 1152 * 768) + 2 * 768 * 768 + 2 * 768 * 256_000
    assert label == behind + 4 * 768 * keys


@pytest.mark.parametrize("layers", [4, 5], ids=["last is global", "last is local"])
def test_an_encoder_computes_what_is_counted(layers: int) -> None:
    """Of a document shorter than the window, for which no key is scored in vain."""
    config = replace(SMALLEST, num_hidden_layers=layers)
    input_ids, packing, masked, _ = batch_of([60])
    model = build(config)
    with torch.no_grad(), FlopCounterMode(display=False, custom_mapping=OPERATORS) as counter:
        model(input_ids, packing, masked)
    assert counter.get_total_flops() == forward_flops(config, np.array([60]), len(masked))
