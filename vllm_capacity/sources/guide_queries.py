"""The queries and panels of Parseable's guide to vLLM metrics, as SQL that Parseable can run.

The files in `sql/parseable` run as they are on a stream `vllm_metrics` written by a collector. The
guide's published queries sum cumulative counters and take percentiles over bucket rows; these take
counter increases, across restarts too, and estimate quantiles from bucket increases.
"""

from __future__ import annotations

from typing import Final

from msgspec import Struct

from vllm_capacity.errors import InputError
from vllm_capacity.facts.tables import suggest
from vllm_capacity.sources.otlp import query_text
from vllm_capacity.sources.parseable_queries import quoted

_STREAM: Final = '"vllm_metrics"'
_LATENCY: Final = "e2e_request_latency_seconds"
_NO_PRICE: Final = "cast(null as double)"
_PRICE: Final = f"select {_NO_PRICE} as usd_per_gpu_hour, 1 as gpus_per_engine"


class GuideQuery(Struct, frozen=True):
    """One query: its name, and the title and chart type of its panel; without a chart, no panel.

    `histogram`: use the file `latency.sql` with this latency histogram instead.
    """

    name: str
    title: str
    chart: str = ""
    histogram: str = ""

    @property
    def text(self) -> str:
        """The SQL as in its file: for the stream `vllm_metrics`, without a price."""
        if not self.histogram:
            return query_text(f"parseable/{self.name}")
        text = query_text("parseable/latency").replace(_LATENCY, self.histogram)
        return text.replace("-- latency:", f"-- {self.name}:", 1)


GUIDE_QUERIES: Final = (
    GuideQuery("requests_per_minute", "Request throughput per minute", "timeseries"),
    GuideQuery("latency", "Request latency p95 and p99", "timeseries"),
    GuideQuery(
        "time_to_first_token",
        "Time to first token p95",
        "timeseries",
        histogram="time_to_first_token_seconds",
    ),
    GuideQuery("tokens_per_minute", "Prompt and generation tokens", "stacked-bar"),
    GuideQuery("kv_cache", "KV cache usage", "timeseries"),
    GuideQuery("running_and_waiting", "Requests running and waiting", "timeseries"),
    GuideQuery("cost_per_hour", "Cost per request, per hour", "table"),
    GuideQuery("request_failures", "Request failures", "timeseries"),
    GuideQuery("kv_pressure", "KV usage, waiting and preemptions together"),
)


def guide_query(
    name: str,
    *,
    stream: str = "vllm_metrics",
    usd_per_gpu_hour: float | None = None,
    gpus_per_engine: int | None = None,
) -> str:
    """The SQL with that name, for this stream and price; InputError, listing all names, if unknown.

    Without a price, dollars are null in the answer.
    """
    known = {query.name: query for query in GUIDE_QUERIES}
    if name not in known:
        near = suggest(name, known)
        raise InputError(f"No query {name!r}{near}. There are: {', '.join(known)}.")
    text = known[name].text.replace(_STREAM, quoted(stream))
    price = _NO_PRICE if usd_per_gpu_hour is None else usd_per_gpu_hour
    gpus = 1 if gpus_per_engine is None else gpus_per_engine
    return text.replace(_PRICE, f"select {price} as usd_per_gpu_hour, {gpus} as gpus_per_engine")
