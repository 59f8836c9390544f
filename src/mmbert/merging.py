"""Merges models one tensor at a time: weighted means, TIES, and how far the models agree. Pure functions of tensors.

A task vector is what a run changed: its weights less the base's. Sums are formed in float64, a part of the tensors at a
time, so a merge needs its inputs, its result, and about two more tensors of that size.

Shapes: n models, S the shape of one tensor, E its entries, P the entries of a part.

Source:
    Yadav et al. 2023, arXiv:2306.01708 (TIES).
"""
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import sqrt
from typing import Self

import torch
from torch import Tensor

PART = 2**18
"""Entries that are worked on at a time: 2 MiB of float64 a model, which is faster than more."""


def exponential_weights(n: int, ratio: float) -> list[float]:
    """Weights of n checkpoints, oldest first: each is `ratio` times the one after it, and they sum to 1."""
    powers = [ratio ** (n - 1 - i) for i in range(n)]
    return [power / sum(powers) for power in powers]


def weighted_mean(tensors: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """Sum of weight x tensor over the sum of the weights.

    Args:
        tensors: n of (S), float32, contiguous.
        weights: n, above 0; they need not sum to 1.

    Returns:
        (S), float32.
    """
    flat = [tensor.reshape(-1) for tensor in tensors]
    mean = torch.empty_like(flat[0])
    for part in parts(len(mean)):
        vectors, column = stack(flat, part), column_of(weights)
        mean[part] = (column * vectors).sum(dim=0) / column.sum()
    return mean.view(tensors[0].shape)


def ties(base: Tensor, tensors: Sequence[Tensor], weights: Sequence[float], density: float, scale: float) -> Tensor:
    """TIES: trim task vectors, elect a sign for each entry, and average those that have it.

    Of each task vector the `density` largest entries stay, by magnitude, counted in this tensor alone: so does
    mergekit, the tool that others merge with, and only one tensor of each model need be in memory. (TIES' authors trim
    a model as a whole.) The sign of an entry is that of the weighted sum; where that is 0, the base's value stays. The
    mean is over the runs whose sign it is, by their weights.

    Args:
        base: (S), float32, contiguous.
        tensors: n of (S), the runs' weights.
        weights: n, above 0; only their proportions count.
        density: share of the entries that stay, in (0, 1].
        scale: of the merged task vector before it is added to the base.

    Returns:
        (S), float32.

    Source:
        Yadav et al. 2023, arXiv:2306.01708, algorithm 1, with weights as in mergekit.
    """
    kept = [largest((tensor - base).abs_(), density).view(-1) for tensor in tensors]  # a byte an entry and run
    flat_base, flat = base.reshape(-1), [tensor.reshape(-1) for tensor in tensors]
    merged = torch.empty_like(flat_base)
    for part in parts(len(merged)):
        start = flat_base[part].double()  # (P,)
        vectors = (stack(flat, part) - start) * torch.stack([mask[part] for mask in kept])  # (n, P)
        weighted = column_of(weights) * vectors
        elected = weighted.sum(dim=0).sign()
        agrees = weighted * elected > 0
        total = (column_of(weights) * agrees).sum(dim=0)
        mean = (weighted * agrees).sum(dim=0) / total
        merged[part] = start + scale * torch.where(total > 0, mean, 0.0)
    return merged.view(base.shape)


def largest(magnitudes: Tensor, density: float) -> Tensor:
    """Which entries of a task vector stay: exactly floor(density E) of largest magnitude, 1 at least.

    Of equal ones the first stay, so the same tensors always give the same merge.

    Args:
        magnitudes: (S), float32, contiguous, not negative.

    Returns:
        (S) bool.
    """
    flat = magnitudes.view(-1)
    num_kept = max(1, int(density * len(flat)))
    ordered = flat.numpy().copy()
    ordered.partition(len(ordered) - num_kept)  # torch's topk and kthvalue would keep 8 bytes an entry for places
    threshold = float(ordered[len(ordered) - num_kept])
    del ordered
    mask = flat > threshold
    missing = num_kept - int(mask.count_nonzero())  # sum() would make 8 bytes of every entry first
    mask[(flat == threshold).nonzero().view(-1)[:missing]] = True
    return mask.view(magnitudes.shape)


@dataclass(frozen=True, eq=False)
class Agreement:
    """How far n task vectors agree; the sum of two is that of both tensors together.

    Attributes:
        num_changed: entries that at least one run changed.
        num_same_sign: entries that all of them changed, in the same direction.
        products: (n, n) dot products of the task vectors, float64.
    """

    num_changed: int
    num_same_sign: int
    products: Tensor

    def __add__(self, other: Self) -> "Agreement":
        return Agreement(
            self.num_changed + other.num_changed,
            self.num_same_sign + other.num_same_sign,
            self.products + other.products,
        )

    @property
    def same_sign(self) -> float | None:
        """Share of the changed entries in which all signs agree; by chance 2 / 2^n. None where nothing changed."""
        return self.num_same_sign / self.num_changed if self.num_changed else None

    def cosine(self, i: int, j: int) -> float | None:
        """Of two task vectors; None where one is 0."""
        norms = sqrt(self.products[i, i] * self.products[j, j])
        return float(self.products[i, j]) / norms if norms else None


def sign_agreement(base: Tensor, tensors: Sequence[Tensor]) -> Agreement:
    """How far the runs changed a tensor alike.

    Args:
        base: (S), float32, contiguous.
        tensors: n of (S).
    """
    flat_base, flat = base.reshape(-1), [tensor.reshape(-1) for tensor in tensors]
    changed = same = 0
    products = torch.zeros(len(tensors), len(tensors), dtype=torch.float64)
    for part in parts(len(flat_base)):
        vectors = stack(flat, part) - flat_base[part].double()  # (n, P)
        signs = vectors.sign()
        changed += int((signs != 0).any(dim=0).sum())
        same += int((signs.sum(dim=0).abs() == len(tensors)).sum())
        products += vectors @ vectors.T
    return Agreement(changed, same, products)


def parts(num_entries: int) -> Iterator[slice]:
    """The entries of a flat tensor, PART at a time."""
    return (slice(start, start + PART) for start in range(0, num_entries, PART))


def stack(flat: Sequence[Tensor], part: slice) -> Tensor:
    """The same part of n flat tensors, in float64: (n, P)."""
    return torch.stack([tensor[part].double() for tensor in flat])


def column_of(weights: Sequence[float]) -> Tensor:
    """Weights as (n, 1), in float64."""
    return torch.tensor(weights, dtype=torch.float64).unsqueeze(1)
