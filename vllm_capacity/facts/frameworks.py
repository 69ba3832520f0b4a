"""Other serving frameworks' families, as vLLM's concepts: only what a published scrape bears out.

Left out on purpose, although names look alike:

* Dynamo's `inflight_requests` (received, not yet done) and `queued_requests` (until the first
  token, prefill included) are not vLLM's running and waiting; `dynamo_component_*` stand on a
  worker's port beside the engine's own metrics and count the same requests again. A Dynamo frontend
  sees the same requests as its workers: `catalog.framework` lets the ledger say both were scraped.
* Gauges of a last batch (SGLang's `cache_hit_rate`, `gen_throughput`): no means, no totals.
* Families that lump several concepts under one label (Triton's `nv_trt_llm_*`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Equivalent:
    """One family of another framework and the vLLM concept it measures.

    `rank` 0 is the framework's current name, 1 an older one. `scale` turns its unit into the
    concept's (1000 ms = 1 s would be 0.001). `differs` says where the meaning is not quite vLLM's.
    """

    framework: str
    exposed: str
    metric: str
    rank: int = 0
    scale: float = 1.0
    differs: str = ""


_AT_FINISH = "moves when a request finishes, so short windows are lumpy"
_NO_REASON = "without a finish reason"
_OWN_MEAN = "one sample a request, its own mean"

SGLANG: tuple[Equivalent, ...] = (
    # Scheduler series carry tp_rank: every rank tells the same, so only tp_rank="0" may be summed.
    Equivalent("sglang", "sglang:num_running_reqs", "vllm:num_requests_running"),
    Equivalent("sglang", "sglang:num_queue_reqs", "vllm:num_requests_waiting"),
    Equivalent("sglang", "sglang:token_usage", "vllm:kv_cache_usage_perc"),
    Equivalent(
        "sglang", "sglang:prompt_tokens_total", "vllm:prompt_tokens_total", differs=_AT_FINISH
    ),
    Equivalent(
        "sglang",
        "sglang:generation_tokens_total",
        "vllm:generation_tokens_total",
        differs=_AT_FINISH,
    ),
    Equivalent(
        "sglang", "sglang:num_requests_total", "vllm:request_success_total", differs=_NO_REASON
    ),
    Equivalent("sglang", "sglang:num_retractions", "vllm:request_num_preemptions"),
    Equivalent("sglang", "sglang:time_to_first_token_seconds", "vllm:time_to_first_token_seconds"),
    Equivalent("sglang", "sglang:inter_token_latency_seconds", "vllm:inter_token_latency_seconds"),
    Equivalent(
        "sglang", "sglang:time_per_output_token_seconds", "vllm:inter_token_latency_seconds", rank=1
    ),
    Equivalent("sglang", "sglang:e2e_request_latency_seconds", "vllm:e2e_request_latency_seconds"),
    Equivalent("sglang", "sglang:queue_time_seconds", "vllm:request_queue_time_seconds"),
)

TGI: tuple[Equivalent, ...] = (
    # Durations are seconds without a unit in the name; every one above 145.6 s overflows.
    Equivalent("tgi", "tgi_batch_current_size", "vllm:num_requests_running"),
    Equivalent("tgi", "tgi_queue_size", "vllm:num_requests_waiting"),
    Equivalent(
        "tgi",
        "tgi_request_success",
        "vllm:request_success_total",
        differs="successes only, without a finish reason",
    ),
    Equivalent("tgi", "tgi_request_duration", "vllm:e2e_request_latency_seconds"),
    Equivalent("tgi", "tgi_request_queue_duration", "vllm:request_queue_time_seconds"),
    Equivalent("tgi", "tgi_request_inference_duration", "vllm:request_inference_time_seconds"),
    Equivalent(
        "tgi",
        "tgi_request_mean_time_per_token_duration",
        "vllm:request_time_per_output_token_seconds",
    ),
    Equivalent(
        "tgi",
        "tgi_request_input_length",
        "vllm:request_prompt_tokens",
        differs="observed at validation, before the queue",
    ),
    Equivalent("tgi", "tgi_request_generated_tokens", "vllm:request_generation_tokens"),
    Equivalent("tgi", "tgi_request_max_new_tokens", "vllm:request_params_max_tokens"),
)

TENSORRT_LLM: tuple[Equivalent, ...] = (
    Equivalent("tensorrt-llm", "trtllm_request_success_total", "vllm:request_success_total"),
    Equivalent(
        "tensorrt-llm", "trtllm_time_to_first_token_seconds", "vllm:time_to_first_token_seconds"
    ),
    Equivalent(
        "tensorrt-llm", "trtllm_e2e_request_latency_seconds", "vllm:e2e_request_latency_seconds"
    ),
    Equivalent(
        "tensorrt-llm", "trtllm_request_queue_time_seconds", "vllm:request_queue_time_seconds"
    ),
    Equivalent(
        "tensorrt-llm",
        "trtllm_time_per_output_token_seconds",
        "vllm:request_time_per_output_token_seconds",
        differs=_OWN_MEAN,
    ),
)

NIM: tuple[Equivalent, ...] = (
    # vLLM's names of 2024 without a prefix. `request_success_total` repeats `request_finish_total`
    # without the reason and is left out, so that nothing is counted twice.
    Equivalent("nim", "num_requests_running", "vllm:num_requests_running"),
    Equivalent("nim", "num_requests_waiting", "vllm:num_requests_waiting"),
    Equivalent("nim", "gpu_cache_usage_perc", "vllm:kv_cache_usage_perc"),
    Equivalent("nim", "prompt_tokens_total", "vllm:prompt_tokens_total"),
    Equivalent("nim", "generation_tokens_total", "vllm:generation_tokens_total"),
    Equivalent("nim", "request_finish_total", "vllm:request_success_total"),
    Equivalent("nim", "time_to_first_token_seconds", "vllm:time_to_first_token_seconds"),
    Equivalent("nim", "time_per_output_token_seconds", "vllm:inter_token_latency_seconds"),
    Equivalent("nim", "e2e_request_latency_seconds", "vllm:e2e_request_latency_seconds"),
    Equivalent("nim", "request_prompt_tokens", "vllm:request_prompt_tokens"),
    Equivalent("nim", "request_generation_tokens", "vllm:request_generation_tokens"),
)

DYNAMO: tuple[Equivalent, ...] = (
    Equivalent(
        "dynamo",
        "dynamo_frontend_requests_total",
        "vllm:request_success_total",
        differs="with a status instead of a finish reason",
    ),
    Equivalent("dynamo", "dynamo_frontend_output_tokens_total", "vllm:generation_tokens_total"),
    Equivalent(
        "dynamo", "dynamo_frontend_time_to_first_token_seconds", "vllm:time_to_first_token_seconds"
    ),
    Equivalent(
        "dynamo", "dynamo_frontend_inter_token_latency_seconds", "vllm:inter_token_latency_seconds"
    ),
    Equivalent(
        "dynamo", "dynamo_frontend_request_duration_seconds", "vllm:e2e_request_latency_seconds"
    ),
    Equivalent("dynamo", "dynamo_frontend_input_sequence_tokens", "vllm:request_prompt_tokens"),
    Equivalent(
        "dynamo", "dynamo_frontend_output_sequence_tokens", "vllm:request_generation_tokens"
    ),
)

EQUIVALENTS: tuple[Equivalent, ...] = (*SGLANG, *TGI, *TENSORRT_LLM, *NIM, *DYNAMO)


def spellings(exposed: str) -> Iterator[str]:
    """A foreign family as it comes over the wire: `_` for `:`, with and without `_total`."""
    bare = exposed.removesuffix("_total")
    for name in dict.fromkeys((exposed, bare, f"{bare}_total")):
        yield name
        if ":" in name:
            yield name.replace(":", "_")
