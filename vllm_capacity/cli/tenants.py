"""`tenants`: the bill of a window by tenant, from a gateway's usage log."""

from __future__ import annotations

import os
import sys

import click

from vllm_capacity.cli.options import columns as width_of_terminal
from vllm_capacity.cli.options.against import day_of
from vllm_capacity.cli.options.analysis import (
    analysis_of,
    as_text,
    assumption_options,
    json_options,
    one_window,
    window_options,
)
from vllm_capacity.cli.options.settings import UsageSettings, setting_options, taken
from vllm_capacity.errors import InputError


@click.command(short_help="Cost of WINDOW by tenant, from a gateway's log.")
@window_options
@setting_options(UsageSettings)
@click.option("--show-keys", is_flag=True, help="Show keys unhashed.")
@click.option("--csv", "as_csv", is_flag=True, help="Print CSV, one row per tenant.")
@assumption_options
@json_options
def tenants(
    argument: str | None,
    window: str | None,
    show_keys: bool,
    as_csv: bool,
    as_json: bool,
    schema_version: str,
    **given: object,
) -> None:
    """Divide the bill of WINDOW among its tenants, by a gateway's log of requests.

    LiteLLM's spend logs, access logs of the Envoy AI gateway and nginx, any CSV or Parquet with
    key, time, prompt, cached and output tokens. The time of each engine step is shared among the
    requests that ran in it; the shares, with one for unlogged use, add up to the bill.

    \b
    vllm-capacity tenants monday --usage spend_logs.csv --usd-per-hour 1.64
    vllm-capacity tenants monday --usage access.log --usage-columns key=x-tenant-id --json

    Keys are personal data: they are hashed, with the secret in VLLM_CAPACITY_KEYS_SECRET.
    """  # noqa: D301  click's mark for a paragraph that is not to be wrapped
    if as_csv and as_json:
        raise InputError("Give --csv or --json, not both.")
    settings = taken(UsageSettings, given)
    analysis = analysis_of(one_window(argument, window), given)
    from vllm_capacity.cli.options.extra_inputs import ExtraInputs
    from vllm_capacity.render.sections.tenants import ADAPTERS, tenant_table, tenants_text
    from vllm_capacity.sources.records import pairs
    from vllm_capacity.sources.usage import KEYS_SECRET, Keys, read_usage
    from vllm_capacity.tenants import idle_rule
    from vllm_capacity.tenants import tenants as shared

    if not settings.files:
        raise InputError(
            "Give a gateway's log: --usage FILE. vLLM itself does not count by user."
            + (f" {ADAPTERS}" if analysis.adapters.height else "")
        )
    logs, missing = ExtraInputs(settings).logs(day_of(analysis.window.name))
    if missing:
        raise InputError(f"{missing[0]}.")
    log = read_usage(
        logs,
        columns=settings.columns,
        log_format=settings.log_format,
        keys=Keys(os.environ.get(KEYS_SECRET, ""), are_shown=show_keys),
    )
    aliases = pairs(settings.models)
    found = shared(analysis, log, idle=idle_rule(settings.idle), aliases=aliases)
    if as_json:
        click.echo(as_text(found, schema_version))
    elif as_csv:
        sys.stdout.write(tenant_table(found).to_csv())
    else:
        click.echo(tenants_text(analysis, found, width=width_of_terminal()), nl=False)
