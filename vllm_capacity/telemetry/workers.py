"""Parallel workers: processes on this machine.

`concurrent.futures` distributes the tasks; this module also replaces dead workers and repeats their
tasks. Nothing here imports polars, because a worker must set its number of threads before polars is
imported.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from multiprocessing import get_context, parent_process
from threading import Thread
from typing import Protocol, TypeVar

from vllm_capacity.errors import SourceError

_Task = TypeVar("_Task")
_Result = TypeVar("_Result")
_MAX_BARREN = 3


class Workers(Protocol):
    """A pool of workers that run tasks in parallel."""

    count: int
    """How many tasks run at a time."""

    def map(
        self, function: Callable[[_Task], _Result], tasks: Sequence[_Task]
    ) -> Iterator[tuple[int, _Result]]:
        """Yields the number of each task and the function's result, as tasks finish.

        A task whose worker died is repeated; raises SourceError if workers keep dying. Exceptions
        of the function are raised.
        """
        ...


class Processes:
    """Processes on this machine, started when there are tasks."""

    def __init__(self, count: int, environment: Mapping[str, str]) -> None:
        self.count = count
        self._environment = dict(environment)
        self._pool: ProcessPoolExecutor | None = None

    def map(
        self, function: Callable[[_Task], _Result], tasks: Sequence[_Task]
    ) -> Iterator[tuple[int, _Result]]:
        """See `Workers.map`."""
        left, barren = dict(enumerate(tasks)), 0
        while left:
            had = len(left)
            futures = self._submitted(function, left)
            for future in as_completed(futures):
                if not isinstance(future.exception(), BrokenProcessPool):
                    number = futures[future]
                    yield number, future.result()
                    del left[number]
            if left:
                self.close()
                barren = barren + 1 if len(left) == had else 0
            if barren == _MAX_BARREN:
                raise SourceError(
                    f"The workers were killed {barren} times in a row, perhaps because memory ran "
                    "out. Try again with fewer --workers; finished hours are kept."
                )

    def _submitted(
        self, function: Callable[[_Task], _Result], tasks: Mapping[int, _Task]
    ) -> dict[Future[_Result], int]:
        if self._pool is None:
            self._pool = ProcessPoolExecutor(
                self.count,
                get_context("spawn"),
                initializer=_begin_worker,
                initargs=(self._environment,),
            )
        futures: dict[Future[_Result], int] = {}
        with suppress(BrokenProcessPool):  # a worker died meanwhile; `map` retries the rest
            for number, task in tasks.items():
                futures[self._pool.submit(function, task)] = number
        return futures

    def close(self) -> None:
        """End the processes and cancel tasks that have not begun."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
            self._pool = None


@contextmanager
def processes(count: int, environment: Mapping[str, str]) -> Iterator[Workers]:
    """`count` processes on this machine; `environment` is added to this process's variables."""
    workers = Processes(count, environment)
    try:
        yield workers
    finally:
        workers.close()


def _begin_worker(environment: Mapping[str, str]) -> None:
    """Set up a worker process: it ignores Ctrl-C and ends when its parent process ends."""
    os.environ.update(environment)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    if (parent := parent_process()) is not None:
        parent.join()
        os._exit(1)
