"""A training step, forward and backward, against transformers' ModernBertForMaskedLM with the same weights.

The documents are the same for all, as are the masked tokens; their lengths are as uneven as those of web text, half of
them below a third of a row. Ours packs them into rows; transformers gets a document a row, padded to the longest of its
batch. `hf-tuned` is what a careful user gets on a CPU; `hf-sdpa` and `hf-fa2` are that on a GPU. `flexbert` is
ModernBERT's own training code on the same rows as ours: PYTHONPATH must name a checkout of it.
"""

import argparse
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor

from mmbert.attention import Kernel, resolve_kernel
from mmbert.benchmark import products, timing
from mmbert.benchmark.candidates import Candidate, our_candidate
from mmbert.benchmark.device import add_device_options, chosen_device
from mmbert.benchmark.documents import Documents, synthetic_documents
from mmbert.benchmark.peers import PEERS, build_peers, check_peers_run
from mmbert.benchmark.result import OURS, Gate, check_gates, check_peers, document
from mmbert.benchmark.timing import Sample, Spread
from mmbert.config import ModelConfig
from mmbert.device_peaks import peak_flops
from mmbert.flops import training_flops
from mmbert.model import MmBertForMaskedLM

BASE = ModelConfig(
    vocab_size=256_000,
    hidden_size=768,
    intermediate_size=1152,
    num_hidden_layers=22,
    num_attention_heads=12,
    max_position_embeddings=8192,
    global_rope_theta=160_000.0,
    local_rope_theta=160_000.0,
    attn_out_dropout=0.0,  # transformers has no dropout in this place
)
MODELS = {
    # A third of base in width, and its depth: small enough to be measured many times on a CPU. Attention, which grows
    # with the width where products grow with its square, weighs more than in base; the head, of 16,384 entries, less.
    "narrow": replace(BASE, vocab_size=16_384, hidden_size=256, intermediate_size=384, num_attention_heads=4),
    "small": replace(BASE, hidden_size=384, num_attention_heads=6),
    "base": BASE,
}
LIMITS = {"fp32": 1e-5, "amp_bf16": 1e-2}
"""Most relative difference of the loss and of the norm of all gradients."""
GRADIENT_LIMIT = 1e-4
"""Most relative norm of the difference of a parameter's gradient, in fp32; bf16 alone is off by more."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """What is computed, by whom and where."""
    parser.add_argument("--model", choices=MODELS, default="narrow", help="shape (default: narrow)")
    parser.add_argument("--seq", type=int, default=1024, help="tokens of a row (default: 1024)")
    parser.add_argument("--tokens", type=int, default=8192, help="tokens of a step (default: 8192)")
    parser.add_argument("--mask", type=float, default=0.30, help="share of the tokens to predict (default: 0.30)")
    add_device_options(parser)
    parser.add_argument("--microbatch", type=int, default=4, help="rows that ours computes at a time (default: 4)")
    parser.add_argument("--attention", choices=("auto", *get_args(Kernel)), default="auto", help="ours (default: auto)")
    parser.add_argument("--peers", default="hf-tuned", help=f"among {','.join(PEERS)}; commas between")


def check_options(options: argparse.Namespace) -> torch.device:
    """The device.

    Raises:
        ValueError: an option, its value and the remedy.
    """
    device = chosen_device(options)
    if not 8 <= options.seq <= BASE.max_position_embeddings:
        raise ValueError(f"--seq {options.seq} must lie between 8 and {BASE.max_position_embeddings}")
    if options.tokens < options.seq:
        raise ValueError(f"--tokens {options.tokens} must be at least --seq {options.seq}")
    if not 0.0 < options.mask < 1.0:
        raise ValueError(f"--mask {options.mask} must lie between 0 and 1")
    if options.microbatch < 1:
        raise ValueError(f"--microbatch {options.microbatch} must be at least 1")
    if device.type == "cuda" and options.precision != "amp_bf16":
        raise ValueError("--device gpu needs --precision amp_bf16: its attention kernels have no fp32")
    names = options.peers.split(",")
    if len(set(names)) < len(names):
        raise ValueError(f"--peers {options.peers}: name each peer once")
    check_peers_run(names, device, options.precision)
    check_peers(options, names)
    resolve_kernel(options.attention, device.type)
    return device


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Build, compare, time."""
    device = check_options(options)
    shape = MODELS[options.model]
    config = replace(shape, max_position_embeddings=options.seq, attention=options.attention)
    documents = synthetic_documents(options.tokens, options.seq, config.vocab_size, options.mask)
    torch.manual_seed(0)
    encoder = MmBertForMaskedLM(config).to(device).train()
    if device.type == "cuda":
        encoder.model.compile_layers()  # as the trainer does
    candidates = {OURS: our_candidate(encoder, documents, options.microbatch, options.precision, device)}
    candidates |= build_peers(encoder, documents, options.peers.split(","), options.precision, device)
    gates = compare(candidates, options.precision)
    check_gates(gates)
    measured = candidates.items() if device.type == "cuda" else ()
    peaks = {name: peak_gpu_bytes(candidate) for name, candidate in measured}
    steps: dict[str, Callable[[], None]] = {name: candidate.step for name, candidate in candidates.items()}
    dtype = torch.bfloat16 if options.precision == "amp_bf16" else torch.float32
    steps[products.NAME] = products.bare_products(encoder, candidates[OURS].microbatches, dtype)
    samples = timing.measure(steps, options.repetitions, options.warmup, device.type == "cuda")
    flops = training_flops(config, documents.rows["lengths"], documents.num_masked)
    num_parameters = sum(parameter.numel() for parameter in encoder.parameters())
    return document(
        "step", samples, documents.num_tokens, gates, facts(options, config, documents, num_parameters, flops),
        candidate_facts(candidates, samples, flops, peaks),
    )  # fmt: skip


