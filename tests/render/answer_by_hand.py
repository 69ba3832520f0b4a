"""An analysis made up: round numbers, every figure known, a gap and a restart.

`answer` and `analysis` give it with other values at dotted paths, and check each path:
`answer(cost__usd_per_request=unknown())`.
"""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import polars as pl
from msgspec.structs import replace

from vllm_capacity.analysis import Analysis
from vllm_capacity.answer import Answer, Requests, SloVerdict, Throughput, Tokens, WindowExtent
from vllm_capacity.assumptions import Assumptions
from vllm_capacity.estimate import Estimate, Kind
from vllm_capacity.figures.gauges import Gauge
from vllm_capacity.figures.latency import Latency, Quantile, Quantiles
from vllm_capacity.figures.losses import Lost
from vllm_capacity.figures.traffic import Failures
from vllm_capacity.timerange import TimeRange
from vllm_capacity.verdicts.cost.bill import Costs
from vllm_capacity.verdicts.hardware.unloaded import ByArithmetic
from vllm_capacity.verdicts.quality.evidence import Finding
from vllm_capacity.verdicts.saturation.fit import Saturation, Stretch

START = datetime(2026, 11, 24, 8, tzinfo=UTC)
END = START + timedelta(minutes=25)
STEP = timedelta(seconds=15)
FAMILIES = {"ttft": 0.15, "itl": 0.03, "e2e": 3.0}


def estimate(mid: float, low: float | None = None, high: float | None = None) -> Estimate:
    """A figure that was counted, or with an end given, estimated."""
    if low is None and high is None:
        return Estimate.exact(mid, "counted")
    return Estimate.known(mid if low is None else low, mid, mid if high is None else high, "seen")


def extrapolated(mid: float, low: float, high: float) -> Estimate:
    return Estimate.known(low, mid, high, "the curve", kind=Kind.EXTRAPOLATED)


def unknown(reason: str = "no price given") -> Estimate:
    return Estimate.unknown(reason)


def quantile(value: float) -> Quantile:
    return Quantile(value, value * 0.8, value * 1.25)


def stretch(
    start_minute: float, end_minute: float, regime: str, evidence: str, *, engine: str = "r0/0"
) -> Stretch:
    """A regime of an engine, from and to so many minutes after the start."""
    at = [START + timedelta(minutes=minute) for minute in (start_minute, end_minute)]
    return Stretch(at[0], at[1], engine, regime, evidence)


def finding(
    check: str, severity: str, count: int = 1, effect: str = "no figure is affected"
) -> Finding:
    return Finding(check, severity, count, effect)


_WHY_NO_FAILURES = unknown("this vLLM does not count it")

ANSWER = Answer(
    window=WindowExtent(START, END, 25 / 60, 1, 1.0),
    requests=Requests(2000, 1990, {"stop": 990, "length": 1000, "error": 10}, Lost(0, 0)),
    tokens=Tokens(600_000, 450_000, 300_000, Lost(0, 0)),
    throughput=Throughput(200.0, 1.333),
    latency=Latency(
        *(Quantiles(quantile(at), quantile(at * 4), quantile(at * 8)) for at in FAMILIES.values())
    ),
    slo=SloVerdict(estimate(0.9, 0.85, 0.95), estimate(0.8), estimate(220.0, 200.0, 240.0)),
    running=Gauge(12.0, 40),
    waiting=Gauge(5.0, 45),
    kv_cache_ratio=Gauge(0.45, 1.0),
    preemptions=561,
    prefix_cache_hit_ratio=0.25,
    failures=Failures(*(_WHY_NO_FAILURES for _ in Failures.__struct_fields__)),
    saturation=Saturation(
        regime="client-bound",
        bottleneck="kv-bound",
        regimes=(
            stretch(0, 14, "client-bound", "none waited"),
            stretch(14, 25, "kv-bound", "KV 95 % full, 20 waited"),
        ),
        capacity_kind="measured",
        capacity_output_tokens_per_second=estimate(300.0, 290.0, 310.0),
        capacity_running_requests=estimate(27.0, 25.0, 29.0),
        headroom_ratio=estimate(0.333, 0.31, 0.355),
    ),
    by_arithmetic=ByArithmetic.silent("the capacity was found from the telemetry"),
    cost=Costs(
        allocation_usd=estimate(2.0),
        usd_per_request=estimate(0.001),
        usd_per_million_output_tokens=estimate(6.67),
        usd_per_million_total_tokens=estimate(2.22),
        tokens_per_usd=estimate(150_000.0),
        utilization=estimate(0.667, 0.645, 0.69),
        usd_per_million_input_tokens_split=estimate(1.11),
        usd_per_million_output_tokens_split=estimate(4.45),
        idle_usd=estimate(0.667, 0.62, 0.71),
        usd_per_request_at_knee=estimate(0.000667, 0.00064, 0.00069),
        usd_per_million_output_tokens_at_knee=estimate(4.44, 4.3, 4.6),
    ),
    advice=(),
    quality=(finding("jitter", "info", 3),),
)
ESTIMATES = tuple(
    f"{section}__{name}"
    for section in ("cost", "saturation", "slo")
    for name in getattr(ANSWER, section).__struct_fields__
    if isinstance(getattr(getattr(ANSWER, section), name), Estimate)
)
"""The path of every estimate of `cost`, `saturation` and `slo`."""


