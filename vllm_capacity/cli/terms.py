"""The options that say what telemetry cannot know: prices, GPUs, targets, the part of a window."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

import click

from vllm_capacity.bills import Terms
from vllm_capacity.cli.reading import FILE, bounded
from vllm_capacity.errors import InputError
from vllm_capacity.facts.fleet import load_fleet
from vllm_capacity.facts.prices import find_price, given_price
from vllm_capacity.timerange import parse_instant

_OPTIONS = (
    click.option("--start", help="Begin of a part, ISO 8601; without an offset it is UTC."),
    click.option("--end", help="End of the part; a sample at it is outside."),
    click.option(
        "--usd-per-hour", type=float, callback=bounded, help="Price of one GPU for an hour."
    ),
    click.option("--price", help="A row of data/gpu_prices.csv, by words of it."),
    click.option(
        "--fleet",
        type=FILE,
        help="Mapping file: GPUs and price of each instance, from when to when (CSV or YAML).",
    ),
    click.option(
        "--gpus-per-engine",
        type=float,
        callback=bounded,
        default=1.0,
        show_default=True,
        help="GPUs of one engine.",
    ),
    click.option(
        "--slo-ttft",
        type=float,
        callback=bounded,
        help="Target for the time to first token, seconds.",
    ),
    click.option(
        "--slo-itl",
        type=float,
        callback=bounded,
        help="Target for the inter-token latency, seconds.",
    ),
)


def one_window(argument: str | None, option: str | None) -> str:
    """The window that is named as WINDOW or with --window; InputError where not exactly once."""
    if argument is not None and option is not None:
        raise InputError(
            f"The window is given twice: {argument!r}, and --window {option!r}. Give it once."
        )
    named = argument if option is None else option
    if named is None:
        raise InputError("Say which window, by its name or path: WINDOW, or --window WINDOW.")
    return named


def terms_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options above, on a command."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def terms_of(given: Mapping[str, Any]) -> tuple[Terms, datetime | None, datetime | None]:
    """The terms and the part that these options name; InputError where a price is given twice."""
    ways = [name for name in ("usd_per_hour", "price", "fleet") if given[name] is not None]
    if len(ways) > 1:
        named = " and ".join("--" + way.replace("_", "-") for way in ways)
        raise InputError(f"The price is given by {named}; give it one way.")
    price = None
    if given["usd_per_hour"] is not None:
        price = given_price(given["usd_per_hour"])
    elif given["price"] is not None:
        price = find_price(given["price"]).usd
    terms = Terms(
        usd_per_gpu_hour=price,
        gpus_per_engine=given["gpus_per_engine"],
        ttft_slo_seconds=given["slo_ttft"],
        itl_slo_seconds=given["slo_itl"],
        fleet=load_fleet(given["fleet"]) if given["fleet"] is not None else (),
    )
    start, end = (_instant(given[name]) for name in ("start", "end"))
    return terms, start, end


def _instant(text: str | None) -> datetime | None:
    return None if text is None else parse_instant(text)
