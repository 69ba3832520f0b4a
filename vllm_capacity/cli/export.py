"""`export`: the figures of a window in the formats of other tools."""

from __future__ import annotations

import sys
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import click

from vllm_capacity.cli.options import FILE, file_to_write
from vllm_capacity.cli.options.analysis import analysis_of, assumption_options, one_window
from vllm_capacity.errors import InputError

if TYPE_CHECKING:
    from vllm_capacity.render.exports.currency import Currency

FORMATS = (
    *("csv", "parquet", "json", "markdown"),
    *("focus", "focus-1.2", "prometheus", "litellm"),
)


@click.command(short_help="Export WINDOW or REPORTS as CSV, Parquet, FOCUS and others.")
@click.argument("argument", metavar="[WINDOW|REPORTS]", required=False)
@click.option("--window", help="The window, if not given as WINDOW.")
@click.option("--to", required=True, type=click.Choice(FORMATS), help="The format.")
@click.option(
    "--out",
    type=FILE,
    callback=file_to_write,
    help="File to write; default: standard output.",
)
@click.option(
    "--currency",
    metavar="CODE=RATE@DAY",
    help="Currency instead of USD, with its dated rate per dollar (EUR=0.92@2026-11-28).",
)
@assumption_options
def export(
    argument: str | None,
    window: str | None,
    to: str,
    out: Path | None,
    currency: str | None,
    **given: object,
) -> None:
    """Write the figures of WINDOW (a path or a name) or REPORTS (a folder) for another tool.

    \b
    csv, parquet, json  every figure, of the fleet and of each model and engine
    markdown            the verdict, short enough for a chat message
    focus, focus-1.2    the bill for FinOps tools: FOCUS 1.4, or 1.2; needs a price
    prometheus          a textfile for node_exporter: cost, utilization, capacity
    litellm             prices per token, so that LiteLLM does not count $0

    Of REPORTS, the pages of a nightly run, csv, parquet, json and focus contain every night, the
    other formats the newest. Everything comes from the pages: nothing is pulled, and prices are as
    reported.

    Unknown values are empty, never 0; bounds are marked "at least" or "at most".
    """  # noqa: D301  click's mark for a paragraph that is not to be wrapped
    name = one_window(argument, window)
    if to == "parquet" and out is None:
        raise InputError("Parquet is binary; give a file with --out FILE.parquet.")
    from vllm_capacity.render.exports.currency import USD, parse_currency
    from vllm_capacity.render.report.files import write_whole

    money = USD if currency is None else parse_currency(currency)
    made = _of_reports(Path(name), to, money) or _of_window(name, given, to, money)
    if out is not None:
        write_whole(out, made)
        click.echo(out)
    elif isinstance(made, str):
        sys.stdout.write(made)


def _of_window(name: str, given: Mapping[str, object], to: str, money: Currency) -> str | bytes:
    from vllm_capacity.render.exports import export as exported

    return exported(analysis_of(name, given), to, money)


def _of_reports(path: Path, to: str, money: Currency) -> str | bytes | None:
    """The reports of a folder in the format, notes on stderr; None if the folder has none."""
    from vllm_capacity.render.exports.reports import are_reports, export_reports, read_reports

    if not are_reports(path):
        return None
    if typed := _typed_options(("to", "out", "currency", "argument", "window")):
        raise InputError(
            f"{path} contains reports, whose prices and times are fixed: remove "
            f"--{typed[0].replace('_', '-')}. For another price: `vllm-capacity reprice PAGE`."
        )
    made, notes = export_reports(read_reports(path), to, money)
    for note in notes:
        click.echo(f"vllm-capacity: {note}", err=True)
    return made


def _typed_options(others: Collection[str]) -> list[str]:
    """The options on the command line other than these, by parameter name."""
    context, typed = click.get_current_context(), click.core.ParameterSource.COMMANDLINE
    given = (name for name in context.params if context.get_parameter_source(name) is typed)
    return [name for name in given if name not in others]
