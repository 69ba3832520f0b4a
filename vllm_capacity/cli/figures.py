"""`vllm-capacity figures`: the answer of a window, as JSON or as a table."""

from __future__ import annotations

import json
from typing import Any

import click

from vllm_capacity.answers import Terms, answer, price_per_hour
from vllm_capacity.telemetry.window import open_window
from vllm_capacity.timerange import parse_instant


@click.command()
@click.argument("window")
@click.option("--start", help="Begin of a part, ISO 8601; without an offset it is UTC.")
@click.option("--end", help="End of the part; a sample at it is outside.")
@click.option("--usd-per-hour", type=float, help="Price of one GPU for an hour.")
@click.option("--gpus-per-engine", type=float, default=1.0, show_default=True)
@click.option("--slo-ttft", type=float, help="Target for the time to first token, seconds.")
@click.option("--slo-itl", type=float, help="Target for the inter-token latency, seconds.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
def figures(
    window: str,
    start: str | None,
    end: str | None,
    usd_per_hour: float | None,
    gpus_per_engine: float,
    slo_ttft: float | None,
    slo_itl: float | None,
    as_json: bool,
) -> None:
    """All figures and verdicts of WINDOW (a path, or a name), or of a part of it."""
    terms = Terms(price_per_hour(usd_per_hour), gpus_per_engine, slo_ttft, slo_itl)
    result = answer(
        open_window(window),
        start=parse_instant(start) if start else None,
        end=parse_instant(end) if end else None,
        terms=terms,
    )
    click.echo(json.dumps(result, allow_nan=False, indent=2) if as_json else _table(result))


def _table(result: dict[str, Any]) -> str:
    return json.dumps(result, allow_nan=False, indent=2)
