"""The vLLM families of requests, their latencies and failures, and of the server around them.

Sampled from the release archives 0.2.7 … 0.33.0. Semantics worth knowing before use are comments.
"""

from __future__ import annotations

from vllm_capacity.facts.metric import Across, Kind, Metric

_C, _G, _H = Kind.COUNTER, Kind.GAUGE, Kind.HISTOGRAM
_SUM, _EACH = Across.SUM, Across.EACH


def _seconds(
    name: str,
    asks: str,
    *,
    aliases: tuple[str, ...] = (),
    since: str,
) -> Metric:
    """A histogram of seconds, which adds over engines as long as the bounds are equal."""
    return Metric(name, _H, "seconds", _SUM, asks, aliases=aliases, since=since)


LATENCIES: tuple[Metric, ...] = (
    # At first output, so requests aborted later are in it. From 0.20.0 it includes tokenisation.
    _seconds("vllm:time_to_first_token_seconds", "How long until the first token?", since="0.3.3"),
    # One sample a request and step: long generations dominate.
    _seconds(
        "vllm:inter_token_latency_seconds",
        "How long between two tokens of a request?",
        aliases=("vllm:time_per_output_token_seconds",),
        since="0.10.2",
    ),
    # One sample a request, 0 for those of at most one token: the zeros pull quantiles down.
    _seconds(
        "vllm:request_time_per_output_token_seconds",
        "How long did a request take per token, on its own mean?",
        since="0.11.2",
    ),
    _seconds(
        "vllm:e2e_request_latency_seconds",
        "How long from arrival to the last token?",
        since="0.3.3",
    ),
    # Up to the first scheduling only; a preempted request's second wait is in prefill and decode.
    _seconds(
        "vllm:request_queue_time_seconds",
        "How long did a request wait to be scheduled?",
        aliases=("vllm:time_in_queue_requests",),
        since="0.6.6",
    ),
    _seconds(
        "vllm:request_prefill_time_seconds",
        "How long from scheduling to the first token?",
        since="0.6.6",
    ),
    _seconds(
        "vllm:request_decode_time_seconds",
        "How long from the first to the last token?",
        since="0.6.6",
    ),
    _seconds(
        "vllm:request_inference_time_seconds",
        "How long from scheduling to the last token?",
        since="0.6.6",
    ),
)


def _request_tokens(name: str, asks: str, *, since: str) -> Metric:
    """A histogram of tokens; its bounds follow `--max-model-len`."""
    return Metric(name, _H, "tokens", _SUM, asks, since=since)


REQUESTS: tuple[Metric, ...] = (
    # Every finish reason, errors included; client-side aborts leave no trace in V1.
    Metric(
        "vllm:request_success_total",
        _C,
        "requests",
        _SUM,
        "How many requests finished, and why?",
        since="0.4.3",
    ),
    _request_tokens(
        "vllm:request_prompt_tokens",
        "How long were the prompts of finished requests?",
        since="0.4.3",
    ),
    _request_tokens(
        "vllm:request_generation_tokens",
        "How long were the answers of finished requests?",
        since="0.4.3",
    ),
    _request_tokens(
        "vllm:request_prefill_kv_computed_tokens",
        "How many prompt tokens of a finished request were computed?",
        since="0.13.0",
    ),
    _request_tokens(
        "vllm:request_max_num_generation_tokens",
        "How long was the longest answer of a request?",
        since="0.6.6",
    ),
    _request_tokens(
        "vllm:request_params_max_tokens", "How long an answer did requests allow?", since="0.6.6"
    ),
    Metric(
        "vllm:request_params_n",
        _H,
        "answers",
        _SUM,
        "How many answers did a request ask for?",
        since="0.4.3",
    ),
    Metric(
        "vllm:request_params_best_of",
        _H,
        "answers",
        _SUM,
        "How many candidates did a request ask for?",
        since="0.4.3",
        until="0.5.5",
        needs="engine V0",
    ),
    Metric(
        "vllm:admission_rejections_total",
        _C,
        "requests",
        _SUM,
        "How many requests were refused at the door?",
        has_engine=False,
        since="0.32.0",
    ),
    Metric(
        "vllm:corrupted_requests_total",
        _C,
        "requests",
        _SUM,
        "How many requests had NaN logits?",
        since="0.11.2",
        needs="VLLM_COMPUTE_NANS_IN_LOGITS=1",
    ),
)


def _server(name: str, kind: Kind, unit: str, across: Across, *, asks: str) -> Metric:
    """A family of the whole server or of the scraper, without an engine."""
    return Metric(name, kind, unit, across, asks, has_engine=False, since="0.8.5")


SERVER: tuple[Metric, ...] = (
    # The status of the response's head: a stream that fails later counts as 2xx.
    _server("http_requests_total", _C, "requests", _SUM, asks="What did HTTP clients get?"),
    _server(
        "http_request_duration_seconds",
        _H,
        "seconds",
        _SUM,
        asks="How long did HTTP responses take, by handler, coarsely?",
    ),
    _server(
        "http_request_duration_highr_seconds",
        _H,
        "seconds",
        _SUM,
        asks="How long did HTTP responses take, all handlers in one?",
    ),
    _server(
        "process_start_time_seconds", _G, "unix seconds", _EACH, asks="When did this process start?"
    ),
)

SCRAPER: tuple[Metric, ...] = (
    Metric("up", _G, "boolean", _EACH, "Did the scrape succeed?", has_engine=False),
    Metric(
        "scrape_duration_seconds",
        _G,
        "seconds",
        _EACH,
        "How long did the scrape take?",
        has_engine=False,
    ),
)
