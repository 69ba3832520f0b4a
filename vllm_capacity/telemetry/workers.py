"""Who does tasks side by side: several processes of this machine.

Handing out tasks is left to `concurrent.futures`; what is added is that a worker that died is
replaced, and its tasks are done again. Nothing here imports polars: workers learn of how many
threads they may use before they do.
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
_MOST_BARREN = 3


class Workers(Protocol):
    """Those who do tasks, side by side."""

    count: int
    """How many tasks they do at a time."""

    def map(
        self, function: Callable[[_Task], _Result], tasks: Sequence[_Task]
    ) -> Iterator[tuple[int, _Result]]:
        """The number of each task and what the function gives for it, as they are done.

        A task whose worker died is done again; SourceError where they die again and again. What the
        function raises is raised.
        """
        ...


class Processes:
    """Processes of this machine, started when there is something to do."""

    def __init__(self, count: int, environment: Mapping[str, str]) -> None:
        self.count = count
        self._environment = dict(environment)
        self._pool: ProcessPoolExecutor | None = None

    def map(
        self, function: Callable[[_Task], _Result], tasks: Sequence[_Task]
    ) -> Iterator[tuple[int, _Result]]:
        """As `Workers.map`."""
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
            if barren == _MOST_BARREN:
                raise SourceError(
                    f"The workers were killed {barren} times in a row, perhaps for want of memory. "
                    "Try again with fewer --workers; what they made until then is kept."
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
        with suppress(BrokenProcessPool):  # a worker died meanwhile: `map` sees what is left
            for number, task in tasks.items():
                futures[self._pool.submit(function, task)] = number
        return futures

    def close(self) -> None:
        """End the processes; what was not begun is not done."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
            self._pool = None


@contextmanager
def processes(count: int, environment: Mapping[str, str]) -> Iterator[Workers]:
    """So many processes of this machine, with these variables over those of this process."""
    workers = Processes(count, environment)
    try:
        yield workers
    finally:
        workers.close()


def _begin_worker(environment: Mapping[str, str]) -> None:
    """Make a process a worker: it ends with who started it, who alone hears the keyboard."""
    os.environ.update(environment)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    if (parent := parent_process()) is not None:
        parent.join()
        os._exit(1)
