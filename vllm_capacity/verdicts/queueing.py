"""Waits for one of `servers` slots: M/M/c exactly, M/G/c and GI/G/c approximately.

A slot is anything that serves one request at a time: a whole replica, or one place in its running
batch. An LLM engine slows down as it fills, so a fixed service time is only right at the load where
it was measured; the step simulator does not have this limit. Sources: Erlang (1917) for M/M/c;
Allen, "Probability, Statistics, and Queueing Theory" (2nd ed. 1990), Allen-Cunneen for GI/G/c;
Kimura, "Approximations for multi-server queues: system interpolations" (Queueing Systems 17, 1994)
for M/G/c, with Cosmetatos' M/D/c as capped by Whitt, "Approximations for the GI/G/m queue" (POM 2,
1993).
"""

from __future__ import annotations

import math
from bisect import bisect_left
from typing import Literal

from msgspec import Struct
from msgspec.structs import replace

from vllm_capacity.errors import InputError

Method = Literal["kimura", "allen-cunneen"]
_MAX_SERVERS = 100_000


def erlang_c(servers: int, offered_load: float) -> float:
    """The probability that an arrival at M/M/c has to wait, 0..1; 1 if overloaded.

    `offered_load` is arrival rate x mean service time, in erlangs. Uses the recurrence of Erlang B,
    which neither overflows nor loses precision.
    """
    if servers < 1 or not offered_load >= 0:
        raise InputError(
            "A queue needs 1 server or more and a load of 0 or more; "
            f"got {servers} and {offered_load}."
        )
    if offered_load >= servers:
        return 1.0
    blocked = 1.0
    for busy in range(1, servers + 1):
        blocked = offered_load * blocked / (busy + offered_load * blocked)
    return blocked / (1.0 - (offered_load / servers) * (1.0 - blocked))


class Queue(Struct, frozen=True):
    """A queue in steady state, first come first served.

    `service_cv2` and `arrival_cv2` are squared coefficients of variation (variance ÷ squared mean):
    1 means exponential service and Poisson arrivals. Kimura's method requires Poisson arrivals.
    """

    arrivals_per_second: float
    service_mean_seconds: float
    servers: int
    service_cv2: float = 1.0
    arrival_cv2: float = 1.0
    method: Method = "kimura"

    def __post_init__(self) -> None:
        """Raise InputError for impossible values."""
        if self.servers < 1:
            raise InputError(f"A queue needs 1 server or more; got {self.servers}.")
        for name in ("arrivals_per_second", "service_mean_seconds", "service_cv2", "arrival_cv2"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise InputError(f"A queue's {name} is a number of 0 or more; got {value}.")
        if self.method == "kimura" and self.arrival_cv2 != 1.0:
            raise InputError(
                "Kimura's M/G/c takes Poisson arrivals (arrival_cv2 of 1); "
                f"got {self.arrival_cv2}. Use method='allen-cunneen'."
            )

    @property
    def offered_load(self) -> float:
        """Arrival rate x mean service time, in erlangs: the average number of busy slots."""
        return self.arrivals_per_second * self.service_mean_seconds

    @property
    def utilization_ratio(self) -> float:
        """Offered load ÷ slots; from 1 up there is no steady state."""
        return self.offered_load / self.servers

    @property
    def is_stable(self) -> bool:
        """Whether the queue has a steady state."""
        return self.utilization_ratio < 1.0

    @property
    def wait_probability(self) -> float:
        """The probability that a request has to wait, 0..1, by Erlang C; 1 if unstable."""
        return erlang_c(self.servers, self.offered_load)

    @property
    def wait_mean_seconds(self) -> float | None:
        """The mean wait before service; None if the queue grows without bound."""
        exponential = self._exponential_wait_seconds
        if exponential is None:
            return None
        if self.method == "allen-cunneen":
            return exponential * (self.arrival_cv2 + self.service_cv2) / 2
        return self._kimura_seconds(exponential)

    def wait_quantile_seconds(self, q: float) -> float | None:
        """The `q` quantile of the wait; 0 if at least that share does not wait, None if unstable.

        Among requests that wait, waits are assumed to be exponential, which is exact for M/M/c.
        """
        if not 0 <= q < 1:
            raise InputError(f"A quantile lies in 0 <= q < 1; got {q}.")
        mean = self.wait_mean_seconds
        if mean is None:
            return None
        waiting = self.wait_probability
        return mean / waiting * math.log(waiting / (1 - q)) if waiting > 1 - q else 0.0

    @property
    def _exponential_wait_seconds(self) -> float | None:
        """The mean wait of M/M/c at the same load."""
        if not self.is_stable:
            return None
        spare = self.servers - self.offered_load
        return self.wait_probability * self.service_mean_seconds / spare

    def _kimura_seconds(self, exponential: float) -> float:
        if exponential == 0:
            return 0.0
        constant = exponential * _constant_service_factor(self.servers, self.utilization_ratio)
        if self.service_cv2 > 1:  # interpolation holds up to 1; beyond it, Allen-Cunneen
            return exponential * (1 + self.service_cv2) / 2
        weights = 2 * self.service_cv2 / exponential + (1 - self.service_cv2) / constant
        return (1 + self.service_cv2) / weights


def _constant_service_factor(servers: int, utilization: float) -> float:
    """M/D/c's mean wait ÷ M/M/c's (Cosmetatos 1975, capped as in Whitt 1993); 1/2 for c = 1."""
    excess = (1 - utilization) * (servers - 1) * (math.sqrt(4 + 5 * servers) - 2)
    return (1 + min(0.24, excess / (16 * servers * utilization))) / 2


def servers_needed(queue: Queue, *, q: float, limit_seconds: float) -> int | None:
    """The fewest servers that keep the `q` quantile of the wait within `limit_seconds`.

    The load is that of `queue`; `queue.servers` is ignored. None if 100,000 are not enough.
    """
    fewest = max(1, math.floor(queue.offered_load) + 1)

    def is_within(servers: int) -> bool:
        wait = replace(queue, servers=servers).wait_quantile_seconds(q)
        return wait is not None and wait <= limit_seconds

    counts = range(fewest, _MAX_SERVERS + 1)
    place = bisect_left(counts, True, key=is_within)  # waits never grow with more servers
    return counts[place] if place < len(counts) else None
