"""Published claims compared with a window: their price, and a GPU's highest published throughput.

*Implied price*: dollars per request × requests ÷ GPU-hours, which shows the GPU price behind a
published cost. *Published bound*: if a window is too lightly loaded to show its own capacity, the
throughput that others measured for the same model on the same GPU bounds its utilization from
below. It is marked as published wherever it is shown, because it is from another machine and load,
mostly without any latency target.

Own GPUs or an API: the demand, the utilization and the price at which both cost the same.

An API is paid per request, a GPU per hour. They break even at dollars per hour ÷ the API price per
request; that over the requests per hour at capacity is the break-even utilization. The *allocation*
cost is compared, idle hours included: usage cost would flatter the GPU.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from decimal import Decimal

from msgspec import Struct

from vllm_capacity.errors import InputError
from vllm_capacity.estimate import Estimate, Kind
from vllm_capacity.facts.api_prices import ApiPrice
from vllm_capacity.facts.gpus import find_gpu
from vllm_capacity.facts.throughput import Measurement

SAME_LENGTHS = math.log(1.15)
"""Maximum difference of a published run's mean lengths from the window's, in logarithms."""


class Claim(Struct, frozen=True):
    """A published run: its length, its requests, their rate, and the cost per request.

    It used one GPU for all of `hours`.
    """

    hours: float
    requests: float
    requests_per_hour: float
    usd_per_request: float

    @property
    def usd_per_gpu_hour(self) -> float:
        """The price of a GPU-hour that the published cost per request implies."""
        return implied_usd_per_gpu_hour(self.usd_per_request, self.requests, self.hours)


class Comparison(Struct, frozen=True):
    """A published figure and the same figure of a window (None if unknown)."""

    name: str
    published: float
    found: float | None

    @property
    def rounded(self) -> Decimal | None:
        """The window's figure, with as many digits as the published one was printed with."""
        if self.found is None:
            return None
        printed = Decimal(repr(float(self.published))).normalize()
        exponent = Decimal(1).scaleb(min(int(printed.as_tuple().exponent), 0))
        return Decimal(repr(float(self.found))).quantize(exponent)

    @property
    def change_ratio(self) -> float | None:
        """The window's figure ÷ the published one − 1."""
        return None if self.found is None else self.found / self.published - 1

    @property
    def is_reproduced(self) -> bool:
        """Whether the two agree in all published digits."""
        return self.rounded is not None and self.rounded == Decimal(repr(float(self.published)))


class Bound(Struct, frozen=True):
    """A published run as the GPU's capacity, and the window's rate as a share of it, 0..1."""

    run: Measurement
    requests_per_second: float
    used_ratio: float


class FullUse(Struct, frozen=True):
    """A GPU as busy as in a published run: the cost per request, and how many times lower it is."""

    bound: Bound
    usd_per_request: Estimate
    times_less: Estimate


def implied_usd_per_gpu_hour(usd_per_request: float, requests: float, gpu_hours: float) -> float:
    """The price of a GPU-hour that a cost per request implies: cost × requests ÷ GPU-hours."""
    if not (usd_per_request >= 0 and requests >= 0 and gpu_hours > 0):
        raise InputError(
            "A claim needs dollars and requests of 0 or more and GPU-hours above 0; found "
            f"{usd_per_request:g}, {requests:g} and {gpu_hours:g}."
        )
    return usd_per_request * requests / gpu_hours


