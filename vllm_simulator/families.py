"""The families a simulated engine exposes: vLLM 0.32's names, kinds, labels and order."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from vllm_simulator.config import EngineConfig
from vllm_simulator.stats import Histogram, Stats

Labels = Mapping[str, str]
HANDLER = "/v1/chat/completions"


@dataclass(frozen=True)
class Family:
    """One family at one moment: its children's labels and values."""

    name: str
    kind: str  # counter, gauge, histogram
    about: str
    children: tuple[tuple[Labels, float | Histogram], ...]


def families(stats: Stats, process_start_seconds: float) -> list[Family]:
    """Everything a scrape of the engine holds, in vLLM's order."""
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
    """The info gauge, with the labels a capacity planner reads and a few of the others."""
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
    """The frontend's own counter; as in vLLM, not there before the first answer."""
    if not stats.http_ok:
        return []
    labels = {"handler": HANDLER, "method": "POST", "status": "2xx"}
    return [_one("http_requests_total", "counter", "HTTP answers", labels, stats.http_ok)]
