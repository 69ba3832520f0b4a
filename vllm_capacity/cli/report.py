"""`report`: a notebook run on a window, or on each day of a source, as HTML pages."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
from msgspec.structs import replace

from vllm_capacity.assumptions import TARGETS, Slo
from vllm_capacity.cli.options import progress_bar
from vllm_capacity.cli.options.against import day_of, window_against
from vllm_capacity.cli.options.analysis import (
    assumptions_of,
    one_window,
    range_options,
    window_options,
)
from vllm_capacity.cli.options.extra_inputs import ExtraInputs
from vllm_capacity.cli.options.settings import (
    DaySettings,
    HardwareSettings,
    InvoiceSettings,
    PageSettings,
    PriceSettings,
    SourceSettings,
    UsageSettings,
    setting_options,
    taken,
)
from vllm_capacity.errors import InputError, needing_extra
from vllm_capacity.render.report.pdf import find_browser, print_pdf
from vllm_capacity.render.report.run import given_parameters
from vllm_capacity.render.report.write import (
    DEFAULT_NOTEBOOK,
    EXAMPLES,
    PRICE_PARAMETERS,
    ReportOrder,
    rows_of,
    write_report,
)
from vllm_capacity.resources import shipped


@click.command(short_help="Write HTML reports of a window, or of each day of a source.")
@window_options
@setting_options(SourceSettings, DaySettings)
@range_options
@setting_options(PriceSettings, Slo, HardwareSettings, PageSettings, UsageSettings, InvoiceSettings)
@click.option(
    "-p",
    "--parameter",
    "pairs",
    multiple=True,
    metavar="NAME=VALUE",
    help="A parameter of the notebook; repeatable.",
)
@click.option(
    "--examples", is_flag=True, help="Report the example windows, with their own parameters."
)
def report(
    argument: str | None,
    window: str | None,
    pairs: tuple[str, ...],
    examples: bool,
    **given: Any,  # noqa: ANN401  values of many types, by the names of settings
) -> None:
    """Run a notebook on a window and write an HTML page, and an index of the folder's pages.

    The page needs no network and no server. If anything fails, nothing is written. Printed, with
    --pdf or from a browser, it contains the answer and its charts. With --against, it shows what
    changed since another window, at the same load and mix, and possible reasons.

    With --from, or a source in the settings file and no WINDOW: a page for each day, for cron. Days
    that a run missed are added, days with late samples are made again, and of two runs at once the
    second ends with exit code 3. Exit code 2: a day had no data; 3: the source does not answer. The
    next run tries again.
    """
    page = taken(PageSettings, given)
    if examples and (argument or window or pairs or any(map(_is_typed, ("notebook", "zone")))):
        raise InputError("--examples has its own windows and parameters; remove the others.")
    browser = find_browser() if page.has_pdf else None
    if examples:
        for parameters in EXAMPLES:
            _written(_order(page, _notebook(None), parameters), browser)
        return
    parameters = _parameters(pairs, given, page)
    against = _against(page, parameters)
    is_named = argument is not None or window is not None or "window" in parameters
    order = _order(page, _notebook(page.notebook), parameters)
    extra = _extra_inputs(given, parameters)
    if _has_source(given, is_named=is_named):
        _days(order, given, browser, against, extra)
        return
    if argument is not None or window is not None:
        if "window" in parameters:
            raise InputError(
                "The window is given twice: as WINDOW or --window, and with -p window=…."
            )
        parameters = {"window": one_window(argument, window), **parameters}
    if against is not None:
        named, kept = str(parameters.get("window", "")), taken(DaySettings, given).windows
        found = window_against(against, named, kept, is_typed=_is_typed("against"))
        parameters |= {} if found is None else {"against": found}
    parameters = {**_inputs(extra, str(parameters.get("window", ""))), **parameters}
    _written(replace(order, parameters=parameters), browser)


_OPTION_OF = {
    "time_zone": "zone",
    "by": "group",
    "usage": "files",
    "usage_columns": "columns",
    "usage_models": "models",
    "usage_log_format": "log_format",
}
"""The options that set parameters with other names."""


_OF_USAGE = ("usage", "usage_columns", "usage_models", "usage_log_format")
_OF_INVOICE = ("invoice", "invoice_columns")


def _against(page: PageSettings, parameters: Mapping[str, object]) -> str | None:
    """The comparison by the option or the settings; `-p against=…` takes precedence."""
    if page.against is None or "against" not in parameters:
        return page.against
    if _is_typed("against"):
        raise InputError("against is given twice: as an option, and with -p against=….")
    return None


def _has_source(given: Mapping[str, Any], *, is_named: bool) -> bool:
    """Whether days of a source are requested; InputError if a window is, too."""
    typed = [name for name in ("origin", "stream", "last", "keep") if _is_typed(name)]
    if typed and is_named:
        raise InputError("Give a window, or --from and --last for days of a source, not both.")
    if typed and given["origin"] is None:
        raise InputError(f"--{typed[0]} applies to days that are pulled: add --from SOURCE.")
    return given["origin"] is not None and not is_named


def _is_typed(name: str) -> bool:
    """Whether the option is on the command line, not only in the settings file.

    A notebook parameter counts as typed if an option that sets it is.
    """
    typed = click.core.ParameterSource.COMMANDLINE
    given = click.get_current_context().get_parameter_source
    options = {"slo": tuple(TARGETS)}.get(name, (_OPTION_OF.get(name, name),))
    return any(given(each) is typed for each in options)


def _extra_inputs(given: Mapping[str, Any], parameters: Mapping[str, object]) -> ExtraInputs:
    """The logs and the invoice for pages; values of `-p` take precedence over the settings.

    InputError for a value given both as an option and with -p.
    """
    for names in (_OF_USAGE, _OF_INVOICE):
        if names[0] in parameters and any(map(_is_typed, names)):
            raise InputError(f"{names[0]} is given twice: as an option, and with -p {names[0]}=….")
    usage = UsageSettings() if "usage" in parameters else taken(UsageSettings, given)
    invoice = InvoiceSettings() if "invoice" in parameters else taken(InvoiceSettings, given)
    return ExtraInputs(usage, invoice)


def _inputs(extra: ExtraInputs, window: str) -> dict[str, object]:
    """The inputs of a window's page besides telemetry.

    A missing file is an error if it was typed, and a line on stderr if it is from the settings.
    """
    found = extra.of_window(day_of(Path(window).name))
    for line in found.missing:
        if _is_typed("usage") or _is_typed("invoice"):
            raise InputError(f"{line}.")
        click.echo(f"vllm-capacity: {line}: the report is made without it.", err=True)
    return found.parameters


def _days(
    page: ReportOrder,
    given: Mapping[str, Any],
    browser: Path | None,
    against: str | None,
    extra: ExtraInputs,
) -> None:
    """Make the pages of a source's days, printing each name on stdout; raise what is missing."""
    if given["start"] is not None or given["end"] is not None:
        raise InputError("With --from, choose the days with --last; remove --start and --end.")
    from vllm_capacity.cli.nights import Night, missing_days, night  # slow: only for pulls

    assumptions_of(given)  # report an invalid price before anything is pulled
    source, days = taken(SourceSettings, given), taken(DaySettings, given)
    order = Night.of(source, days, page, against=against, extra=extra)
    now = datetime.now(UTC)
    with needing_extra("report"), progress_bar(f"Running {page.notebook.name}") as progress:
        done = night(
            order, now=now, environment=os.environ, cache=_cache_folder(), progress=progress
        )
    for path in done.pages:
        _print_written(path, browser)
    for note in done.notes:
        click.echo(f"vllm-capacity: {note}", err=True)
    if not done.pages and sys.stderr.isatty() and not done.failure:
        click.echo("Every day already has its report.", err=True)
    if done.failure is not None:
        raise done.failure
    missing_days(done)


