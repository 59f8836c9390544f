"""What a plan says, as labelled strings and tables: the text, the page and the comparison are all made of these."""
from collections.abc import Sequence
from typing import Any

from mmbert.clock import learning_rate
from mmbert.config import RunConfig
from mmbert.identity import flatten
from mmbert.page_style import quantity
from mmbert.plan.phase import Hardware, Line, PhasePlan
from mmbert.schedules import Schedule

Change = tuple[str, str, str]


def gigabytes(number: float) -> str:
    """Bytes in decimal terabytes, gigabytes or megabytes."""
    if number >= 1e13:
        return f"{number / 1e12:,.1f} TB"
    return f"{number / 1e9:,.1f} GB" if number >= 1e8 else f"{number / 1e6:,.2f} MB"


def duration_of(seconds: float) -> str:
    """In days, or what is smaller."""
    for unit, size in (("days", 86400.0), ("hours", 3600.0), ("minutes", 60.0)):
        if seconds >= size:
            return f"{seconds / size:,.1f} {unit}"
    return f"{seconds:.0f} seconds"


def path_of(schedule: Schedule) -> str:
    """A schedule in words."""
    if schedule.end is None:
        return f"{schedule.start:g}"
    at = f" at {quantity(schedule.at)} tokens" if schedule.at is not None else ""
    return f"{schedule.start:g} to {schedule.end:g}, {schedule.kind}{at}"


def facts(plan: PhasePlan, hardware: Hardware | None) -> dict[str, str]:
    """One phase, label -> value."""
    config, model = plan.config, plan.config.model
    taus = [f"{group.name} {path_of(group.tau)}" for group in plan.groups if len(group.members) > 1]
    found = {
        "tokens": f"{config.duration:,}; the last step ends {max(0.0, plan.tokens - config.duration):,.0f} behind them",
        "steps": f"{plan.steps:,}",
        "rows": f"{plan.rows:,} of {config.max_seq_len:,} tokens, filled to {plan.row_tokens / config.max_seq_len:.1%}"
        + ("" if plan.counts else " (assumed)"),
        "batch": f"{config.global_train_batch_size:,} rows, {plan.step_tokens:,.0f} tokens",
        "batch warm-up": batch_warmup(plan),
        "learning rate": rates(config),
        "optimizer": f"StableAdamW, betas {config.optimizer.betas}, eps {config.optimizer.eps:g}, "
        f"weight decay {config.optimizer.weight_decay:g}",
        "mask rate": path_of(config.mask_rate),
        "tau": "; ".join(taus) or "-",
        "RoPE theta": f"global {model.global_rope_theta:,.0f}, local {model.local_rope_theta:,.0f}",
        "parameters": f"{plan.parameters:,}, {plan.parameters - model.vocab_size * model.hidden_size:,} of them not in "
        "the embeddings",
        "FLOPs": f"at most {plan.full_flops / 1e9:.3f} GFLOP a token, {plan.full_flops * plan.tokens:.3g} in all (each "
        "row one document)",
        "checkpoints": checkpoints(plan),
        "streams": f"{sum(len(group.members) for group in plan.groups):,}, groups {len(plan.groups)}; "
        + (f"sizes from {plan.counts.origin}" if plan.counts else "sizes unknown"),
    }
    if plan.counts is not None:
        tokens = int(plan.counts.tokens.sum())
        found["rows on disk"] = f"{quantity(tokens)} tokens, at least {gigabytes(4 * tokens)}"
    return found | (hardware_facts(plan, hardware) if hardware else {})


def batch_warmup(plan: PhasePlan) -> str:
    """The sizes of the global batch."""
    if len(plan.stretches) == 1:
        return "-"
    first, last = plan.stretches[0], plan.stretches[-1]
    return (
        f"from {first.batch_rows:,} to {last.batch_rows:,} rows, {first.steps:,} steps at each size, "
        f"{sum(stretch.steps for stretch in plan.stretches[:-1]):,} steps in all"
    )


