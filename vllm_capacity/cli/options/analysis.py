"""Options of commands that analyze a window: assumptions beyond telemetry, and `--json`."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import click

from vllm_capacity.assumptions import Assumptions, Hardware, Slo, pricing
from vllm_capacity.cli.options.settings import (
    HardwareSettings,
    PriceSettings,
    setting_options,
    taken,
)
from vllm_capacity.errors import InputError
from vllm_capacity.interface import version_1
from vllm_capacity.record import SCHEMA_VERSION, many_records, plain
from vllm_capacity.timerange import parse_instant

if TYPE_CHECKING:
    from vllm_capacity.analysis import Analysis


def json_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add `--json` and `--schema-version` to a command."""
    version = click.option(
        "--schema-version",
        type=click.Choice(["1", str(SCHEMA_VERSION)]),
        default=str(SCHEMA_VERSION),
        show_default=True,
        help="Keys of --json; 1 is deprecated.",
    )
    flag = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
    return flag(version(command))


def as_text(result: object, schema_version: str = str(SCHEMA_VERSION)) -> str:
    """A result as JSON; a non-finite number is a bug, and raises.

    Version 1 is printed with a deprecation warning on stderr.
    """
    with many_records():
        body = plain(result)
    if schema_version == "1" and isinstance(body, Mapping):
        click.echo(
            "vllm-capacity: --schema-version 1 is deprecated and goes with the next release; the "
            "keys of version 2 are in docs/interface.md.",
            err=True,
        )
        body = version_1(body)
    return json.dumps(body, allow_nan=False, indent=2)


_RANGE = (
    click.option("--start", help="Start time, ISO 8601 (UTC if it has no offset)."),
    click.option("--end", help="End time, exclusive."),
)
_EXACT = click.option(
    "--exact",
    is_flag=True,
    help="Read every scrape even for ranges over six hours: slower, with steps under a minute.",
)


def window_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the window, as WINDOW or `--window`, to a command; `one_window` reads both."""
    option = click.option("--window", help="The window, if not given as WINDOW.")
    return click.argument("argument", metavar="[WINDOW]", required=False)(option(command))


def one_window(argument: str | None, option: str | None) -> str:
    """The window given as WINDOW or with --window; InputError unless given exactly once."""
    if argument is not None and option is not None:
        raise InputError(
            f"The window is given twice: {argument!r}, and --window {option!r}. Give it once."
        )
    named = argument if option is None else option
    if named is None:
        raise InputError("Give a window by name or path: WINDOW, or --window WINDOW.")
    return named


def range_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add `--start` and `--end` to a command."""
    for option in reversed(_RANGE):
        command = option(command)
    return command


def assumption_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the inputs of an analysis besides its window to a command."""
    return range_options(_EXACT(setting_options(PriceSettings, Slo, HardwareSettings)(command)))


def price_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add only the price options, for commands without a time range and latency targets."""
    return setting_options(PriceSettings)(command)


def assumptions_of(given: Mapping[str, Any]) -> Assumptions:
    """The assumptions of these options; InputError if a price is given twice."""
    price = taken(PriceSettings, given)
    if len(ways := _ways(price)) > 1:
        named = " and ".join("--" + way.replace("_", "-") for way in ways)
        raise InputError(f"The price is given by {named}; give it one way.")
    hardware = taken(HardwareSettings, given)
    paid = price.price if price.usd_per_hour is None else price.usd_per_hour
    return Assumptions(
        pricing(paid, gpus_per_engine=price.gpus_per_engine, price_rules=price.fleet),
        taken(Slo, given),
        Hardware(hardware.gpu, hardware.model),
    )


def _ways(price: PriceSettings) -> list[str]:
    ways = ("usd_per_hour", "price", "fleet")
    return [way for way in ways if getattr(price, way) is not None]


def analysis_of(window: str, given: Mapping[str, Any], *, verify: bool = False) -> Analysis:
    """The analysis of a window (path or name) with these options."""
    from vllm_capacity.analysis import Analysis  # polars, duckdb and all: not for --help
    from vllm_capacity.live.running import open_recorded
    from vllm_capacity.telemetry.memory import keep_freed_memory

    keep_freed_memory()
    opened = open_recorded(window, verify=verify)
    start, end = (
        None if given.get(name) is None else parse_instant(given[name]) for name in ("start", "end")
    )
    return Analysis.of(opened, start, end, assumptions_of(given), exact=bool(given.get("exact")))
