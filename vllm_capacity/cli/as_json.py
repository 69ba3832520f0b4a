"""`--json`: a result as one JSON object, in the interface's present version or the one before."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import click

from vllm_capacity.answer import SCHEMA_VERSION
from vllm_capacity.interface import version_1
from vllm_capacity.record import plain


def json_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """`--json` and `--schema-version`, on a command."""
    version = click.option(
        "--schema-version",
        type=click.Choice(["1", str(SCHEMA_VERSION)]),
        default=str(SCHEMA_VERSION),
        show_default=True,
        help="Keys of --json; 1 is deprecated.",
    )
    flag = click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
    return flag(version(command))


def as_text(result: object, schema_version: str = str(SCHEMA_VERSION)) -> str:
    """A result as JSON; a number that is not finite is a defect, and raises.

    Version 1 is printed with a deprecation warning on stderr.
    """
    body = plain(result)
    if schema_version == "1" and isinstance(body, Mapping):
        click.echo(
            "vllm-capacity: --schema-version 1 is deprecated and goes with the next release; the "
            "keys of version 2 are in the README.",
            err=True,
        )
        body = version_1(body)
    return json.dumps(body, allow_nan=False, indent=2)
