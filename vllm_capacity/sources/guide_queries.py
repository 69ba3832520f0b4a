"""The guide's questions as SQL that Parseable answers as it is, and the eight panels they draw.

The files in `sql/parseable` run unchanged on a stream `vllm_metrics` that a collector filled. As
published, the guide's queries add up cumulative counters and take percentiles over bucket rows;
here counters are differenced, restarts included, and quantiles come from the buckets' growth.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from vllm_capacity.errors import InputError
from vllm_capacity.facts.tables import suggest
from vllm_capacity.sources.otlp import query_text
from vllm_capacity.sources.parseable_queries import quoted

_STREAM: Final = '"vllm_metrics"'
_LATENCY: Final = "e2e_request_latency_seconds"
_NO_PRICE: Final = "cast(null as double)"
_PRICE: Final = f"select {_NO_PRICE} as usd_per_gpu_hour, 1 as gpus_per_engine"


@dataclass(frozen=True)
class GuideQuery:
    """One question: its name, the panel's title and how it is drawn; no chart: no panel.

    `histogram` makes it the file `latency.sql` about another latency histogram.
    """

    name: str
    title: str
    chart: str = ""
    histogram: str = ""

    @property
    def text(self) -> str:
        """The SQL as it stands in its file: on the stream `vllm_metrics`, without a price."""
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
    """The SQL of that name, for this stream and price; InputError names the ones there are.

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
