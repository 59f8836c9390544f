"""What must be true of a run after any fault, once the same command has been run to its end."""
import os
import re
from pathlib import Path

from mmbert.checkpoint import is_valid, newest_checkpoint, step_folders
from mmbert.file_contents import sha256_of
from mmbert.ledger import read_ledger
from mmbert.ledger_audit import audit
from tests.training_runs import Outcome, Run

KEPT = ("ledger.jsonl", "lock")  # what a run's folder holds beside its checkpoints


def fingerprint(run_folder: Path) -> tuple[str, str]:
    """sha256 of the weights and of the moments of a run's newest checkpoint."""
    newest = newest_checkpoint(run_folder)
    return sha256_of(newest / "model.safetensors"), sha256_of(newest / "optimizer.safetensors")


def check_same_end(run_folder: Path, reference: Path) -> None:
    """Final weights and moments are those of the uninterrupted run, bit for bit, and so is every step of the ledger."""
    assert fingerprint(run_folder) == fingerprint(reference)
    own, other = (
        [(record.step, record.digest, record.tokens, record.loss, record.skipped) for record in read_ledger(run).steps]
        for run in (run_folder, reference)
    )
    assert own == other
    assert audit(run_folder).faults == []


def check_same_steps(outcome: Outcome, uninterrupted: Outcome) -> None:
    """Each step that was done, also those done twice, had the rows, masks, rates and loss of the uninterrupted run."""
    expected = {step["step"]: step for step in uninterrupted.steps}
    assert {step["step"] for step in outcome.steps} == expected.keys()
    for step in outcome.steps:
        assert step == expected[step["step"]]


def check_tidy(run_folder: Path, keep: int = 2) -> None:
    """Exactly `keep` checkpoints, all whole, and nothing else but the ledger and the lock."""
    assert len(step_folders(run_folder)) == keep, names_in(run_folder)
    assert all(is_valid(folder) for folder in step_folders(run_folder))
    assert names_in(run_folder) == sorted([*KEPT, *(folder.name for folder in step_folders(run_folder))])


def names_in(folder: Path) -> list[str]:
    """What a folder holds."""
    return sorted(path.name for path in folder.iterdir())


def shared_memory_of(run: Run) -> list[str]:
    """Objects in /dev/shm that bear the number of a run's process, as torch names them."""
    return [name for name in os.listdir("/dev/shm") if str(run.process.pid) in re.findall(r"\d+", name)]


def left_in_scratch(run: Run) -> list[str]:
    """What a run left in the folder for temporary files that it was given."""
    return sorted(str(path.relative_to(run.scratch)) for path in run.scratch.rglob("*"))


def processes_of(run: Run) -> list[int]:
    """Processes that write to a run's log: itself, its loader workers, and whatever else it has begun."""
    return processes_with(run.log)


def processes_with(log: Path) -> list[int]:
    """Processes whose standard error is this file."""
    found = []
    for folder in Path("/proc").iterdir():
        try:
            if folder.name.isdigit() and os.readlink(folder / "fd" / "2") == str(log):
                found.append(int(folder.name))
        except OSError:
            continue  # it has ended meanwhile
    return found


def takers_of(number: int, process: int) -> set[int]:
    """Threads of a process that do not block a signal, be it only while they wait for it."""
    takers = set()
    for folder in Path(f"/proc/{process}/task").iterdir():
        fields = dict(line.split(":", 1) for line in (folder / "status").read_text().splitlines())
        if not int(fields["SigBlk"], 16) >> (number - 1) & 1:
            takers.add(int(folder.name))
    return takers
