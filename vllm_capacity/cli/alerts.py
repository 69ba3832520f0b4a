"""`alerts`: the alert rules on a window, for cron and CI: exit code 1 when one fires."""

from __future__ import annotations

import json
import sys
from datetime import timedelta

import click

from vllm_capacity.alerts import RULES, with_thresholds
from vllm_capacity.alerts import alerts as outcomes
from vllm_capacity.answers import answer
from vllm_capacity.errors import InputError
from vllm_capacity.telemetry.window import open_window
from vllm_capacity.timerange import parse_duration_seconds

_MARKS = {"fired": "FIRED  ", "quiet": "quiet  ", "unknown": "unknown"}


@click.command()
@click.option("--window", "name", required=True, help="A window: a path, or a name.")
@click.option("--over", default="5m", show_default=True, help="The window's last 5m, 1h, or `all`.")
@click.option(
    "--above",
    "changes",
    multiple=True,
    metavar="ALERT=NUMBER",
    help=f"Another threshold, for {', '.join(rule.name for rule in RULES)}.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON list on stdout.")
def alerts(name: str, over: str, changes: tuple[str, ...], as_json: bool) -> None:
    """Evaluate the alert rules on the end of a window; exit code 1 when one fires.

    The rules that Parseable cannot evaluate (percentiles, counter rates), the others, and absence
    of data. A figure that is not known is told as unknown, and is never taken for 0.
    """
    rules = with_thresholds(_thresholds(changes))
    window = open_window(name)
    start = None
    if over != "all":
        start = window.extent.end - timedelta(seconds=parse_duration_seconds(over))
    figures = answer(window, start=start)
    found = outcomes(figures, rules)
    if as_json:
        click.echo(json.dumps([one.as_dict() for one in found], allow_nan=False, indent=2))
    else:
        for one in found:
            click.echo(f"{_MARKS[one.state]} {one.sentence}")
    if any(one.state == "fired" for one in found):
        sys.exit(1)


def _thresholds(changes: tuple[str, ...]) -> dict[str, float]:
    found = {}
    for change in changes:
        name, _, number = change.partition("=")
        try:
            found[name] = float(number)
        except ValueError:
            raise InputError(f"Cannot read --above {change!r}; try waiting=20.") from None
    return found
