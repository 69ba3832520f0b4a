"""Reads load tests' result files into the points that a saturation curve is fitted to.

Formats are recognized by their content, not by the file name:

- `guidellm` JSON (0.3 and later): `benchmarks[].metrics`, each metric by status (`successful`,
  `total` …) with `mean` and `percentiles`. Latencies end in `_ms`, request latency is in seconds.
  Only finished requests are used; the mean of `request_concurrency` is the number of running
  requests, including those queued at the server. `config.strategy` describes the load.
- `vllm bench serve --save-result` JSON: one flat object per run; `--append-result` writes several
  to a file, one after another. It has the percentiles that the run requested
  (`--metric-percentiles`, 99 by default): a p95 that was not requested is computed from
  `--save-detailed` lists, else null. A p99 is never used as a p95.
- `vllm bench sweep serve`: the same objects plus the server's settings (`max_num_seqs` …), in
  `summary.json`, `run=*.json` or the rows of `summary.csv`.
- `aiperf profile` JSON (`profile_export_aiperf.json`): metrics with `avg` and percentiles, the load
  in `input_config`; and its sweep aggregate (`per_combination_metrics`).
- `inference-perf` JSON (`stage_*_lifecycle_metrics.json`): `load_summary` and `successes`. A
  stage's queue is in the neighboring file `stage_*_prometheus_metrics.json`.

If a tool does not report running requests, they are computed by Little's law: requests per second ×
mean end-to-end latency, at most the number of clients.

A test with a given number of requests outlasts its sending time, because its last requests have to
finish. So `offered_requests_per_second` is the offered requests over the sending time plus 1.5 ×
the time to generate one request's tokens; a server that keeps up serves that rate.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from vllm_capacity.errors import InputError, ParseError
from vllm_capacity.sources.points import bench_rows, read_points

POINT_SCHEMA = {
    "running_requests": pl.Float64,
    "output_tokens_per_second": pl.Float64,
    "requests_per_second": pl.Float64,
    "ttft_p95_seconds": pl.Float64,
    "itl_p95_seconds": pl.Float64,
    "clients": pl.Float64,
    "offered_requests_per_second": pl.Float64,
    "waiting_requests": pl.Float64,
    "max_num_seqs": pl.Float64,
}
"""One row per run, in the units of the names; null if the file does not have the value."""

_MAX = 1e12
_LAST_REQUESTS = 1.5
"""The time the last requests of a test take, in mean generation times."""
_NO_RESULT = ("_sweep.json", "_aggregate.json", ".failure.json", "-failure.json")
Point = dict[str, float | None]


def read_loads(*paths: Path) -> pl.DataFrame:
    """The loads in result files, in folders of them, and in CSV tables, as one frame.

    Columns: those of each CSV (`read_points`), and `POINT_SCHEMA` for results. InputError for a
    path that cannot be read or a table without the required columns.
    """
    frames = [_loads_of(path) for path in paths]
    return pl.concat(frames, how="diagonal")


def load_test_points(path: Path) -> pl.DataFrame:
    """The points of a result file of a known tool, lightest load first; columns of `POINT_SCHEMA`.

    Runs that finished no request are left out, since they served no load. ParseError, saying what
    was found, for a file of another format or with no run left.
    """
    return _frame([p for found in _objects(path) for p in _points(found, path)], path)


def folder_points(folder: Path) -> pl.DataFrame:
    """The points of every result file under a folder, as returned by `load_test_points`.

    For the folders that `vllm bench sweep serve`, `aiperf` and `inference-perf` write. Files of
    other formats are skipped; InputError if no file is a result.
    """
    points: list[Point] = []
    for path in _result_files(folder):
        with suppress(ParseError):
            points += [p for found in _objects(path) for p in _points(found, path)]
    if not points:
        raise InputError(
            f"{str(folder)!r} has no JSON result of guidellm, vllm bench, aiperf or "
            "inference-perf; name the files, or a CSV of loads."
        )
    return _frame(points, folder)


def _loads_of(path: Path) -> pl.DataFrame:
    if path.is_dir():
        return folder_points(path)
    if path.suffix.lower() in (".json", ".jsonl"):
        return load_test_points(path)
    rows = bench_rows(path)
    return read_points(path) if rows is None else _frame([vllm_bench_point(r) for r in rows], path)


def _result_files(folder: Path) -> list[Path]:
    """The JSON files under a folder, without summaries of other files in it."""
    found = [path for path in sorted(folder.rglob("*.json")) if not path.name.endswith(_NO_RESULT)]
    runs = {path.parent for path in found if path.name.startswith("run=")}
    return [path for path in found if not (path.name == "summary.json" and path.parent in runs)]


def _frame(points: Sequence[Point], path: Path) -> pl.DataFrame:
    served = [point for point in points if point["output_tokens_per_second"]]
    if not served:
        raise ParseError(f"{path} has {len(points)} runs, none of which generated a token.")
    frame = pl.DataFrame(served, schema=POINT_SCHEMA)
    return frame.sort("running_requests", "output_tokens_per_second", nulls_last=True)


def guidellm_points(report: Mapping[str, Any]) -> list[Point]:
    """The points of a guidellm report, one per benchmark, in the same order."""
    return [_guidellm_point(run) for run in report.get("benchmarks") or []]


def vllm_bench_point(result: Mapping[str, Any]) -> Point:
    """The point of one `vllm bench serve` result, or of one run of `vllm bench sweep serve`.

    Without `--request-rate`, all requests are sent at once: there are as many clients as prompts.
    """
    rate, latency_ms = _number(result.get("request_throughput")), _mean_latency_ms(result)
    prompts, clients = _number(result.get("num_prompts")), _number(result.get("max_concurrency"))
    asked = _number(result.get("request_rate"))
    bound, tpot_ms = clients, _number(result.get("mean_tpot_ms"))
    if clients is None and result.get("request_rate") == "inf":
        clients = prompts
    generation = _generation_seconds(tpot_ms, _tokens_each(result))
    ttfts, itls = _list(result.get("ttfts")), _itls(result)
    return _point(
        running=_running(rate, latency_ms, bound),
        output=_number(result.get("output_throughput")),
        rate=rate,
        ttft_p95=_p95_seconds(result, "p95_ttft_ms", ttfts),
        itl_p95=_p95_seconds(result, "p95_itl_ms", itls),
        clients=clients,
        offered=_offered(asked, None if asked is None else _ratio(prompts, asked), generation),
        max_num_seqs=_number(result.get("max_num_seqs", result.get("max-num-seqs"))),
    )


def aiperf_point(result: Mapping[str, Any]) -> Point:
    """The point of one `aiperf profile` export."""
    load = _aiperf_load(result)
    rate, latency_ms = (
        _average(result, name) for name in ("request_throughput", "request_latency")
    )
    clients, asked = _number(load.get("concurrency")), _number(load.get("request_rate"))
    requests = _average(result, "request_count")
    generation = _generation_seconds(
        _average(result, "inter_token_latency"), _average(result, "output_sequence_length")
    )
    ttft, itl = (
        _number(_mapping(result, name).get("p95"))
        for name in ("time_to_first_token", "inter_token_latency")
    )
    return _point(
        running=_running(rate, latency_ms, clients),
        output=_average(result, "output_token_throughput"),
        rate=rate,
        ttft_p95=None if ttft is None else ttft / 1000,
        itl_p95=None if itl is None else itl / 1000,
        clients=clients,
        offered=_offered(asked, None if asked is None else _ratio(requests, asked), generation),
    )


def aiperf_sweep_points(sweep: Mapping[str, Any]) -> list[Point]:
    """The points of an aiperf sweep aggregate, one per combination: means over its runs."""
    points = []
    for entry in _list(sweep.get("per_combination_metrics")):
        given, metrics = _mapping(entry, "parameters"), _mapping(entry, "metrics")
        names = ("request_throughput_avg", "request_latency_avg", "output_token_throughput_avg")
        rate, latency_ms, output = (_number(_mapping(metrics, n).get("mean")) for n in names)
        clients = _number(given.get("concurrency"))
        running = _running(rate, latency_ms, clients)
        points.append(_point(running=running, output=output, rate=rate, clients=clients))
    return points


def inference_perf_point(stage: Mapping[str, Any], queue: Mapping[str, Any]) -> Point | None:
    """The point of one stage of `inference-perf`; None for its summary over all stages.

    `queue` is the stage's report of server metrics, empty if there is none.
    """
    load, done = _mapping(stage, "load_summary"), _mapping(stage, "successes")
    latency, served = _mapping(done, "latency"), _mapping(done, "throughput")
    asked, clients = _number(load.get("requested_rate")), _number(load.get("concurrency"))
    if asked is None and clients is None:
        return None
    rate = _number(served.get("requests_per_sec"))
    mean = _number(_mapping(latency, "request_latency").get("mean"))
    tokens = _number(_mapping(done, "output_len").get("mean"))
    each = _number(_mapping(latency, "time_per_output_token").get("mean"))
    generation = _generation_seconds(None if each is None else 1000 * each, tokens)
    # Use the requested rate, not what workers sent: a server that falls behind slows them down.
    sending = _ratio(_number(load.get("count")), asked) if clients is None else None
    server = _mapping(queue, "successes")
    return _point(
        running=_running(rate, None if mean is None else 1000 * mean, clients),
        output=_number(served.get("output_tokens_per_sec")),
        rate=rate,
        ttft_p95=_number(_mapping(latency, "time_to_first_token").get("p95")),
        itl_p95=_number(_mapping(latency, "inter_token_latency").get("p95")),
        clients=clients,
        offered=None if clients is not None else _offered(asked, sending, generation),
        waiting=_number(_mapping(server, "queue_len").get("mean")),
    )


def _point(
    *,
    running: float | None,
    output: float | None,
    rate: float | None,
    ttft_p95: float | None = None,
    itl_p95: float | None = None,
    clients: float | None = None,
    offered: float | None = None,
    waiting: float | None = None,
    max_num_seqs: float | None = None,
) -> Point:
    cells = (running, output, rate, ttft_p95, itl_p95, clients, offered, waiting, max_num_seqs)
    return dict(zip(POINT_SCHEMA, cells, strict=True))


def _running(rate: float | None, latency_ms: float | None, clients: float | None) -> float | None:
    """Requests in flight by Little's law, at most `clients`; `clients` if they are unknown."""
    if rate is None or latency_ms is None:
        return clients
    running = rate * latency_ms / 1000
    return running if clients is None else min(clients, running)


