"""Who does the tasks of a stage: processes of this machine, or an array of Slurm jobs."""
import shlex
import sys
from collections import deque
from contextlib import redirect_stderr
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

from datatrove.executor.base import DistributedEnvVars, PipelineExecutor
from datatrove.executor.slurm import SlurmPipelineExecutor

from data_prep.parallel import spread
from data_prep.queued import write_jobs
from data_prep.steps import STAGES, Stage, codec_of
from data_prep.work import Work

TASKS_PER_WORKER = 8  # so that those who are done early find more to do
ROOT = Path(__file__).parent.parent


class LocalExecutor(PipelineExecutor):
    """The tasks of one stage in `workers` processes of this machine.

    datatrove's own waits for ever when a process is killed, say for want of memory; this one raises.
    """

    def __init__(self, stage: Stage, tasks: int, workers: int, logging_dir: Path) -> None:
        super().__init__([stage], str(logging_dir), skip_completed=False)  # what is done, the stage itself knows
        self.tasks, self.workers = tasks, workers

    def run(self) -> None:
        """Do all tasks; an error of one ends it."""
        deque(spread(self.run_quietly, range(self.tasks), self.workers, self.pipeline[0].name, "task"), maxlen=0)

    def run_quietly(self, rank: int) -> None:
        """One task; what datatrove says of it goes to its log alone, for our errors are one line."""
        with redirect_stderr(StringIO()):
            self._run_for_rank(rank, local_rank=1)

    @property
    def world_size(self) -> int:
        return self.tasks

    def get_distributed_env(self, node_rank: int = -1) -> DistributedEnvVars:
        """For steps that talk to each other, which ours do not."""
        return DistributedEnvVars(
            datatrove_node_ips="localhost",
            datatrove_cpus_per_task="-1",
            datatrove_mem_per_cpu="-1",
            datatrove_gpus_on_node="-1",
            datatrove_executor="LOCAL",
        )


def run_locally(work: Work, workers: int) -> None:
    """All stages, one after the other."""
    if work.streams:
        codec_of(work)  # what takes seconds to make is made once: the workers are copies of this process
    for stage in STAGES:
        number = sum(1 for _ in stage(work.plan_folder).units(work))
        if number:
            tasks = min(number, workers * TASKS_PER_WORKER)
            LocalExecutor(stage(work.plan_folder), tasks, workers, work.plan_folder / "logs" / stage.name).run()


@dataclass(frozen=True)
class Slurm:
    """How to ask Slurm: partition, time limit of a task as Slurm writes it, most tasks of a stage, GB for each."""

    partition: str
    time: str
    tasks: int
    memory: int


def submit_to_slurm(work: Work, slurm: Slurm) -> list[str]:
    """An array for each stage that has something to do, each after the one before it; their job ids."""
    previous: SlurmPipelineExecutor | None = None
    jobs = []
    for stage in STAGES:
        number = sum(1 for _ in stage(work.plan_folder).units(work))
        if not number:
            continue
        previous = SlurmPipelineExecutor(
            pipeline=[stage(work.plan_folder)],
            tasks=min(number, slurm.tasks),
            time=slurm.time,
            partition=slurm.partition,
            mem_per_cpu_gb=slurm.memory,
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