def answer(**changes: Any) -> Answer:
    """The answer with the values at dotted paths replaced: cost__usd_per_request=unknown()."""
    made = ANSWER
    for path, value in changes.items():
        made = _replaced(made, path.split("__"), value)
    return made


def _replaced(whole: Any, path: list[str], value: object) -> Any:
    name, *rest = path
    inner = _replaced(getattr(whole, name), rest, value) if rest else value
    return replace(whole, **{name: inner})


def _step(i: int) -> dict[str, Any]:
    running, is_gap = min(27.0, i * 0.5), 40 <= i < 44
    row = {
        "start": START + STEP * i,
        "end": START + STEP * (i + 1),
        "is_gap": is_gap,
        "is_restart": i == 44,
        "running_mean": None if is_gap else running,
        "waiting_mean": max(0.0, i * 0.5 - 27),
        "kv_cache_ratio_mean": min(0.97, running / 28),
        "kv_cache_ratio_max": min(1.0, running / 26),
        "output_tokens_per_second": None if is_gap else 300 * (1 - math.exp(-running / 9)),
        "prompt_tokens_per_second": 24.0 * running,
        "requests_per_second": running / 10,
        "preemptions": 3.0 if i > 70 else 0.0,
        "preemptions_per_minute": 12.0 if i > 70 else 0.0,
        "finished_stop": float(i % 7),
        "finished_length": float(i % 5),
        "finished_abort": 0.0,
        "finished_error": float(i == 60),
        "finished_repetition": 0.0,
    }
    for family, at in FAMILIES.items():
        for name, factor in (("p50", 1.0), ("p95", 2.0)):
            value = at * factor * (1 + running / 10)
            ends = {"": value, "_lower": 0.7 * value, "_upper": 1.5 * value}
            row |= {f"{family}_{name}_seconds{end}": each for end, each in ends.items()}
    return row


STEPS = pl.DataFrame([_step(i) for i in range(100)])
COSTS = pl.DataFrame(
    [
        {
            "start": START + timedelta(minutes=5 * i),
            "end": START + timedelta(minutes=5 * (i + 1)),
            "successful_requests": 0.0 if i == 2 else 400.0,
            "allocation_usd": 0.4,
            "usd_per_request": None if i == 2 else 0.001,
            "is_stub": False,
        }
        for i in range(5)
    ]
)


def emptied(frame: pl.DataFrame) -> pl.DataFrame:
    """The frame with nothing observed."""
    return frame.with_columns(
        pl.lit(None, dtype=dtype).alias(name)
        for name, dtype in frame.schema.items()
        if dtype == pl.Float64
    )


def analysis(
    *,
    answer: Answer = ANSWER,
    series: pl.DataFrame = STEPS,
    costs: pl.DataFrame = COSTS,
    assumptions: Assumptions | None = None,
    **made: object,
) -> Analysis:
    """An analysis that has its frames and its answer already, and no window to ask.

    `made` are further cached properties, by name: `load_curve=None`.
    """
    window = SimpleNamespace(answers=())
    found = Analysis(window, TimeRange(START, END), assumptions or Assumptions())
    vars(found).update(
        {
            "answer": answer,
            "series": series,
            "costs": costs,
            **{name: getattr(answer, name) for name in _OF_THE_ANSWER},
            **made,
        }
    )
    return found


_OF_THE_ANSWER = ("throughput", "latency", "slo", "saturation", "quality")
