"""`compare`: what changed between two windows, and whether it is more than noise."""

from __future__ import annotations

from typing import Any

import click

from vllm_capacity.cli.options import bounded, columns
from vllm_capacity.cli.options.analysis import (
    analysis_of,
    as_text,
    json_options,
    price_options,
)
from vllm_capacity.timerange import named_range


@click.command(short_help="Show what changed from window A to B, beyond noise.")
@click.argument("a")
@click.argument("b")
@click.option(
    "--usd-per-hour-b",
    type=float,
    callback=bounded,
    help="Price per GPU-hour in B, if it differs from A's.",
)
@price_options
@click.option(
    "--exact", is_flag=True, help="Read every scrape even for ranges over six hours (slower)."
)
@json_options
def compare(
    a: str,
    b: str,
    usd_per_hour_b: float | None,
    as_json: bool,
    schema_version: str,
    **given: Any,  # noqa: ANN401  as click hands them over
) -> None:
    """Show what changed from window A to window B, at the same load and mix, beyond noise.

    A and B are names or paths, optionally with a time range: NAME@START..END (either end may be
    omitted). Did the upgrade pay? Compare the day before with the day after.

    A figure counts as changed if its 99 % interval excludes no change; over all figures, at most
    one comparison in twenty reports a change by chance.
    """
    from vllm_capacity.comparison import compare as compared

    other = dict(given)
    if usd_per_hour_b is not None:
        other |= {"usd_per_hour": usd_per_hour_b, "price": None, "fleet": None}
    found = compared(_analysis(a, given), _analysis(b, other))
    if as_json:
        click.echo(as_text(found, schema_version))
        return
    from vllm_capacity.render.sections.comparison import comparison_text

    click.echo(comparison_text(found, width=columns()), nl=False)


def _analysis(named: str, given: dict[str, Any]) -> Any:  # noqa: ANN401  imported late
    """The analysis of NAME or NAME@START..END."""
    name, start, end = named_range(named)
    return analysis_of(name, {**given, "start": start, "end": end})
