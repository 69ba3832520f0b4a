"""Load tests' own result files, read into the points that a saturation curve is fitted to.

Two dialects, told apart by their content, not their name:

- `guidellm benchmark` JSON (0.3 and later): `benchmarks[].metrics`, each metric by status
  (`successful`, `total` …) with `mean` and `percentiles`. Latencies end in `_ms`, request latency
  is in seconds. The finished requests' figures are taken; the mean of `request_concurrency` is what
  ran, queueing at the server included.
- `vllm bench serve --save-result` JSON: one flat object a run; `--append-result` puts several into
  a file, one after another. It has no running requests: they follow from Little's law, requests a
  second × mean end-to-end latency; without latencies they are the clients it held
  (`max_concurrency`). Percentiles are those the run asked for (`--metric-percentiles`,
  99 by default): a p95 that was not asked for is taken from `--save-detailed` lists, else null. A
  p99 is never passed off as a p95.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from vllm_capacity.errors import InputError, ParseError

POINT_SCHEMA = {
    "running_requests": pl.Float64,
    "output_tokens_per_second": pl.Float64,
    "requests_per_second": pl.Float64,
    "ttft_p95_seconds": pl.Float64,
    "itl_p95_seconds": pl.Float64,
}
"""One row per run, in the units of the names; null where the file does not say."""

_MOST = 1e12
Point = dict[str, float | None]


def load_test_points(path: Path) -> pl.DataFrame:
    """The points of a result file of either tool, lightest load first; columns of `POINT_SCHEMA`.

    Runs that finished nothing are left out: they are no load that was served. A file of another
    format, or with no run left, is a `ParseError` that says what was found.
    """
    objects = _objects(path)
    points = [point for found in objects for point in _points(found, path)]
    served = [point for point in points if point["output_tokens_per_second"]]
    if not served:
        raise ParseError(f"{path} holds {len(points)} runs and none that generated a token.")
    frame = pl.DataFrame(served, schema=POINT_SCHEMA)
    return frame.sort("running_requests", "output_tokens_per_second", nulls_last=True)


def guidellm_points(report: Mapping[str, Any]) -> list[Point]:
    """The points of a guidellm report, one a benchmark, in its order."""
    return [_guidellm_point(_mapping(run, "metrics")) for run in report.get("benchmarks") or []]


def vllm_bench_point(result: Mapping[str, Any]) -> Point:
    """The point of one `vllm bench serve` result."""
    rate = _number(result.get("request_throughput"))
    latency_ms = _mean_latency_ms(result)
    running = None if rate is None or latency_ms is None else rate * latency_ms / 1000
    clients = _number(result.get("max_concurrency"))
    if clients is not None:
        running = clients if running is None else min(running, clients)
    return {
        "running_requests": running,
        "output_tokens_per_second": _number(result.get("output_throughput")),
        "requests_per_second": rate,
        "ttft_p95_seconds": _p95_seconds(result, "p95_ttft_ms", _list(result.get("ttfts"))),
        "itl_p95_seconds": _p95_seconds(result, "p95_itl_ms", _itls(result)),
    }


def _points(found: Mapping[str, Any], path: Path) -> list[Point]:
    if isinstance(found.get("benchmarks"), list):
        return guidellm_points(found)
    if "request_throughput" in found and "output_throughput" in found:
        return [vllm_bench_point(found)]
    keys = ", ".join(sorted(map(str, found))[:8]) or "nothing"
    raise ParseError(
        f"{path} is neither guidellm's JSON (benchmarks) nor a result of vllm bench serve "
        f"(request_throughput, output_throughput); it has {keys}."
    )


def _objects(path: Path) -> Iterator[Mapping[str, Any]]:
    """The JSON objects of a file, one after another; a list is taken as its entries."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"Cannot read the load test {path}: {error}.") from None
    decoder, at = json.JSONDecoder(), 0
    while rest := text[at:].lstrip():
        at = len(text) - len(rest)
        try:
            found, at = decoder.raw_decode(text, at)
        except (ValueError, RecursionError) as error:  # ValueError: a number of 5,000 digits, too
            raise ParseError(f"{path} is not JSON at character {at}: {error}.") from None
        for entry in found if isinstance(found, list) else [found]:
            if not isinstance(entry, dict):
                raise ParseError(f"{path} holds {type(entry).__name__}, not an object.")
            yield entry


def _guidellm_point(metrics: Mapping[str, Any]) -> Point:
    ttft, itl = (
        _percentile(metrics, name, "p95")
        for name in ("time_to_first_token_ms", "inter_token_latency_ms")
    )
    return {
        "running_requests": _mean(metrics, "request_concurrency"),
        "output_tokens_per_second": _mean(metrics, "output_tokens_per_second"),
        "requests_per_second": _mean(metrics, "requests_per_second"),
        "ttft_p95_seconds": None if ttft is None else ttft / 1000,
        "itl_p95_seconds": None if itl is None else itl / 1000,
    }


def _mapping(holder: object, key: str) -> Mapping[str, Any]:
    """What an object holds under a key, where both are objects; else nothing."""
    found = holder.get(key) if isinstance(holder, dict) else None
    return found if isinstance(found, dict) else {}


def _summary(metrics: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """A metric's summary over finished requests; over all where the file has no such split."""
    metric = _mapping(metrics, name)
    for status in ("successful", "total"):
        if isinstance(metric.get(status), dict):
            return dict(metric[status])
    return metric


def _mean(metrics: Mapping[str, Any], name: str) -> float | None:
    return _number(_summary(metrics, name).get("mean"))


def _percentile(metrics: Mapping[str, Any], name: str, key: str) -> float | None:
    return _number(_mapping(_summary(metrics, name), "percentiles").get(key))


def _mean_latency_ms(result: Mapping[str, Any]) -> float | None:
    """Mean end-to-end latency: as stated, else TTFT + TPOT × (output tokens − 1)."""
    stated = _number(result.get("mean_e2el_ms"))
    if stated is not None:
        return stated
    ttft, tpot, tokens, done = (
        _number(result.get(key))
        for key in ("mean_ttft_ms", "mean_tpot_ms", "total_output_tokens", "completed")
    )
    if ttft is None or tpot is None or tokens is None or not done:
        return None
    return ttft + tpot * max(tokens / done - 1, 0.0)


def _p95_seconds(result: Mapping[str, Any], key: str, detailed: Sequence[object]) -> float | None:
    stated = _number(result.get(key))
    if stated is not None:
        return stated / 1000
    seconds = [number for value in detailed if (number := _number(value))]
    return float(np.percentile(seconds, 95)) if seconds else None


def _itls(result: Mapping[str, Any]) -> list[object]:
    """Every inter-token latency of a detailed result, its requests' lists in one."""
    return [value for values in _list(result.get("itls")) for value in _list(values)]


def _list(cell: object) -> list[Any]:
    return cell if isinstance(cell, list) else []


def _number(cell: object) -> float | None:
    """The cell as a number, else None: text, null, booleans and what is past all measure are none.

    NaN and a negative figure, which no tool measures, are none either.
    """
    if isinstance(cell, bool) or not isinstance(cell, int | float):
        return None
    return float(cell) if 0 <= cell <= _MOST else None
