"""Who does the tasks of a stage: processes of this machine, or an array of Slurm jobs."""
import shlex
import sys
from collections import deque
from functools import partial
from pathlib import Path

from datatrove.executor.slurm import SlurmPipelineExecutor

from data_prep.parallel import spread
from data_prep.queued import write_jobs
from data_prep.steps import STAGES, codec_of
from data_prep.work import Work

TASKS_PER_WORKER = 8  # so that those who are done early find more to do
ROOT = Path(__file__).parent.parent


def run_locally(work: Work, workers: int) -> None:
    """All stages, one after the other; an error of one task ends it.

    Not by datatrove's own executor, which waits for ever when a process is killed, say for want of memory.
    """
    if work.streams:
        codec_of(work)  # what takes seconds to make is made once: the workers are copies of this process
    for stage in STAGES:
        block = stage(work.plan_folder)
        if number := sum(1 for _ in block.units(work)):
            tasks = min(number, workers * TASKS_PER_WORKER)
            run = partial(block.run, None, world_size=tasks)
            deque(spread(run, range(tasks), workers, stage.name, "task"), maxlen=0)


def submit_to_slurm(work: Work, partition: str, time: str, tasks: int, memory: int) -> list[str]:
    """An array for each stage that has something to do, each after the one before it; their job ids.

    Args:
        time: limit of a task, as Slurm writes it.
        tasks: most of a stage.
        memory: GB for each task.
    """
    previous: SlurmPipelineExecutor | None = None
    jobs = []
    for stage in STAGES:
        number = sum(1 for _ in stage(work.plan_folder).units(work))
        if not number:
            continue
        previous = SlurmPipelineExecutor(
            pipeline=[stage(work.plan_folder)],
            tasks=min(number, tasks),
            time=time,
            partition=partition,
            mem_per_cpu_gb=memory,
            job_name=f"data-{stage.name}",
            qos=None,
            env_command=environment(),
            sbatch_args={"kill-on-invalid-dep": "yes"},
            depends=previous,
            logging_dir=str((work.plan_folder / "logs" / stage.name).resolve()),
            skip_completed=False,
        )
        previous.run()
        jobs.append(str(previous.job_id))
        write_jobs(work.plan_folder, jobs)
    return jobs


def environment() -> str:
    """Shell lines that make a job find this Python, its packages and ours."""
    here, python = shlex.quote(str(ROOT)), shlex.quote(str(Path(sys.executable).parent))
    return f"cd {here}\nexport PATH={python}:$PATH PYTHONPATH={here}:${{PYTHONPATH:-}} TOKENIZERS_PARALLELISM=false"
