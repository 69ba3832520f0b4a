"""`sql`: the queries of Parseable's guide to vLLM metrics, corrected.

`traces`: where the time of slow requests went.
"""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import click
import polars as pl
from rich.console import Console
from rich.table import Table

from vllm_capacity.cli.options import FILE, bounded, stream_name
from vllm_capacity.cli.pull import requested_range
from vllm_capacity.errors import InputError
from vllm_capacity.live.access import is_server, read_settings
from vllm_capacity.live.pull import parseable_client
from vllm_capacity.sources.guide_queries import GUIDE_QUERIES, guide_query
from vllm_capacity.sources.parquet import open_store
from vllm_capacity.sources.parseable import Parseable
from vllm_capacity.sources.traces import (
    PHASES,
    traces_from_files,
    traces_from_server,
    where_time_went,
    with_regimes,
)
from vllm_capacity.timerange import TimeRange, parse_duration_seconds

_PIPED_WIDTH = 160


@click.command(short_help="Print a query for Parseable, or list them.")
@click.argument("name", required=False)
@click.option("--stream", default="vllm_metrics", show_default=True, help="Parseable's stream.")
@click.option(
    "--usd-per-gpu-hour",
    type=click.FloatRange(min=0),
    callback=bounded,
    help="Price per GPU-hour in the query, USD.",
)
@click.option("--gpus-per-engine", type=click.IntRange(min=1), help="GPUs per engine.")
def sql(
    name: str | None,
    stream: str,
    usd_per_gpu_hour: float | None,
    gpus_per_engine: int | None,
) -> None:
    """Print a query, ready to run in Parseable, or list the queries' names."""
    if name is None:
        for query in GUIDE_QUERIES:
            click.echo(f"{query.name:22}{query.title}")
        return
    if name == "cost_per_hour" and usd_per_gpu_hour is None:
        raise InputError(
            "cost_per_hour needs the price of a GPU-hour: give --usd-per-gpu-hour (and "
            "--gpus-per-engine, if an engine has more than one)."
        )
    text = guide_query(
        name, stream=stream, usd_per_gpu_hour=usd_per_gpu_hour, gpus_per_engine=gpus_per_engine
    )
    click.echo(text, nl=False)


@click.command(short_help="Show the slowest requests, and where their time went.")
@click.option("--from", "origin", help="URL of a Parseable server, path or s3:// of its store.")
@click.option(
    "--stream",
    default="vllm_traces",
    show_default=True,
    callback=stream_name,
    help="The stream of spans.",
)
@click.option("--start", help="Only requests that began at or after this time, ISO 8601.")
@click.option("--end", help="Only requests that began before this time.")
@click.option("--last", "duration", help="Instead of --start and --end: the last 24h, 90m, 7d.")
@click.option("--slowest", type=click.IntRange(min=1), default=10, show_default=True)
@click.option("--window", help="Window of the same time, to show the engines' regime.")
@click.option(
    "--late", default="2h", show_default=True, help="How late spans may have arrived in the store."
)
@click.option("--profile", type=FILE, help="File with credentials, mode 0600.")
def traces(
    origin: str | None,
    stream: str,
    start: str | None,
    end: str | None,
    duration: str | None,
    slowest: int,
    window: str | None,
    late: str,
    profile: Path | None,
) -> None:
    """Show the slowest requests, and where their time went: queue, prefill, decode."""
    settings = read_settings(os.environ, profile)
    origin = origin or settings.get("url")
    if not origin:
        raise InputError("Give the source with --from: a URL, a folder, or s3://…")
    time_range = requested_range(start, end, duration, now=datetime.now(UTC))
    delay = timedelta(seconds=parse_duration_seconds(late))
    found = _traces(origin, stream, time_range, delay, settings)
    if window is not None:
        found = with_regimes(found, _regimes(window))
    _show(found, slowest)


def _traces(
    origin: str,
    stream: str,
    time_range: TimeRange | None,
    late: timedelta,
    settings: dict[str, str],
) -> pl.DataFrame:
    if not is_server(origin):
        return traces_from_files(open_store(origin), stream, time_range, late=late)
    if time_range is None:
        raise InputError("Give the time range: --last 24h, or --start and --end.")
    with parseable_client(origin, settings) as client:
        return traces_from_server(Parseable(client), stream, time_range, late=late)


def _regimes(window: str) -> pl.DataFrame:
    """The regimes of a window's engines: start, end, engine, regime."""
    from vllm_capacity.analysis import Analysis  # only this option needs it
    from vllm_capacity.telemetry.window import open_window

    found = Analysis.of(open_window(window)).saturation.regimes
    rows = [(each.start, each.end, each.engine, each.regime) for each in found]
    times = pl.Datetime("us", "UTC")
    schema: dict[str, Any] = {"start": times, "end": times, "engine": pl.String}
    schema["regime"] = pl.String
    return pl.DataFrame(rows, schema=schema, orient="row")


def _show(found: pl.DataFrame, slowest: int) -> None:
    console = Console()
    if not console.is_terminal:
        console.width = _PIPED_WIDTH
    if found.is_empty():
        console.print("No request was traced in this time range.")
        return
    table = Table(title=f"The {min(slowest, found.height)} slowest of {found.height} requests")
    columns = ["start", "request", "e2e s", "ttft s", *(p.removesuffix("_seconds") for p in PHASES)]
    columns += ["tokens in/out", *(["regime"] if "regime" in found.columns else [])]
    for column in columns:
        is_name = column in ("start", "request")
        table.add_column(column, justify="left" if is_name else "right", no_wrap=is_name)
    for row in found.head(slowest).iter_rows(named=True):
        cells = [f"{row['start']:%Y-%m-%d %H:%M:%S}", row["request_id"] or row["trace_id"]]
        cells += [_seconds(row[name]) for name in ("e2e_seconds", "ttft_seconds", *PHASES)]
        cells.append(f"{_whole(row['prompt_tokens'])} / {_whole(row['completion_tokens'])}")
        table.add_row(*cells, *([row["regime"] or "–"] if "regime" in row else []))
    console.print(table)
    shares = Table("phase", "of all time", f"of the slowest {min(slowest, found.height)}")
    for row in where_time_went(found, slowest=slowest).iter_rows(named=True):
        shares.add_row(row["phase"], _percent(row["all_ratio"]), _percent(row["slowest_ratio"]))
    console.print(shares)


def _seconds(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def _whole(value: int | None) -> str:
    return "–" if value is None else str(value)


def _percent(ratio: float | None) -> str:
    return "–" if ratio is None else f"{ratio * 100:.1f} %"
