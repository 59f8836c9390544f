"""Floating-point operations of a training step: matrix products and attention, a multiplication and an addition each.

Elementwise work is not counted, nor anything computed twice. Backward is twice forward. Pure functions.
"""
import numpy as np

from mmbert.config import ModelConfig
from mmbert.mixture import Integers


def scored_pairs(lengths: Integers, window: int | None) -> int:
    """Pairs of query and key that attention scores in a batch of documents.

    Args:
        lengths: (N,) tokens of each document.
        window: keys seen to each side of a query; None for the whole document.
    """
    if window is None:
        return int((lengths * lengths).sum())
    # All within the window on one side: 0 + 1 + ... + window, then window each; twice, and the token itself.
    near = np.minimum(window, lengths - 1)
    sides = near * (near + 1) // 2 + (lengths - 1 - near) * window
    return int((2 * sides + lengths).sum())


def forward_flops(config: ModelConfig, lengths: Integers, num_masked: int) -> int:
    """One forward pass over a packed batch; only masked tokens go on behind the last layer's attention.

    Nor are others queries there, if that layer is global. Masked tokens are taken to lie evenly.

    Args:
        lengths: (N,) tokens of each document.
        num_masked: tokens that are to be predicted.
    """
    hidden, inner, layers = config.hidden_size, config.intermediate_size, config.num_hidden_layers
    tokens = int(lengths.sum())
    num_global = -(-layers // config.global_attn_every_n_layers)
    before = 2 * hidden * 3 * hidden
    after = 2 * hidden * hidden + 2 * hidden * 2 * inner + 2 * inner * hidden
    of_global, of_local = scored_pairs(lengths, None), scored_pairs(lengths, config.local_attention // 2)
    pairs = num_global * of_global + (layers - num_global) * of_local
    if (layers - 1) % config.global_attn_every_n_layers == 0:
        pairs -= of_global - of_global * num_masked // tokens
    head = 2 * hidden * hidden + 2 * hidden * config.vocab_size
    every_token = layers * before + (layers - 1) * after
    return tokens * every_token + 4 * hidden * pairs + num_masked * (after + head)


def training_flops(config: ModelConfig, lengths: Integers, num_masked: int) -> int:
    """Forward and backward."""
    return 3 * forward_flops(config, lengths, num_masked)
