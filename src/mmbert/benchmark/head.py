"""The loss of the language-model head, chunk by chunk, against torch's cross-entropy over all logits.

Forward and backward, from hidden states to the gradients of hidden states, weights and bias. Peak memory is counted
beyond the inputs and these gradients, which any way of computing them must hold.

Shapes: M masked tokens, D hidden size, V vocabulary size.
"""

import argparse
import json
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mmbert.benchmark import timing
from mmbert.benchmark.device import add_device_options, chosen_device
from mmbert.benchmark.peak_memory import SETTINGS, peak_in_child, peak_over_now
from mmbert.benchmark.result import OURS, Demand, Gate, check_gates, check_peers, document
from mmbert.head_chunks import rows_of_a_chunk
from mmbert.linear_cross_entropy import linear_cross_entropy

PEER = "full-logits"
LIMITS = {"fp32": 1e-5, "amp_bf16": 1e-2}
"""Most relative difference of the loss, and most relative norm of the difference of a gradient."""

MEASURED_WITH = {
    "cpu": " ".join(["VmHWM of a child of its own with", *(f"{name}={value}" for name, value in SETTINGS.items())]),
    "gpu": "torch.cuda.max_memory_allocated",
}

Loss = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def full_logits(hidden: Tensor, weight: Tensor, bias: Tensor, targets: Tensor) -> Tensor:
    """What one would write: all logits, then torch's loss."""
    return F.cross_entropy(F.linear(hidden, weight, bias), targets, reduction="sum")


def ours(hidden: Tensor, weight: Tensor, bias: Tensor, targets: Tensor) -> Tensor:
    """What training computes."""
    return linear_cross_entropy(hidden, weight, bias, targets).total


LOSSES: dict[str, Loss] = {OURS: ours, PEER: full_logits}


class Head:
    """Inputs of the loss, and what computes it: hidden (M, D), weight (V, D), bias (V,), targets (M,)."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.device = chosen_device(options)
        self.is_bf16 = options.precision == "amp_bf16"
        generator = torch.Generator(self.device).manual_seed(0)
        sizes = ((options.rows, options.hidden), (options.vocab, options.hidden), (options.vocab,))
        hidden, weight, bias = (torch.randn(size, generator=generator, device=self.device) for size in sizes)
        weight.mul_(options.hidden**-0.5)  # logits of a trained model's size
        self.inputs = hidden.requires_grad_(), weight.requires_grad_(), bias.requires_grad_()
        self.targets = torch.randint(options.vocab, (options.rows,), generator=generator, device=self.device)

    def backward(self, loss: Loss) -> Tensor:
        """The mean loss; the gradients are left in the inputs."""
        self.forget()
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.is_bf16):
            value = loss(*self.inputs, self.targets) / len(self.targets)
        value.backward()
        return value.detach()

    def gradients(self) -> dict[str, Tensor]:
        """By name of the input."""
        names = ("hidden", "weight", "bias")
        return {name: x.grad for name, x in zip(names, self.inputs, strict=True) if x.grad is not None}

    def forget(self) -> None:
        """Drop the gradients."""
        for x in self.inputs:
            x.grad = None


def add_options(parser: argparse.ArgumentParser) -> None:
    """Shapes, and what is asked of the memory."""
    parser.add_argument("--vocab", type=int, default=256_000, help="entries of the vocabulary (default: 256000)")
    parser.add_argument("--rows", type=int, default=1200, help="masked tokens (default: 1200)")
    parser.add_argument("--hidden", type=int, default=384, help="hidden size (default: 384)")
    add_device_options(parser)
    parser.add_argument("--min-memory-ratio", type=float, metavar="X", help="exit status 1 if less is saved")


def check_options(options: argparse.Namespace) -> None:
    """Refuse what cannot be.

    Raises:
        ValueError: an option, its value and the remedy.
    """
    for name in ("vocab", "rows", "hidden"):
        if getattr(options, name) < 1:
            raise ValueError(f"--{name} {getattr(options, name)} must be at least 1")
    if options.min_memory_ratio is not None and not options.min_memory_ratio > 0.0:
        raise ValueError(f"--min-memory-ratio {options.min_memory_ratio} must be above 0")
    check_peers(options, [PEER])


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Compare, weigh, time."""
    check_options(options)
    head = Head(options)
    gates = compare(head, options.precision)
    check_gates(gates)
    gradient_bytes = sum(x.numel() * x.element_size() for x in head.inputs)
    weigh = peak_gpu_bytes if options.device == "gpu" else peak_cpu_bytes
    peaks = {name: weigh(name, head, options) - gradient_bytes for name in LOSSES}
    calls = {name: lambda loss=loss: head.backward(loss) for name, loss in LOSSES.items()}
    samples = timing.measure(calls, options.repetitions, options.warmup, options.device == "gpu")
    less = peaks[PEER] / peaks[OURS]
    facts = {name: getattr(options, name) for name in ("vocab", "rows", "hidden", "precision", "device")}
    facts |= {
        "chunk_rows": rows_of_a_chunk(options.rows, options.vocab, head.device.type),
        "bytes_of_gradients": gradient_bytes,
        "memory_ratio": less,
        "memory_measured_with": MEASURED_WITH[options.device],
    }
    result = document("head", samples, options.rows, gates, facts, {k: {"peak_bytes": v} for k, v in peaks.items()})
    if options.min_memory_ratio is not None:
        result["demands"] = [vars(Demand(f"memory of {PEER} / ours", less, options.min_memory_ratio))]
    return result


