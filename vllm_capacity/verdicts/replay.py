"""Replays a window's busiest arrivals to see whether a number of replicas keeps up.

The algorithm:

1. The arrivals in each step are the requests that finished in it, plus the change in running and
   waiting requests over it. Within a step they arrive at random; their lengths are drawn from the
   histograms of prompt and output lengths.
2. The server is a step-level model (`vllm_simulator`). At its limit it has the output and the
   running requests of a replica at capacity. How its steps lengthen up to there is fitted to the
   window's inter-token latencies, its time per prompt to the prefill times. If the capacity is a
   lower bound, the model's output stays below that bound however many requests run, so it is slower
   than the server was.
3. The fitted line must be near the window's latencies, else there is no replay.
4. One replica gets each request with a probability of 1 ÷ replicas, as with a random load balancer.
   At least a quarter of an hour around the busiest time is replayed, after a warm-up.
5. It keeps up if the output demanded does not exceed the capacity, 95 % of its requests wait no
   longer than one second, and the p95 latencies meet the targets. The low end of the capacity is
   tried first and, if that fails, the high end.

A failure to keep up is only trusted if the capacity is not a bound, and the model keeps up with the
actual number of replicas: otherwise the model is at fault.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from datetime import UTC, datetime

import numpy as np
import polars as pl
from msgspec import Struct, field
from msgspec.structs import replace
from numpy.typing import NDArray

from vllm_capacity.assumptions import Slo
from vllm_capacity.estimate import Estimate
from vllm_capacity.facts.metrics import OUTPUT_LENGTH, PREFILL, PROMPT_LENGTH, PROMPT_TOKENS
from vllm_capacity.figures import latency, traffic
from vllm_capacity.figures.latency import Distribution
from vllm_capacity.figures.makes import of_engines
from vllm_capacity.figures.steps import engine_frames
from vllm_capacity.record import Record
from vllm_capacity.timerange import TimeRange
from vllm_simulator.config import EngineConfig, EngineRequest, Request, StepTime
from vllm_simulator.core import Engine
from vllm_simulator.stats import Histogram

WAIT_LIMIT_SECONDS = 1.0
_QUANTILE = 0.95
_LEAD_SECONDS = 300.0
_MIN_SECONDS, _MAX_SECONDS = 900.0, 3600.0
_MAX_STEPS = 50_000  # per engine and replay: takes about a second
_MIN_REQUESTS, _MAX_REQUESTS = 20.0, 40_000.0  # the maximum takes a few seconds
_MIN_RUNNING = 0.5
_MIN_STEPS = 5
_LIKE = 1.3
_MAX_GAPS = 0.1
_MAX_TRIES = 3
_BATCHED_TOKENS = 2048  # vLLM V1's default of max_num_batched_tokens
_BLOCK_TOKENS = 1024
_UNSEEN_PLACES = 256  # vLLM's smallest default of max_num_seqs
_MIN_STEP_SECONDS = 1e-4
_ITL_SECONDS = tuple(np.geomspace(1e-4, 1e3, 700).tolist())
Floats = NDArray[np.float64]


class Served(Struct, frozen=True):
    """A window's data on the replicas of one model, which are treated as identical.

    `steps` as in `STEP_SCHEMA`; `capacity` is the output tokens/s of one replica, ignoring latency
    targets, and `running` its running requests at that capacity. `prefill_seconds` is the mean per
    request, `computed_ratio` the share of prompt tokens that did not come from a cache, 0..1.
    """

    steps: pl.DataFrame
    capacity: Estimate
    prompts: Distribution | None
    outputs: Distribution | None
    prefill_seconds: float | None
    running: float | None
    computed_ratio: float = 1.0
    slo: Slo = field(default_factory=Slo)


def served(
    engines: Collection[str],
    *,
    steps: pl.DataFrame,
    capacity: Estimate,
    running: float | None,
    histograms: Sequence[latency.Increase],
    counters: pl.DataFrame,
    time_range: TimeRange,
    slo: Slo,
) -> Served:
    """The traffic of these engines (by name): prompt and output lengths, and prefill time.

    `steps` must be those of these engines only, `capacity` and `running` those of one engine; rows
    of other engines in `histograms`, and in `counters` (from `traffic.counter_increases`), are
    ignored. Lengths and prefill time are None if no histogram has them.
    """
    names = set(engines)
    own = [one for one in histograms if one.engine_name in names]

    def of(metric: str) -> Distribution | None:
        return latency.merged([one for one in own if one.metric == metric])

    prefills = [one for one in own if one.metric == PREFILL]
    prefill = latency.sound_total(prefills, time_range)
    counted = sum(one.count for one in prefills)
    theirs = of_engines(counters, engines)
    prompt = traffic.total(theirs, PROMPT_TOKENS)
    computed = traffic.prompt_tokens_computed(theirs)
    return Served(
        steps=steps,
        capacity=capacity,
        prompts=of(PROMPT_LENGTH),
        outputs=of(OUTPUT_LENGTH),
        prefill_seconds=prefill / counted if prefill is not None and counted else None,
        running=running,
        computed_ratio=min(1.0, computed / prompt) if prompt and computed is not None else 1.0,
        slo=slo,
    )


class Replay(Record, frozen=True):
    """The result of replaying the busiest arrivals on `replicas`, at one end of the capacity.

    `output_tokens_per_second` is that end, for one replica. Latencies are the p95 over requests
    that arrived within `seconds` after `start`; the simulated replica received `requests` of them.
    """

    replicas: int
    start: datetime
    seconds: float
    requests: int
    output_tokens_per_second: float
    wait_p95_seconds: float
    ttft_p95_seconds: float
    itl_p95_seconds: float
    e2e_p95_seconds: float
    is_kept: bool


class _Arrivals(Struct, frozen=True):
    """Arrivals at all replicas in each step, in time order."""

    starts: Floats  # seconds since the epoch
    seconds: Floats
    counts: Floats

    def drawn(self, begin: float, end: float, share: float, rng: np.random.Generator) -> Floats:
        """Random arrival times up to `end`, in seconds since `begin`; `share` of them are kept."""
        ends = self.starts + self.seconds
        inside = np.clip(np.minimum(ends, end) - np.maximum(self.starts, begin), 0.0, None)
        counts = rng.poisson(self.counts * share * inside / self.seconds)
        first = np.maximum(self.starts, begin)
        times = np.repeat(first, counts) + rng.random(int(counts.sum())) * np.repeat(inside, counts)
        return np.sort(times - begin)


def replays(
    served: Served,
    *,
    replicas: int,
    most: int,
    busiest: datetime | None,
    scale: float = 1.0,
    is_sure: bool = True,
) -> tuple[Replay, ...]:
    """Replays on `replicas` and on one more at a time until they keep up, up to `most`.

    A number of replicas keeps up if it does so at the low end of the capacity. Unless `is_sure`,
    the high end alone is enough: then that replay follows the failed one. At most three numbers are
    tried. `busiest` is the start of the busiest time; arrivals are multiplied by `scale`.

    Empty if the window lacks data: lengths, latencies that the model matches, arrivals in steps
    without gaps (enough for a p95), a capacity and its running requests; or if a target is for a
    latency that the model does not have. Also empty if they do not keep up at a capacity that is a
    lower bound, because that proves nothing.
    """
    arrivals = _arrivals(served.steps)
    is_replayable = served.slo.targets.keys() <= set(Replay.__struct_fields__)
    if not served.capacity.low or busiest is None or arrivals is None or not is_replayable:
        return ()
    ends = [served.capacity.low]
    if not is_sure and served.capacity.high is not None:
        ends.append(served.capacity.high)
    models = [_Model.of(served, end) for end in ends]
    found: list[Replay] = []
    for count in range(replicas, min(most, replicas + _MAX_TRIES - 1) + 1):
        for model in models:
            one = _replay(served, arrivals, model, busiest, replicas=count, share=scale / count)
            if one is None or not (one.is_kept or _is_conclusive(served, arrivals, model, busiest)):
                return ()
            found.append(one)
            if one.is_kept:
                return tuple(found)
    return tuple(found)


def _is_conclusive(
    served: Served, arrivals: _Arrivals, model: _Model | None, busiest: datetime
) -> bool:
    """Whether a failed replay is meaningful: the model keeps up with the actual replica count."""
    if not served.capacity.is_known:
        return False
    running = served.steps.group_by("instance", "engine").agg(pl.col("running_mean").sum())
    loads = running["running_mean"].drop_nulls().to_numpy()
    # The effective number of replicas by load: 1 if one of two is idle.
    if not loads.any():
        return False
    there = float(loads.sum() ** 2 / (loads**2).sum())
    was = _replay(served, arrivals, model, busiest, replicas=round(there), share=1 / there)
    return was is not None and was.is_kept


def enough(tried: Sequence[Replay]) -> int | None:
    """The replica count that kept up, else the highest one tried plus 1; None without a replay."""
    if not tried:
        return None
    last = tried[-1]
    return last.replicas if last.is_kept else last.replicas + 1


class _Model(Struct, frozen=True):
    """A replica as the simulator's config, its output at the limit, and its request lengths."""

    output_tokens_per_second: float
    config: EngineConfig
    prompts: Distribution
    outputs: Distribution
    computed_ratio: float

    @classmethod
    def of(cls, served: Served, output_tokens_per_second: float) -> _Model | None:
        """The model with that output at its limit; None if the window lacks data."""
        prompts, outputs, prefill = served.prompts, served.outputs, served.prefill_seconds
        if prompts is None or outputs is None or prefill is None or not served.running:
            return None
        prompt, output = _mean(prompts), _mean(outputs)
        if not prompt or not output:
            return None
        if served.capacity.is_known:
            places = max(1, round(served.running))
            at_limit = places / output_tokens_per_second
            base = _base_seconds(served.steps, places, at_limit)
            slope = None if base is None else (at_limit - base) / places
        else:
            places = _UNSEEN_PLACES
            base, slope = _usual_itl_seconds(served.steps), 1 / output_tokens_per_second
        if base is None or slope is None:
            return None
        computed = prompt * served.computed_ratio
        per_prefill = max(0.0, prefill - base - slope) / computed
        per_prefill = min(per_prefill, slope * output / computed)
        longest = 1 + math.ceil((prompts.edges[-1] + outputs.edges[-1]) / _BLOCK_TOKENS)
        config = EngineConfig(
            model_name="replay",
            num_gpu_blocks=1 + places * longest,
            step_time=StepTime(
                base_seconds=max(base, _MIN_STEP_SECONDS),
                per_sequence_seconds=slope - per_prefill * computed / output,
                per_prefill_token_seconds=per_prefill,
            ),
            block_size=_BLOCK_TOKENS,
            max_num_seqs=places,
            max_num_batched_tokens=max(_BATCHED_TOKENS, places),
            max_model_len=_BLOCK_TOKENS * longest,
            enable_prefix_caching=False,
        )
        return cls(output_tokens_per_second, config, prompts, outputs, served.computed_ratio)

    @property
    def least_step_seconds(self) -> float:
        """The shortest step."""
        return self.config.step_time.base_seconds

    def requests(self, times: Floats, rng: np.random.Generator) -> list[Request]:
        """One request at each of the times."""
        prompts = np.maximum(1, _drawn(self.prompts, len(times), rng) * self.computed_ratio)
        outputs = np.maximum(1, _drawn(self.outputs, len(times), rng))
        rows = zip(times.tolist(), prompts.tolist(), outputs.tolist(), strict=True)
        return [Request(at, round(prompt), round(output)) for at, prompt, output in rows]


