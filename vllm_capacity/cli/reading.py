"""What click's own types let through: numbers past all measure, and addresses that are none."""

from __future__ import annotations

import click

from vllm_capacity.errors import InputError

_MOST = 1e12


def bounded(_: click.Context, option: click.Parameter, value: float | None) -> float | None:
    """An option's number, where it is one and within reason; for click's `callback`."""
    if value is not None and not abs(value) <= _MOST:
        raise click.BadParameter(f"{value} is no number up to {_MOST:g}.", param=option)
    return value


def checked_url(url: str) -> str:
    """The URL, where it can be read as one."""
    import httpx  # a start of the command line need not wait for it

    try:
        httpx.URL(url)
    except httpx.InvalidURL as error:
        raise InputError(f"Cannot read {url!r} as a URL: {error}.") from None
    return url
