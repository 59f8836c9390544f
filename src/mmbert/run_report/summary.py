"""What the numbers of a run say, in sentences."""
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

from mmbert.page_style import counted
from mmbert.run_report.mixture_tokens import StreamTokens, share_distance, worst
from mmbert.run_report.phase_run import PhaseRun


def progress(phase: PhaseRun) -> str:
    """How far the phase is, and what it took."""
    done = f"{phase.tokens:,} tokens"
    if phase.duration is not None:
        share = min(1.0, phase.tokens / phase.duration)
        done = f"{phase.tokens:,} of {phase.duration:,} tokens ({'all' if share == 1.0 else f'{share:.1%}'})"
    restarts = counted(phase.attempts - 1, "restart") if phase.attempts else "no start"
    return f"{phase.name}: {done} in {counted(len(phase.steps.tokens), 'step')}, with {restarts}."


def mishaps(phase: PhaseRun) -> Iterator[str]:
    """Steps without effect, and time lost; nothing where there were none."""
    if phase.skipped:
        reasons = ", ".join(f"{number:,} {reason}" for reason, number in phase.skipped.most_common())
        yield f"{counted(sum(phase.skipped.values()), 'step')} made no update: {reasons}."
    if phase.rollbacks:
        yield (
            f"{counted(phase.rollbacks, 'rollback')} after a loss spike undid "
            f"{counted(phase.num_rolled_back, 'step')}."
        )
    if phase.seconds_lost is not None:
        lost = timedelta(seconds=round(phase.seconds_lost))
        yield f"{lost} passed between the saves that attempts went on from and their starts."


def verdict(phase: PhaseRun) -> str:
    """What the audit found."""
    found = phase.audit
    if found is None:
        return "Not audited: there is no checkpoint yet."
    if found.faults:
        return f"The audit found faults: {'; '.join(found.faults)}."
    each = "No row is lost and none was read twice"
    if found.strange is None:
        return f"{each}; whether the rows are the plan's was not looked at."
    return f"{each}; every step read exactly the rows that the plan gives it: plan and outcome agree to the row."


def mixture(phase: PhaseRun) -> str:
    """How far the tokens of the streams are from their plan, at worst."""
    furthest, distance = worst(phase.streams), share_distance(phase.streams)
    if furthest is None or distance is None:
        return f"{counted(len(phase.streams), 'stream')}; there is no plan to compare their tokens with."
    rows = "" if furthest.difference_rows is None else f", {furthest.difference_rows:+.1f} rows"
    period = f" (rows are shuffled within {phase.config.data.period_rows:,})" if phase.config else ""
    return (
        f"{distance:.2%} of the tokens so far are of another of the {counted(len(phase.streams), 'stream')} than the "
        f"mixture's shares say{period}; furthest is {furthest.name}: {furthest.difference:+,.0f} tokens{rows}."
    )


def summarise(phase: PhaseRun) -> list[str]:
    """The phase in sentences."""
    return [progress(phase), *mishaps(phase), verdict(phase), mixture(phase), *phase.notes]


def stream_as_json(stream: StreamTokens) -> dict[str, Any]:
    """The numbers of one stream."""
    return {
        "planned": stream.planned,
        "realised": stream.realised,
        "difference": stream.difference,
        "difference_rows": stream.difference_rows,
        "rows_read": stream.rows_read,
        "repeats": stream.repeats,
    }


def as_json(phase: PhaseRun) -> dict[str, Any]:
    """What run_report.json holds of a phase; null where a number is not known."""
    found, furthest = phase.audit, worst(phase.streams)
    return {
        "name": phase.name,
        "tokens": phase.tokens,
        "duration": phase.duration,
        "steps": len(phase.steps.tokens),
        "attempts": phase.attempts,
        "steps_skipped": sum(phase.skipped.values()),
        "rollbacks": phase.rollbacks,
        "steps_rolled_back": phase.num_rolled_back,
        "seconds_lost": phase.seconds_lost,
        "audit": found and {
            "rows_lost": found.lost,
            "rows_read_twice": found.doubled,
            "steps_with_other_rows": found.strange,
            "faults": found.faults,
        },
        "as_of_tokens": phase.as_of,
        "share_distance": share_distance(phase.streams),
        "furthest_from_plan": furthest and {"stream": furthest.name, **stream_as_json(furthest)},
        "streams": {stream.name: stream_as_json(stream) for stream in phase.streams},
        "notes": phase.notes,
    }
