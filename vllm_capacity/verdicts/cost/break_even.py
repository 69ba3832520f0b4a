"""Own GPUs or an API: the demand, the utilization and the price at which both cost the same.

An API is paid per request, a GPU per hour. So they break even at dollars per hour ÷ what the API
charges per request; that over the requests per hour at capacity is the break-even utilization. The
*allocation* cost is compared, idle hours included: usage cost would flatter the GPU.
"""

from __future__ import annotations

from dataclasses import dataclass

from vllm_capacity.errors import InputError
from vllm_capacity.estimate import Estimate, Kind
from vllm_capacity.facts.api_prices import ApiPrice

_MOST = 1e12


@dataclass(frozen=True)
class BreakEven:
    """Where own GPUs and an API cost the same, and which is cheaper now.

    `utilization` may exceed 1: then no demand that the GPUs can serve makes them cheaper.
    `usd_per_gpu_hour` is the GPU price that would break even at today's demand. `is_own_cheaper` is
    None where the interval does not decide.
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

    `requests_per_hour` is today's demand on those GPUs: None or 0 leaves what needs it unknown.
    """
    given = (input_tokens, output_tokens, gpus, requests_per_hour or 0.0)
    if (
        not all(0 <= number <= _MOST for number in given)
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
