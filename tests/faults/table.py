"""The faults of long runs that the suite decides, by number: `@pytest.mark.fault(2)` on a test names the second."""
from dataclasses import dataclass


@dataclass(frozen=True)
class Fault:
    """One row of docs/reliability.md.

    Attributes:
        name: what goes wrong.
        answer: what a run does then.
    """

    name: str
    answer: str


FAULTS = {
    1: Fault(
        "Time limit, preemption, `scancel`, Ctrl-C",
        "finishes and saves its step on all ranks, exit status 85; before the first step it ends at once",
    ),
    2: Fault("SIGKILL, lost node or power cut at any moment", "the same command goes on, to the same bits"),
    3: Fault("Resume that takes longer the further a run is", "seeks: reads the rows of the next step and no others"),
    4: Fault("Missing, short or swapped shard", "ends with one line that names the file, never early and silently"),
    5: Fault("Loader worker that dies or raises", "ends within seconds with one line"),
    6: Fault(
        "Full disk or quota",
        "keeps the last checkpoint, trains on and tries again; gives up with one line on all ranks",
    ),
    7: Fault("Old checkpoints that stay after restarts", "keeps exactly `checkpoint.keep`, judged from the folder"),
    8: Fault("Lost pointer or checkpoints", "needs no pointer; never begins anew in a folder that has trained"),
    9: Fault("Newest checkpoint unreadable", "sets it aside by name and goes on from the one before, to the same bits"),
    10: Fault("Bit rot in a checkpoint", "any flipped bit is found by sha256 before anything is loaded"),
    11: Fault("Bit rot in a shard", "any flipped bit is found by sha256 before a row of it is used"),
    12: Fault(
        "NaN or infinite loss or gradient",
        "no optimizer step is made with it, on any rank; the fourth within 100 steps ends the run and names the rows",
    ),
    13: Fault("Loss spike", "with `spikes`, goes back to weights from before and past the rows; the same after a kill"),
    14: Fault("Resume that is not exact", "weights, moments, losses, masks and rows are the same bits after any stops"),
    15: Fault("Rank that crashes", "the launcher names it and why, and ends the others; its status says which"),
    16: Fault("Rank, collective or loader that hangs", "shows the stacks of all threads and workers, exit status 86"),
    17: Fault("Orphans, two writers of one run", "ranks end with their launcher; a second start is refused"),
    18: Fault("Shared memory and lock files that kills leave behind", "makes none; runs beside it are left alone"),
    19: Fault("Data or configuration changed under a resume", "refuses, and shows what differs"),
    20: Fault("Phases chained wrongly", "refuses a parent that is unfinished, trained anew, or of another tokenizer"),
    21: Fault("Languages that get no row, or are repeated without end", "exact rounding; caps are kept or refused"),
    22: Fault("Restart on another number of ranks or workers", "the order is a pure function; ranks only slice it"),
    23: Fault(
        "Storage that fails or is slow",
        "an error names the file; shards of an object store are fetched ahead, checked, and tried again for minutes",
    ),
    24: Fault("Memory or files that grow", "memory and open files stay flat over thousands of steps"),
    25: Fault("Small /dev/shm, few open files", "needs no shared memory; a limit that is too low is named"),
    26: Fault("Hostile checkpoint", "no pickle on any path: refused by name, nothing runs, nothing is written"),
    27: Fault("Hostile index or manifest", "names and links that leave the folder are refused, nothing is written"),
    28: Fault("Wrong columns, types, counts or ids", "the manifest, or at the latest the row, is refused by name"),
    29: Fault("Silent corruption of weights on one rank", "named before the next save, which is not made"),
    30: Fault("Metrics doubled or lost by restarts", "the ledger has each step once, equal to an uninterrupted run's"),
}
