"""Scrapes of a simulated engine, as Prometheus text and as canonical rows.

Every HELP line says that it is simulated, so that saved or served text stays recognizable.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import accumulate

from msgspec import Struct
from prometheus_client import CollectorRegistry
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector

from vllm_capacity.facts.metrics import Kind, keeps, match
from vllm_capacity.telemetry.processes import TARGET_INFO
from vllm_capacity.telemetry.rows import RowBuffer, SeriesKey
from vllm_simulator.config import EngineConfig
from vllm_simulator.stats import Histogram, Stats

Labels = Mapping[str, str]
HANDLER = "/v1/chat/completions"


class Family(Struct, frozen=True):
    """One metric family at one moment: the labels and values of its series."""

    name: str
    kind: str  # counter, gauge, histogram
    about: str
    children: tuple[tuple[Labels, float | Histogram], ...]


def families(stats: Stats, process_start_seconds: float) -> list[Family]:
    """All metric families of a scrape, in vLLM's order."""
    base = {"engine": stats.config.engine, "model_name": stats.config.model_name}
    return [
        *_process(stats, process_start_seconds),
        *_load(stats, base),
        *_caches(stats, base),
        *_tokens(stats, base),
        *_endings(stats, base),
        *_histograms(stats, base),
        _cache_config(stats.config),
        *_http(stats),
    ]


def _one(name: str, kind: str, about: str, labels: Labels, value: float) -> Family:
    return Family(name, kind, about, ((labels, float(value)),))


def _split(
    name: str, kind: str, about: str, base: Labels, label: str, values: Mapping[str, float]
) -> Family:
    children = tuple(({**base, label: key}, float(value)) for key, value in values.items())
    return Family(name, kind, about, children)


def _process(stats: Stats, start_seconds: float) -> list[Family]:
    cpu = "process_cpu_seconds_total"
    start = "process_start_time_seconds"
    return [
        _one(start, "gauge", "Start of the process, Unix seconds", {}, start_seconds),
        _one(cpu, "counter", "CPU seconds of the process", {}, round(stats.busy_seconds, 2)),
    ]


def _load(stats: Stats, base: Labels) -> list[Family]:
    gauges = stats.gauges
    states = {"awake": 1.0, "weights_offloaded": 0.0, "discard_all": 0.0}
    reasons = {"capacity": gauges.waiting, "deferred": 0}
    by_reason = "vllm:num_requests_waiting_by_reason"
    usage = "vllm:kv_cache_usage_perc"
    return [
        *(
            _one(f"vllm:estimated_{what}_per_gpu_total", "counter", "Off: stays 0", base, 0)
            for what in ("flops", "read_bytes", "write_bytes")
        ),
        _one("vllm:num_requests_running", "gauge", "Requests running", base, gauges.running),
        _one("vllm:num_requests_waiting", "gauge", "Requests waiting", base, gauges.waiting),
        _split(by_reason, "gauge", "Requests waiting by reason", base, "reason", reasons),
        _split("vllm:engine_sleep_state", "gauge", "Sleep state", base, "sleep_state", states),
        _one(usage, "gauge", "KV-cache usage, 0..1", base, gauges.kv_usage_ratio),
    ]


def _caches(stats: Stats, base: Labels) -> list[Family]:
    values = {
        "prefix_cache_queries": (stats.prefix_queries, "Tokens looked up in the prefix cache"),
        "prefix_cache_hits": (stats.prefix_hits, "Tokens found in the prefix cache"),
        "external_prefix_cache_queries": (0, "No KV connector: stays 0"),
        "external_prefix_cache_hits": (0, "No KV connector: stays 0"),
        "mm_cache_queries": (0, "A text model: stays 0"),
        "mm_cache_hits": (0, "A text model: stays 0"),
        "num_preemptions": (stats.preemptions, "Preemptions"),
    }
    return [
        _one(f"vllm:{name}_total", "counter", about, base, value)
        for name, (value, about) in values.items()
    ]