def rates(config: RunConfig) -> str:
    """Where the learning rate begins, its peak, and where it ends."""
    begins, ends = learning_rate(config, 0), learning_rate(config, config.duration)
    shape = config.learning_rate
    parts = [f"{config.optimizer.lr:g}, {shape.shape}"]
    if shape.warmup:
        parts.append(f"warm-up over {quantity(shape.warmup)} tokens")
    if shape.decay:
        parts.append(f"decay over the last {quantity(shape.decay)}")
    return f"{', '.join(parts)}; begins at {begins:.3g}, ends at {ends:.3g}"


def checkpoints(plan: PhasePlan) -> str:
    """How many, how large."""
    rule, (stay, most), size = plan.config.checkpoint, plan.checkpoints, plan.checkpoint_bytes
    return (
        f"every {quantity(rule.interval)} tokens, {gigabytes(size)} each; {stay} stay, {gigabytes(stay * size)}; "
        f"at most {most} at a time, {gigabytes(most * size)}"
    )


def hardware_facts(plan: PhasePlan, hardware: Hardware) -> dict[str, str]:
    """What depends on the machine, and what is assumed of it."""
    config, seconds, memory = plan.config, plan.seconds(hardware), plan.memory(hardware)
    rows, micro = config.global_train_batch_size / hardware.gpus, config.device_train_microbatch_size
    parts = ", ".join(f"{name.replace('_', ' ')} {gigabytes(size)}" for name, size in vars(memory).items() if size)
    return {
        "microbatches": f"{rows:g} rows a GPU in {-(-rows // micro):g} microbatches of {micro}"
        + ("" if rows % micro == 0 else f" ({rows / micro:.2f})"),
        "time": f"{duration_of(seconds)}; {duration_of(seconds * hardware.gpus)} of GPU time",
        "speed": f"{plan.tokens / seconds:,.0f} tokens/s, {plan.tokens / seconds / hardware.gpus:,.0f} a GPU",
        "memory of a GPU": f"{gigabytes(memory.total)} ({parts}), by a formula",
    }


def assumption(hardware: Hardware | None) -> str:
    """What the times rest on."""
    if hardware is None:
        return "No time and no memory: the phases run on the CPU (device: cpu)."
    machine = f"{hardware.gpus} x {hardware.gpu}"
    if hardware.tokens_per_second is not None:
        return f"ASSUMED, not measured: {hardware.tokens_per_second:,.0f} tokens/s on {machine} (--tokens-per-second)."
    return (
        f"ASSUMED, not measured: {machine} at {hardware.mfu:.0%} of {hardware.peak / 1e12:,.0f} TFLOP/s "
        "(--gpus, --gpu, --mfu), FLOPs counted with each row as one document."
    )


def changes(config: RunConfig, parent: RunConfig) -> list[Change]:
    """Every key in which a phase differs from its parent, but for their names: key, before, now; "-" where absent."""
    before, now = flatten(parent.as_dict()), flatten(config.as_dict())
    keys = [key for key in dict.fromkeys((*now, *before)) if key not in ("name", "parent")]
    return [(key, shown(before, key), shown(now, key)) for key in keys if before.get(key) != now.get(key)]


def shown(flat: dict[str, Any], key: str) -> str:
    """A value as one reads it; "-" where there is none."""
    value = flat.get(key)
    if value is None:
        return "-"
    if isinstance(value, list):
        return " ".join(map(str, value))
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def total_lines(plan: PhasePlan, by: str) -> list[Line]:
    """The lines summed by `group` or `language`, the most tokens first; repeats are the most of any stream's."""
    parts: dict[str, list[Line]] = {}
    for line in plan.lines:
        parts.setdefault(getattr(line, by), []).append(line)
    totals = [total(lines) for lines in parts.values()]
    return sorted(totals, key=lambda line: -line.tokens)


def total(lines: Sequence[Line]) -> Line:
    """One line for several streams."""
    first = lines[0]
    known = all(line.has is not None for line in lines)
    return Line(
        first.group,
        first.source,
        first.language if len({line.language for line in lines}) == 1 else f"({len(lines):,} languages)",
        sum(line.has or 0 for line in lines) if known else None,
        sum(line.share for line in lines),
        sum(line.tokens for line in lines),
        sum(line.rows or 0.0 for line in lines) if known else None,
        max(line.repeats or 0.0 for line in lines) if known else None,
    )
