"""`fit`: the saturation of a server from a table of loads, without any telemetry."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from vllm_capacity.sources.loadtests import load_test_points
from vllm_capacity.sources.points import read_points
from vllm_capacity.verdicts.points import fit_points


@click.command()
@click.argument("points", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print the saturation object as JSON.")
def fit(points: Path, as_json: bool) -> None:
    """Fit POINTS, a table of loads, and print the capacity it shows or lets foresee.

    POINTS is a CSV, or the JSON results of `guidellm benchmark` or `vllm bench serve`.

    Columns: running_requests and output_tokens_per_second; used if there: kv_cache_ratio. What the
    loads do not tell is printed as unknown, with how much more load it would take: no error.
    """
    is_result = points.suffix.lower() in (".json", ".jsonl")
    found = fit_points(load_test_points(points) if is_result else read_points(points))
    if as_json:
        click.echo(json.dumps(found, allow_nan=False))
        return
    for name in ("capacity_output_tokens_per_second", "capacity_running_requests"):
        click.echo(f"{name}: {_line(found[name])}")


def _line(estimate: dict[str, Any]) -> str:
    if estimate["mid"] is None:
        return f"unknown: {estimate['reason']}"
    low, mid, high = (f"{estimate[end]:,.1f}" for end in ("low", "mid", "high"))
    return f"{mid} ({low} to {high}); {estimate['basis']}"