def published_bound(
    published: Sequence[Measurement],
    *,
    model: str,
    gpu: str,
    input_tokens: float,
    output_tokens: float,
    requests_per_second: float,
) -> Bound | None:
    """The window's rate against the upper median of similar published bursts; None without any.

    Similar: the same model on one GPU of that name (any form factor: the runs say which), all
    requests sent at once, mean lengths within 15 %. The median is used because runs differ in their
    flags.
    """
    rows = {row.gpu for row in find_gpu(gpu).rows}
    alike = [
        run
        for run in published
        if (run.model, run.gpus, run.is_burst) == (model, 1, True)
        and find_gpu(run.gpu).rows[0].gpu in rows
        and _near(run.input_tokens, input_tokens)
        and _near(run.output_tokens, output_tokens)
    ]
    if not alike:
        return None
    run = sorted(alike, key=_rate)[len(alike) // 2]
    return Bound(run, _rate(run), requests_per_second / _rate(run))


def usd_per_request_at(bound: Bound, usd_per_gpu_hour: Estimate) -> Estimate:
    """The cost of a request on a GPU that runs at the published rate all the time."""
    run = bound.run
    return usd_per_gpu_hour.scaled(
        1 / (3600 * bound.requests_per_second),
        f"{bound.requests_per_second:.4g} requests/s as published ({run.source}, {run.date})",
    )


def _rate(run: Measurement) -> float:
    """The run's requests per second: its output tokens per second ÷ output tokens per request."""
    return run.output_tokens_per_second / run.output_tokens


def _near(one: float, other: float) -> bool:
    return one > 0 and other > 0 and abs(math.log(one / other)) <= SAME_LENGTHS


_MAX = 1e12


class BreakEven(Struct, frozen=True):
    """Where own GPUs and an API cost the same, and which is cheaper now.

    `utilization` may exceed 1: then no demand that the GPUs can serve makes them cheaper.
    `usd_per_gpu_hour` is the break-even GPU price at today's demand. `is_own_cheaper` is None if
    the interval is inconclusive.
    """

    api_usd_per_request: float
    requests_per_day: Estimate
    utilization: Estimate
    usd_per_gpu_hour: Estimate
    own_usd_per_request: Estimate
    is_own_cheaper: bool | None
    api: str


def break_even(
    api: ApiPrice,
    *,
    input_tokens: float,
    output_tokens: float,
    usd_per_gpu_hour: Estimate,
    gpus: float,
    capacity_output_tokens_per_second: Estimate,
    requests_per_hour: float | None,
) -> BreakEven:
    """The break-even of a deployment against an API price, for mean lengths per request.

    `requests_per_hour` is today's demand on those GPUs: with None or 0, results that need it are
    unknown.
    """
    given = (input_tokens, output_tokens, gpus, requests_per_hour or 0.0)
    if (
        not all(0 <= number <= _MAX for number in given)
        or not (input_tokens + output_tokens) * gpus
    ):
        raise InputError(
            "A break-even needs tokens per request and GPUs above 0, and no negative demand; found "
            f"{', '.join(f'{number:g}' for number in given)}."
        )
    each = api.usd_per_request(input_tokens=input_tokens, output_tokens=output_tokens)
    if each <= 0:
        raise InputError(f"{api.basis} charges nothing for such a request: nothing breaks even.")
    hourly = usd_per_gpu_hour.scaled(gpus, f"{gpus:g} GPU(s)")
    per_hour = hourly.scaled(1 / each, f"${each:.6g} per request at {api.basis}")
    own = _own_usd(hourly, requests_per_hour)
    return BreakEven(
        api_usd_per_request=each,
        requests_per_day=per_hour.scaled(24),
        utilization=_utilization(per_hour, capacity_output_tokens_per_second, output_tokens),
        usd_per_gpu_hour=_price(each, requests_per_hour, gpus, api),
        own_usd_per_request=own,
        is_own_cheaper=_is_below(own, each),
        api=api.basis,
    )


def _utilization(per_hour: Estimate, capacity: Estimate, output_tokens: float) -> Estimate:
    if output_tokens == 0:
        return Estimate.unknown("requests without output have no capacity in output tokens")
    requests_per_hour = capacity.scaled(3600 / output_tokens)
    return per_hour.divided_by(requests_per_hour)


def _own_usd(hourly: Estimate, requests_per_hour: float | None) -> Estimate:
    if not hourly.is_known:
        return hourly
    if not requests_per_hour:
        return Estimate.unknown("no requests in this window: no cost per request to compare")
    return hourly.map(lambda usd: usd / requests_per_hour, f"{requests_per_hour:.4g} requests/h")


def _price(each: float, requests_per_hour: float | None, gpus: float, api: ApiPrice) -> Estimate:
    if not requests_per_hour:
        return Estimate.unknown("no requests in this window: no GPU price breaks even")
    sources = (
        f"{requests_per_hour:.4g} requests/h",
        f"${each:.6g} at {api.basis}",
        f"{gpus:g} GPU(s)",
    )
    return Estimate.exact(requests_per_hour * each / gpus, *sources, kind=Kind.GIVEN)


def _is_below(own: Estimate, each: float) -> bool | None:
    if own.low is None or own.high is None:
        return None
    if own.high < each:
        return True
    return False if own.low > each else None
