"""What every figure on the page means, and the way back from it to the rows it was made from.

One entry a figure: its definition in words, the queries its rows come from with what is bound to
them, and the function that makes the figure of those rows. Tiles and charts link here by the
figure's name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import polars as pl

from vllm_capacity.figures import gauges, latency, traffic
from vllm_capacity.render.study import Study
from vllm_capacity.telemetry.window import query_text
from vllm_capacity.timerange import iso

_ROWS_SHOWN = 8


@dataclass(frozen=True)
class Query:
    """A shipped query, and the metrics bound to its `$metrics`; none where it takes no metrics."""

    name: str
    metrics: tuple[str, ...] = ()
    needs: tuple[str, ...] = ("metrics", "start", "end")


@dataclass(frozen=True)
class Definition:
    """One figure: what it is, the queries behind it, and where the code that makes it is."""

    figure: str
    title: str
    text: str
    queries: tuple[Query, ...]
    code: str


_ATTEMPTS = Query("attempts", needs=("end",))
_ENGINES = Query("engines", needs=("end",))
_REQUESTS = Query("counter_increase", (traffic.REQUESTS,))
_OUTPUT = Query("counter_increase", (traffic.GENERATION_TOKENS,))
_PROMPTS = Query("counter_increase", (traffic.PROMPT_TOKENS, traffic.GENERATION_TOKENS))
_HISTOGRAM = ("metrics", "start", "end", "step_us", "last_step")
_BILL = (
    "The bill is billed hours × GPUs an engine × price. An engine is billed from its target's "
    "last scrape attempt before the window (else its first inside) to the last before the end, "
    "idle and failed ones included."
)
_STEPS = (
    Query("scrape_increases", (traffic.GENERATION_TOKENS, traffic.PREEMPTIONS)),
    Query("gauge_samples", (gauges.RUNNING, gauges.WAITING, gauges.KV_CACHE)),
)
_LOAD = (
    "Load is the mean of the running requests over the step, or of the KV-cache ratio. Of several "
    "engines the one nearest to its limit is drawn, its own figures against its own load. Steps "
    "with a gap or a restart are left out, and counted."
)
_QUANTILE = (
    "The growth of each bucket over the window, added over engines with the same bounds, then "
    "interpolated inside the bucket as PromQL does. The truth lies between the edges of that "
    "bucket, which are shown beside it."
)

DEFINITIONS: tuple[Definition, ...] = (
    Definition(
        "usd_per_request",
        "Cost of a request",
        f"{_BILL} It is divided by the successful requests: those that ended by stop, length or "
        f"repetition.",
        (_ATTEMPTS, _ENGINES, _REQUESTS),
        "verdicts/cost.py",
    ),
    Definition(
        "usd_per_million_output_tokens",
        "Cost of a million output tokens",
        f"{_BILL} The whole of it, prompts included, is charged to the output tokens.",
        (_ATTEMPTS, _ENGINES, _OUTPUT),
        "verdicts/cost.py",
    ),
    Definition(
        "tokens_per_usd",
        "Output tokens for a dollar",
        f"{_BILL} Output tokens divided by it.",
        (_ATTEMPTS, _ENGINES, _OUTPUT),
        "verdicts/cost.py",
    ),
    Definition(
        "utilisation",
        "Used of its capacity",
        "Output tokens a second (growth of the counter ÷ the time between its two scrapes) "
        "divided by the capacity. The idle dollars are the bill × (1 − this).",
        (_OUTPUT, *_STEPS),
        "verdicts/cost.py",
    ),
    Definition(
        "headroom_ratio",
        "Room before it is full",
        "1 − output tokens a second ÷ capacity.",
        (_OUTPUT, *_STEPS),
        "verdicts/saturation.py",
    ),
    Definition(
        "ttft_attainment",
        "First tokens in time",
        "The share of requests whose first token came at or under the target. Exact where the "
        "target is an edge of a bucket, an interval where it lies inside one.",
        (Query("histogram_states", (latency.TTFT,), needs=_HISTOGRAM),),
        "figures/latency.py",
    ),
    Definition(
        "capacity_output_tokens_per_second",
        "Capacity and its knee",
        "The plateau of output tokens a second while the server, not its clients, is what "
        "limits; the knee is the lightest load that reaches it. The curve is a scalability law "
        "fitted to the steps, its shade a 90 % bootstrap band over blocks of them; it is no part "
        f"of the plateau. {_LOAD}",
        _STEPS,
        "verdicts/saturation.py",
    ),
    Definition(
        "demand",
        "Demand to plan for",
        "Requests a second as asked; else the 95th percentile over the steps of finished requests "
        "a second, added over engines: the busiest 5 % of steps lie above it. Times the mean "
        "output tokens of a request. vLLM counts no arrivals: where requests waited, this is what "
        "was served, and more may have been asked for.",
        (
            Query("scrape_increases", (traffic.REQUESTS,)),
            Query("gauge_samples", (gauges.WAITING,)),
            _OUTPUT,
        ),
        "verdicts/sizing.py",
    ),
    Definition(
        "replicas",
        "Replicas",
        "Demand ÷ (capacity of one replica × (1 − the share kept free)), rounded up, plus spares. "
        "The capacity is the highest output within the latency targets, or the plateau where none "
        "is given. If prompts double or prefix caching is off, the capacity shrinks by the engine "
        "time of a request or, where the KV cache is the first limit, by the KV tokens of a "
        "request (prompt + half the output), whichever is worse; latencies are not judged anew.",
        (Query("scrape_increases", (traffic.REQUESTS,)), _PROMPTS, *_STEPS),
        "verdicts/sizing.py",
    ),
    Definition(
        "whatif",
        "Another GPU",
        "The capacity of this window (or the rate given) × the ratio of published measurements of "
        "the model on both GPUs where there are any; else × the ratio of the times that reading "
        "prompts and writing output take by each card's data sheet. The band is the measured error "
        "of that on models it was not fitted to. Output for a dollar is that ÷ the price: the "
        "median of the on-demand offers, the cheapest and dearest as its ends. A GPU that cannot "
        "serve the model, or has no price, stays with the reason.",
        (_PROMPTS, *_STEPS),
        "verdicts/whatif.py",
    ),
    Definition(
        "forecast",
        "Requests to come",
        "The mean of the last day × the profile of the hours of the day × how far the last hour "
        "was above or below it, fading; from two weeks of history on also × a profile of the week, "
        "where that made the back-test better. The interval comes from the errors of the same "
        "forecast on this window's own past. It needs at least 24 h of history.",
        (Query("scrape_increases", (traffic.REQUESTS,)),),
        "verdicts/forecast.py",
    ),
    Definition(
        "idle",
        "Idle dollars by hour of the week",
        f"{_BILL} Of each whole hour: the bill × (1 − output tokens a second ÷ capacity); then the "
        "mean over the hours of the week that were observed.",
        (_ATTEMPTS, _ENGINES, Query("scrape_increases", (traffic.GENERATION_TOKENS,)), *_STEPS),
        "verdicts/idle.py",
    ),
    Definition(
        "latency_by_load",
        "Latency against load",
        f"Each point is a step: the 95th percentile of its histogram's growth. {_LOAD}",
        (
            Query("gauge_samples", (gauges.RUNNING, gauges.KV_CACHE)),
            Query("histogram_states", (latency.TTFT, latency.ITL), needs=_HISTOGRAM),
        ),
        "figures/steps.py",
    ),
    Definition(
        "preemptions_by_load",
        "Preemptions against load",
        f"Each point is a step: the growth of the counter ÷ the minutes of the step. {_LOAD}",
        (
            Query("scrape_increases", (traffic.PREEMPTIONS,)),
            Query("gauge_samples", (gauges.RUNNING, gauges.KV_CACHE)),
        ),
        "figures/steps.py",
    ),
    Definition(
        "regime",
        "What held it back",
        "Judged for each engine and step from running, waiting, KV-cache use and preemptions; "
        "the evidence stands beside each judgement.",
        _STEPS,
        "verdicts/saturation.py",
    ),
    Definition(
        "throughput",
        "Output and requests a second",
        "The growth of the counter between scrapes, divided by the time between them, added over "
        "engines. Over a gap the growth is spread evenly, and the gap is marked.",
        (Query("scrape_increases", (traffic.GENERATION_TOKENS, traffic.REQUESTS)),),
        "figures/series.py",
    ),
    Definition(
        "tokens",
        "Tokens by kind",
        "The exact growth of the prompt and generation counters. Prompt tokens include those "
        "found in the prefix cache.",
        (_PROMPTS,),
        "figures/traffic.py",
    ),
    Definition(
        "requests",
        "How requests ended",
        "The exact growth of the counter of finished requests, by reason. A client that goes "
        "away and a request that is refused are in none of them.",
        (_REQUESTS,),
        "figures/traffic.py",
    ),
    Definition(
        "queue",
        "Running and waiting requests",
        "At each scrape time the newest sample of every engine, added; then over time.",
        (Query("gauge_samples", (gauges.RUNNING, gauges.WAITING)),),
        "figures/gauges.py",
    ),
    Definition(
        "kv_cache_ratio",
        "KV cache in use",
        "Blocks held by live requests ÷ all blocks, 0 to 1; mean and highest over engines, never "
        "added.",
        (Query("gauge_samples", (gauges.KV_CACHE,)),),
        "figures/gauges.py",
    ),
    Definition(
        "ttft_seconds",
        "Time to first token",
        _QUANTILE,
        (Query("histogram_states", (latency.TTFT,), needs=_HISTOGRAM),),
        "figures/latency.py",
    ),
    Definition(
        "itl_seconds",
        "Time between tokens",
        _QUANTILE,
        (Query("histogram_states", (latency.ITL,), needs=_HISTOGRAM),),
        "figures/latency.py",
    ),
    Definition(
        "e2e_seconds",
        "Time to the whole answer",
        _QUANTILE,
        (Query("histogram_states", (latency.E2E,), needs=_HISTOGRAM),),
        "figures/latency.py",
    ),
)


def definitions_content(asked: Study, figures: Sequence[str] = ()) -> dict[str, Any]:
    """The definitions of these figures (of all, where none is named), with their queries and rows.

    Each query stands once, with its text; a definition names it and what was bound to it.
    """
    chosen = [d for d in DEFINITIONS if not figures or d.figure in figures]
    queries = dict.fromkeys(query for d in chosen for query in d.queries)
    rows = {query: _rows(asked, query) for query in queries}
    names = list(dict.fromkeys(query.name for query in rows))
    return {
        "definitions": [
            {
                "figure": d.figure,
                "title": d.title,
                "text": d.text,
                "code": f"vllm_capacity/{d.code}",
                "rows": [rows[query] for query in d.queries],
            }
            for d in chosen
        ],
        "queries": [{"name": name, "text": query_text("figures", name).strip()} for name in names],
    }


def bound(asked: Study, query: Query) -> dict[str, Any]:
    """What is bound to the query's parameters for this study."""
    values = {
        "metrics": list(query.metrics),
        "start": asked.part.start,
        "end": asked.part.end,
        "step_us": round(asked.part.seconds * 1e6) + 1,  # one step holds the whole part
        "last_step": 0,
    }
    return {name: values[name] for name in query.needs}


def _rows(asked: Study, query: Query) -> dict[str, Any]:
    parameters = bound(asked, query)
    frame = asked.opened.named_sql("figures", query.name, **parameters)
    shown = frame.head(_ROWS_SHOWN)
    return {
        "query": query.name,
        "bound": _bound_text(parameters),
        "count": frame.height,
        "table": {
            "columns": [{"title": name, "numeric": False} for name in shown.columns],
            "rows": [["" if v is None else _cell(v) for v in row] for row in shown.iter_rows()],
            "caption": "",
            "empty": "No rows.",
        },
    }


def _bound_text(parameters: Mapping[str, Any]) -> dict[str, Any]:
    return {name: iso(v) if name in ("start", "end") else v for name, v in parameters.items()}


def _cell(value: object) -> str:
    if isinstance(value, datetime):
        return iso(value)
    text = str(value.to_list() if isinstance(value, pl.Series) else value)
    return text if len(text) <= 80 else f"{text[:77]}…"
