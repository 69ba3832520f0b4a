"""Which LoRA adapters were active, as far as vLLM reports: names per scrape, never a count.

The family `lora_requests_info` has the adapter names of running and of waiting requests as labels,
and the time of that state as its value: each state is a series, and the one with the latest time is
current. It counts neither requests nor tokens, so costs cannot be split by it; they can be by a
gateway's log, if its model column has the adapter's name.
"""

from __future__ import annotations

import json
from typing import Any

import polars as pl

from vllm_capacity.facts.metrics import LORA_REQUESTS
from vllm_capacity.telemetry.window import Window
from vllm_capacity.timerange import TimeRange

ADAPTER_SCHEMA: dict[str, Any] = {
    "instance": pl.String,
    "adapter": pl.String,
    "first": pl.Datetime("us", "UTC"),
    "last": pl.Datetime("us", "UTC"),
    "running_ratio": pl.Float64,
    "waiting_ratio": pl.Float64,
}
"""One row per adapter of a server: the first and last scrape that names it, and two ratios.

The ratios (0..1) are the shares of the server's scrapes with a reported state in which the adapter
had running requests, and in which it had waiting ones.
"""

_STATES = ("running", "waiting")


def adapters(window: Window, *, time_range: TimeRange) -> pl.DataFrame:
    """The adapters of each server in the time range: `ADAPTER_SCHEMA`; empty if none reported."""
    found = window.named_sql(
        "figures",
        "adapters",
        metric=LORA_REQUESTS,
        start=time_range.start,
        end=time_range.end,
    )
    now = found.group_by("instance", "ts", maintain_order=True).last()
    rows = [
        (instance, ts, name, state)
        for instance, ts, labels in now.select("instance", "ts", "labels").iter_rows()
        for state in _STATES
        for name in json.loads(labels).get(f"{state}_lora_adapters", "").split(",")
        if name.strip()
    ]
    named = pl.DataFrame(
        rows,
        schema={
            "instance": pl.String,
            "ts": pl.Datetime("us", "UTC"),
            "adapter": pl.String,
            "state": pl.String,
        },
        orient="row",
    ).with_columns(pl.col("adapter").str.strip_chars())
    scrapes = now.group_by("instance").agg(scrapes=pl.len())
    shares = {
        f"{state}_ratio": pl.col("ts").filter(pl.col("state") == state).n_unique()
        / pl.col("scrapes").first()
        for state in _STATES
    }
    return (
        named.join(scrapes, on="instance")
        .group_by("instance", "adapter")
        .agg(first=pl.col("ts").min(), last=pl.col("ts").max(), **shares)
        .sort("instance", "adapter")
        .select(list(ADAPTER_SCHEMA))
    )
