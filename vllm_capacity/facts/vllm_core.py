"""The vLLM families of load, tokens and caches.

Sampled from the release archives 0.2.7 … 0.33.0. Semantics worth knowing before use are comments.
"""

from __future__ import annotations

from vllm_capacity.facts.metric import Across, Kind, Metric

_C, _G, _H, _I = Kind.COUNTER, Kind.GAUGE, Kind.HISTOGRAM, Kind.INFO
_SUM, _MEAN_MAX, _EACH = Across.SUM, Across.MEAN_MAX, Across.EACH

LOAD: tuple[Metric, ...] = (
    # Holding a slot, including prompts still in chunked prefill: concurrency, not batch size.
    Metric(
        "vllm:num_requests_running",
        _G,
        "requests",
        _SUM,
        "How many requests hold a slot?",
        since="0.2.7",
    ),
    # The engine's own queue; what is being tokenised or sits in the HTTP server is invisible.
    Metric(
        "vllm:num_requests_waiting",
        _G,
        "requests",
        _SUM,
        "How many requests queue in the engine?",
        since="0.2.7",
    ),
    Metric(
        "vllm:num_requests_waiting_by_reason",
        _G,
        "requests",
        _SUM,
        "Do requests wait for capacity, or are they deferred?",
        since="0.20.0",
    ),
    Metric(
        "vllm:num_requests_swapped",
        _G,
        "requests",
        _SUM,
        "How many requests were swapped out to CPU memory (V0)?",
        since="0.2.7",
        until="0.8.5",
        needs="engine V0",
    ),
    # A ratio 0..1 whatever "perc" says; evictable prefix-cache blocks count as free.
    Metric(
        "vllm:kv_cache_usage_perc",
        _G,
        "ratio",
        _MEAN_MAX,
        "What share of KV memory do live requests hold?",
        aliases=("vllm:gpu_cache_usage_perc",),
        since="0.9.2",
    ),
    Metric(
        "vllm:cpu_cache_usage_perc",
        _G,
        "ratio",
        _MEAN_MAX,
        "What share of CPU swap memory is in use (V0)?",
        since="0.2.7",
        until="0.8.5",
        needs="engine V0",
    ),
    Metric(
        "vllm:num_preemptions_total",
        _C,
        "events",
        _SUM,
        "How often was a running request thrown out for lack of KV memory?",
        since="0.4.3",
    ),
    # 0 and 1 preemption share the first bucket: use the sum.
    Metric(
        "vllm:request_num_preemptions",
        _H,
        "events",
        _SUM,
        "How often was one request preempted?",
        since="0.32.0",
    ),
    Metric(
        "vllm:cache_config_info",
        _I,
        "info",
        _EACH,
        "How is the KV cache configured?",
        since="0.3.3",
    ),
)

TOKENS: tuple[Metric, ...] = (
    # The whole prompt at once, cached tokens included, at first output; n times with n > 1.
    Metric(
        "vllm:prompt_tokens_total",
        _C,
        "tokens",
        _SUM,
        "How many prompt tokens came in?",
        since="0.3.3",
    ),
    Metric(
        "vllm:prompt_tokens_by_source_total",
        _C,
        "tokens",
        _SUM,
        "How many prompt tokens were computed, found in cache, or transferred?",
        since="0.16.0",
    ),
    Metric(
        "vllm:prompt_tokens_cached_total",
        _C,
        "tokens",
        _SUM,
        "How many prompt tokens needed no computing?",
        since="0.16.0",
    ),
    Metric(
        "vllm:prompt_tokens_cached_by_source_total",
        _C,
        "tokens",
        _SUM,
        "Which memory tier did cached prompt tokens come from?",
        since="0.32.0",
    ),
    Metric(
        "vllm:prompt_tokens_recomputed_total",
        _C,
        "tokens",
        _SUM,
        "How many cached prompt tokens were computed again?",
        since="0.16.0",
        until="0.16.0",
    ),
    # Includes the tokens of requests that were aborted later.
    Metric(
        "vllm:generation_tokens_total",
        _C,
        "tokens",
        _SUM,
        "How many tokens were generated?",
        since="0.3.3",
    ),
    # A histogram in spite of its name; prefill-only steps are not observed: no batch size.
    Metric(
        "vllm:iteration_tokens_total",
        _H,
        "tokens",
        _SUM,
        "How many tokens did an engine step with output process?",
        since="0.6.6",
    ),
    Metric(
        "vllm:prefix_cache_queries_total",
        _C,
        "tokens",
        _SUM,
        "How many prompt tokens were looked up in the prefix cache?",
        since="0.9.2",
    ),
    Metric(
        "vllm:prefix_cache_hits_total",
        _C,
        "tokens",
        _SUM,
        "How many prompt tokens were found in the prefix cache?",
        since="0.9.2",
    ),
    # No aliases of the two above: they counted blocks in 0.7.3 and 0.8.5, tokens from 0.9.2 on,
    # where the new names stand beside them. Their ratio is sound; their sums are not comparable.
    Metric(
        "vllm:gpu_prefix_cache_queries_total",
        _C,
        "blocks",
        _SUM,
        "How many blocks were looked up in the prefix cache (tokens from 0.9.2)?",
        since="0.7.3",
        until="0.11.2",
    ),
    Metric(
        "vllm:gpu_prefix_cache_hits_total",
        _C,
        "blocks",
        _SUM,
        "How many blocks were found in the prefix cache (tokens from 0.9.2)?",
        since="0.7.3",
        until="0.11.2",
    ),
    Metric(
        "vllm:gpu_prefix_cache_hit_rate",
        _G,
        "ratio",
        _MEAN_MAX,
        "What share of GPU prefix-cache lookups hit (V0)?",
        since="0.5.5",
        until="0.8.5",
        needs="engine V0",
    ),
    Metric(
        "vllm:cpu_prefix_cache_hit_rate",
        _G,
        "ratio",
        _MEAN_MAX,
        "What share of CPU prefix-cache lookups hit (V0)?",
        since="0.5.5",
        until="0.8.5",
        needs="engine V0",
    ),
    Metric(
        "vllm:avg_prompt_throughput_toks_per_s",
        _G,
        "tokens/second",
        _SUM,
        "How fast did prompts go in, by the server's own average (V0)?",
        since="0.2.7",
        until="0.6.6",
        needs="engine V0",
    ),
    Metric(
        "vllm:avg_generation_throughput_toks_per_s",
        _G,
        "tokens/second",
        _SUM,
        "How fast were tokens generated, by the server's own average (V0)?",
        since="0.2.7",
        until="0.6.6",
        needs="engine V0",
    ),
)
