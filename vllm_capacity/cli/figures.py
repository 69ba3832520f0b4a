"""`figures`: the answer of a window. `cost`: its bill by engine, instance, model or label."""

from __future__ import annotations

import json
from typing import Any

import click

from vllm_capacity.answers import answer, cost_by
from vllm_capacity.bills import unlabelled
from vllm_capacity.cli.screen import columns
from vllm_capacity.cli.terms import terms_of, terms_options
from vllm_capacity.telemetry.window import open_window

_verify = click.option(
    "--verify", is_flag=True, help="First check every byte of the window against its hashes."
)


@click.command(short_help="All figures and verdicts of a window, or of a part of it.")
@click.argument("window")
@terms_options
@_verify
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
def figures(window: str, verify: bool, as_json: bool, **given: object) -> None:
    """All figures and verdicts of WINDOW (a path, or a name), or of a part of it."""
    terms, start, end = terms_of(given)
    opened = open_window(window, verify=verify)
    told = answer(opened, start=start, end=end, terms=terms)
    if as_json:
        click.echo(as_text(told))
        return
    from vllm_capacity.pages.terminal import figures_text  # charts and all: not for --json

    said = figures_text(
        told, window_name=opened.name, is_simulated=opened.is_simulated, width=columns()
    )
    click.echo(said, nl=False)


@click.command()
@click.argument("window")
@terms_options
@_verify
@click.option("--by", default="engine", show_default=True, help="engine, instance, model, a label.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
def cost(window: str, verify: bool, by: str, as_json: bool, **given: object) -> None:
    """The bill of WINDOW shared out; the parts add up to the whole."""
    terms, start, end = terms_of(given)
    opened = open_window(window, verify=verify)
    told = cost_by(opened, by=by, start=start, end=end, terms=terms)
    if as_json:
        click.echo(as_text(told))
        return
    from vllm_capacity.pages.terminal import cost_text

    part = opened.clamp(start, end)
    said = cost_text(
        told,
        part=part,
        window_name=opened.name,
        is_simulated=opened.is_simulated,
        price_note=terms.usd_per_gpu_hour.basis if terms.usd_per_gpu_hour else "",
        unlabelled=unlabelled(opened, by=by, part=part),
        width=columns(),
    )
    click.echo(said, nl=False)


def as_text(told: dict[str, Any]) -> str:
    """The object as JSON; a number that is not finite is a defect, and raises."""
    return json.dumps(told, allow_nan=False, indent=2)
