"""The plan of one phase: all that follows from its configuration and from what its streams hold."""
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from mmbert.clock import batch_sizes, learning_rate
from mmbert.config import RunConfig
from mmbert.device_peaks import memory_bytes, peak_flops
from mmbert.flops import training_flops
from mmbert.mixture import Group, Plan
from mmbert.plan.counts import Count, Counts, Name, counts_of_phase
from mmbert.plan.numbers import FP32, Memory, Stretch, count_checkpoints, memory, num_parameters, stretches
from mmbert.streams import mixture_streams

SAMPLES = 400  # points of a curve over a phase
SHORT_NAMES = {"H100": "H100 80GB HBM3", "A100": "A100-SXM4-80GB"}
GPUS = "H100 (the same as 'H100 SXM'), 'H100 PCIe', 'H100 NVL', H200, 'H200 NVL' and A100"


@dataclass(frozen=True)
class Hardware:
    """What the phases are to run on, and how fast, by assumption.

    Attributes:
        peak: FLOP/s of one GPU by its data sheet.
        memory: bytes of one GPU.
        mfu: share of the peak that is reached.
        tokens_per_second: of all GPUs together; None where `mfu` is to tell.
    """

    gpus: int
    gpu: str
    peak: float
    memory: int
    mfu: float
    tokens_per_second: float | None = None

    @classmethod
    def named(cls, gpus: int, gpu: str, mfu: float, tokens_per_second: float | None) -> "Hardware":
        """The hardware of the command line.

        Raises:
            ValueError: the GPU is in no table, or a number is out of its range.
        """
        name = SHORT_NAMES.get(gpu, gpu)
        peak, size = peak_flops(name), memory_bytes(name)
        if peak is None or size is None:
            raise ValueError(f"--gpu {gpu!r} is not in the table; it has {GPUS}")
        if gpus < 1 or not 0.0 < mfu <= 1.0 or (tokens_per_second is not None and tokens_per_second <= 0):
            raise ValueError(f"--gpus {gpus}, --mfu {mfu} and --tokens-per-second {tokens_per_second} must be at least "
                             "1, in (0, 1], and above 0")  # fmt: skip
        return cls(gpus, gpu, peak, size, mfu, tokens_per_second)


@dataclass(frozen=True)
class Line:
    """What a stream, or a whole group whose streams' sizes are unknown, gets in a phase.

    Attributes:
        language: of the stream; in brackets, how many languages the group has.
        has: tokens that there are.
        share: of the phase's tokens.
        tokens, rows: that are read.
        repeats: how often each row is read, in the mean.
    """

    group: str
    source: str
    language: str
    has: int | None
    share: float
    tokens: float
    rows: float | None
    repeats: float | None