def _tokens(stats: Stats, base: Labels) -> list[Family]:
    cached = stats.prompt_tokens_cached
    sources = {
        "local_compute": stats.prompt_tokens - cached,
        "local_cache_hit": cached,
        "external_kv_transfer": 0,
    }
    tiers = {
        "device": stats.prefix_hits,
        **dict.fromkeys(("host", "p2p", "disk", "external_unspecified"), 0),
    }
    by_source = "vllm:prompt_tokens_by_source_total"
    by_tier = "vllm:prompt_tokens_cached_by_source_total"
    return [
        _one("vllm:prompt_tokens_total", "counter", "Prompt tokens", base, stats.prompt_tokens),
        _split(by_source, "counter", "Prompt tokens by source", base, "source", sources),
        _one("vllm:prompt_tokens_cached_total", "counter", "Cached prompt tokens", base, cached),
        _split(by_tier, "counter", "Prefix-cache hit tokens by tier", base, "source", tiers),
        _one(
            "vllm:generation_tokens_total",
            "counter",
            "Generated tokens",
            base,
            stats.generation_tokens,
        ),
    ]


def _endings(stats: Stats, base: Labels) -> list[Family]:
    reasons = {
        reason: stats.finished.get(reason, 0)
        for reason in ("stop", "length", "abort", "error", "repetition")
    }
    limits = dict.fromkeys(("max_num_queued_reqs", "max_num_queued_tokens"), 0)
    success, rejected = "vllm:request_success_total", "vllm:admission_rejections_total"
    served = {"model_name": base["model_name"]}
    return [
        _split(success, "counter", "Finished requests", base, "finished_reason", reasons),
        _split(rejected, "counter", "Requests refused at a limit", served, "reason", limits),
    ]


def _histograms(stats: Stats, base: Labels) -> list[Family]:
    values = {
        "request_prompt_tokens": stats.request_prompt_tokens,
        "request_generation_tokens": stats.request_generation_tokens,
        "iteration_tokens_total": stats.iteration_tokens,
        "request_max_num_generation_tokens": stats.request_max_generation_tokens,
        "request_params_n": stats.request_n,
        "request_params_max_tokens": stats.request_max_tokens,
        "time_to_first_token_seconds": stats.ttft,
        "inter_token_latency_seconds": stats.itl,
        "request_time_per_output_token_seconds": stats.time_per_output_token,
        "e2e_request_latency_seconds": stats.e2e,
        "request_queue_time_seconds": stats.queue,
        "request_inference_time_seconds": stats.inference,
        "request_prefill_time_seconds": stats.prefill,
        "request_decode_time_seconds": stats.decode,
        "request_num_preemptions": stats.request_preemptions,
        "request_prefill_kv_computed_tokens": stats.request_computed_tokens,
    }
    return [
        Family(f"vllm:{name}", "histogram", f"Distribution: {name}", ((base, histogram),))
        for name, histogram in values.items()
    ]


def _cache_config(config: EngineConfig) -> Family:
    """The info gauge, with the labels that capacity planning uses and a few others."""
    labels = {
        "block_size": str(config.block_size),
        "cache_dtype": "auto",
        "effective_attention_block_size": str(config.block_size),
        "enable_prefix_caching": str(config.enable_prefix_caching),
        "engine": config.engine,
        "gpu_memory_utilization": str(config.gpu_memory_utilization),
        "kv_cache_max_concurrency": str(round(config.max_concurrency, 2)),
        "kv_cache_size_tokens": str(config.kv_cache_size_tokens),
        "num_cpu_blocks": "None",
        "num_gpu_blocks": str(config.num_gpu_blocks),
        "num_gpu_blocks_override": "None",
        "prefix_caching_hash_algo": "sha256",
        "sliding_window": "None",
    }
    return _one("vllm:cache_config_info", "gauge", "Cache configuration", labels, 1)


def _http(stats: Stats) -> list[Family]:
    """The frontend's own counter; as in vLLM, absent before the first response."""
    if not stats.http_ok:
        return []
    labels = {"handler": HANDLER, "method": "POST", "status": "2xx"}
    return [_one("http_requests_total", "counter", "HTTP answers", labels, stats.http_ok)]


_SCRAPE_SECONDS = 0.008  # median duration of a scrape in the recorded vLLM sweep


@dataclass(frozen=True, eq=False)
class _Snapshot(Collector):
    """A collector of given families, for prometheus_client to format."""

    known: list[Family]
    created_seconds: float

    def collect(self) -> Iterator[Metric]:
        for family in self.known:
            yield _metric(family, self.created_seconds)


