"""An answer and its frames, made up: round numbers, every figure known, a gap and a restart."""

from __future__ import annotations

import copy
import math
from datetime import UTC, datetime, timedelta
from typing import Any

import polars as pl

START = datetime(2026, 11, 24, 8, tzinfo=UTC)
END = START + timedelta(minutes=25)
STEP = timedelta(seconds=15)
FAMILIES = {"ttft": 0.15, "itl": 0.03, "e2e": 3.0}


def estimate(mid: float, low: float | None = None, high: float | None = None) -> dict[str, Any]:
    low, high = mid if low is None else low, mid if high is None else high
    return {"low": low, "mid": mid, "high": high, "basis": "counted", "reason": ""}


def unknown(reason: str = "no price given") -> dict[str, Any]:
    return {"low": None, "mid": None, "high": None, "basis": "", "reason": reason}


def quantile(value: float) -> dict[str, Any]:
    return {"value": value, "lower": value * 0.8, "upper": value * 1.25, "estimate": None}


def regime(start: int, end: int, name: str, evidence: str) -> dict[str, Any]:
    at = [(START + timedelta(minutes=m)).isoformat().replace("+00:00", "Z") for m in (start, end)]
    return {
        "start": at[0],
        "end": at[1],
        "engine": "r0/0",
        "regime": name,
        "evidence": evidence,
    }


ANSWER: dict[str, Any] = {
    "window": {
        "start": "2026-11-24T08:00:00Z",
        "end": "2026-11-24T08:25:00Z",
        "hours": 25 / 60,
        "engines": 1,
        "mean_engines": 1.0,
    },
    "requests": {
        "finished": 2000,
        "successful": 1990,
        "by_reason": {"stop": 990, "length": 1000, "error": 10},
        "lost": {"low": 0, "high": 0},
    },
    "tokens": {
        "prompt": 600_000,
        "prompt_computed": 450_000,
        "generation": 300_000,
        "lost": {"low": 0, "high": 0},
    },
    "throughput": {"output_tokens_per_second": 200.0, "requests_per_second": 1.333},
    "latency": {
        f"{name}_seconds": {"p50": quantile(at), "p95": quantile(at * 4), "p99": quantile(at * 8)}
        for name, at in FAMILIES.items()
    },
    "slo": {
        "ttft_attainment": estimate(0.9, 0.85, 0.95),
        "itl_attainment": estimate(0.8),
        "capacity_output_tokens_per_second": estimate(220.0, 200.0, 240.0),
    },
    "running": {"mean": 12.0, "max": 40},
    "waiting": {"mean": 5.0, "max": 45},
    "kv_cache_ratio": {"mean": 0.45, "max": 1.0},
    "preemptions": 561,
    "prefix_cache_hit_ratio": 0.25,
    "saturation": {
        "regime": "client-bound",
        "first_limit": "kv-bound",
        "regimes": [
            regime(0, 14, "client-bound", "none waited"),
            regime(14, 25, "kv-bound", "KV 95 % full, 20 waited"),
        ],
        "capacity_kind": "measured",
        "capacity_output_tokens_per_second": estimate(300.0, 290.0, 310.0),
        "capacity_running_requests": estimate(27.0, 25.0, 29.0),
        "headroom_ratio": estimate(0.333, 0.31, 0.355),
    },
    "cost": {
        "allocation_usd": estimate(2.0),
        "usd_per_request": estimate(0.001),
        "usd_per_million_output_tokens": estimate(6.67),
        "usd_per_million_total_tokens": estimate(2.22),
        "tokens_per_usd": estimate(150_000.0),
        "utilisation": estimate(0.667, 0.645, 0.69),
        "idle_usd": estimate(0.667, 0.62, 0.71),
        "usd_per_million_output_tokens_at_knee": estimate(4.44, 4.3, 4.6),
    },
    "advice": [],
    "quality": [
        {
            "check": "jitter",
            "severity": "info",
            "count": 3,
            "effect": "no figure moves",
            "when": None,
            "moves": {},
        }
    ],
}


def answer(**changes: Any) -> dict[str, Any]:
    """The answer with the values at dotted paths replaced: cost__usd_per_request=unknown()."""
    made = copy.deepcopy(ANSWER)
    for path, value in changes.items():
        *parents, last = path.split("__")
        part = made
        for name in parents:
            part = part[name]
        part[last] = value
    return made


def _step(i: int) -> dict[str, Any]:
    running, is_gap = min(27.0, i * 0.5), 40 <= i < 44
    row = {
        "ts": START + STEP * i,
        "is_gap": is_gap,
        "is_restart": i == 44,
        "running": None if is_gap else running,
        "waiting": max(0.0, i * 0.5 - 27),
        "kv_cache_ratio_mean": min(0.97, running / 28),
        "kv_cache_ratio_max": min(1.0, running / 26),
        "output_tokens_per_second": None if is_gap else 300 * (1 - math.exp(-running / 9)),
        "prompt_tokens_per_second": 24.0 * running,
        "requests_per_second": running / 10,
        "preemptions": 3.0 if i > 70 else 0.0,
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
            "ts": START + timedelta(minutes=5 * i),
            "successful_requests": 0.0 if i == 2 else 400.0,
            "allocation_usd": 0.4,
            "usd_per_request": None if i == 2 else 0.001,
        }
        for i in range(5)
    ]
)
FRAMES = {"steps": STEPS, "costs": COSTS}
EMPTY_FRAMES = {
    name: frame.with_columns(
        pl.lit(None, dtype=dtype).alias(c)
        for c, dtype in frame.schema.items()
        if dtype == pl.Float64
    )
    for name, frame in FRAMES.items()
}
