"""Everything that the report says of one phase, read from the folder of its run."""
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mmbert.config import RunConfig
from mmbert.ledger import FILE, RunHistory, read_ledger
from mmbert.ledger_audit import Audit, Planned, Saved, compare, rolled_back
from mmbert.run_report.curves import Scores, Steps, Validations, read_scores, read_validations, seconds_lost
from mmbert.run_report.mixture_tokens import StreamTokens


@dataclass(frozen=True)
class PhaseRun:
    """One phase.

    Attributes:
        config: None before the first checkpoint, which holds it.
        attempts: how often it was started.
        streams: what each had, at the clock `as_of`; in the plan's order where there is one, else by name.
        audit: None before the first checkpoint.
        seconds: wall time of training up to the newest checkpoint; None before the first.
        seconds_lost: between attempts; None if not known.
        notes: what is missing from the report, and why.
    """

    name: str
    config: RunConfig | None
    steps: Steps
    attempts: int
    skipped: Counter[str]
    num_rolled_back: int
    rollbacks: int
    streams: list[StreamTokens]
    as_of: int
    audit: Audit | None
    scores: Scores | None
    validations: Validations | None
    saved_tokens: int
    seconds: float | None
    seconds_lost: float | None
    notes: list[str]

    @property
    def tokens(self) -> int:
        """The phase's clock."""
        return int(self.steps.tokens[-1]) if len(self.steps.tokens) else 0

    @property
    def duration(self) -> int | None:
        """Tokens it is to train on."""
        return self.config.duration if self.config else None


def phase_folders(run: Path) -> list[Path]:
    """The folder itself, if it is a run's; else those of its folders that are.

    Raises:
        FileNotFoundError: there is none.
    """
    if (run / FILE).is_file():
        return [run]
    if found := sorted(path.parent for path in run.glob(f"*/{FILE}")):
        return found
    raise FileNotFoundError(f"{run}: neither it nor a folder in it holds a {FILE}; name a run's folder, run_root/name")


def in_order(phases: Sequence[PhaseRun]) -> list[PhaseRun]:
    """Each phase behind its parent; those of one parent, and those without, by name."""
    left, ordered = sorted(phases, key=lambda phase: phase.name), list[PhaseRun]()
    while left:
        names = {phase.name for phase in left}
        ready = [phase for phase in left if not (phase.config and phase.config.parent in names - {phase.name})]
        ordered.append((ready or left)[0])
        left.remove(ordered[-1])
    return ordered


def known_plan(saved: Saved | None, data_root: str | None, notes: list[str]) -> Planned | None:
    """The plan; None, with a note, where what it is made of is not there."""
    if saved is None:
        return None
    try:
        return Planned.open(saved, data_root)
    except (ValueError, OSError) as error:
        notes.append(
            f"Without repeats, and rows are not compared with the plan; planned tokens are the checkpoint's own "
            f"count, at its step. The manifests of the shards cannot be used: {error}"
        )
        return None


def streams_by_plan(
    history: RunHistory, planned: Planned, saved: Saved, found: Audit
) -> tuple[list[StreamTokens], int]:
    """Every stream of the phase at the ledger's last step, and the clock there."""
    read = {} if found.strange or not found.stream_rows else found.stream_rows
    clock = history.steps[-1].tokens if history.steps else 0
    realised = history.tokens_per_stream()
    plan = planned.data.plan(saved.config)
    tokens, held, rows = plan.walk(clock).stream_tokens.tolist(), plan.tokens.tolist(), plan.rows.tolist()
    return [
        StreamTokens(name, realised.get(name, 0), tokens[i], held[i], rows[i], read.get(name))
        for i, name in enumerate(planned.data.names)
    ], clock


def streams_by_checkpoint(saved: Saved) -> tuple[list[StreamTokens], int]:
    """Every stream of the phase as the checkpoint counted it, and the clock there."""
    planned = saved.state["callbacks"].get("LanguageTemperature", {}).get("planned", {})
    realised = saved.state["tokens_per_stream"]
    return [StreamTokens(name, tokens, planned.get(name)) for name, tokens in realised.items()], saved.state["tokens"]


def read_phase(folder: Path, data_root: str | None = None, quick: bool = False) -> PhaseRun:
    """Read a run, also while it trains.

    Args:
        data_root: where the shards are now, if not where the run read them.
        quick: the rows of each step are not compared with the plan's, which walks through all rows.

    Raises:
        FileNotFoundError, ValueError: there is no ledger, or it is broken.
    """
    notes: list[str] = []
    try:
        saved = Saved.open(folder)
    except (ValueError, OSError) as error:
        saved = None
        notes.append(f"Without a plan, its schedules, and an audit, for which a checkpoint is needed: {error}")
    history = read_ledger(folder)  # after the checkpoint: a run that goes on writes its ledger before each checkpoint
    planned = known_plan(saved, data_root, notes)
    found = compare(history, saved, None if quick else planned) if saved else None
    if saved and planned and found:
        streams, as_of = streams_by_plan(history, planned, saved, found)
    elif saved:
        streams, as_of = streams_by_checkpoint(saved)
    else:
        streams = [StreamTokens(name, tokens) for name, tokens in sorted(history.tokens_per_stream().items())]
        as_of = sum(stream.realised for stream in streams)
    return PhaseRun(
        name=saved.config.name if saved else folder.resolve().name,
        config=saved.config if saved else None,
        steps=Steps.of(history),
        attempts=len(history.attempts),
        skipped=Counter(record.skipped for record in history.steps if record.skipped is not None),
        num_rolled_back=int(rolled_back(history).sum()),
        rollbacks=len(history.standing("rolled_back")),
        streams=streams,
        as_of=as_of,
        audit=found,
        scores=read_scores(history),
        validations=read_validations(history),
        saved_tokens=saved.state["tokens"] if saved else 0,
        seconds=saved.state["seconds"] if saved else None,
        seconds_lost=seconds_lost(history.events),
        notes=notes,
    )
