"""Which streams jobs of Slurm are still to make: two runs may go into one folder, but not to one stream."""
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from data_prep.work import Work, read_plan
from mmbert.atomic import remove, write_file

JOBS = "jobs"  # in a plan's folder: the ids of its arrays, one a line


def write_jobs(plan_folder: Path, jobs: Sequence[str]) -> None:
    """Note the arrays that have been submitted for a plan."""
    write_file(plan_folder / JOBS, "".join(f"{job}\n" for job in jobs).encode())


def check_not_queued(work: Work) -> None:
    """Refuse streams that jobs in the queue are to make; remove the plans, with their logs, of runs that have ended.

    Raises:
        FileExistsError: there are such streams; names the jobs.
        OSError: Slurm cannot be asked whether its jobs have ended.
    """
    ours = {(stream.source, stream.language) for stream in work.streams}
    plans = {folder: read_jobs(folder) for folder in sorted(work.plans.glob("*"))}
    queued = queued_jobs(work.plans) if any(plans.values()) else set()
    for folder, jobs in plans.items():
        if waiting := [job for job in jobs if job in queued]:
            theirs = {(stream.source, stream.language) for stream in read_plan(folder).streams}
            if both := sorted(ours & theirs):
                raise FileExistsError(
                    f"jobs {' '.join(waiting)} are making {len(both)} of these streams in {work.output}, such as "
                    f"{'/'.join(both[0])}: wait until they end, or stop them with scancel"
                )
        elif folder != work.plan_folder:
            remove(folder)


def read_jobs(plan_folder: Path) -> list[str]:
    """The arrays that were submitted for a plan; none for one that was made on this machine."""
    path = plan_folder / JOBS
    return path.read_text().split() if path.exists() else []


def queued_jobs(plans: Path) -> set[str]:
    """The ids of all jobs that have not ended, of an array its own."""
    if not shutil.which("squeue"):
        raise OSError(
            f"{plans} tells of jobs of Slurm, and there is no squeue here to ask whether they have ended: run this "
            "where there is one, or remove that folder if they have"
        )
    result = subprocess.run(["squeue", "--noheader", "--format=%F"], capture_output=True, text=True)
    if result.returncode:
        raise OSError(f"squeue: {result.stderr.strip()}")
    return set(result.stdout.split())
