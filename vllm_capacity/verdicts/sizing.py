"""How many replicas a demand needs at an SLO, checked by a queueing model.

Replicas = ceil(demand at the given percentile ÷ (SLO capacity × (1 − headroom))), plus spares for
failures (N + k). To cover demand that grows while a replica starts, sizing uses the demand at the
end of the start-up time. The M/G/c check treats replicas as servers with Poisson arrivals at that
demand, in steady state: waits in bursts within a step are longer than its estimate.

Also the runway: the load that a number of replicas carries, and when growing demand exceeds it.

`n` replicas carry (n − spares) × capacity × (1 − headroom), divided by the growth of demand while a
replica starts: the sizing rule in reverse. Months assume a given, steady growth: they are
arithmetic, not a forecast.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import ClassVar

import polars as pl
from msgspec import Struct
from msgspec.structs import replace

from vllm_capacity.errors import InputError
from vllm_capacity.estimate import Estimate, Figures, total
from vllm_capacity.record import Record
from vllm_capacity.timerange import HOURS_PER_MONTH
from vllm_capacity.verdicts.queueing import Queue, servers_needed
from vllm_capacity.verdicts.replay import Replay, Served, enough, replays

MAX_REPLICAS = 1_000_000
HOURS_PER_DAY = 24
MINUTE_SECONDS, QUARTER_SECONDS, HOUR_SECONDS = 60.0, 900.0, 3600.0
_SHORT_SECONDS = 7200.0
_NEARLY = 0.05  # of a replica: an engine's presence may differ from the window by a scrape


class Policy(Record, frozen=True):
    """The safety margins of a sizing: headroom 0..1, spare replicas, start-up time and growth.

    `growth_per_hour` is the fastest growth of demand per hour, as a share of demand.
    """

    headroom_ratio: float = 0.2
    spare_replicas: int = 1
    startup_seconds: float = 300.0
    growth_per_hour: float = 0.0

    def __post_init__(self) -> None:
        """Refuse a policy that leaves no capacity or has negative values."""
        if not 0 <= self.headroom_ratio < 1:
            raise InputError(f"Headroom must be 0 up to below 1, found {self.headroom_ratio}.")
        wanted = (self.spare_replicas, self.startup_seconds, self.growth_per_hour)
        if not all(0 <= number <= MAX_REPLICAS for number in wanted):
            raise InputError(
                f"Spares, start-up seconds and growth must be 0 to {MAX_REPLICAS:,}, found "
                f"{', '.join(f'{number:.6g}' for number in wanted)}."
            )

    @property
    def lead_factor(self) -> float:
        """The factor by which demand may grow while a replica starts."""
        return 1 + self.growth_per_hour * self.startup_seconds / 3600


class Change(Struct, frozen=True):
    """A case to size for: factors on demand and capacity, and the basis of the latter."""

    demand: float = 1.0
    capacity: float = 1.0
    basis: str = ""


def percentile_demand(rates: Sequence[float | None], quantile: float) -> Estimate:
    """The demand that is not exceeded in `quantile` of the observed steps, as an interval.

    Its ends are order statistics that contain the quantile with 90 % confidence if steps are
    exchangeable. With too few steps for that, the highest value seen is the high end, and the basis
    says so. Steps without an observation (None) are left out. Unknown without any step.
    """
    if not 0 < quantile < 1:
        raise InputError(f"A percentile lies between 0 and 1, found {quantile}.")
    seen = sorted(rate for rate in rates if rate is not None)
    if not seen:
        return Estimate.unknown("no step of the window has an observed demand")
    count = len(seen)
    spread = 1.645 * math.sqrt(count * quantile * (1 - quantile))
    places = [quantile * count - spread, quantile * count, quantile * count + spread]
    low, mid, high = (seen[min(max(math.ceil(place) - 1, 0), count - 1)] for place in places)
    beyond = places[2] > count
    basis = f"p{100 * quantile:g} of {count:,} steps" + (
        "; too few for its upper end, so the highest observed value is used" if beyond else ""
    )
    return Estimate.known(low, mid, high, basis)


def demand_seen(steps: pl.DataFrame, quantile: float) -> Estimate:
    """Finished requests per second at that quantile of the steps, summed over engines.

    vLLM counts no arrivals, so a queue hides demand: if requests waited in the busiest steps, the
    basis says that actual demand may have been higher. `steps` as in `STEP_SCHEMA`.
    """
    known = (
        steps.drop_nulls("requests_per_second")
        .group_by("start")
        .agg(pl.col("requests_per_second", "waiting_mean").sum())
        .sort("start")
    )
    rates: list[float] = known.get_column("requests_per_second").to_list()
    seen = percentile_demand(rates, quantile)
    queues: list[float] = known.get_column("waiting_mean").to_list()
    busiest = [
        queue for rate, queue in zip(rates, queues, strict=True) if rate >= (seen.mid or 0.0)
    ]
    queued = [queue for queue in busiest if queue >= 1]
    basis = ["finished requests per second"]
    if queued:
        basis.append(
            f"in {len(queued)} of the {len(busiest)} busiest, requests waited (up to "
            f"{max(queued):.0f}): this is what was served; demand may have been higher"
        )
    return seen.map(lambda rate: rate, *basis)


def replicas(demand: Estimate, capacity: Estimate, policy: Policy) -> Estimate:
    """The whole number of replicas for a demand (in the capacity's unit), spares included.

    More demand never needs fewer replicas, more capacity never needs more. Zero demand needs only
    the spares. Unknown if either is unknown or the capacity may be zero.
    """
    each = capacity.scaled(1 - policy.headroom_ratio)
    load = demand.scaled(policy.lead_factor)
    basis = [f"{policy.headroom_ratio * 100:.0f} % headroom", f"{policy.spare_replicas} spare"]
    if policy.lead_factor > 1:
        basis.append(
            f"demand {(policy.lead_factor - 1) * 100:.1f} % higher when a new replica has started"
        )
    ratio = load.divided_by(each, *basis)
    if ratio.high is not None and ratio.high > MAX_REPLICAS:
        return Estimate.unknown(f"more than {MAX_REPLICAS:,} replicas: {ratio.sources}")
    return ratio.map(lambda needed: _whole(needed) + policy.spare_replicas)


class BusyTime(Struct, frozen=True):
    """The highest demand on all engines, output tokens/s: from the busiest hour to a shorter peak.

    `peak_start` is the start of the shorter peak, which sets the high end, `peak_seconds` its
    length; None if nothing was observed.
    """

    demand: Estimate
    peak_start: datetime | None = None
    peak_seconds: float | None = None


class Pool(Struct, frozen=True):
    """The replicas of one model: their number, their highest demand, the capacity per replica.

    Capacity in output tokens/s, `usd_per_hour` per replica. `served` is the input of a replay; None
    if there is none.
    """

    replicas: float
    busiest: BusyTime
    capacity: Estimate
    usd_per_hour: Estimate
    served: Served | None = None


class ModelSurplus(Figures, frozen=True):
    """How many replicas of one model could be removed, and when the rest were needed.

    The busiest `busiest_seconds` began at `busiest_start`; None if nothing was observed. `replays`
    are replays of its arrivals on fewer replicas, the last one on those that remain; empty if none
    can certainly be removed, or the window does not have enough data for a replay.
    """

    replicas: float
    busiest_output_tokens_per_second: Estimate
    busiest_start: datetime | None
    busiest_seconds: float | None
    replica_output_tokens_per_second: Estimate
    needed_replicas: Estimate
    removable_replicas: Estimate
    usd_per_day: Estimate
    replays: tuple[Replay, ...] = ()


class Surplus(Figures, frozen=True):
    """How many of the replicas could be removed, and what that saves: bounds, or an interval.

    `replicas` is their average number, `needed_replicas` what the busiest time required under
    `policy`. If several models are served, each keeps its own replicas, and the numbers are added.
    """

    replicas: float
    policy: Policy
    busiest_output_tokens_per_second: Estimate
    replica_output_tokens_per_second: Estimate
    needed_replicas: Estimate
    removable_replicas: Estimate
    usd_per_day: Estimate
    by_model: Mapping[str, ModelSurplus]


def surplus(pools: Mapping[str, Pool], policy: Policy) -> Surplus:
    """How many replicas the busiest time did not need, in total and by model.

    The policy's spares and headroom are kept, and at least one replica of each model, even without
    demand. Unknown without pools. `replica_output_tokens_per_second` is the mean over all replicas.
    """
    parts = {name: _model_surplus(pool, policy) for name, pool in pools.items()}
    there = math.fsum(pool.replicas for pool in pools.values())
    capacity = _whole_of({n: p.capacity.scaled(p.replicas) for n, p in pools.items()})
    return Surplus(
        replicas=there,
        policy=policy,
        busiest_output_tokens_per_second=_whole_of(
            {name: part.busiest_output_tokens_per_second for name, part in parts.items()}
        ),
        replica_output_tokens_per_second=capacity.scaled(1 / there) if there else capacity,
        needed_replicas=_whole_of({name: part.needed_replicas for name, part in parts.items()}),
        removable_replicas=_whole_of(
            {name: part.removable_replicas for name, part in parts.items()}
        ),
        usd_per_day=_whole_of({name: part.usd_per_day for name, part in parts.items()}),
        by_model=parts,
    )


def _model_surplus(pool: Pool, policy: Policy) -> ModelSurplus:
    needed = _needed(pool, policy)
    tried = _tried(pool, needed)
    needed = at_least_enough(needed, tried)
    removable = _left(needed, _there(pool))
    return ModelSurplus(
        replicas=pool.replicas,
        busiest_output_tokens_per_second=pool.busiest.demand,
        busiest_start=pool.busiest.peak_start,
        busiest_seconds=pool.busiest.peak_seconds,
        replica_output_tokens_per_second=pool.capacity,
        needed_replicas=needed,
        removable_replicas=removable,
        usd_per_day=removable.times(pool.usd_per_hour).scaled(HOURS_PER_DAY),
        replays=tried,
    )


def _tried(pool: Pool, needed: Estimate) -> tuple[Replay, ...]:
    """Replays on the upper bound of the replicas needed, if that is fewer than exist."""
    if pool.served is None or needed.high is None or needed.high >= _there(pool):
        return ()
    return replays(
        pool.served,
        replicas=round(needed.high),
        most=_there(pool) - 1,
        busiest=pool.busiest.peak_start,
    )


def at_least_enough(needed: Estimate, tried: Sequence[Replay], *, is_sure: bool = True) -> Estimate:
    """The replicas needed, with a high end of at least the number that kept up in `replays`.

    Unless `is_sure`, the middle is raised too, as not even the capacity's high end kept up.
    """
    count = enough(tried)
    least = tried[0].replicas if tried else 0
    if count is None or count == least:
        return needed
    high, mid = max(needed.high or 0.0, float(count)), needed.mid
    if not is_sure and mid is not None:
        mid = max(mid, float(count))
    replayed = f"a replay on {least} did not keep up"
    return replace(needed, mid=mid, high=high, basis=(*needed.basis, replayed))


def _needed(pool: Pool, policy: Policy) -> Estimate:
    """The replicas that the busiest time required; at least one, spares included."""
    if pool.busiest.demand.high == 0:
        least = max(1, policy.spare_replicas)
        return Estimate.exact(least, "no demand; one replica stays")
    return replicas(pool.busiest.demand, pool.capacity, policy).map(lambda count: max(1.0, count))


def _left(needed: Estimate, there: int) -> Estimate:
    return needed.map(lambda count: max(0.0, there - count), is_decreasing=True)


def _there(pool: Pool) -> int:
    """The whole replicas of a pool, allowing for one scrape more or less."""
    return math.floor(pool.replicas + _NEARLY)


def one_of(prices: Sequence[Estimate]) -> Estimate:
    """The price of one replica among several: their mean, with the lowest and highest as ends.

    Unknown if any is unknown.
    """
    for each in prices:
        if not each.is_known:
            return each
    lows, mids, highs = ([getattr(p, end) for p in prices] for end in ("low", "mid", "high"))
    mean = math.fsum(mids) / len(mids)
    if min(lows) == max(highs):
        return prices[0]
    return Estimate.between(min(lows), mean, max(highs), f"one of {len(prices)} replicas")


def _whole_of(parts: Mapping[str, Estimate]) -> Estimate:
    return next(iter(parts.values())) if len(parts) == 1 else total(parts)


def busiest(steps: pl.DataFrame, *, is_latency_bound: bool) -> BusyTime:
    """The output tokens/s demanded of all engines in the busiest hour, and in a shorter peak.

    The shorter peak is the busiest quarter of an hour, or the busiest minute if latency targets
    must be met throughout or less than two hours were observed. Requests waiting at that time count
    as demand. `steps` as in `STEP_SCHEMA`; times are clock hours and minutes, averaged over their
    observed part. Unknown if no step observed output.
    """
    seconds_of = (pl.col("end") - pl.col("start")).dt.total_microseconds() / 1e6
    # Sorted, so that sums have the same last digits in every call.
    together = (
        steps.select(
            "start",
            seconds=seconds_of,
            tokens=pl.col("output_tokens_per_second") * seconds_of,
            requests=pl.col("requests_per_second") * seconds_of,
            waiting="waiting_max",
        )
        .drop_nulls("tokens")
        .sort("start", maintain_order=True)
        .group_by("start", maintain_order=True)
        .agg(pl.col("seconds").max(), pl.col("tokens", "requests", "waiting").sum())
    )
    if together.is_empty():
        return BusyTime(Estimate.unknown("no step of the window has an observed output"))
    is_short = together["seconds"].sum() < _SHORT_SECONDS
    seconds = MINUTE_SECONDS if is_latency_bound or is_short else QUARTER_SECONDS
    tokens, requests = (float(together[name].sum()) for name in ("tokens", "requests"))
    queued = pl.col("waiting").max() * (tokens / requests if requests else 0.0)
    most, start = _most(together, seconds, pl.col("tokens").sum() + queued)
    hour = min(most, _most(together, HOUR_SECONDS, pl.col("tokens").sum())[0])
    words = "minute" if seconds == MINUTE_SECONDS else "quarter-hour"
    basis = f"the busiest hour; at most the busiest {words}, with its waiting requests"
    return BusyTime(Estimate.between(hour, hour, most, basis), start, seconds)


def _most(together: pl.DataFrame, seconds: float, tokens: pl.Expr) -> tuple[float, datetime]:
    """The highest rate in any clock-aligned period of that length, and when the first began."""
    rates = together.group_by(
        pl.col("start").dt.truncate(f"{seconds:.0f}s"), maintain_order=True
    ).agg(rate=tokens / pl.col("seconds").sum())
    most = rates.row(rates["rate"].arg_max() or 0, named=True)
    return float(most["rate"]), most["start"]


def month_usd(gpus: Estimate, usd_per_gpu_hour: Estimate) -> Estimate:
    """Dollars per month of 730.5 hours for GPUs that run continuously."""
    return gpus.times(usd_per_gpu_hour, f"{HOURS_PER_MONTH} h per month").scaled(HOURS_PER_MONTH)


def sensitivity(
    demand: Estimate,
    capacity: Estimate,
    *,
    policy: Policy,
    cases: Mapping[str, Change],
) -> dict[str, Estimate]:
    """Replicas in each named case; "now" is always included."""
    found = {}
    for name, change in {"now": Change(), **cases}.items():
        changed = capacity
        if change.basis:
            changed = capacity.scaled(
                change.capacity, f"capacity × {change.capacity:.3g}: {change.basis}"
            )
        found[name] = replicas(demand.scaled(change.demand), changed, policy)
    return found


def usual_cases(
    *,
    prefill_share: float,
    prefix_hit_ratio: float | None,
    prompt_tokens: float | None = None,
    output_tokens: float | None = None,
    is_kv_limited: bool = False,
) -> dict[str, Change]:
    """Common what-if cases. Longer prompts and caching do not change how many requests arrive.

    *Time*, with `prefill_share` p of engine time spent on prompts, 0..1, and a share h of prompt
    tokens found cached: prompts twice as long leave 1 ÷ (1 + p) of the capacity, caching off 1 ÷ (1
    + p h ÷ (1 − h)).

    *KV cache*, if it is the limit: a request holds its I prompt tokens and, averaged over its life,
    half of its O output tokens, so memory ÷ (I + O/2) requests run at once. Prompts twice as long
    leave (I + O/2) ÷ (2 I + O/2); caching off, where each cached token needs a block of its own,
    leaves ((1 − h) I + O/2) ÷ (I + O/2).

    The tighter of the two applies. The KV share is a worst case: it assumes that output falls in
    proportion to the running requests (less if the curve is flat), and that every cached token was
    shared with a request running at the same time. Latencies also grow, but targets are not applied
    again.
    """
    if not 0 <= prefill_share <= 1:
        raise InputError(f"The prefill share lies between 0 and 1, found {prefill_share}.")
    tokens = (prompt_tokens, output_tokens) if is_kv_limited else (None, None)
    cases = {
        "demand doubles": Change(demand=2.0),
        "prompts double": _tighter(1 / (1 + prefill_share), _kv_share(*tokens, 1.0, 2.0)),
    }
    if prefix_hit_ratio is not None and 0 <= prefix_hit_ratio < 1:
        more = prefill_share * prefix_hit_ratio / (1 - prefix_hit_ratio)
        kv_share = _kv_share(*tokens, 1 - prefix_hit_ratio, 1.0)
        cases["prefix caching off"] = _tighter(1 / (1 + more), kv_share)
    return cases


def _kv_share(
    prompt_tokens: float | None, output_tokens: float | None, before: float, after: float
) -> float | None:
    """KV tokens per request, before ÷ after: the factor × its prompt, plus half its output."""
    if prompt_tokens is None or output_tokens is None or prompt_tokens + output_tokens <= 0:
        return None
    half = output_tokens / 2
    return (before * prompt_tokens + half) / (after * prompt_tokens + half)


def _tighter(time: float, kv: float | None) -> Change:
    if kv is not None and kv < time:
        return Change(capacity=kv, basis="KV tokens per request, before ÷ after, at worst")
    return Change(capacity=time, basis="engine time per request, before ÷ after")


class QueueCheck(Record, frozen=True):
    """The result of an M/G/c queue for a number of replicas at a demand.

    `wait_seconds` is the wait at the given quantile, None if the queue is unstable;
    `replicas_needed` the lowest number that meets the limit, without spares.
    """

    renamed: ClassVar[Mapping[str, str]] = {"utilisation_ratio": "utilization_ratio"}

    utilization_ratio: float
    wait_seconds: float | None
    is_within_limit: bool
    replicas_needed: int | None
    wait_limit_seconds: float
    assumes: str = "Poisson arrivals, stationary, first come first served (Kimura's M/G/c)"


def queue_check(
    *,
    requests_per_second: float,
    capacity_requests_per_second: float,
    running_at_capacity: float,
    replicas: int,
    wait_limit_seconds: float,
    quantile: float = 0.95,
    service_cv2: float = 1.0,
) -> QueueCheck:
    """Check a sizing with an M/G/c queue whose servers are all places in running batches.

    By Little's law, a place serves one request in (running at capacity ÷ capacity) seconds, so both
    must be from the same load.
    """
    if min(capacity_requests_per_second, running_at_capacity) <= 0 or replicas < 1:
        raise InputError("A queue check needs capacity, running requests and replicas above 0.")
    places = max(1, math.floor(running_at_capacity))
    queue = Queue(
        arrivals_per_second=requests_per_second,
        service_mean_seconds=places / capacity_requests_per_second,
        servers=places * replicas,
        service_cv2=service_cv2,
    )
    wait = queue.wait_quantile_seconds(quantile)
    needed = servers_needed(queue, q=quantile, limit_seconds=wait_limit_seconds)
    return QueueCheck(
        utilization_ratio=queue.utilization_ratio,
        wait_seconds=wait,
        is_within_limit=wait is not None and wait <= wait_limit_seconds,
        replicas_needed=None if needed is None else math.ceil(needed / places),
        wait_limit_seconds=wait_limit_seconds,
    )


def _whole(needed: float) -> int:
    """Rounded up, ignoring the rounding error of a division: 3.0000000001 replicas are 3."""
    return math.ceil(needed * (1 - 1e-12))


class Runway(Struct, frozen=True):
    """The load that a number of replicas can carry.

    `carried` is in the unit of the capacity, `times_demand` a multiple of today's demand, `months`
    the time until demand reaches it: negative if it already has, unknown without growth.
    """

    replicas: int
    carried: Estimate
    times_demand: Estimate
    months: Estimate


def runways(
    demand: Estimate,
    capacity: Estimate,
    *,
    policy: Policy,
    counts: Iterable[int],
    growth_ratio_per_month: float,
) -> tuple[Runway, ...]:
    """The runway of each number of replicas, spares included; demand and capacity in one unit."""
    if not growth_ratio_per_month >= 0:
        raise InputError(f"Growth per month must be 0 or more, not {growth_ratio_per_month:g}.")
    found = []
    for count in counts:
        working = count - policy.spare_replicas
        carried = _carried(capacity, working, policy)
        times = carried.divided_by(demand)
        found.append(Runway(count, carried, times, _months(times, growth_ratio_per_month)))
    return tuple(found)


def _carried(capacity: Estimate, working: int, policy: Policy) -> Estimate:
    if working < 1:
        return Estimate.exact(0.0, f"all are spares ({policy.spare_replicas})")
    share = (1 - policy.headroom_ratio) / policy.lead_factor
    return capacity.scaled(working * share, f"{working} replicas at {share:.3g} of their capacity")


def _months(times: Estimate, growth: float) -> Estimate:
    if growth == 0:
        return Estimate.unknown("demand is assumed not to grow")
    if times.low is not None and times.low <= 0:
        return Estimate.unknown("they have no load")
    basis = f"demand growing by {growth * 100:.0f} % per month"
    return times.map(lambda ratio: math.log(ratio) / math.log1p(growth), basis)
