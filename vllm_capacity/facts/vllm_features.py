"""The vLLM families of optional features: recognised, kept, and named in the ledger."""

from __future__ import annotations

from vllm_capacity.facts.metric import (
    DISAGGREGATED,
    LORA,
    OFFLOAD,
    SLEEP,
    SPECULATIVE,
    Across,
    Feature,
    Kind,
    Metric,
)

_C, _G, _H, _I = Kind.COUNTER, Kind.GAUGE, Kind.HISTOGRAM, Kind.INFO


def _of(
    feature: Feature,
    name: str,
    kind: Kind,
    unit: str,
    *,
    asks: str,
    since: str,
    until: str = "",
    across: Across = Across.SUM,
    needs: str = "",
) -> Metric:
    """A family of `feature`, absent unless that is configured."""
    return Metric(
        name,
        kind,
        unit,
        across,
        asks,
        touches=feature.touches,
        since=since,
        until=until,
        needs=needs or feature.name,
    )


def _speculative(
    name: str, unit: str, *, asks: str, since: str, kind: Kind = _C, until: str = ""
) -> Metric:
    across = Across.MEAN_MAX if kind is _G else Across.SUM
    return _of(SPECULATIVE, name, kind, unit, asks=asks, since=since, until=until, across=across)


def _nixl(name: str, kind: Kind, unit: str, *, asks: str, since: str = "0.11.2") -> Metric:
    return _of(DISAGGREGATED, name, kind, unit, asks=asks, since=since, needs="the NIXL connector")


def _offload(
    name: str,
    kind: Kind,
    unit: str,
    *,
    asks: str,
    since: str = "0.24.0",
    across: Across = Across.SUM,
) -> Metric:
    needs = "the KV offloading connector"
    return _of(OFFLOAD, name, kind, unit, asks=asks, since=since, across=across, needs=needs)


SPECULATIVE_DECODING: tuple[Metric, ...] = (
    _speculative(
        "vllm:spec_decode_num_drafts_total",
        "drafts",
        asks="How many drafts were proposed?",
        since="0.8.5",
    ),
    _speculative(
        "vllm:spec_decode_num_draft_tokens_total",
        "tokens",
        asks="How many draft tokens were proposed?",
        since="0.5.5",
    ),
    _speculative(
        "vllm:spec_decode_num_accepted_tokens_total",
        "tokens",
        asks="How many draft tokens were accepted?",
        since="0.5.5",
    ),
    _speculative(
        "vllm:spec_decode_num_accepted_tokens_per_pos_total",
        "tokens",
        asks="At which draft position were tokens accepted?",
        since="0.8.5",
    ),
    _speculative(
        "vllm:spec_decode_num_emitted_tokens_total",
        "tokens",
        asks="How many tokens did speculation emit (V0)?",
        since="0.5.5",
        until="0.9.2",
    ),
    _speculative(
        "vllm:spec_decode_draft_acceptance_rate",
        "ratio",
        asks="What share of draft tokens was accepted (V0)?",
        since="0.5.5",
        kind=_G,
        until="0.9.2",
    ),
    _speculative(
        "vllm:spec_decode_efficiency",
        "ratio",
        asks="What share of the possible tokens did speculation emit (V0)?",
        since="0.5.5",
        kind=_G,
        until="0.9.2",
    ),
)

TRANSFERS: tuple[Metric, ...] = (
    _of(
        DISAGGREGATED,
        "vllm:num_requests_kv_fetch_by_stage",
        _G,
        "requests",
        asks="How many requests wait for KV from another engine?",
        since="0.32.0",
        needs="a KV consumer",
    ),
    _nixl("vllm:nixl_xfer_time_seconds", _H, "seconds", asks="How long did a KV transfer take?"),
    _nixl("vllm:nixl_post_time_seconds", _H, "seconds", asks="How long did posting one take?"),
    # Histograms: the volume is the sum.
    _nixl("vllm:nixl_bytes_transferred", _H, "bytes", asks="How large was a KV transfer?"),
    _nixl("vllm:nixl_num_descriptors", _H, "descriptors", asks="How scattered was a KV transfer?"),
    _nixl(
        "vllm:nixl_num_failed_transfers_total", _C, "events", asks="How many KV transfers failed?"
    ),
    _nixl(
        "vllm:nixl_num_failed_notifications_total",
        _C,
        "events",
        asks="How many transfer notifications failed?",
    ),
    _nixl(
        "vllm:nixl_num_kv_expired_reqs_total",
        _C,
        "requests",
        asks="How many requests' KV expired before it was fetched?",
        since="0.16.0",
    ),
    _nixl(
        "vllm:nixl_num_notifications_after_expiry_total",
        _C,
        "events",
        asks="How many notifications came after the KV had expired?",
        since="0.32.0",
    ),
)

