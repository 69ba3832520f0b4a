"""`alerts`: the alert rules on a window, for cron and CI: exit code 1 when one fires."""

from __future__ import annotations

import json
import math
import os
import re
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import click

from vllm_capacity.alerts import RULES, AlertRule, watched, with_thresholds
from vllm_capacity.alerts import alerts as outcomes
from vllm_capacity.assumptions import Slo
from vllm_capacity.cli.options import columns
from vllm_capacity.cli.options.analysis import assumptions_of, one_window, window_options
from vllm_capacity.cli.options.settings import (
    AlertSettings,
    DaySettings,
    PriceSettings,
    setting_options,
    taken,
)
from vllm_capacity.errors import InputError, SourceError
from vllm_capacity.timerange import iso, parse_duration_seconds

if TYPE_CHECKING:
    from vllm_capacity.alerts import Alert
    from vllm_capacity.live.notify import Recipient
    from vllm_capacity.telemetry.window import Window

_LABEL = re.compile(r"[A-Za-z_][A-Za-z0-9_]*=.+")


@click.command(
    short_help="Evaluate alert rules on a window; exit code 1 if one fires.",
    epilog=f"Alerts: {', '.join(rule.name for rule in RULES)}.",
)
@window_options
@setting_options(AlertSettings, PriceSettings, Slo)
@click.option(
    "--windows",
    type=click.Path(path_type=Path),
    default=DaySettings.windows,
    show_default=True,
    help="Folder of daily windows; without WINDOW, its newest day is checked.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON list.")
def alerts(
    argument: str | None, window: str | None, windows: Path, as_json: bool, **given: object
) -> None:
    """Evaluate the alert rules on the end of WINDOW; exit code 1 if one fires.

    WINDOW is a path or a name; default: the newest day that `report --from` keeps.

    Rules cover latency, KV cache, queue, failures and missing data; with a target (--slo-ttft,
    --slo-itl) also the burn rate of its error budget, over its own periods. Alerts on cost and
    headroom need a threshold: --above cost=2 (USD per million output tokens), cost-growth=1.1
    (relative to the period before, at the same load and mix), idle-cost=50 (USD per day); --below
    headroom=0.2, days-left=30. An unknown figure is shown as unknown, never taken for 0.

    With --alertmanager, firing alerts are sent there and quiet ones resolved; an unknown figure
    changes nothing. Credentials come from ALERTMANAGER_USER and ALERTMANAGER_PASSWORD, or
    ALERTMANAGER_TOKEN. With --notify, apprise notifies people (mail, Slack, Teams, PagerDuty, …)
    when an alert fires and when it is resolved. Exit code 3 if a notification fails.
    """
    from vllm_capacity.live.days import newest_day
    from vllm_capacity.live.running import open_recorded  # polars, duckdb: not for --help

    wanted = taken(AlertSettings, given)
    rules, labels = changed_rules(wanted.above, wanted.below), _labels(wanted.labels)
    to = _recipients(wanted.notify)
    newest = newest_day(windows) if argument is None and window is None else None
    opened = open_recorded(newest or one_window(argument, window))
    whole = opened.extent
    over = None
    if wanted.over != "all":
        over = min(parse_duration_seconds(wanted.over), whole.seconds)
    found = outcomes(watched(opened, assumptions_of(given), over_seconds=over), rules)
    if as_json:
        click.echo(json.dumps([one.as_dict() for one in found], allow_nan=False, indent=2))
    else:
        from vllm_capacity.render.terminal import alerts_text

        click.echo(alerts_text(found, width=columns()), nl=False)
    _send(wanted, found, opened, labels, to)
    if any(one.state == "fired" for one in found):
        sys.exit(1)


def _send(
    wanted: AlertSettings,
    found: list[Alert],
    window: Window,
    labels: dict[str, str],
    to: tuple[Recipient, ...],
) -> None:
    """Notify the Alertmanager and each recipient; a failure does not affect the others."""
    now, end, failures = datetime.now(UTC), window.extent.end, []
    if wanted.alertmanager is not None:
        from vllm_capacity.live.alertmanager import send_to_alertmanager

        lasts = timedelta(seconds=parse_duration_seconds(wanted.lasts))
        try:
            send_to_alertmanager(
                wanted.alertmanager,
                found,
                labels=labels,
                seen_at=end,
                now=now,
                lasts=lasts,
                environment=os.environ,
            )
        except SourceError as error:
            failures.append(error)
    if to:
        from vllm_capacity.live.notify import notify

        subject = f"{window.name}, up to {iso(end)}"
        try:
            notify(to, found, labels=labels, subject=subject, record=wanted.sent, now=now)
        except SourceError as error:
            failures.append(error)
    if failures:
        raise SourceError(" ".join(map(str, failures)))


def _recipients(given: tuple[str, ...]) -> tuple[Recipient, ...]:
    if not given:
        return ()
    from vllm_capacity.live.notify import recipients  # apprise: not for --help

    return recipients(given, os.environ)


def _labels(pairs: tuple[str, ...]) -> dict[str, str]:
    """Labels given as `cluster=a`; InputError for anything else."""
    for pair in pairs:
        if not _LABEL.fullmatch(pair):
            raise InputError(f"Cannot read --label {pair!r}; try cluster=a.")
    return dict(pair.split("=", 1) for pair in pairs)


def changed_rules(above: tuple[str, ...], below: tuple[str, ...] = ()) -> list[AlertRule]:
    """The rules with new thresholds, given as `waiting=20`; InputError for anything else."""
    return with_thresholds(_thresholds(above, "above"), below=_thresholds(below, "below"))


def _thresholds(changes: tuple[str, ...], side: str) -> dict[str, float]:
    found = {}
    for change in changes:
        name, _, number = change.partition("=")
        try:
            found[name] = float(number)
        except ValueError:
            found[name] = math.nan
        if not math.isfinite(found[name]):
            example = "waiting=20" if side == "above" else "headroom=0.2"
            raise InputError(f"Cannot read --{side} {change!r}; try {example}.")
    return found
