"""The definition of every figure, the functions that make it, and the rows they use.

A definition refers to function objects, never to files: files, lines and SQL are read from the
functions, so they cannot be outdated.
"""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from textwrap import dedent

import polars as pl
from msgspec import Struct

from vllm_capacity import billed, bills, costs_by_time
from vllm_capacity.analysis import Analysis
from vllm_capacity.assumptions import TARGETS
from vllm_capacity.facts.metrics import (
    GENERATION_TOKENS,
    HTTP_REQUESTS,
    ITL,
    KV_CACHE,
    PREEMPTIONS,
    PREFILL,
    PREFIX_HITS,
    PREFIX_QUERIES,
    PROMPT_TOKENS,
    REJECTIONS,
    REQUESTS,
    RUNNING,
    TTFT,
    WAITING,
)
from vllm_capacity.figures import (
    gauges,
    histogram,
    latency,
    losses,
    scrapes,
    series,
    steps,
    traffic,
)
from vllm_capacity.telemetry.window import query_text
from vllm_capacity.verdicts import sizing, utilization
from vllm_capacity.verdicts.cost import bill as cost
from vllm_capacity.verdicts.cost import idle
from vllm_capacity.verdicts.demand import forecast, weeks
from vllm_capacity.verdicts.hardware import choice, interactivity, unloaded
from vllm_capacity.verdicts.hardware import compare as options
from vllm_capacity.verdicts.quality import report as quality
from vllm_capacity.verdicts.saturation import advice, capacity, plateau, regimes, slo
from vllm_capacity.verdicts.saturation import fit as saturation

Function = Callable[..., object]


# An analysis queries all of these at once, and their rows are taken from that result.
_ASKED_TOGETHER: Mapping[Function, Sequence[str]] = {
    traffic.counter_increases: traffic.COUNTERS,
    traffic.scrape_increases: traffic.STEP_COUNTERS,
    latency.histogram_states: latency.HISTOGRAMS,
    gauges.gauge_samples: gauges.GAUGES,
}


class Source(Struct, frozen=True):
    """Rows that a figure is made of: the function that reads them, and their metrics."""

    read: Function
    metrics: tuple[str, ...] = ()

    @property
    def query(self) -> str:
        """The name of the shipped query that the function uses."""
        return _query_of(self.read)

    def bound(self, analysis: Analysis) -> dict[str, object]:
        """The parameter values for which the query returns these rows."""
        time_range = analysis.time_range
        values: dict[str, object] = {
            "metrics": list(self.metrics),
            "start": time_range.start,
            "end": time_range.end,
            "step_us": round((time_range.seconds + 1) * 1e6),  # one step spans the whole time range
            "last_step": 0,
        }
        needed = set(re.findall(r"\$(\w+)", query_text("figures", self.query)))
        return {name: value for name, value in values.items() if name in needed}

    def rows(self, analysis: Analysis) -> pl.DataFrame:
        """The rows of the query, from the results that the analysis already has."""
        bound = self.bound(analysis)
        if self.read in _ASKED_TOGETHER:
            bound["metrics"] = list(_ASKED_TOGETHER[self.read])
        found = analysis.window.named_sql("figures", self.query, **bound)
        return found.filter(pl.col("metric").is_in(self.metrics)) if self.metrics else found

    def first_rows(self, analysis: Analysis, count: int) -> tuple[pl.DataFrame, int]:
        """The first of these rows, at most `count`, and the number of all."""
        if self.metrics:
            found = self.rows(analysis)
            return found.head(count), found.height
        bound = self.bound(analysis)
        return analysis.window.first_rows("figures", self.query, count, **bound)


