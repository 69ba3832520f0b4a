"""`alerts`: the alert rules on a window, for cron and CI: exit code 1 when one fires."""

from __future__ import annotations

import json
import math
import sys
from datetime import timedelta

import click

from vllm_capacity.alerts import RULES, with_thresholds
from vllm_capacity.alerts import alerts as outcomes
from vllm_capacity.analysis import Analysis
from vllm_capacity.cli.analysis_options import one_window
from vllm_capacity.cli.options import columns
from vllm_capacity.errors import InputError
from vllm_capacity.live.running import open_recorded
from vllm_capacity.timerange import parse_duration_seconds


@click.command(short_help="The alert rules on a window; exit code 1 when one fires.")
@click.argument("argument", metavar="[WINDOW]", required=False)
@click.option("--window", help="The window, if not given as WINDOW.")
@click.option("--over", default="5m", show_default=True, help="The window's last 5m, 1h, or `all`.")
@click.option(
    "--above",
    "changes",
    multiple=True,
    metavar="ALERT=NUMBER",
    help=f"Another threshold, for {', '.join(rule.name for rule in RULES)}.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON list on stdout.")
def alerts(
    argument: str | None, window: str | None, over: str, changes: tuple[str, ...], as_json: bool
) -> None:
    """Evaluate the alert rules on the end of WINDOW; exit code 1 when one fires.

    WINDOW is a path, or a name.

    The rules that Parseable cannot evaluate (percentiles, counter rates), the others, and absence
    of data. A figure that is not known is shown as unknown, and never taken for 0.
    """
    rules = with_thresholds(_thresholds(changes))
    opened = open_recorded(one_window(argument, window))
    start = None
    if over != "all":
        whole = opened.extent
        seconds = min(parse_duration_seconds(over), whole.seconds)
        start = whole.end - timedelta(seconds=seconds)
    found = outcomes(Analysis.of(opened, start).answer, rules)
    if as_json:
        click.echo(json.dumps([one.as_dict() for one in found], allow_nan=False, indent=2))
    else:
        from vllm_capacity.render.terminal import alerts_text

        click.echo(alerts_text(found, width=columns()), nl=False)
    if any(one.state == "fired" for one in found):
        sys.exit(1)


def _thresholds(changes: tuple[str, ...]) -> dict[str, float]:
    found = {}
    for change in changes:
        name, _, number = change.partition("=")
        try:
            found[name] = float(number)
        except ValueError:
            found[name] = math.nan
        if not math.isfinite(found[name]):
            raise InputError(f"Cannot read --above {change!r}; try waiting=20.")
    return found