def _generation_seconds(each_ms: float | None, tokens: float | None) -> float | None:
    """The time to generate a request's tokens after the first one."""
    if each_ms is None or tokens is None:
        return None
    return each_ms * max(tokens - 1, 0.0) / 1000


def _offered(
    asked: float | None, sending_seconds: float | None, generation_seconds: float | None
) -> float | None:
    """Requests per second offered, over the time until the last ones could finish."""
    if asked is None or not sending_seconds or generation_seconds is None:
        return None
    return asked * sending_seconds / (sending_seconds + _LAST_REQUESTS * generation_seconds)


def _ratio(over: float | None, under: float | None) -> float | None:
    return over / under if over is not None and under else None


def _points(found: Mapping[str, Any], path: Path) -> list[Point]:
    if isinstance(found.get("benchmarks"), list):
        return guidellm_points(found)
    if isinstance(found.get("per_combination_metrics"), list):
        return aiperf_sweep_points(found)
    if isinstance(found.get("output_token_throughput"), dict):
        return [aiperf_point(found)]
    if "request_throughput" in found and "output_throughput" in found:
        return [vllm_bench_point(found)]
    if "load_summary" in found and "successes" in found:
        point = inference_perf_point(found, _queue(path))
        return [] if point is None else [point]
    keys = ", ".join(sorted(map(str, found))[:8]) or "nothing"
    raise ParseError(
        f"{path} is not a result of guidellm (benchmarks), vllm bench serve (request_throughput, "
        "output_throughput), aiperf (output_token_throughput) or inference-perf (load_summary, "
        f"successes); it has {keys}."
    )


