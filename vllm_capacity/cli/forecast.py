"""`vllm-capacity forecast`: future demand, from a CSV of past demand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from vllm_capacity.cli.options import FILE, columns
from vllm_capacity.render.terminal import forecast_text
from vllm_capacity.sources.demand import Clock, read_demand
from vllm_capacity.timerange import parse_duration_seconds
from vllm_capacity.verdicts.demand.forecast import Forecast, forecast_demand


@click.command(short_help="Forecast demand from a CSV of past demand.")
@click.argument("series", type=FILE, metavar="SERIES.csv")
@click.option("--column", required=True, help="Column of counts, such as requests.")
@click.option("--step", default="1h", show_default=True, help="Time step of the forecast.")
@click.option("--horizon", default="24h", show_default=True, help="How far ahead to forecast.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def forecast(series: Path, column: str, step: str, horizon: str, as_json: bool) -> None:
    """Forecast the demand in SERIES.csv (ts_seconds or ts, and --column) with measured intervals.

    Rows finer than --step are summed. A missing row, an empty cell or a collapse of the whole
    series is a recording gap, not zero. What cannot be forecast is refused with a reason and exit
    status 0.
    """
    demand = read_demand(series, column)
    result = forecast_demand(
        demand.frame,
        column="value",
        step_seconds=parse_duration_seconds(step),
        horizon_seconds=parse_duration_seconds(horizon),
    )
    if as_json:
        click.echo(json.dumps(_as_dict(result, demand.clock), allow_nan=False))
        return
    title = f"{column} per {step}, next {horizon}"
    click.echo(forecast_text(result, demand.clock, title=title, width=columns()), nl=False)


def _as_dict(result: Forecast, clock: Clock) -> dict[str, Any]:
    rows = [
        {"ts": clock.written(row["ts_seconds"])} | {end: row[end] for end in ("low", "mid", "high")}
        for row in result.frame.iter_rows(named=True)
    ]
    return {
        "forecast": rows or None,
        "method": result.method,
        "coverage_measured": result.coverage_measured,
        "width_ratio": result.width_ratio,
        "peak_over_mean": result.peak_over_mean.as_dict(),
        "reason": result.reason,
    }
