"""`figures`: the answer of a window. `cost`: its bill by engine, instance, model or label."""

from __future__ import annotations

from pathlib import Path

import click

from vllm_capacity.cli.options import columns
from vllm_capacity.cli.options.analysis import (
    analysis_of,
    as_text,
    assumption_options,
    json_options,
    one_window,
    window_options,
)
from vllm_capacity.cli.options.settings import CostSettings, InvoiceSettings, setting_options
from vllm_capacity.record import SCHEMA_VERSION, plain

_verify = click.option(
    "--verify", is_flag=True, help="First verify the window's files against their hashes."
)


@click.command(short_help="Show all figures and verdicts of a window, or of part of it.")
@window_options
@assumption_options
@_verify
@click.option(
    "--by",
    "group",  # not the name in the settings, which is that of `cost`
    help="Instead, show counts, usage and cost by model, instance, engine or label.",
)
@json_options
def figures(
    argument: str | None,
    window: str | None,
    verify: bool,
    group: str | None,
    as_json: bool,
    schema_version: str,
    **given: object,
) -> None:
    """Show all figures and verdicts of WINDOW (a path or a name), or of part of it."""
    analysis = analysis_of(one_window(argument, window), given, verify=verify)
    if as_json:
        groups = {**plain(analysis.by(group)), "schema_version": SCHEMA_VERSION} if group else None
        click.echo(as_text(groups or analysis.answer, schema_version))
        return
    from vllm_capacity.render.terminal import figures_text, groups_text  # rich: not for --json

    text = groups_text(analysis, by=group, width=columns()) if group else None
    click.echo(text or figures_text(analysis, width=columns()), nl=False)


@click.command()
@window_options
@assumption_options
@_verify
@setting_options(CostSettings, InvoiceSettings)
@json_options
def cost(
    argument: str | None,
    window: str | None,
    verify: bool,
    by: str,
    invoice: Path | None,
    invoice_columns: str,
    as_json: bool,
    schema_version: str,
    **given: object,
) -> None:
    """Divide the bill of WINDOW by engine, model or label.

    The parts add up to the bill. With --invoice, also show what the cloud charged for that time and
    explain the difference: by hours, price, or time without a charge.
    """
    analysis = analysis_of(one_window(argument, window), given, verify=verify)
    found = None
    if invoice is not None:
        from vllm_capacity.sources.invoices import read_invoice

        charges = read_invoice(invoice, columns=invoice_columns)
        found = analysis.reconciled(charges)
    if as_json:
        bill = analysis.bill_by(by)
        body = {"by": by, "whole": bill.whole, "parts": bill.parts, "surplus": analysis.surplus()}
        body |= {} if found is None else {"invoice": found}
        click.echo(as_text({**body, "schema_version": SCHEMA_VERSION}, schema_version))
        return
    from vllm_capacity.render.terminal import cost_text

    click.echo(cost_text(analysis, by=by, width=columns()), nl=False)
    if found is not None:
        from vllm_capacity.render.sections.invoice import invoice_table

        click.echo("\nInvoice\n" + invoice_table(found, charges).to_text(columns()), nl=False)
