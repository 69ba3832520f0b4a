"""Creates alert rules and a dashboard in Parseable, and reports the rules it cannot evaluate.

A Parseable alert takes exactly one dataset and one of avg, sum, min, max, count. Percentiles of
histograms and rates of counters are not possible: percentile functions pass its validation but
evaluate to 0. Those rules are left to `vllm-capacity alerts`. Parseable also treats no data as 0,
so a rule "above" stays silent when scraping stops: the no-data rule, a count below 1, covers that.

Alert titles are not unique in Parseable, so they are looked up first; otherwise every run would
add a duplicate.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any, Final

from msgspec import Struct

from vllm_capacity.alerts import RULES, AlertRule
from vllm_capacity.live.stack import Management
from vllm_capacity.sources.guide_queries import GUIDE_QUERIES, guide_query
from vllm_capacity.sources.parseable_queries import literals, quoted

_WINDOW_MINUTES: Final = 5
_CROCKFORD: Final = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
DASHBOARD_TITLE: Final = "vLLM capacity"


class Evaluable(Struct, frozen=True):
    """How Parseable evaluates a rule: one aggregate over one metric, under any of its names."""

    aggregate: str
    metrics: tuple[str, ...]
    operator: str = ">"
    threshold: float | None = None  # None: the rule's own


_EVALUABLE: Mapping[str, Evaluable] = {
    "kv-cache": Evaluable(
        "avg", ("vllm:kv_cache_usage_perc", "vllm_kv_cache_usage_perc", "vllm:gpu_cache_usage_perc")
    ),
    "waiting": Evaluable("avg", ("vllm:num_requests_waiting", "vllm_num_requests_waiting")),
    "no-data": Evaluable(
        "count", ("vllm:num_requests_running", "vllm_num_requests_running"), "<", 1.0
    ),
}
_WHY_NOT: Mapping[str, str] = {
    "e2e-p99": "a percentile of a histogram",
    "ttft-p95": "a percentile of a histogram",
    "failures": "the increase of a counter",
}


class DashboardPanel(Struct, frozen=True):
    """A tile of the dashboard: its title, chart type and query."""

    title: str
    chart: str
    query: str


def alert_body(rule: AlertRule, stream: str) -> dict[str, Any] | None:
    """The request body for the rule on the stream; None if Parseable cannot evaluate it."""
    how = _EVALUABLE.get(rule.name)
    if how is None:
        return None
    query = (
        f"select {how.aggregate}(data_point_value) as observed from {quoted(stream)} "
        f"where metric_name in ({literals(how.metrics)})"
    )
    return {
        "title": f"vLLM {rule.title} ({stream})",
        "severity": "high",
        "queryType": "code",
        "query": query,
        "alertType": "threshold",
        "thresholdConfig": {
            "operator": how.operator,
            "value": rule.threshold if how.threshold is None else how.threshold,
        },
        "evalConfig": {
            "rollingWindow": {
                "evalStart": f"{_WINDOW_MINUTES}m",
                "evalEnd": "now",
                "evalFrequency": _WINDOW_MINUTES,
            }
        },
        "notificationConfig": {"interval": _WINDOW_MINUTES},
        "targets": [],
    }


def provision_alerts(
    management: Management, stream: str, rules: Iterable[AlertRule] = RULES
) -> list[str]:
    """Create or update the alert rules; one line each: created, unchanged, changed, or why not.

    Targets that someone added to an alert are kept when its query or threshold is updated.
    """
    listed = management.records("/api/v1/alerts?limit=1000", "title", "created", "id")
    own = [rule for rule in rules if rule.name in _EVALUABLE or rule.name in _WHY_NOT]
    return [_provision_alert(management, stream, rule, listed) for rule in own]


def _provision_alert(
    management: Management, stream: str, rule: AlertRule, listed: list[dict[str, Any]]
) -> str:
    body = alert_body(rule, stream)
    if body is None:
        why = _WHY_NOT[rule.name]
        return f"alert {rule.title}: not in Parseable ({why}); `vllm-capacity alerts` evaluates it"
    title = body["title"]
    found = sorted((a["created"], a["id"]) for a in listed if a["title"] == title)
    if not found:
        management.call("POST", "/api/v1/alerts", body=body)
        return f"alert {title}: created"
    extra = f"; {len(found)} alerts have this title, the oldest is used" if len(found) > 1 else ""
    path = f"/api/v1/alerts/{found[0][1]}"
    current = management.record(path)
    if all(current.get(key) == body[key] for key in ("query", "thresholdConfig", "evalConfig")):
        return f"alert {title}: exists already{extra}"
    kept = {key: current.get(key, body[key]) for key in ("targets", "notificationConfig")}
    management.call("PUT", path, body={**body, **kept})
    return f"alert {title}: updated{extra}"


def panels(stream: str, usd_per_gpu_hour: float | None = None) -> list[DashboardPanel]:
    """The dashboard's eight panels with their queries on the stream, at that price per GPU-hour."""
    return [
        DashboardPanel(
            query.title,
            query.chart,
            guide_query(query.name, stream=stream, usd_per_gpu_hour=usd_per_gpu_hour),
        )
        for query in GUIDE_QUERIES
        if query.chart
    ]


def dashboard_body(panels: Iterable[DashboardPanel], stream: str) -> dict[str, Any]:
    """The dashboard's request body; tile ids are ULIDs made from titles, the same in every run.

    A tile's other fields are used only by Parseable's user interface, whose source is closed. The
    layout is therefore a best effort; the queries do not depend on it.
    """
    return {
        "title": f"{DASHBOARD_TITLE} ({stream})",
        "tags": ["vllm"],
        "tiles": [
            {
                "tile_id": _ulid(f"{stream}/{panel.title}"),
                "title": panel.title,
                "dbName": stream,
                "chartType": panel.chart,
                "query": panel.query,
                "layout": {"x": 6 * (at % 2), "y": 6 * (at // 2), "w": 6, "h": 6},
            }
            for at, panel in enumerate(panels)
        ],
    }


def _ulid(text: str) -> str:
    """A valid ULID (26 characters, the first at most 7) that depends only on the text."""
    number = int.from_bytes(hashlib.sha256(text.encode()).digest()[:16], "big")
    return "".join(_CROCKFORD[(number >> (5 * at)) & 31] for at in reversed(range(26)))


def provision_dashboard(
    management: Management, panels: Iterable[DashboardPanel], stream: str
) -> str:
    """Create or update the dashboard; one line: created, exists already, or updated."""
    body = dashboard_body(panels, stream)
    title = body["title"]
    listed = management.records("/api/v1/dashboards", "title", "dashboardId")
    ids = [board["dashboardId"] for board in listed if board["title"] == title]
    if not ids:
        management.call("POST", "/api/v1/dashboards", body=body)
        return f"dashboard {title}: created, {len(body['tiles'])} panels"
    path = f"/api/v1/dashboards/{ids[0]}"
    if management.record(path).get("tiles") == body["tiles"]:
        return f"dashboard {title}: exists already"
    management.call("PUT", path, body=body)
    return f"dashboard {title}: updated"