def _metric(family: Family, created: float) -> Metric:
    about = f"Simulated. {family.about}."
    metric: Metric
    if family.kind == "counter":
        counter = metric = CounterMetricFamily(family.name, about)
        for labels, value in family.children:
            assert isinstance(value, float)
            counter.add_sample(f"{counter.name}_total", dict(labels), value)
            counter.add_sample(f"{counter.name}_created", dict(labels), created)
    elif family.kind == "histogram":
        metric = HistogramMetricFamily(family.name, about)
        for labels, value in family.children:
            assert isinstance(value, Histogram)
            _add_histogram(metric, labels, value, created)
    else:
        metric = GaugeMetricFamily(family.name, about)
        for labels, value in family.children:
            assert isinstance(value, float)
            metric.add_sample(family.name, dict(labels), value)
    return metric


def _add_histogram(metric: Metric, labels: Labels, value: Histogram, created: float) -> None:
    edges = [*(str(bound) for bound in value.bounds), "+Inf"]
    for edge, count in zip(edges, accumulate(value.counts), strict=True):
        metric.add_sample(f"{metric.name}_bucket", {**labels, "le": edge}, count)
    metric.add_sample(f"{metric.name}_count", dict(labels), value.count)
    metric.add_sample(f"{metric.name}_sum", dict(labels), value.total)
    metric.add_sample(f"{metric.name}_created", dict(labels), created)


def exposition_text(stats: Stats, process_start_seconds: float) -> str:
    """The body of `GET /metrics` in the classic text format, with `_created` families."""
    registry = CollectorRegistry(auto_describe=False)
    known = families(stats, process_start_seconds)
    registry.register(_Snapshot(known, process_start_seconds))
    return generate_latest(registry).decode()


def saved_scrape(stats: Stats, process_start_seconds: float, t_seconds: float, target: str) -> str:
    """One line of a file of saved scrapes: a JSON object and a newline."""
    line = {
        "t": t_seconds,
        "dur": _SCRAPE_SECONDS,
        "target": target,
        "status": 200,
        "text": exposition_text(stats, process_start_seconds),
    }
    return json.dumps(line) + "\n"


def record(
    buffer: RowBuffer,
    stats: Stats,
    *,
    process_start_seconds: float,
    t_seconds: float,
    target: str,
    target_labels: Labels | None = None,
) -> None:
    """Add one successful scrape to the buffer, as the rows that reading its text would give.

    `target_labels` are the target's labels in the scraper's configuration.
    """
    ts_us = round(t_seconds * 1_000_000)
    buffer.scrape(target, ts_us, is_up=True, seconds=_SCRAPE_SECONDS)
    if target_labels:
        info = SeriesKey(TARGET_INFO, "info", target, labels=tuple(sorted(target_labels.items())))
        buffer.sample(buffer.series(info, exposed=TARGET_INFO), ts_us, 1.0)
    for family in families(stats, process_start_seconds):
        if not keeps(family.name):
            continue
        for labels, value in family.children:
            bounds = value.bounds if isinstance(value, Histogram) else None
            key, alias_priority = _series_key(family, labels, target, bounds)
            series_id = buffer.series(key, exposed=family.name, alias_priority=alias_priority)
            if isinstance(value, Histogram):
                buffer.histogram(
                    series_id,
                    ts_us,
                    count=value.count,
                    total=value.total,
                    counts=value.counts,
                    alias_priority=alias_priority,
                )
            else:
                buffer.sample(series_id, ts_us, value, alias_priority)


def _series_key(
    family: Family, labels: Labels, target: str, bounds: tuple[float, ...] | None
) -> tuple[SeriesKey, int]:
    found = match(family.name)
    is_info = found is not None and found.metric.kind is Kind.INFO
    has_engine = found.metric.has_engine if found else "engine" in labels
    rest = sorted((k, v) for k, v in labels.items() if k not in ("engine", "model_name"))
    key = SeriesKey(
        metric=found.metric.name if found else family.name,
        kind="info" if is_info else family.kind,
        instance=target,
        engine=labels.get("engine", "0") if has_engine else None,
        model_name=labels.get("model_name"),
        labels=tuple(rest),
        bounds=bounds,
    )
    return key, found.alias_priority if found else 0