def _latency_steps(steps: pl.DataFrame) -> tuple[Floats, Floats] | None:
    """Running requests and inter-token latency of the steps with both; None if too few."""
    needed = ("running_mean", "itl_mean_seconds", "is_gap", "is_restart")
    seen = steps.select(needed).filter(
        (pl.col("running_mean") >= _MIN_RUNNING)
        & pl.col("itl_mean_seconds").is_not_null()
        & ~pl.col("is_gap")
        & ~pl.col("is_restart")
    )
    if seen.height < _MIN_STEPS:
        return None
    return seen["running_mean"].to_numpy(), seen["itl_mean_seconds"].to_numpy()


def _base_seconds(steps: pl.DataFrame, places: int, at_limit: float) -> float | None:
    """The step time without requests: a least-squares line through the step time at the limit.

    None if too few steps have an inter-token latency, or the line is not near most of them.
    """
    seen = _latency_steps(steps)
    if seen is None:
        return None
    full, itl = np.minimum(seen[0] / places, 1.0), seen[1]
    empty = 1.0 - full
    square = float((empty**2).sum())
    base = float((empty * (itl - full * at_limit)).sum()) / square if square else at_limit
    base = min(max(base, 0.0), at_limit)
    ratio = float(np.median((base * empty + at_limit * full) / itl))
    return base if 1 / _LIKE <= ratio <= _LIKE else None


