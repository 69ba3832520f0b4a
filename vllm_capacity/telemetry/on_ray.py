"""Workers on Ray: processes of a cluster, or of one that is started on this machine.

Ray (the extra `ray`) hands out the tasks, and does those of a worker or node that died again. Its
workers need the same version of this package; files they reach by the same paths, or in S3, with
the credentials of their own environment.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from importlib.metadata import version
from typing import Any, TypeVar

from vllm_capacity.errors import SourceError, needing_extra
from vllm_capacity.telemetry.workers import Workers

_Task = TypeVar("_Task")
_Result = TypeVar("_Result")
_ON_LOOPBACK = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"  # at 0, what Ray starts is not for others


class _OnRay:
    """As many tasks at a time as the cluster has processors for, or as were asked for."""

    def __init__(self, ray: Any, count: int) -> None:  # noqa: ANN401  an extra, without types
        self._ray, self.count = ray, count

    def map(
        self, function: Callable[[_Task], _Result], tasks: Sequence[_Task]
    ) -> Iterator[tuple[int, _Result]]:
        """As `Workers.map`."""
        remote = self._ray.remote(num_cpus=1)(function)
        numbers: dict[object, int] = {}
        for number, task in enumerate(tasks):
            if len(numbers) == self.count:
                yield self._first_done(numbers)
            numbers[remote.remote(task)] = number
        while numbers:
            yield self._first_done(numbers)

    def _first_done(self, numbers: dict[object, int]) -> tuple[int, Any]:
        """The number and the result of a task that is done, taken out of those under way."""
        (done,), _ = self._ray.wait(list(numbers))
        return numbers.pop(done), self._got(done)

    def _got(self, reference: object) -> Any:  # noqa: ANN401
        failures = self._ray.exceptions
        try:
            return self._ray.get(reference)
        except failures.RayTaskError as error:
            raise error.cause from None
        except failures.RayError as error:
            raise SourceError(
                f"Ray could not do a task: {_line(error)} What was made until then is kept."
            ) from None


@contextmanager
def ray_workers(
    address: str | None, count: int | None, environment: Mapping[str, str]
) -> Iterator[Workers]:
    """Workers of the cluster at the address; without one, of RAY_ADDRESS or a new one here.

    A new one listens on this machine alone, without a dashboard. No usage statistics are sent,
    unless RAY_USAGE_STATS_ENABLED says so. InputError without Ray, SourceError for a cluster that
    cannot be reached or has another version of this package.
    """
    is_new = address is None and not os.environ.get("RAY_ADDRESS")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if is_new:
        os.environ.setdefault(_ON_LOOPBACK, "0")
    with needing_extra("ray"):
        ray: Any = import_module("ray")  # an extra, typed in part
    own = {"num_cpus": count, "include_dashboard": False} if is_new else {}
    try:
        ray.init(
            address,
            runtime_env={"env_vars": {"POLARS_MAX_THREADS": "1", **environment}},
            log_to_driver=False,
            logging_level=logging.ERROR,
            **own,
        )
    except Exception as error:  # Ray raises many kinds, and bare ones
        raise SourceError(f"No Ray at {address or 'this machine'}: {_line(error)}") from None
    try:
        workers = _OnRay(ray, count or max(1, int(ray.cluster_resources().get("CPU", 1))))
        _check_version(workers)
        yield workers
    finally:
        ray.shutdown()


def _check_version(workers: _OnRay) -> None:
    here = version("vllm-capacity")
    try:
        ((_, there),) = workers.map(version, ["vllm-capacity"])
    except ImportError:
        there = "not installed"
    if there != here:
        raise SourceError(
            f"vllm-capacity is {here} here, but {there} where Ray works. Install {here} there."
        )


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())
