"""The same function over many tasks, by several processes: files, languages, or the tasks of a stage."""
import os
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from tqdm import tqdm

from mmbert.processes import die_with_parent

WORKER_KILLED = (
    "a worker process was killed, most likely for want of memory: run the same command again, with fewer --workers"
)

Task = TypeVar("Task")
Result = TypeVar("Result")


def spread(
    function: Callable[[Task], Result], tasks: Sequence[Task], workers: int, description: str, unit: str = "file"
) -> Iterator[Result]:
    """`function` of each task, in their order, with a progress bar. One worker is this process.

    An error of one ends it when the results before it are taken; what was not begun then never is.

    Raises:
        OSError: a worker was killed.
        ValueError: `workers` is none.
    """
    if workers < 1:
        raise ValueError(f"--workers {workers}: must be at least 1")
    with ProcessPoolExecutor(max(1, min(workers, len(tasks))), initializer=begin, initargs=(os.getpid(),)) as pool:
        results: Iterable[Result] = pool.map(function, tasks) if workers > 1 else map(function, tasks)
        try:
            yield from tqdm(results, desc=description, total=len(tasks), unit=unit, disable=None)
        except BrokenProcessPool:
            raise OSError(WORKER_KILLED) from None
        finally:
            pool.shutdown(cancel_futures=True)


def begin(parent: int) -> None:
    """Settings of a worker process: it ends with its parent, and is one thread among others."""
    die_with_parent(signal.SIGKILL, parent)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
