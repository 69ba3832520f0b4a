"""`figures`: the answer of a window. `cost`: its bill by engine, instance, model or label."""

from __future__ import annotations

import click

from vllm_capacity.cli.analysis_options import (
    analysis_of,
    as_text,
    assumption_options,
    json_options,
    one_window,
    window_options,
)
from vllm_capacity.cli.options import columns
from vllm_capacity.cli.settings import CostSettings, setting_options
from vllm_capacity.record import SCHEMA_VERSION

_verify = click.option(
    "--verify", is_flag=True, help="First check every byte of the window against its hashes."
)


@click.command(short_help="All figures and verdicts of a window, or of a part of it.")
@window_options
@assumption_options
@_verify
@json_options
def figures(
    argument: str | None,
    window: str | None,
    verify: bool,
    as_json: bool,
    schema_version: str,
    **given: object,
) -> None:
    """All figures and verdicts of WINDOW (a path, or a name), or of a part of it."""
    analysis = analysis_of(one_window(argument, window), given, verify=verify)
    if as_json:
        click.echo(as_text(analysis.answer, schema_version))
        return
    from vllm_capacity.render.terminal import figures_text  # rich and all: not for --json

    click.echo(figures_text(analysis, width=columns()), nl=False)


@click.command()
@window_options
@assumption_options
@_verify
@setting_options(CostSettings)
@json_options
def cost(
    argument: str | None,
    window: str | None,
    verify: bool,
    by: str,
    as_json: bool,
    schema_version: str,
    **given: object,
) -> None:
    """The bill of WINDOW shared out; the parts add up to the whole."""
    analysis = analysis_of(one_window(argument, window), given, verify=verify)
    if as_json:
        bill = analysis.bill_by(by)
        body = {"by": by, "whole": bill.whole, "parts": bill.parts, "surplus": analysis.surplus()}
        click.echo(as_text({**body, "schema_version": SCHEMA_VERSION}, schema_version))
        return
    from vllm_capacity.render.terminal import cost_text

    click.echo(cost_text(analysis, by=by, width=columns()), nl=False)
