"""`reprice`: the money figures of a report at another price, without its telemetry."""

from __future__ import annotations

from pathlib import Path

import click
from click.core import ParameterSource

from vllm_capacity.cli.options import FILE, columns
from vllm_capacity.cli.options.analysis import (
    as_text,
    assumptions_of,
    json_options,
    price_options,
)


@click.command(short_help="Recompute a report's costs at another price, without telemetry.")
@click.argument("report", type=FILE)
@price_options
@json_options
def reprice(report: Path, as_json: bool, schema_version: str, **given: object) -> None:
    """Show the bill and all cost figures of a report's page at another price, without pulling.

    The page stores the data behind its bill, so the window is not needed. Engines keep their GPUs,
    unless --gpus-per-engine is given, and utilization is as reported. The page is not changed.
    """
    from vllm_capacity.render.report.reprice import repriced
    from vllm_capacity.render.sections.cost import repriced_table

    pricing = assumptions_of(given).pricing
    source = click.get_current_context().get_parameter_source("gpus_per_engine")
    is_typed = source is ParameterSource.COMMANDLINE
    found = repriced(report, pricing, gpus_per_engine=pricing.gpus_per_engine if is_typed else None)
    if as_json:
        click.echo(as_text(found, schema_version))
    else:
        click.echo(repriced_table(found).to_text(columns()), nl=False)
