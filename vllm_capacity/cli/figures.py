"""`figures`: the answer of a window. `cost`: its bill by engine, instance, model or label."""

from __future__ import annotations

import json
from typing import Any

import click

from vllm_capacity.answers import answer, cost_by
from vllm_capacity.cli.terms import terms_of, terms_options
from vllm_capacity.telemetry.window import open_window


@click.command()
@click.argument("window")
@terms_options
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
def figures(window: str, as_json: bool, **given: object) -> None:
    """All figures and verdicts of WINDOW (a path, or a name), or of a part of it."""
    terms, start, end = terms_of(given)
    result = answer(open_window(window), start=start, end=end, terms=terms)
    _print(result, as_json)


@click.command()
@click.argument("window")
@terms_options
@click.option("--by", default="engine", show_default=True, help="engine, instance, model, a label.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
def cost(window: str, by: str, as_json: bool, **given: object) -> None:
    """The bill of WINDOW shared out; the parts add up to the whole."""
    terms, start, end = terms_of(given)
    _print(cost_by(open_window(window), by=by, start=start, end=end, terms=terms), as_json)


def _print(result: dict[str, Any], as_json: bool) -> None:
    click.echo(json.dumps(result, allow_nan=False, indent=2))