def _order(page: PageSettings, notebook: Path, parameters: Mapping[str, object]) -> ReportOrder:
    return ReportOrder(
        notebook,
        parameters,
        page.out,
        has_appendix=page.has_appendix,
        has_rows=page.has_rows,
    )


def _written(order: ReportOrder, browser: Path | None) -> None:
    with needing_extra("report"), progress_bar(f"Running {order.notebook.name}") as progress:
        path = write_report(
            order, made_at=datetime.now(UTC), cache=_cache_folder(), progress=progress
        )
    _print_written(path, browser)
    if order.has_rows:
        click.echo(rows_of(path))


def _print_written(page: Path, browser: Path | None) -> None:
    """Print a page's name on stdout; with a browser, also print it to PDF and name that."""
    click.echo(page)
    if browser is not None:
        click.echo(print_pdf(page, browser))


def _parameters(
    pairs: tuple[str, ...], given: Mapping[str, Any], page: PageSettings
) -> dict[str, object]:
    """The notebook's parameters from options, then those of `-p`; InputError if typed as both."""
    hardware = taken(HardwareSettings, given)
    price, slo, days = taken(PriceSettings, given), taken(Slo, given), taken(DaySettings, given)
    options: dict[str, object] = {
        "start": given["start"],
        "end": given["end"],
        "usd_per_hour": price.usd_per_hour,
        "price": price.price,
        "fleet": None if price.fleet is None else str(price.fleet),
        "gpus_per_engine": None if price.gpus_per_engine == 1.0 else price.gpus_per_engine,
        "slo": slo.text or None,
        "time_zone": None if days.zone == DaySettings.zone else days.zone,
        "by": page.group,
        "gpu": hardware.gpu,
        "model": hardware.model,
    }
    by_pair = given_parameters(pairs)
    by_option = {name: value for name, value in options.items() if value is not None}
    if any(name in by_pair for name in PRICE_PARAMETERS):  # it then replaces the settings file's
        by_option = {
            name: value
            for name, value in by_option.items()
            if name not in PRICE_PARAMETERS or _is_typed(name)
        }
    if twice := sorted(name for name in by_option.keys() & by_pair.keys() if _is_typed(name)):
        raise InputError(f"{twice[0]} is given twice: as an option, and with -p {twice[0]}=….")
    return {**by_option, **by_pair}


def _notebook(name: str | None) -> Path:
    """The notebook at that path, or the shipped one of that name, with or without suffix."""
    if name is None:
        return shipped(f"notebooks/{DEFAULT_NOTEBOOK}")
    if Path(name).is_file():
        return Path(name)
    folder = shipped("notebooks")
    for candidate in (folder / name, folder / f"{name}.ipynb"):
        if candidate.is_file():
            return candidate
    names = ", ".join(sorted(path.name for path in folder.glob("*.ipynb")))
    raise InputError(f"There is no notebook {name!r}. Included are: {names or 'none'}.")


def _cache_folder() -> Path:
    """The folder that keeps the drawing runtime between runs."""
    root = os.environ.get("XDG_CACHE_HOME")
    return (Path(root) if root else Path.home() / ".cache") / "vllm-capacity"