@dataclass(frozen=True)
class PhasePlan:
    """One phase.

    Attributes:
        path: its YAML.
        parent: configuration of the phase it goes on from; None where it has none, or its YAML is not at hand.
        counts: what the streams hold; None where that is unknown.
        problem: why there are no counts, where that is a mistake; "" otherwise.
        stretches: the steps, by size of the global batch.
        row_tokens: mean tokens of a row.
    """

    path: str
    config: RunConfig
    parent: RunConfig | None
    groups: tuple[Group, ...]
    counts: Counts | None
    problem: str
    lines: tuple[Line, ...]
    stretches: tuple[Stretch, ...]
    row_tokens: float

    @property
    def steps(self) -> int:
        """Optimizer steps."""
        return sum(stretch.steps for stretch in self.stretches)

    @property
    def rows(self) -> int:
        """Rows of all steps."""
        return sum(stretch.steps * stretch.batch_rows for stretch in self.stretches)

    @property
    def tokens(self) -> float:
        """Planned tokens of all steps; the last one may end behind `duration`."""
        return self.rows * self.row_tokens

    @property
    def step_tokens(self) -> float:
        """Of a step at the full batch size."""
        return self.config.global_train_batch_size * self.row_tokens

    @property
    def parameters(self) -> int:
        """Of the model."""
        return num_parameters(self.config.model)

    @property
    def full_flops(self) -> float:
        """FLOPs of a token, attention counted as if each row were one document: more than that it cannot be."""
        config = self.config
        moments = (np.arange(1000) + 0.5) / 1000 * config.duration
        rate = float(np.mean([config.mask_rate.value(int(moment), config.duration) for moment in moments]))
        rows = np.full(1000, config.max_seq_len)
        tokens = int(rows.sum())
        return training_flops(config.model, rows, round(rate * tokens)) / tokens

    @property
    def checkpoint_bytes(self) -> int:
        """Weights and two moments in fp32."""
        return 3 * FP32 * self.parameters

    @property
    def checkpoints(self) -> tuple[int, int]:
        """How many stay, and the most there are at a time."""
        return count_checkpoints(self.config.checkpoint, self.config.duration, self.step_tokens)

    def seconds(self, hardware: Hardware) -> float:
        """How long training takes by the assumption on speed."""
        if hardware.tokens_per_second is not None:
            return self.tokens / hardware.tokens_per_second
        return self.tokens * self.full_flops / (hardware.gpus * hardware.peak * hardware.mfu)

    def memory(self, hardware: Hardware) -> Memory:
        """Of one GPU; each microbatch has the room of `device_train_microbatch_size` full rows."""
        config = self.config
        tokens = config.device_train_microbatch_size * config.max_seq_len
        return memory(config.model, tokens, max(config.mask_rate.values()), hardware.gpus)

    def curves(self) -> dict[str, list[float]]:
        """Every schedule at SAMPLES moments of the phase: name -> values; `tokens` are the moments."""
        config, sizes = self.config, batch_sizes(self.config)
        moments = [round(config.duration * part) for part in np.linspace(0.0, 1.0, SAMPLES)]
        return {
            "tokens": [float(moment) for moment in moments],
            "learning rate": [learning_rate(config, moment) for moment in moments],
            "mask rate": [config.mask_rate.value(moment, config.duration) for moment in moments],
            "batch": [sizes.at(int(moment / self.row_tokens)) * self.row_tokens for moment in moments],
            **{f"tau {group.name}": [group.tau.value(moment, config.duration) for moment in moments]
               for group in self.groups if len(group.members) > 1},
        }  # fmt: skip


def plan_phase(path: str, config: RunConfig, parent: RunConfig | None, table: Mapping[Name, Count] | None) -> PhasePlan:
    """Plan a phase; a mistake in the counts is noted, and what does not need them is planned all the same.

    Raises:
        FileNotFoundError, ValueError: the configuration's languages or batch sizes are not to be had.
    """
    streams, groups = mixture_streams(config)
    sizes, problem = batch_sizes(config), ""
    try:
        counts = counts_of_phase(config, streams, table)
        plan = Plan(groups, counts.rows, counts.tokens, config.duration, config.data.period_rows) if counts else None
        read = plan.walk(config.duration) if plan else None
    except (FileNotFoundError, ValueError) as error:
        counts, read, problem = None, None, str(error)
    row_tokens = config.duration / read.rows if read else float(config.max_seq_len)
    steps = tuple(stretches(sizes, config.duration / row_tokens))
    if counts is None or read is None:
        lines = tuple(line_of_group(group, config, streams) for group in groups)
        return PhasePlan(path, config, parent, groups, None, problem, lines, steps, row_tokens)
    read = read.up_to(sum(stretch.steps * stretch.batch_rows for stretch in steps))
    group_of = {int(member): group.name for group in groups for member in group.members}
    tokens = float(read.stream_tokens.sum())
    lines = tuple(
        Line(group_of[i], *name, int(counts.tokens[i]), float(read.stream_tokens[i]) / tokens,
             float(read.stream_tokens[i]), float(read.stream_rows[i]),
             float(read.stream_rows[i] / counts.rows[i]))
        for i, name in enumerate(streams)
    )  # fmt: skip
    return PhasePlan(path, config, parent, groups, counts, "", lines, steps, row_tokens)


def line_of_group(group: Group, config: RunConfig, streams: tuple[Name, ...]) -> Line:
    """What a group gets, where nothing is known of its streams."""
    source, language = streams[int(group.members[0])]
    if len(group.members) > 1:
        language = f"({len(group.members):,} languages)"
    return Line(group.name, source, language, None, group.share, group.share * config.duration, None, None)