class Definition(Struct, frozen=True):
    """One figure: its meaning, the functions that make it, and the rows they use.

    `paths` are the attributes of an answer that hold it (in a plan, after `plan.`); none for
    figures that only a chart shows.
    """

    figure: str
    title: str
    text: str
    made_by: tuple[Function, ...]
    read: tuple[Source, ...]
    paths: tuple[str, ...] = ()

    @property
    def sources(self) -> tuple[Source, ...]:
        """Its rows, each query once, with all metrics that the figure uses from it."""
        metrics: dict[Function, list[str]] = {}
        for source in self.read:
            metrics.setdefault(source.read, []).extend(source.metrics)
        return tuple(Source(read, tuple(dict.fromkeys(names))) for read, names in metrics.items())


@cache
def _query_of(function: Function) -> str:
    """The name of the one shipped query that a function uses, found in its source."""
    tree = ast.parse(dedent(inspect.getsource(function)))
    wanted = [
        call.args[1].value
        for call in ast.walk(tree)
        if isinstance(call, ast.Call)
        and isinstance(call.func, ast.Attribute)
        and call.func.attr == "named_sql"
        and isinstance(call.args[1], ast.Constant)
    ]
    if len(wanted) != 1:
        raise ValueError(f"{function.__name__} asks {len(wanted)} queries, not one")
    return str(wanted[0])


_ATTEMPTS = Source(scrapes.attempts)
_ENGINES = Source(scrapes.engines)
_RESTARTS = Source(scrapes.restarts)


def _increase(*metrics: str) -> Source:
    """Exact increases of counters over the whole time range."""
    return Source(traffic.counter_increases, metrics)


def _growth(*metrics: str) -> Source:
    """Increases of counters from scrape to scrape."""
    return Source(traffic.scrape_increases, metrics)


def _samples(*metrics: str) -> Source:
    return Source(gauges.gauge_samples, metrics)


def _buckets(*metrics: str) -> Source:
    return Source(latency.histogram_states, metrics)


_BILLED = (_ATTEMPTS, _ENGINES)
_BILL = (scrapes.billed_hours, bills.engine_parts, cost.bill)
_STEPS = (
    _growth(GENERATION_TOKENS, PREEMPTIONS),
    _samples(RUNNING, WAITING, KV_CACHE),
)
_TOKENS = (PROMPT_TOKENS, GENERATION_TOKENS)
_BILL_TEXT = (
    "The bill is billed hours × GPUs per engine × price per GPU-hour. An engine is billed from its "
    "target's last scrape attempt before the window (or its first inside) to the last before the "
    "end, including idle time and failed scrapes."
)
_LOAD_TEXT = (
    "Load is the mean number of running requests in a step, or the mean KV-cache usage. With "
    "several engines, the one nearest to its limit is drawn against its own load. Steps with a gap "
    "or a restart are left out."
)
_QUANTILE_TEXT = (
    "The increase of each histogram bucket over the window, added over engines with the same "
    "buckets, then interpolated inside a bucket as PromQL's histogram_quantile does. The true "
    "value lies between the edges of that bucket."
)
_ATTAINMENT_TEXT = (
    "SLO attainment: the share of {what} within the target. Exact where the target is the edge of "
    "a histogram bucket, an interval where it lies inside one. The goal is 95 %: targets are p95."
)
_OF_EVERY_TARGET = {next(iter(TARGETS)): ("slo.attainments", "slo.missed")}
_SHORT = vars(latency.Latency)  # answers name latencies by these short names, too

