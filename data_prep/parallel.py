"""The same function over many files, by several processes."""
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import TypeVar

from tqdm import tqdm

Task = TypeVar("Task")
Result = TypeVar("Result")


def spread(
    function: Callable[[Task], Result], tasks: Sequence[Task], workers: int, description: str
) -> Iterator[Result]:
    """`function` of each task, in their order, with a progress bar. One worker is this process."""
    with ProcessPoolExecutor(workers, initializer=one_thread) as pool:
        results: Iterable[Result] = pool.map(function, tasks) if workers > 1 else map(function, tasks)
        try:
            yield from tqdm(results, desc=description, total=len(tasks), unit="file", disable=None)
        finally:
            pool.shutdown(cancel_futures=True)


def one_thread() -> None:
    """Have `tokenizers` encode on one thread: the processes are as many as the cores."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
