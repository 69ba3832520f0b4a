"""Throughput and latency of a server at a given concurrency, from a table of other loads.

Throughput comes from the loads near it (`curve.expected_output`). It is capped at a measured
capacity, and at the load where the KV cache or max_num_seqs ends the curve. The time per request
follows from Little's law. Latencies are interpolated linearly between the loads seen, in
logarithms. Beyond them, ITL grows like the time per token and client, and TTFT as between the two
heaviest loads. The errors are those of measurements of vLLM at 1,024 to 8,192 tokens
(`data/silicon_vllm.csv`), each load predicted from the others; those are errors of means, and that
of a p95 is 1.5 × as large.
"""

from __future__ import annotations

import math

import numpy as np
import polars as pl

from vllm_capacity.errors import InputError
from vllm_capacity.estimate import Estimate, Figures, Kind
from vllm_capacity.verdicts.saturation.arrays import Floats
from vllm_capacity.verdicts.saturation.curve import expected_output
from vllm_capacity.verdicts.saturation.fit import MEASURED
from vllm_capacity.verdicts.saturation.load_test import LoadTest, saturation_of

_P95 = 1.5
_ITL_ERROR, _TTFT_ERROR = (0.06 * _P95, 0.22 * _P95), (0.13 * _P95, 0.53 * _P95)
"""Relative errors (90 %) per factor e between two loads, and per factor e beyond them."""
_MIN_ERROR = 0.03
_FARTHEST = 8.0
"""The farthest load with a prediction, as a multiple of the heaviest load seen."""


class AtLoad(Figures, frozen=True):
    """What a server delivers with `clients` requests in flight all the time.

    `request_seconds` is the mean time per request, unknown without the rate of requests. The p95s
    are unknown if the table does not have them.
    """

    clients: float
    output_tokens_per_second: Estimate
    requests_per_second: Estimate
    request_seconds: Estimate
    ttft_p95_seconds: Estimate
    itl_p95_seconds: Estimate


def fit_at(points: pl.DataFrame, clients: float) -> AtLoad:
    """The throughput and latency at a concurrency, for a frame of loads (`fit_points`).

    Also uses columns requests_per_second, ttft_p95_seconds, itl_p95_seconds. If every row has
    clients, these are the loads; else the running requests. Unknown, with the reason, for fewer
    than two loads or a concurrency far beyond them; InputError unless the concurrency is above 0.
    """
    if not 0 < clients < math.inf:
        raise InputError(f"The concurrency must be above 0, found {clients:g}.")
    points = _by_clients(points)
    output = _output_at(LoadTest.of(points), clients)
    rates = output.map(lambda tokens: tokens / each) if (each := _tokens(points, clients)) else None
    unknown = Estimate.unknown("the table has no requests_per_second")
    seconds = None if rates is None else Estimate.exact(clients).divided_by(rates, _LITTLE)
    return AtLoad(
        clients=clients,
        output_tokens_per_second=output,
        requests_per_second=unknown if rates is None else rates,
        request_seconds=unknown if seconds is None else seconds,
        ttft_p95_seconds=_latency(points, "ttft_p95_seconds", clients, _TTFT_ERROR, None),
        itl_p95_seconds=_latency(points, "itl_p95_seconds", clients, _ITL_ERROR, output),
    )


_LITTLE = "concurrency ÷ requests per second (Little's law)"


def _by_clients(points: pl.DataFrame) -> pl.DataFrame:
    """The frame with clients as its loads, if every row has them."""
    if "clients" not in points.columns or points["clients"].null_count():
        return points
    return points.with_columns(running_requests=pl.col("clients").cast(pl.Float64))


def _output_at(test: LoadTest, clients: float) -> Estimate:
    loads, capacity = test.loads, saturation_of(test)
    if len(loads) and clients > _FARTHEST * loads.heaviest and capacity.capacity_kind != MEASURED:
        return Estimate.unknown(
            f"{clients:,.0f} clients are more than {_FARTHEST:g} × the heaviest load tested "
            f"({loads.heaviest:,.1f}); test a load closer to it"
        )
    most = min((limit for limit in (test.most_running, test.kv_limit) if limit), default=clients)
    running = min(clients, most)
    found = expected_output(loads, running) if len(loads) else None
    if found is None:
        return Estimate.unknown("at least two different loads are needed to estimate another one")
    low, mid, high = found
    is_between = loads.running[0] <= running <= loads.heaviest
    basis = f"{'between' if is_between else 'beyond'} the {len(loads)} tested loads"
    if running < clients:
        basis += f"; at most {running:,.0f} run at once, and the others wait"
    at = Estimate.known(
        low, mid, high, basis, kind=Kind.ESTIMATED if is_between else Kind.EXTRAPOLATED
    )
    if capacity.capacity_kind != MEASURED:
        return at
    return at.capped(capacity.capacity)


def _tokens(points: pl.DataFrame, clients: float) -> float | None:
    """Output tokens per request, at the nearest load; None if no row has them."""
    rows = _known_rows(points, "requests_per_second")
    if not len(rows):
        return None
    load, rate, output = rows
    nearest = int(np.argmin(np.abs(np.log(load / clients))))
    return float(output[nearest] / rate[nearest])


def _known_rows(points: pl.DataFrame, name: str) -> Floats:
    """Load, that column and output, for the rows that have all three, lightest first."""
    columns = ("running_requests", name, "output_tokens_per_second")
    if any(column not in points.columns for column in columns):
        return np.empty((0, 0))
    rows = points.select(pl.col(columns).cast(pl.Float64)).filter(pl.all_horizontal(pl.all() > 0))
    kept = rows.group_by("running_requests").mean().sort("running_requests")
    return kept.to_numpy().T if len(kept) else np.empty((0, 0))


def _latency(
    points: pl.DataFrame,
    name: str,
    clients: float,
    errors: tuple[float, float],
    output: Estimate | None,
) -> Estimate:
    """A latency at a load; beyond the tested ones by the time per token, if `output` is given."""
    rows = _known_rows(points, name)
    if not len(rows) or rows.shape[1] < 2:
        return Estimate.unknown(f"at least two loads with {name} are needed")
    load, seconds, tokens = rows
    if not load[0] / _FARTHEST <= clients <= _FARTHEST * load[-1]:
        return Estimate.unknown(f"too far from the tested loads, {load[0]:,.1f} to {load[-1]:,.1f}")
    place = int(np.clip(np.searchsorted(load, clients), 1, len(load) - 1))
    (x, y), (x2, y2) = ((np.log(load[i]), np.log(seconds[i])) for i in (place - 1, place))
    away = max(0.0, np.log(load[0] / clients), np.log(clients / load[-1]))
    value = y + (y2 - y) * (np.log(clients) - x) / (x2 - x)
    error = max(_MIN_ERROR, errors[0] * (x2 - x) if not away else errors[1] * away)
    basis = "interpolated between the tested loads"
    if away:
        basis = "extrapolated from the two nearest tested loads"
    if clients > load[-1] and output is not None and output.mid is not None:
        value = np.log(seconds[-1] * (clients / output.mid) / (load[-1] / tokens[-1]))
        basis = (
            "extrapolated beyond the tested loads, in proportion to the time per token and client"
        )
    low, mid, high = (float(np.exp(value + side * error)) for side in (-1, 0, 1))
    return Estimate.known(low, mid, high, basis, kind=Kind.EXTRAPOLATED if away else Kind.ESTIMATED)
