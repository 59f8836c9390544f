"""The options that `head` and `step` share: on which device, how exactly."""

import argparse

import torch


def add_device_options(parser: argparse.ArgumentParser) -> None:
    """Precision and device."""
    parser.add_argument("--precision", choices=["fp32", "amp_bf16"], default="fp32", help="(default: fp32)")
    parser.add_argument("--device", choices=["cpu", "gpu"], default="cpu", help="(default: cpu)")


def chosen_device(options: argparse.Namespace) -> torch.device:
    """The device that --device names.

    Raises:
        ValueError: torch does not see it.
    """
    if options.device == "gpu" and not torch.cuda.is_available():
        raise ValueError("--device gpu: torch sees no GPU here; take --device cpu")
    return torch.device("cuda" if options.device == "gpu" else "cpu")
