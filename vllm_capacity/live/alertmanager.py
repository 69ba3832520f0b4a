"""Sends alerts to an Alertmanager (v2 API), which groups, silences and forwards them.

Alertmanager identifies an alert by its labels, so sending it again changes nothing. A quiet alert
is sent as ended if Alertmanager has it as firing. Alerts in an unknown state are not sent: they
neither fire nor resolve anything.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

import httpx
import msgspec

from vllm_capacity.alerts import Alert
from vllm_capacity.errors import SourceError
from vllm_capacity.live.access import checked_url, client, read_settings
from vllm_capacity.sources.http import (
    BUSY,
    TransientError,
    address,
    decoded,
    transport_errors,
    with_retries,
)
from vllm_capacity.timerange import iso

_SETTINGS = ("user", "password", "token")
_PATH = "/api/v2/alerts"
_SERVICE = "vllm-capacity"
_OURS = f'service="{_SERVICE}"'


class _Firing(msgspec.Struct):
    """An alert that Alertmanager has as firing."""

    labels: dict[str, str]


def send_to_alertmanager(
    url: str,
    found: Sequence[Alert],
    *,
    labels: Mapping[str, str],
    seen_at: datetime,
    now: datetime,
    lasts: timedelta,
    environment: Mapping[str, str],
    pause: Callable[[float], None] = time.sleep,
) -> None:
    """Send every known outcome to an Alertmanager, as of `seen_at`, the end of the data.

    A fired alert stays firing until `now` + `lasts`, unless a later call ends it sooner.
    Credentials, if needed, are ALERTMANAGER_USER and ALERTMANAGER_PASSWORD, or
    ALERTMANAGER_TOKEN, of `environment`. SourceError if the alerts are not accepted.
    """
    settings = read_settings(environment, None, prefix="ALERTMANAGER", names=_SETTINGS)
    with client(settings, base_url=checked_url(url, variables="ALERTMANAGER")) as asking:

        def asked(**question: Any) -> httpx.Response:  # noqa: ANN401  what httpx takes
            with transport_errors(address(asking)):
                answer = asking.request(url=_PATH, **question)
                _require_taken(answer, address(asking))
                return answer

        active = with_retries(lambda: asked(method="GET", params={"filter": _OURS}), pause)
        firing = decoded(active.content, list[_Firing], at=address(asking), dialect="Alertmanager")
        payload = [
            {
                "labels": own,
                "annotations": {"summary": one.sentence},
                "startsAt": iso(min(seen_at, now)),
                "endsAt": iso(now + lasts if one.state == "fired" else now),
            }
            for one in found
            if (own := {"alertname": one.rule.name, "service": _SERVICE, **labels})
            and _is_news(one, is_firing=any(each.labels == own for each in firing))
        ]
        with_retries(lambda: asked(method="POST", json=payload), pause)


def _is_news(one: Alert, *, is_firing: bool) -> bool:
    """Whether to send an outcome: it fired, or it is quiet and was firing."""
    return one.state == "fired" or (one.state == "quiet" and is_firing)


def _require_taken(response: httpx.Response, at: str) -> None:
    status, text = response.status_code, " ".join(response.text.split())[:300]
    if status == 200:
        return
    if status in BUSY:
        raise TransientError(f"{at} is not ready ({status}): {text}")
    if status in (401, 403):
        raise SourceError(
            f"{at} refused the credentials ({status}). Set ALERTMANAGER_USER and "
            "ALERTMANAGER_PASSWORD, or ALERTMANAGER_TOKEN."
        )
    raise SourceError(f"{at} did not accept the alerts ({status}): {text}. Is it Alertmanager?")
