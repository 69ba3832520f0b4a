"""`alerts`: the alert rules on a window, for cron and CI: exit code 1 when one fires."""

from __future__ import annotations

import json
import math
import os
import re
import sys
from datetime import UTC, datetime, timedelta

import click

from vllm_capacity.alerts import RULES, AlertRule, with_thresholds
from vllm_capacity.alerts import alerts as outcomes
from vllm_capacity.analysis import Analysis
from vllm_capacity.cli.analysis_options import one_window, window_options
from vllm_capacity.cli.options import columns
from vllm_capacity.cli.settings import AlertSettings, setting_options, taken
from vllm_capacity.errors import InputError
from vllm_capacity.live.alertmanager import tell_alertmanager
from vllm_capacity.telemetry.window import open_window
from vllm_capacity.timerange import parse_duration_seconds

_LABEL = re.compile(r"[A-Za-z_][A-Za-z0-9_]*=.+")


@click.command(
    short_help="The alert rules on a window; exit code 1 when one fires.",
    epilog=f"Alerts: {', '.join(rule.name for rule in RULES)}.",
)
@window_options
@setting_options(AlertSettings)
@click.option("--json", "as_json", is_flag=True, help="One JSON list on stdout.")
def alerts(argument: str | None, window: str | None, as_json: bool, **given: object) -> None:
    """Evaluate the alert rules on the end of WINDOW; exit code 1 when one fires.

    WINDOW is a path, or a name.

    The rules that Parseable cannot evaluate (percentiles, counter rates), the others, and absence
    of data. A figure that is not known is shown as unknown, and never taken for 0.

    With --alertmanager, an alert that fires is told there, and one that is quiet is resolved; a
    figure that is not known changes nothing. Credentials come from ALERTMANAGER_USER and
    ALERTMANAGER_PASSWORD, or ALERTMANAGER_TOKEN. Exit code 3 where it cannot be told.
    """
    wanted = taken(AlertSettings, given)
    rules, labels = changed_rules(wanted.above), _labels(wanted.labels)
    opened = open_window(one_window(argument, window))
    start = None
    whole = opened.extent
    if wanted.over != "all":
        seconds = min(parse_duration_seconds(wanted.over), whole.seconds)
        start = whole.end - timedelta(seconds=seconds)
    found = outcomes(Analysis.of(opened, start).answer, rules)
    if as_json:
        click.echo(json.dumps([one.as_dict() for one in found], allow_nan=False, indent=2))
    else:
        from vllm_capacity.render.terminal import alerts_text

        click.echo(alerts_text(found, width=columns()), nl=False)
    if wanted.alertmanager is not None:
        tell_alertmanager(
            wanted.alertmanager,
            found,
            labels=labels,
            seen_at=whole.end,
            now=datetime.now(UTC),
            lasts=timedelta(seconds=parse_duration_seconds(wanted.lasts)),
            environment=os.environ,
        )
    if any(one.state == "fired" for one in found):
        sys.exit(1)


def _labels(pairs: tuple[str, ...]) -> dict[str, str]:
    """Labels given as `cluster=a`; InputError for what is none."""
    for pair in pairs:
        if not _LABEL.fullmatch(pair):
            raise InputError(f"Cannot read --label {pair!r}; try cluster=a.")
    return dict(pair.split("=", 1) for pair in pairs)


def changed_rules(changes: tuple[str, ...]) -> list[AlertRule]:
    """The rules with other thresholds, given as `waiting=20`; InputError for what is none."""
    return with_thresholds(_thresholds(changes))


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