def _usual_itl_seconds(steps: pl.DataFrame) -> float | None:
    seen = _latency_steps(steps)
    return None if seen is None else float(np.median(seen[1]))


def _mean(of: Distribution) -> float | None:
    return None if of.total is None or not of.count else of.total / of.count


def _drawn(of: Distribution, count: int, rng: np.random.Generator) -> Floats:
    """Values from a histogram, log-uniform within a bucket, scaled to its mean."""
    upper = np.maximum([*of.edges, of.edges[-1]], 1.0)
    lower = np.maximum([1.0, *of.edges], 1.0)
    place = rng.choice(len(upper), count, p=np.asarray(of.counts) / of.count)
    found = np.exp(rng.uniform(np.log(np.minimum(lower, upper))[place], np.log(upper)[place]))
    middle = np.sqrt(np.minimum(lower, upper) * upper)
    expected = float((middle * np.asarray(of.counts)).sum() / of.count)
    scaled: Floats = np.minimum(found * ((_mean(of) or expected) / expected), upper[-1])
    return scaled


def _arrivals(steps: pl.DataFrame) -> _Arrivals | None:
    """Arrivals in each step, summed over all engines; None without a step.

    Steps with a gap have no data and are left out; `_period` limits how many there may be.
    """
    found = [_arrivals_at(own) for own in engine_frames(steps).values()]
    if not found:
        return None
    together = (
        pl.concat(found)
        .group_by("start")
        .agg(pl.col("seconds").max(), pl.col("came").sum())
        .sort("start")
    )
    if together.is_empty():
        return None
    # A negative number means that clients left the queue, so earlier arrivals are reduced.
    total = np.maximum.accumulate(np.cumsum(together["came"].to_numpy()).clip(0.0))
    return _Arrivals(
        starts=together["start"].dt.epoch("us").to_numpy() / 1e6,
        seconds=together["seconds"].to_numpy(),
        counts=np.diff(total, prepend=0.0),
    )


