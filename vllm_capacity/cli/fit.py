"""`fit`: the saturation of a server from a table of loads, without any telemetry."""

from __future__ import annotations

import json
from pathlib import Path

import click

from vllm_capacity.cli.options import FILE, columns
from vllm_capacity.render.terminal import fit_text
from vllm_capacity.sources.loadtests import load_test_points
from vllm_capacity.sources.points import read_points
from vllm_capacity.verdicts.saturation.load_test import fit_points


@click.command(short_help="The capacity that a table of loads shows, or lets extrapolate.")
@click.argument("points", type=FILE)
@click.option("--json", "as_json", is_flag=True, help="Print the saturation object as JSON.")
def fit(points: Path, as_json: bool) -> None:
    """Fit POINTS, a table of loads, and print the capacity it shows, or lets extrapolate.

    POINTS is a CSV, or the JSON results of `guidellm benchmark` or `vllm bench serve`.

    Columns: running_requests and output_tokens_per_second; used if there: kv_cache_ratio. What the
    loads do not tell is printed as not known, with how much more load it would take: no error.
    """
    is_result = points.suffix.lower() in (".json", ".jsonl")
    found = fit_points(load_test_points(points) if is_result else read_points(points))
    if as_json:
        click.echo(json.dumps(found.as_dict(), allow_nan=False))
        return
    click.echo(fit_text(found, width=columns()), nl=False)
