"""`plan`: replicas, other GPUs and dollars per month for a window's traffic."""

from __future__ import annotations

import click

from vllm_capacity.cli.options import bounded, columns
from vllm_capacity.cli.options.analysis import (
    analysis_of,
    as_text,
    assumption_options,
    json_options,
    one_window,
    window_options,
)


@click.command(short_help="Plan GPUs, replicas and cost per month for a window's load.")
@window_options
@click.option("--gpus", "to_gpus", help="GPUs to compare, comma-separated; default: all known.")
@click.option(
    "--demand",
    type=float,
    callback=bounded,
    help="Requests per second; default: the observed p95.",
)
@click.option(
    "--headroom",
    type=float,
    callback=bounded,
    default=0.2,
    show_default=True,
    help="Share of capacity to keep free, 0..1.",
)
@click.option(
    "--spares",
    type=click.IntRange(0, 1_000_000),  # same as verdicts.sizing, which --help must not import
    default=1,
    show_default=True,
    help="Spare replicas, which may fail.",
)
@click.option(
    "--startup-seconds",
    type=float,
    default=300.0,
    callback=bounded,
    show_default=True,
    help="Start-up time of a replica.",
)
@click.option(
    "--growth-per-hour",
    type=float,
    default=0.0,
    callback=bounded,
    show_default=True,
    help="Fastest growth of demand per hour; 0.1 is 10 %.",
)
@assumption_options
@json_options
def plan(
    argument: str | None,
    window: str | None,
    to_gpus: str | None,
    demand: float | None,
    headroom: float,
    spares: int,
    startup_seconds: float,
    growth_per_hour: float,
    as_json: bool,
    schema_version: str,
    **given: object,
) -> None:
    """Plan which GPUs, how many, and their cost per month, for the traffic of WINDOW.

    WINDOW is a path or a name.
    """
    from vllm_capacity.plan import PlanRequest  # polars, duckdb and all: not for --help
    from vllm_capacity.plan import plan as plan_of
    from vllm_capacity.verdicts.sizing import Policy

    request = PlanRequest(
        demand_requests_per_second=demand,
        to_gpus=() if to_gpus is None else tuple(name.strip() for name in to_gpus.split(",")),
        policy=Policy(headroom, spares, startup_seconds, growth_per_hour),
    )
    analysis = analysis_of(one_window(argument, window), given)
    found = plan_of(analysis, request)
    if as_json:
        click.echo(as_text(found, schema_version))
        return
    from vllm_capacity.render.terminal import plan_text

    click.echo(plan_text(analysis, found, width=columns()), nl=False)