def _queue(path: Path) -> Mapping[str, Any]:
    """The server metrics of the same inference-perf stage; empty if there are none."""
    beside = path.with_name(path.name.replace("_lifecycle_", "_prometheus_"))
    if beside == path or not beside.is_file():
        return {}
    return next(_objects(beside), {})


def _aiperf_load(result: Mapping[str, Any]) -> Mapping[str, Any]:
    """The load from aiperf's config, in both its layouts: `concurrency` and `request_rate`."""
    config = _mapping(result, "input_config")
    phases = [p for p in _list(config.get("phases")) if isinstance(p, dict)]
    measured = next((p for p in phases if not p.get("exclude_from_results")), None)
    if measured is None:
        return _mapping(config, "loadgen")
    rate = measured.get("rate", measured.get("request_rate"))
    return {"concurrency": measured.get("concurrency"), "request_rate": rate}


def _average(result: Mapping[str, Any], name: str) -> float | None:
    return _number(_mapping(result, name).get("avg"))


def _objects(path: Path) -> Iterator[Mapping[str, Any]]:
    """The JSON objects of a file, one after another; a list counts as its entries."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"Cannot read the load test {path}: {error}.") from None
    decoder, at = json.JSONDecoder(), 0
    while rest := text[at:].lstrip():
        at = len(text) - len(rest)
        try:
            found, at = decoder.raw_decode(text, at)
        except (ValueError, RecursionError) as error:  # ValueError: also a number of 5,000 digits
            raise ParseError(f"{path} is not JSON at character {at}: {error}.") from None
        for entry in found if isinstance(found, list) else [found]:
            if not isinstance(entry, dict):
                raise ParseError(f"{path} contains {type(entry).__name__}, not an object.")
            yield entry


def _guidellm_point(run: object) -> Point:
    metrics = _mapping(run, "metrics")
    ttft, itl = (
        _percentile(metrics, name, "p95")
        for name in ("time_to_first_token_ms", "inter_token_latency_ms")
    )
    strategy = _mapping(_mapping(run, "config"), "strategy") or _mapping(
        _mapping(run, "args"), "strategy"
    )
    clients = _number(strategy.get("streams", strategy.get("max_concurrency")))
    return _point(
        running=_mean(metrics, "request_concurrency"),
        output=_mean(metrics, "output_tokens_per_second"),
        rate=_mean(metrics, "requests_per_second"),
        ttft_p95=None if ttft is None else ttft / 1000,
        itl_p95=None if itl is None else itl / 1000,
        clients=1.0 if strategy.get("type_") == "synchronous" else clients,
        offered=_number(strategy.get("rate")),
    )


def _mapping(holder: object, key: str) -> Mapping[str, Any]:
    """The mapping under a key, if both are mappings; else an empty one."""
    found = holder.get(key) if isinstance(holder, dict) else None
    return found if isinstance(found, dict) else {}


def _summary(metrics: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """A metric's summary over finished requests, or over all if the file has no such split."""
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
    """Mean end-to-end latency: as reported, else TTFT + TPOT × (output tokens − 1)."""
    stated = _number(result.get("mean_e2el_ms"))
    if stated is not None:
        return stated
    ttft, tpot = (_number(result.get(key)) for key in ("mean_ttft_ms", "mean_tpot_ms"))
    tokens = _tokens_each(result)
    if ttft is None or tpot is None or tokens is None:
        return None
    return ttft + tpot * max(tokens - 1, 0.0)


def _tokens_each(result: Mapping[str, Any]) -> float | None:
    """Output tokens per finished request."""
    return _ratio(_number(result.get("total_output_tokens")), _number(result.get("completed")))


def _p95_seconds(result: Mapping[str, Any], key: str, detailed: Sequence[object]) -> float | None:
    stated = _number(result.get(key))
    if stated is not None:
        return stated / 1000
    seconds = [number for value in detailed if (number := _number(value))]
    return float(np.percentile(seconds, 95)) if seconds else None


def _itls(result: Mapping[str, Any]) -> list[object]:
    """All inter-token latencies of a detailed result, over all requests."""
    return [value for values in _list(result.get("itls")) for value in _list(values)]


def _list(cell: object) -> list[Any]:
    return cell if isinstance(cell, list) else []


def _number(cell: object) -> float | None:
    """The cell as a number; None for text, null, a boolean or a number above 1e12.

    Also None for NaN and negative numbers, which no tool measures.
    """
    if isinstance(cell, bool) or not isinstance(cell, int | float):
        return None
    return float(cell) if 0 <= cell <= _MAX else None