def _arrivals_at(steps: pl.DataFrame) -> pl.DataFrame:
    """Arrivals at one engine: start and seconds of each step without a gap, and its arrivals."""
    seconds = (pl.col("end") - pl.col("start")).dt.total_microseconds() / 1e6
    there = pl.col("running_mean") + pl.col("waiting_mean")
    return (
        steps.select("start", "is_gap", "requests_per_second", seconds=seconds, there=there)
        .filter(~pl.col("is_gap"))
        .drop_nulls(["requests_per_second", "there"])
        .select(
            "start",
            "seconds",
            came=pl.col("requests_per_second") * pl.col("seconds")
            + (pl.col("there").shift(-1) - pl.col("there").shift(1)).fill_null(0.0) / 2,
        )
    )


def _period(
    arrivals: _Arrivals, busiest: datetime, share: float, model: _Model
) -> tuple[float, float] | None:
    """Start and end of the evaluated time around the busiest time, in seconds since the epoch.

    None if arrivals are unknown for much of it or, given their `share`, too few for a p95 or too
    many to replay in a few seconds.
    """
    most = _MAX_STEPS * model.least_step_seconds - _LEAD_SECONDS
    length = min(max(most, _MIN_SECONDS), _MAX_SECONDS)
    busy = busiest.timestamp(), busiest.timestamp() + _MIN_SECONDS
    first, last = arrivals.starts[0], arrivals.starts[-1] + arrivals.seconds[-1]
    begin = max(first, min(sum(busy) / 2 - length / 2, last - length))
    end = min(last, begin + length)
    if busy[1] <= begin or end <= busy[0]:
        return None
    ends = arrivals.starts + arrivals.seconds
    inside = np.clip(np.minimum(ends, end) - np.maximum(arrivals.starts, begin), 0.0, None)
    came = float((arrivals.counts * inside / arrivals.seconds).sum())
    is_covered = inside.sum() >= (1 - _MAX_GAPS) * (end - begin)
    return (begin, end) if is_covered and _MIN_REQUESTS <= came * share <= _MAX_REQUESTS else None