def compare(candidates: Mapping[str, Candidate], precision: str) -> list[Gate]:
    """Losses and gradients of all against the last peer's; leaves no gradients.

    Returns:
        Relative differences of the loss and of the norm of all gradients; in fp32 also the largest relative norm of
        the difference of a parameter's gradient, ours against the reference.
    """
    reference = list(candidates)[-1]
    expected_loss = candidates[reference].backward().item()
    expected = {name: gradient.clone() for name, gradient in gradients(candidates[reference]).items()}
    expected_norm = global_norm(expected)
    gates = []
    for name, candidate in candidates.items():
        if name == reference:
            continue
        loss, own = candidate.backward().item(), gradients(candidate)
        pair = f"{precision}, {name} against {reference}"
        gates.append(Gate(f"loss, {pair}", abs(loss / expected_loss - 1), LIMITS[precision]))
        gates.append(Gate(f"gradient norm, {pair}", abs(global_norm(own) / expected_norm - 1), LIMITS[precision]))
        if name == OURS and precision == "fp32":
            gates.append(Gate(f"worst gradient of a parameter, {pair}", worst_gradient(own, expected), GRADIENT_LIMIT))
        candidate.model.zero_grad(set_to_none=True)
    candidates[reference].model.zero_grad(set_to_none=True)
    return gates


def gradients(candidate: Candidate) -> dict[str, Tensor]:
    """Gradient of every parameter, by name; asserts that there are no others."""
    found = {name: parameter.grad for name, parameter in candidate.model.named_parameters()}
    assert all(gradient is not None for gradient in found.values())
    return found  # type: ignore[return-value]


def global_norm(gradients: Mapping[str, Tensor]) -> float:
    """Norm of all gradients as one vector."""
    return torch.stack([_norm(gradient) for gradient in gradients.values()]).norm().item()


def worst_gradient(own: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> float:
    """Largest |own - expected| / |expected| of a parameter; NaN, which no gate passes, where one is not a number."""
    assert own.keys() == expected.keys()
    relative = [_norm(own[name] - gradient) / _norm(gradient) for name, gradient in expected.items()]
    return torch.stack(relative).max().item()


def _norm(x: Tensor) -> Tensor:
    return torch.linalg.vector_norm(x, dtype=torch.float64)


def peak_gpu_bytes(candidate: Candidate) -> int:
    """Most bytes of a GPU's memory that a step needs beyond weights, inputs and what the other candidates hold."""
    candidate.step()  # workspaces come with the first
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    candidate.step()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def facts(
    options: argparse.Namespace, config: ModelConfig, documents: Documents, num_parameters: int, flops: int
) -> dict[str, Any]:
    """What all candidates share."""
    lengths, num_masked = documents.rows["lengths"], documents.num_masked
    without_attention = training_flops(config, np.ones_like(lengths, shape=documents.num_tokens), num_masked)
    return {
        "model": options.model,
        "parameters": num_parameters,
        "seq": options.seq,
        "tokens": documents.num_tokens,
        "documents": len(documents.alone),
        "mask": options.mask,
        "masked_tokens": documents.num_masked,
        "precision": options.precision,
        "device": options.device,
        "attention": resolve_kernel(config.attention, chosen_device(options).type),
        "dropout": 0.0,
        "flops_per_token": flops / documents.num_tokens,
        "attention_share_of_flops": 1 - without_attention / flops,
        "head_share_of_flops": 6 * num_masked * config.hidden_size * config.vocab_size / flops,
    }


def candidate_facts(
    candidates: Mapping[str, Candidate], samples: Mapping[str, list[Sample]], flops: int, peaks: Mapping[str, int]
) -> dict[str, dict[str, Any]]:
    """What each candidate has for itself."""
    peak = peak_flops(torch.cuda.get_device_name()) if peaks else None
    table: dict[str, dict[str, Any]] = {}
    for name, candidate in candidates.items():
        speed = flops / Spread.of([sample.wall for sample in samples[name]]).median
        table[name] = {"fill": candidate.fill, "flops_per_second": speed, "note": candidate.note}
        if name in peaks:
            table[name]["peak_bytes"] = peaks[name]
        if peak is not None:
            table[name]["mfu"] = speed / peak
    table[products.NAME] = {"note": products.NOTE}
    return table