DEFINITIONS: tuple[Definition, ...] = (
    Definition(
        "usd_per_request",
        "Cost per request",
        f"{_BILL_TEXT} It is divided by the successful requests: those that finished with the "
        "reason stop, length or repetition.",
        _BILL,
        (*_BILLED, _increase(REQUESTS)),
        ("cost.usd_per_request", "cost.per_request"),
    ),
    Definition(
        "usd_per_million_output_tokens",
        "Cost per million output tokens",
        f"{_BILL_TEXT} The whole bill, prompts included, is charged to the output tokens.",
        _BILL,
        (*_BILLED, _increase(GENERATION_TOKENS)),
        ("cost.usd_per_million_output_tokens",),
    ),
    Definition(
        "tokens_per_usd",
        "Tokens per dollar",
        f"{_BILL_TEXT} Output tokens divided by it.",
        _BILL,
        (*_BILLED, _increase(GENERATION_TOKENS)),
        ("cost.tokens_per_usd",),
    ),
    Definition(
        "allocation_usd",
        "The bill",
        f"{_BILL_TEXT} The bills of all engines are added.",
        (*_BILL, cost.allocation_usd),
        _BILLED,
        ("cost.allocation_usd", "cost.total"),
    ),
    Definition(
        "usd_per_month",
        "Run rate",
        f"{_BILL_TEXT} The bill ÷ the hours of the window × the 730.5 hours of a mean month.",
        (*_BILL, cost.allocation_usd),
        _BILLED,
        ("usd_per_month",),
    ),
    Definition(
        "usd_per_million_total_tokens",
        "Cost per million tokens, input and output",
        f"{_BILL_TEXT} The whole bill is divided by prompt and output tokens together. The two "
        "split figures share the bill between input and output tokens by the engine time that "
        "prompts took, as derived from ITL and prefill times, else by a weight of 1:4; they add "
        "up to the bill.",
        _BILL,
        (*_BILLED, _increase(*_TOKENS), _buckets(PREFILL, ITL)),
        (
            "cost.usd_per_million_total_tokens",
            "cost.usd_per_million_input_tokens_split",
            "cost.usd_per_million_output_tokens_split",
        ),
    ),
    Definition(
        "utilization",
        "Utilization",
        "Output tokens per second (increase of the counter ÷ time between its first and last "
        "scrape) divided by the capacity; at most 1.",
        (utilization.utilization, traffic.rate_per_second),
        (_increase(GENERATION_TOKENS), *_STEPS),
        ("cost.utilization",),
    ),
    Definition(
        "idle_usd",
        "Idle cost",
        "The bill × (1 − utilization): what was paid for capacity that nobody used. The cost at "
        "the knee is the cost × utilization: what it would be at full utilization.",
        (cost.bill, utilization.utilization),
        (*_BILLED, _increase(GENERATION_TOKENS), *_STEPS),
        (
            "cost.idle_usd",
            "cost.idle_ratio",
            "cost.usd_per_request_at_knee",
            "cost.usd_per_million_output_tokens_at_knee",
        ),
    ),
    Definition(
        "cost_over_time",
        "Cost per request over time",
        f"Each part of the window is billed separately. {_BILL_TEXT} Parts are hours, or a round "
        "length that gives at most 48 of them; their bills add up to the total.",
        (costs_by_time.costs_by_part, billed.rate_of),
        (*_BILLED, _growth(REQUESTS)),
    ),
    Definition(
        "headroom_ratio",
        "Headroom",
        "1 − utilization: what is left of the capacity while engines are billed.",
        (utilization.headroom, utilization.utilization),
        (_increase(GENERATION_TOKENS), *_STEPS),
        ("saturation.headroom_ratio",),
    ),
    Definition(
        "slo_headroom_ratio",
        "Headroom within the latency targets",
        "1 − mean output tokens per second ÷ the throughput within the latency targets: what is "
        "left of it while the targets are met.",
        (utilization.headroom, utilization.utilization, slo.slo_throughput),
        (_increase(GENERATION_TOKENS), *_STEPS),
        ("slo_headroom_ratio",),
    ),
    *(
        Definition(
            target.attainment,
            f"{target.label} within target",
            _ATTAINMENT_TEXT.format(what=target.observed),
            (histogram.attainment,),
            (_buckets(target.metric),),
            (f"slo.{target.attainment}", *_OF_EVERY_TARGET.get(target.name, ())),
        )
        for target in TARGETS.values()
    ),
    Definition(
        "slo_throughput",
        "Throughput within the latency targets",
        "The highest output tokens per second at which p95 TTFT and p95 ITL meet their targets: "
        "between the heaviest load that met them and the lightest that did not, and never above "
        "the capacity.",
        (slo.slo_throughput,),
        (*_STEPS, _buckets(TTFT, ITL)),
        ("slo.throughput_output_tokens_per_second", "slo.throughput"),
    ),
    Definition(
        "capacity_output_tokens_per_second",
        "Capacity",
        "The plateau of output tokens per second while the server, not its clients, is the limit; "
        "its knee is the lightest load that reaches it. Where no plateau was reached, the peak is "
        "extrapolated from lighter loads, or the best minute is a lower bound. The drawn curve is "
        "a scalability law fitted to the steps, its band a 90 % bootstrap over blocks of them; the "
        f"plateau does not depend on it. {_LOAD_TEXT}",
        (saturation.engine_fits, plateau.plateau, capacity.fleet_sum),
        _STEPS,
        (
            "saturation.capacity_output_tokens_per_second",
            "saturation.capacity",
            "saturation.capacity_kind",
            "saturation.capacity_running_requests",
        ),
    ),
    Definition(
        "regime",
        "Bottleneck",
        "Every step of every engine is judged by its running and waiting requests, KV-cache usage "
        "and preemptions; the evidence is listed with each verdict. The bottleneck is the limit "
        "that lasted longest in the busiest quarter of the steps.",
        (regimes.judged_steps, regimes.window_regime, regimes.bottleneck),
        _STEPS,
        (
            "saturation.regime",
            "saturation.bottleneck",
            "saturation.regimes",
            "saturation.imbalance",
            "saturation.regime_times",
        ),
    ),
    Definition(
        "advice",
        "What to change first",
        "Settings that limited throughput for at least 5 % of the busy time, each with its "
        "expected gain: how far the fitted curve still rises up to the load that it allows.",
        (advice.advice,),
        _STEPS,
        ("advice",),
    ),
    Definition(
        "latency_by_load",
        "Latency against load",
        f"Each point is a step: p95 of its histogram's increase. {_LOAD_TEXT}",
        (steps.engine_steps,),
        (_samples(RUNNING, KV_CACHE), _buckets(TTFT, ITL)),
    ),
    Definition(
        "preemptions_by_load",
        "Preemptions against load",
        f"Each point is a step: increase of the counter ÷ minutes of the step. {_LOAD_TEXT}",
        (steps.engine_steps,),
        (_growth(PREEMPTIONS), _samples(RUNNING, KV_CACHE)),
    ),
    Definition(
        "throughput",
        "Throughput: output tokens and requests per second",
        "Over time: the increase of the counter between scrapes ÷ the time between them, added "
        "over engines; over a gap the increase is spread evenly, and the gap is marked. The mean "
        "over the window is the exact increase ÷ the time between the first and the last scrape.",
        (traffic.rate_per_second, series.per_step),
        (
            _increase(GENERATION_TOKENS, REQUESTS),
            _growth(GENERATION_TOKENS, REQUESTS),
        ),
        ("throughput",),
    ),
    Definition(
        "tokens",
        "Tokens by kind",
        "The exact increase of the prompt and generation counters. Prompt tokens include those "
        "found in the prefix cache. Tokens per request are divided by the finished requests.",
        (traffic.total, traffic.prompt_tokens_computed),
        (_increase(*_TOKENS),),
        ("tokens", "prompt_tokens_per_request", "output_tokens_per_request", "traffic"),
    ),
    Definition(
        "requests",
        "How requests ended",
        "The exact increase of the counter of finished requests, by reason. Requests whose client "
        "went away and requests that were refused are not counted by vLLM.",
        (traffic.total_by_label, traffic.successful),
        (_increase(REQUESTS),),
        ("requests",),
    ),
    Definition(
        "lost",
        "Requests and tokens that no scrape saw",
        "What a process may have counted between its last scrape and its end, or before its first "
        "scrape: bounds from its running and waiting requests and the highest rate in the window. "
        "There is no upper bound if it ended while a clock was set, because it is not known how "
        "long it went on.",
        (losses.losses,),
        (_ATTEMPTS, _RESTARTS, _growth(REQUESTS, *_TOKENS)),
        ("requests.lost", "tokens.lost"),
    ),
    Definition(
        "failures",
        "Failures",
        "HTTP answers by status, requests that ended with an engine error, rejections at "
        "admission, and streams with a first token that never finished. vLLM has no total of "
        "received requests, so there is no single failure rate.",
        (traffic.failures,),
        (
            _increase(HTTP_REQUESTS, REQUESTS, REJECTIONS),
            _buckets(TTFT),
            _samples(RUNNING),
        ),
        ("failures",),
    ),
    Definition(
        "queue",
        "Running and waiting requests",
        "At each scrape, the sum of the newest samples of all engines; means are weighted by how "
        "long a sample holds.",
        (gauges.summed, gauges.gauge_of),
        (_samples(RUNNING, WAITING),),
        ("running", "waiting"),
    ),
    Definition(
        "kv_cache_ratio",
        "KV-cache usage",
        "Blocks held by live requests ÷ all blocks, 0 to 1; mean and maximum over engines, never "
        "added.",
        (gauges.held,),
        (_samples(KV_CACHE),),
        ("kv_cache_ratio",),
    ),
    Definition(
        "preemptions",
        "Preemptions",
        "The exact increase of the counter: requests that were put back into the queue because the "
        "KV cache was full.",
        (traffic.total,),
        (_increase(PREEMPTIONS),),
        ("preemptions",),
    ),
    Definition(
        "prefix_cache_hit_ratio",
        "Prefix-cache hit rate",
        "Prompt tokens found in the prefix cache ÷ prompt tokens looked up.",
        (traffic.prefix_cache_hit_ratio,),
        (_increase(PREFIX_QUERIES, PREFIX_HITS),),
        ("prefix_cache_hit_ratio",),
    ),
    *(
        Definition(
            f"{name}_seconds",
            f"{shown.title[0].upper()}{shown.title[1:]}",
            _QUANTILE_TEXT,
            (latency.quantiles, histogram.bucket_quantile, histogram.quantile_bounds),
            (_buckets(shown.metric),),
            (f"latency.{name}_seconds", *((f"latency.{name}",) if name in _SHORT else ())),
        )
        for name, shown in latency.LATENCIES.items()
    ),
    Definition(
        "window",
        "Window",
        "The analyzed time range, and the engines in it: pairs of a target and vLLM's engine "
        "label. The mean weights each engine by the share of the billed time in which it was up.",
        (scrapes.engines, bills.presence),
        _BILLED,
        ("window",),
    ),
    Definition(
        "quality",
        "Quality of the telemetry",
        "Checks of the scrapes and of the series, each with the most it can change a figure.",
        (quality.quality_report,),
        (_ATTEMPTS, _RESTARTS),
        ("quality",),
    ),
    Definition(
        "demand",
        "Demand to plan for",
        "Requests per second as given; else the p95 over the steps of finished requests per "
        "second, added over engines. This times the mean output tokens per request is the demand "
        "as output. vLLM does not count arrivals: if requests waited, this is what was served, "
        "and demand may be higher.",
        (sizing.demand_seen,),
        (_growth(REQUESTS), _samples(WAITING), _increase(*_TOKENS)),
        ("plan.demand_requests_per_second", "plan.demand_output_tokens_per_second"),
    ),
    Definition(
        "replicas",
        "Replicas",
        "Demand ÷ (capacity of one replica × (1 − headroom)), rounded up, plus spares. The "
        "capacity is the throughput within the latency targets, or the plateau if no target is "
        "given. If prompts double or prefix caching is off, the capacity shrinks by the engine "
        "time per request or, if the KV cache is the bottleneck, by the KV tokens per request "
        "(prompt + half the output), whichever is worse; latencies are not evaluated again.",
        (sizing.replicas, sizing.month_usd, sizing.sensitivity),
        (_growth(REQUESTS), _increase(*_TOKENS), *_STEPS),
        (
            "plan.replicas",
            "plan.gpus",
            "plan.usd_per_month",
            "plan.capacity_output_tokens_per_second",
            "plan.sensitivity",
            "plan.queue_check",
        ),
    ),
    Definition(
        "whatif",
        "Another GPU",
        "The capacity of this window (or the rate given) × the ratio of published measurements of "
        "the model on both GPUs, if there are any; else × the ratio of the times that prefill and "
        "decode take by timed kernels and data sheets. The band is the measured error of this "
        "method on models it was not fitted to. Tokens per dollar is that ÷ the price: the median "
        "of the on-demand offers, with the cheapest and the most expensive as its ends. A GPU that "
        "cannot serve the model, or has no price, is listed with the reason.",
        (options.whatif_table,),
        (_increase(*_TOKENS), *_STEPS),
        ("plan.options",),
    ),
    Definition(
        "choice",
        "What would change the choice of a GPU",
        "For two GPUs: the tokens per dollar of one ÷ those of the other, that is, the ratio of "
        "throughputs × the ratio of prices. The order flips at the price at which this is 1. The "
        "error of the throughput ratio at which it is 1, at the middle of both prices, is compared "
        "with its 90 % band. The uncertainty of the rate they are scaled from affects neither.",
        (choice.choice,),
        (_increase(*_TOKENS), *_STEPS),
        ("plan.choices",),
    ),
    Definition(
        "interactivity",
        "Cost at the same interactivity",
        "At each load: price × GPUs ÷ output tokens per hour, against inter-token latency. Each "
        "measured load is transferred to the other GPU separately; if the window only saw a light "
        "load, heavier ones are calculated from it by the step times of each GPU.",
        (interactivity.gpu_curves,),
        (_increase(*_TOKENS), *_STEPS),
        ("plan.interactivity",),
    ),
    Definition(
        "by_arithmetic",
        "Capacity by arithmetic",
        "If the telemetry only bounds the capacity, and GPU and model are known: the throughput by "
        "that GPU's step times with as many running requests as its KV cache admits, corrected by "
        "the ratio of the measured to the calculated time per token at the observed light load. "
        "Beyond 32 × the observed requests, it is only a lower bound. The band is the measured "
        "error of this method on published sweeps, from their lightest loads to heavier ones. "
        "Utilization, headroom, idle dollars and removable replicas follow as from a measured "
        "capacity. Within latency targets: the highest load at which ITL and TTFT, scaled from the "
        "measured ones as calculated, meet the targets; it also limits removable replicas. There "
        "is no result if over 20 % of prompt tokens came from a cache, with speculative decoding, "
        "or if the server was observed to do more.",
        (unloaded.calculated,),
        (_increase(*_TOKENS), *_STEPS),
        (
            "by_arithmetic",
            "plan.capacity_by_arithmetic_output_tokens_per_second",
        ),
    ),
    Definition(
        "forecast",
        "Forecast of requests",
        "The mean of the last day × the profile of the hours of the day × how far the last hour "
        "was above or below it, fading; from two weeks of history on also × a profile of the week, "
        "if that made the back-test better. The interval comes from the errors of the same "
        "forecast on this window's own past. It needs at least 24 h of data.",
        (forecast.forecast_demand,),
        (_growth(REQUESTS),),
        ("plan.forecast",),
    ),
    Definition(
        "hour_of_week",
        "Load, utilization and cost by hour of the week",
        f"{_BILL_TEXT} For each whole hour of the clock: finished requests, output tokens per "
        "second ÷ capacity, and the bill; then their means over the observed hours of the week, "
        "and the cost of all requests in such hours ÷ their number.",
        (costs_by_time.costs_by_hour, weeks.hours_of_week),
        (*_BILLED, _growth(REQUESTS, GENERATION_TOKENS), *_STEPS),
    ),
    Definition(
        "idle",
        "Idle cost by hour of the week",
        f"{_BILL_TEXT} For each whole hour: the bill × (1 − output tokens per second ÷ capacity); "
        "then the mean over the observed hours of the week.",
        (costs_by_time.costs_by_hour, idle.idle_by_hour_of_week),
        (*_BILLED, _growth(GENERATION_TOKENS), *_STEPS),
    ),
)
