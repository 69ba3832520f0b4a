"""Workers on Ray: processes of an existing cluster, or of one started on this machine.

Ray (the extra `ray`) distributes the tasks and repeats those of a dead worker or node. Its workers
need the same version of this package. They access files by the same paths, or in S3 with the
credentials of their own environment.
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
_ON_LOOPBACK = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"  # with 0, a new Ray listens on loopback only


class _OnRay:
    """Runs as many tasks at a time as requested, or as the cluster has CPUs."""

    def __init__(self, ray: Any, count: int) -> None:  # noqa: ANN401  an extra, without types
        self._ray, self.count = ray, count

    def map(
        self, function: Callable[[_Task], _Result], tasks: Sequence[_Task]
    ) -> Iterator[tuple[int, _Result]]:
        """See `Workers.map`."""
        remote = self._ray.remote(num_cpus=1)(function)
        numbers: dict[object, int] = {}
        for number, task in enumerate(tasks):
            if len(numbers) == self.count:
                yield self._first_done(numbers)
            numbers[remote.remote(task)] = number
        while numbers:
            yield self._first_done(numbers)

    def _first_done(self, numbers: dict[object, int]) -> tuple[int, Any]:
        """Wait for a task; remove it from `numbers` and return its number and result."""
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
                f"A Ray task failed: {_line(error)} Finished hours are kept."
            ) from None


@contextmanager
def ray_workers(
    address: str | None, count: int | None, environment: Mapping[str, str]
) -> Iterator[Workers]:
    """Workers of the cluster at the address, else at RAY_ADDRESS, else of a new local one.

    A new cluster listens on this machine only and has no dashboard. Usage statistics are off unless
    RAY_USAGE_STATS_ENABLED turns them on. Raises InputError if Ray is not installed, SourceError if
    the cluster cannot be reached or has another version of this package.
    """
    is_new = address is None and not os.environ.get("RAY_ADDRESS")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if is_new:
        os.environ.setdefault(_ON_LOOPBACK, "0")
    with needing_extra("ray"):
        ray: Any = import_module("ray")  # an extra, only partly typed
    own = {"num_cpus": count, "include_dashboard": False} if is_new else {}
    try:
        ray.init(
            address,
            runtime_env={"env_vars": {"POLARS_MAX_THREADS": "1", **environment}},
            log_to_driver=False,
            logging_level=logging.ERROR,
            **own,
        )
    except Exception as error:  # Ray raises many types, even bare Exception
        raise SourceError(
            f"No Ray at {address or 'this machine'}: {_line(error).rstrip('.')}." + _hint(address)
        ) from None
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
            f"vllm-capacity is {here} on this machine, but {there} on the Ray workers. "
            f"Install {here} there."
        )


def _hint(address: str | None) -> str:
    """What to check if a cluster does not respond: it does not report that a token is missing."""
    if address is None:
        return ""
    return (
        " Is that the head's client port (10001)? A cluster that asks for a token wants "
        "RAY_AUTH_MODE=token and RAY_AUTH_TOKEN here, too."
    )


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())