def _replay(
    served: Served,
    arrivals: _Arrivals,
    model: _Model | None,
    busiest: datetime,
    *,
    replicas: int,
    share: float,
) -> Replay | None:
    """One replay; None if the window lacks data for it."""
    period = None if model is None else _period(arrivals, busiest, share, model)
    if model is None or period is None:
        return None
    begin, end = period
    lead = min(_LEAD_SECONDS, begin - float(arrivals.starts[0]))
    rng = np.random.default_rng(0)
    ended: list[EngineRequest] = []
    engine = Engine(model.config, on_end=ended.append)
    engine.stats.itl = Histogram(_ITL_SECONDS)
    for request in model.requests(arrivals.drawn(begin - lead, end, share, rng), rng):
        engine.submit(request)
    engine.advance(lead)
    before = np.asarray(engine.stats.itl.counts)
    engine.advance(lead + end - begin)
    gaps = np.asarray(engine.stats.itl.counts) - before
    engine.advance(lead + end - begin + _LEAD_SECONDS)
    left = [*engine.scheduler.running.values(), *engine.scheduler.waiting]
    own = [one for one in (*ended, *left) if one.spec.arrival_seconds >= lead]
    found = Replay(
        replicas=replicas,
        start=datetime.fromtimestamp(begin, UTC),
        seconds=end - begin,
        requests=len(own),
        output_tokens_per_second=model.output_tokens_per_second,
        wait_p95_seconds=_p95([_since(one, one.scheduled_at, engine.clock) for one in own]),
        ttft_p95_seconds=_p95([_since(one, one.first_at, engine.clock) for one in own]),
        itl_p95_seconds=_p95(np.repeat([*_ITL_SECONDS, math.inf], gaps)),
        e2e_p95_seconds=_p95(
            [_since(one, one.last_at if one.is_done else None, engine.clock) for one in own]
        ),
        is_kept=False,
    )
    is_within = all(getattr(found, name) <= target for name, target in served.slo.targets.items())
    asked = sum(one.spec.output_tokens for one in own) / found.seconds
    has_room = (
        found.wait_p95_seconds <= WAIT_LIMIT_SECONDS and asked <= model.output_tokens_per_second
    )
    return replace(found, is_kept=bool(is_within and has_room))


def _since(request: EngineRequest, at: float | None, now: float) -> float:
    """The time from the request's arrival to `at`, or to `now` if that has not happened yet."""
    return (now if at is None else at) - request.spec.arrival_seconds


def _p95(values: Sequence[float] | Floats) -> float:
    return float(np.quantile(values, _QUANTILE, method="higher")) if len(values) else 0.0