OFFLOADING: tuple[Metric, ...] = (
    # One family with a transfer_type label, split into load and store from 0.24.0: no aliases.
    _offload(
        "vllm:kv_offload_total_bytes_total",
        _C,
        "bytes",
        asks="How much KV moved between tiers?",
        since="0.16.0",
    ),
    _offload(
        "vllm:kv_offload_total_time_total",
        _C,
        "seconds",
        asks="How long did KV move between tiers?",
        since="0.16.0",
    ),
    _offload(
        "vllm:kv_offload_size",
        _H,
        "bytes",
        asks="How large was an offload transfer?",
        since="0.16.0",
    ),
    _offload("vllm:kv_offload_load_bytes_total", _C, "bytes", asks="How much KV was loaded?"),
    _offload("vllm:kv_offload_store_bytes_total", _C, "bytes", asks="How much KV was stored?"),
    # Counters of seconds, without a unit in the name.
    _offload("vllm:kv_offload_load_time_total", _C, "seconds", asks="How long did loads take?"),
    _offload("vllm:kv_offload_store_time_total", _C, "seconds", asks="How long did stores take?"),
    _offload("vllm:kv_offload_load_size", _H, "bytes", asks="How large was a load?"),
    _offload("vllm:kv_offload_store_size", _H, "bytes", asks="How large was a store?"),
    # The share pinned by transfers, not occupancy.
    _offload(
        "vllm:kv_offload_cpu_cache_usage_perc",
        _G,
        "ratio",
        asks="What share of the CPU tier is pinned by transfers?",
        across=Across.MEAN_MAX,
    ),
    _offload(
        "vllm:kv_offload_config_info",
        _I,
        "info",
        asks="How is the offload tier configured?",
        since="0.33.0",
        across=Across.EACH,
    ),
)

# Always registered, so that their presence says nothing: they matter where they move.
ALWAYS_THERE: tuple[Metric, ...] = (
    Metric(
        "vllm:external_prefix_cache_queries_total",
        _C,
        "tokens",
        Across.SUM,
        "How many prompt tokens were looked up in an external KV store?",
        touches=OFFLOAD.touches,
        since="0.11.2",
    ),
    Metric(
        "vllm:external_prefix_cache_hits_total",
        _C,
        "tokens",
        Across.SUM,
        "How many prompt tokens came from an external KV store?",
        touches=OFFLOAD.touches,
        since="0.11.2",
    ),
    Metric(
        "vllm:mm_cache_queries_total",
        _C,
        "items",
        Across.SUM,
        "How many images or sounds were looked up in the multi-modal cache?",
        since="0.11.2",
    ),
    Metric(
        "vllm:mm_cache_hits_total",
        _C,
        "items",
        Across.SUM,
        "How many images or sounds were found in the multi-modal cache?",
        since="0.11.2",
    ),
    Metric(
        "vllm:engine_sleep_state",
        _G,
        "boolean",
        Across.EACH,
        "Is the engine awake?",
        touches=SLEEP.touches,
        since="0.11.2",
    ),
    # An analytical model, not a measurement; 0 without --enable-mfu-metrics means off, not idle.
    Metric(
        "vllm:estimated_flops_per_gpu_total",
        _C,
        "FLOP/GPU",
        Across.MEAN_MAX,
        "How much arithmetic did a GPU do, by vLLM's estimate?",
        since="0.20.0",
    ),
    Metric(
        "vllm:estimated_read_bytes_per_gpu_total",
        _C,
        "bytes/GPU",
        Across.MEAN_MAX,
        "How much memory did a GPU read, by vLLM's estimate?",
        since="0.20.0",
    ),
    Metric(
        "vllm:estimated_write_bytes_per_gpu_total",
        _C,
        "bytes/GPU",
        Across.MEAN_MAX,
        "How much memory did a GPU write, by vLLM's estimate?",
        since="0.20.0",
    ),
)

_RESIDENCY = "--kv-cache-metrics"

OPTIONAL: tuple[Metric, ...] = (
    Metric(
        "vllm:lora_requests_info",
        _G,
        "unix seconds",
        Across.FIRST,
        "Which LoRA adapters run and wait?",
        has_engine=False,
        touches=LORA.touches,
        since="0.6.6",
        needs="--enable-lora",
    ),
    Metric(
        "vllm:sleep_mode_operation_duration_seconds",
        _H,
        "seconds",
        Across.SUM,
        "How long did falling asleep or waking take?",
        has_engine=False,
        touches=SLEEP.touches,
        since="0.32.0",
        needs="--enable-sleep-mode",
    ),
    Metric(
        "vllm:sleep_mode_operations_in_flight",
        _G,
        "operations",
        Across.SUM,
        "Is the engine falling asleep or waking right now?",
        has_engine=False,
        touches=SLEEP.touches,
        since="0.32.0",
        needs="--enable-sleep-mode",
    ),
    Metric(
        "vllm:kv_block_lifetime_seconds",
        _H,
        "seconds",
        Across.SUM,
        "How long does a KV block live?",
        since="0.12.0",
        needs=_RESIDENCY,
    ),
    Metric(
        "vllm:kv_block_idle_before_evict_seconds",
        _H,
        "seconds",
        Across.SUM,
        "How long does a KV block lie idle before it is evicted?",
        since="0.12.0",
        needs=_RESIDENCY,
    ),
    Metric(
        "vllm:kv_block_reuse_gap_seconds",
        _H,
        "seconds",
        Across.SUM,
        "How long until a KV block is used again?",
        since="0.12.0",
        needs=_RESIDENCY,
    ),
    Metric(
        "vllm:model_forward_time_milliseconds",
        _H,
        "milliseconds",
        Across.SUM,
        "How long did a forward pass take (V0)?",
        since="0.6.6",
        until="0.8.5",
        needs="--collect-detailed-traces",
    ),
    Metric(
        "vllm:model_execute_time_milliseconds",
        _H,
        "milliseconds",
        Across.SUM,
        "How long did executing the model take (V0)?",
        since="0.6.6",
        until="0.8.5",
        needs="--collect-detailed-traces",
    ),
)