def compare(head: Head, precision: str) -> list[Gate]:
    """Loss and gradients of ours against torch's; leaves no gradients."""
    expected_loss, expected = head.backward(full_logits).item(), head.gradients()
    loss, own = head.backward(LOSSES[OURS]).item(), head.gradients()
    gates = [Gate(f"loss, {precision}, {OURS} against {PEER}", abs(loss / expected_loss - 1), LIMITS[precision])]
    for name, gradient in expected.items():
        off = ((own[name] - gradient).norm() / gradient.norm()).item()
        gates.append(Gate(f"gradient of {name}, {precision}, {OURS} against {PEER}", off, LIMITS[precision]))
    head.forget()
    return gates


def peak_gpu_bytes(name: str, head: Head, options: argparse.Namespace) -> int:
    """Most bytes of the GPU's memory beyond the inputs, gradients included."""
    head.backward(LOSSES[name])  # the workspaces of the libraries come with the first
    head.forget()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    head.backward(LOSSES[name])
    torch.cuda.synchronize()
    peak = torch.cuda.max_memory_allocated() - before
    head.forget()
    return peak


def peak_cpu_bytes(name: str, head: Head, options: argparse.Namespace) -> int:
    """The same of the CPU's memory, in a child that computes it once."""
    words = [name, "--threads", str(torch.get_num_threads())]
    for option in ("vocab", "rows", "hidden", "precision"):
        words += [f"--{option}", str(getattr(options, option))]
    return peak_in_child("mmbert.benchmark.head", words)


def main(arguments: Sequence[str] | None = None) -> None:
    """The child of `peak_cpu_bytes`."""
    parser = argparse.ArgumentParser(prog="python -m mmbert.benchmark.head", description=peak_cpu_bytes.__doc__)
    parser.add_argument("name", choices=LOSSES)
    parser.add_argument("--threads", type=int, required=True)
    add_options(parser)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    loss = LOSSES[options.name]
    # threads and the libraries' workspaces come with the first call
    Head(argparse.Namespace(**{**vars(options), "rows": 8, "vocab": 64})).backward(loss)
    head = Head(options)
    print(json.dumps({"peak_bytes": peak_over_now(lambda: head.backward(loss))}))


if __name__ == "__main__":
    main()
