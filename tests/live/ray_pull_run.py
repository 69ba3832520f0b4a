"""Pull a Prometheus' range by a Ray of two workers, one of which is killed on the way.

Arguments: URL, window to write, start, end.
"""

import os
import signal
import sys
from datetime import UTC, datetime

from tests.telemetry.ray_run import workers_of
from vllm_capacity.live.pull import PullOrder
from vllm_capacity.live.pulled import pulled_window
from vllm_capacity.sources.answers import Step
from vllm_capacity.telemetry.on_ray import ray_workers
from vllm_capacity.timerange import TimeRange, parse_instant


def main(url: str, target: str, start: str, end: str) -> None:
    killed: list[int] = []

    def kill(step: Step) -> None:
        if step.done >= 2 and not killed:
            killed.extend(workers_of(os.getpid())[:1])
            for pid in killed:
                os.kill(pid, signal.SIGKILL)

    order = PullOrder(url, None, TimeRange(parse_instant(start), parse_instant(end)))
    with ray_workers(None, 2, {}) as workers:
        pulled_window(
            order,
            target,
            environment=os.environ,
            now=datetime(2026, 11, 26, tzinfo=UTC),
            workers=workers,
            progress=kill,
        )
    print(len(killed), "killed")


if __name__ == "__main__":
    main(*sys.argv[1:])
