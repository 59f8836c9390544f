"""Interleaved timing of candidates in one process, and the statistics of what it gives.

A shared machine changes its speed within minutes. So the candidates take turns, A B C A B C, and a ratio is taken of
medians; the smallest and largest ratio of a round say how far it can be trusted.
"""

import gc
import resource
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

import torch

Clock = Callable[[], float]


@dataclass(frozen=True)
class Sample:
    """One run of a candidate.

    Attributes:
        wall: seconds on the clock.
        cpu: seconds of processor time; by default of this process and of its children that ended meanwhile.
    """

    wall: float
    cpu: float


@dataclass(frozen=True)
class Spread:
    """Of some numbers."""

    min: float
    median: float
    max: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """Raises ValueError for no numbers."""
        return cls(min(values), median(values), max(values))


def ratio(ours: Sequence[float], peer: Sequence[float]) -> Spread:
    """How many times the throughput of `peer` ours is.

    Args:
        ours, peer: throughput (anything per second) of each round, in the same order.

    Returns:
        The ratio of the medians, and the smallest and largest ratio within a round.
    """
    rounds = [own / other for own, other in zip(ours, peer, strict=True)]
    return Spread(min(rounds), median(ours) / median(peer), max(rounds))


def cpu_seconds() -> float:
    """Processor time so far, user and system, of this process and of its children that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


def sample(candidate: Callable[[], object], on_gpu: bool, cpu: Clock) -> Sample:
    """Run `candidate` once; on a GPU from an idle device to an idle device."""
    gc.collect()
    if on_gpu:
        torch.cuda.synchronize()
    cpu_began, began = cpu(), time.perf_counter()
    candidate()
    if on_gpu:
        torch.cuda.synchronize()
    return Sample(time.perf_counter() - began, cpu() - cpu_began)


def measure(
    candidates: Mapping[str, Callable[[], object]],
    repetitions: int,
    warmup: int = 1,
    on_gpu: bool = False,
    cpu: Clock = cpu_seconds,
) -> dict[str, list[Sample]]:
    """Run all candidates in turn.

    Args:
        candidates: name -> what is timed.
        repetitions: timed rounds.
        warmup: rounds before them that are not timed.
        on_gpu: wait for the device before and after each run.
        cpu: processor seconds so far.
    """
    samples: dict[str, list[Sample]] = {name: [] for name in candidates}
    for turn in range(-warmup, repetitions):
        for name, candidate in candidates.items():
            taken = sample(candidate, on_gpu, cpu)
            if turn >= 0:
                samples[name].append(taken)
    return samples
