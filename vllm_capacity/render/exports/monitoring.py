"""For users of Prometheus and Grafana: recording rules, alerting rules, a dashboard.

Alerts have the names and thresholds of `vllm-capacity alerts`. Alerts that need more than a query
(cost at the same load and mix, weeks of growth) are left to it; headroom and idle cost need a given
capacity. An alert fires only if it is certain: if only a bound of its figure is known, from buckets
or a capacity, the bound is compared. Each family is queried under all names that vLLM has given it
(`data/vllm_metrics.csv`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import yaml
from msgspec import Struct

from vllm_capacity.alerts import AlertRule
from vllm_capacity.answer import ATTAINMENT_GOAL
from vllm_capacity.assumptions import TARGETS, Slo
from vllm_capacity.estimate import Estimate
from vllm_capacity.facts.metrics import (
    E2E,
    GENERATION_TOKENS,
    ITL,
    KV_CACHE,
    PREEMPTIONS,
    PREFIX_HITS,
    PREFIX_QUERIES,
    PROMPT_TOKENS,
    REQUESTS,
    RUNNING,
    TTFT,
    WAITING,
    metrics,
)
from vllm_capacity.render.exports.bucket_labels import at_or_above

_BY = "job, instance, model_name"
_LEVEL = "instance_model"
_OVER = "5m"
_WHOSE = {
    _LEVEL: "{{ $labels.instance }}",
    "job_model": "{{ $labels.model_name }} of {{ $labels.job }}",
    "job": "{{ $labels.job }}",
}
ANY_MODEL = ""
"""The key for all models without a capacity of their own."""
_WIDTH, _HEIGHT = 12, 8  # size of a panel; Grafana's grid is 24 wide


class Recorded(Struct, frozen=True):
    """A figure: the recorded series' name, its PromQL, and how a panel shows it.

    `panel` names the panel that draws it, empty for none; `unit` is Grafana's; `level` is the label
    prefix of the series' name: target and model unless given.
    """

    name: str
    expression: str
    panel: str = ""
    legend: str = ""
    unit: str = "short"
    level: str = _LEVEL

    @property
    def record(self) -> str:
        """The name of the recorded series."""
        return f"{self.level}:vllm_{self.name}"

    @property
    def whose(self) -> str:
        """The template that names, by labels, the target, model or job that an alert is about."""
        return _WHOSE[self.level]


def _recorded_as(name: str) -> str:
    return f"{_LEVEL}:vllm_{name}"


def recorded(
    usd_per_gpu_hour: float | None = None,
    gpus_per_engine: float = 1.0,
    *,
    slo: Slo | None = None,
    capacities: Mapping[str, Estimate] | None = None,
) -> tuple[Recorded, ...]:
    """The figures in the order of the dashboard; money figures only with a price.

    Targets add the burn rate of each error budget. The `capacities` of one engine of each model add
    output tokens per second, headroom and idle cost, each as the bound that is certain. `ANY_MODEL`
    is the key for all models that are not named.
    """
    return (
        *_traffic(),
        *_quantiles("ttft_seconds", TTFT, "Time to first token (TTFT)"),
        *_quantiles("itl_seconds", ITL, "Inter-token latency (ITL)"),
        *_quantiles("e2e_seconds", E2E, "End-to-end latency"),
        *_saturation(),
        *(_money(usd_per_gpu_hour, gpus_per_engine) if usd_per_gpu_hour else ()),
        *_burns(slo or Slo()),
        *_room(capacities or {}, (usd_per_gpu_hour or 0.0) * gpus_per_engine),
    )


def rules_yaml(
    alerts: Sequence[AlertRule],
    *,
    slo: Slo | None = None,
    usd_per_gpu_hour: float | None = None,
    gpus_per_engine: float = 1.0,
    capacities: Mapping[str, Estimate] | None = None,
) -> str:
    """A file of recording and alerting rules for Prometheus.

    Alerts that need more than a query are left out, and those on headroom and idle cost without the
    `capacities` of engines; each target adds an alert on p95 above it.
    """
    figures = recorded(usd_per_gpu_hour, gpus_per_engine, slo=slo, capacities=capacities)
    named = {each.name: each for each in figures}
    groups = [
        {
            "name": "vllm-capacity-figures",
            "rules": [{"record": each.record, "expr": each.expression} for each in figures],
        },
        {
            "name": "vllm-capacity-alerts",
            "rules": [
                *_alerts(alerts, named),
                *_targets(slo or Slo()),
            ],
        },
    ]
    return yaml.safe_dump({"groups": groups}, sort_keys=False, width=1_000, allow_unicode=True)


def dashboard_json(usd_per_gpu_hour: float | None = None, gpus_per_engine: float = 1.0) -> str:
    """A dashboard to import into Grafana, where its data source and models are chosen.

    It queries vLLM's own series, so it works without the rules.
    """
    panels: dict[str, list[Recorded]] = {}
    for each in recorded(usd_per_gpu_hour, gpus_per_engine):
        if each.panel:
            panels.setdefault(each.panel, []).append(each)
    body = {
        "title": "vLLM capacity and cost",
        "uid": "vllm-capacity",
        "tags": ["vllm"],
        "timezone": "browser",
        "schemaVersion": 39,
        "refresh": "30s",
        "time": {"from": "now-6h", "to": "now"},
        "templating": {"list": [_DATA_SOURCE, _MODELS]},
        "panels": [_panel(at, title, own) for at, (title, own) in enumerate(panels.items())],
    }
    return json.dumps(body, indent=2) + "\n"


# --- figures ------------------------------------------------------------------------------------


def _names(metric: str) -> tuple[str, ...]:
    """All names that vLLM has given a family, the newest first."""
    found = next(each for each in metrics() if each.name == metric)
    return (found.name, *found.aliases)


def _asked(
    metric: str, function: str, *, suffix: str = "", over: str = _OVER, only: str = ""
) -> str:
    """A function over a family's series; of its names, the newest that exists is used.

    `only` selects series by their labels.
    """
    each = [f"{function}({name}{suffix}{only}[{over}])" for name in _names(metric)]
    return each[0] if len(each) == 1 else f"({' or '.join(each)})"


def _sum(expression: str, by: str = _BY) -> str:
    return f"sum by ({by}) ({expression})"


def _traffic() -> Iterator[Recorded]:
    for name, metric, legend in (
        ("output_tokens_per_second", GENERATION_TOKENS, "output"),
        ("prompt_tokens_per_second", PROMPT_TOKENS, "prompt"),
    ):
        rate = _sum(_asked(metric, "rate"))
        yield Recorded(name, rate, "Tokens per second", legend)
    yield Recorded(
        "requests_per_second", _sum(_asked(REQUESTS, "rate")), "Requests per second", "", "reqps"
    )


def _quantiles(name: str, metric: str, title: str) -> Iterator[Recorded]:
    buckets = _sum(_asked(metric, "rate", suffix="_bucket"), f"{_BY}, le")
    for percent in (50, 95, 99):
        quantile = f"histogram_quantile({percent / 100}, {buckets})"
        yield Recorded(f"{name}:p{percent}", quantile, title, f"p{percent}", "s")


def _saturation() -> Iterator[Recorded]:
    for name, metric, legend in (
        ("requests_running", RUNNING, "running"),
        ("requests_waiting", WAITING, "waiting"),
    ):
        mean = _sum(_asked(metric, "avg_over_time"))
        yield Recorded(name, mean, "Requests running and waiting", legend)
    cache = f"avg by ({_BY}) ({_asked(KV_CACHE, 'avg_over_time')})"
    yield Recorded("kv_cache_ratio", cache, "KV cache usage", "", "percentunit")
    hits, queries = (_sum(_asked(each, "rate")) for each in (PREFIX_HITS, PREFIX_QUERIES))
    hit_ratio = f"{hits} / ({queries} > 0)"
    yield Recorded("prefix_hit_ratio", hit_ratio, "Prefix cache hit ratio", "", "percentunit")
    preemptions = _sum(_asked(PREEMPTIONS, "rate"))
    yield Recorded("preemptions_per_second", preemptions, "Preemptions per second")
    failed = f'increase({REQUESTS}{{finished_reason="error"}}[{_OVER}])'
    yield Recorded("requests_failed", _sum(failed))


def _there(only: str = "") -> str:
    """The series that show that an engine is present."""
    return " or ".join(f"{name}{only}" for name in _names(RUNNING))


def _engine_minutes(over: str, only: str = "") -> str:
    """The number of minutes with an engine present, summed over the engines of a target."""
    return f"sum_over_time((count by ({_BY}) ({_there(only)}))[{over}:1m])"


def _money(usd_per_gpu_hour: float, gpus_per_engine: float) -> Iterator[Recorded]:
    """Cost per output token over the last hour, from the minutes with an engine present.

    Engines without tokens have no such cost: their cost per hour is a series of its own.
    """
    per_minute = usd_per_gpu_hour * gpus_per_engine / 60
    engine_minutes = _engine_minutes("1h")
    tokens = _sum(_asked(GENERATION_TOKENS, "increase", over="1h"))
    yield Recorded(
        "usd_per_million_output_tokens",
        f"{per_minute * 1e6:.10g} * {engine_minutes} / ({tokens} > 0)",
        "USD per million output tokens, last hour",
        "",
        "currencyUSD",
    )
    was_there = f"count by ({_BY}) ({' or '.join(f'{name} offset 1h' for name in _names(RUNNING))})"
    yield Recorded(
        "usd_per_hour_without_tokens",
        f"{per_minute:.10g} * {engine_minutes} and ({tokens} == 0) and {was_there}",
    )


def _burns(slo: Slo) -> Iterator[Recorded]:
    """A lower bound of the burn rate of each target's error budget over each period.

    Only requests above the first bucket edge at or above the target certainly missed it.
    """
    for name, seconds in slo.targets.items():
        target = TARGETS[name]
        for over in ("5m", "30m", "1h", "6h"):
            buckets = _sum(_asked(target.metric, "rate", suffix="_bucket", over=over), f"{_BY}, le")
            above = buckets.replace("_bucket[", f'_bucket{{le=~"{at_or_above(seconds)}"}}[')
            every = buckets.replace("_bucket[", '_bucket{le="+Inf"}[')
            within = f"min by ({_BY}) ({above}) / sum by ({_BY}) ({every})"
            yield Recorded(
                _burn(target.short, over), f"(1 - {within}) / {1 - ATTAINMENT_GOAL:.10g}"
            )


def _burn(target: str, over: str) -> str:
    return f"{target}_burn_rate_at_least:{over}"


def _room(capacities: Mapping[str, Estimate], usd_per_engine_hour: float) -> Iterator[Recorded]:
    """Upper bound of the share of capacity left; lower bound of a day's cost of unused capacity.

    Each uses the end of the capacity's interval that makes it certain; empty if that end is
    unknown.
    """
    by, left, idle = "job, model_name", [], []
    for model, capacity in capacities.items():
        only = _only(model, capacities)
        if capacity.high:
            rate = _sum(_asked(GENERATION_TOKENS, "rate", only=only), by)
            there = f"(count by ({_BY}) ({_there(only)}))[{_OVER}:1m]"
            engines = f"sum by ({by}) (avg_over_time({there}))"
            left.append(f"1 - {rate} / ({capacity.high:.10g} * {engines})")
        if capacity.low and usd_per_engine_hour:
            increase = _asked(GENERATION_TOKENS, "increase", over="1d", only=only)
            hours = f"sum by (job) ({_engine_minutes('1d', only)}) / 60"
            used = f"sum by (job) ({increase}) / {capacity.low * 3600:.10g}"
            idle.append(f"{usd_per_engine_hour:.10g} * clamp_min({hours} - {used}, 0)")
    if left:
        yield Recorded("headroom_ratio_at_most", _any_of(left), level="job_model")
    if idle:
        yield Recorded("idle_usd_per_day_at_least", _added(idle), level="job")


def _only(model: str, capacities: Mapping[str, Estimate]) -> str:
    """The selector of a model's series; `ANY_MODEL` selects all models that are not named."""
    if model != ANY_MODEL:
        return f"{{model_name={json.dumps(model)}}}"
    named = [re.escape(each) for each in capacities if each != ANY_MODEL]
    return f"{{model_name!~{json.dumps('|'.join(named))}}}" if named else ""


def _any_of(expressions: Sequence[str]) -> str:
    """The union of series whose label sets all differ."""
    return expressions[0] if len(expressions) == 1 else " or ".join(f"({e})" for e in expressions)


def _added(expressions: Sequence[str]) -> str:
    """The sums by job; a job missing from one expression gets the sum of the others."""
    if len(expressions) == 1:
        return expressions[0]
    parts = (f'label_replace({e}, "part", "{n}", "", "")' for n, e in enumerate(expressions))
    return f"sum by (job) ({' or '.join(parts)})"


# --- alerts -------------------------------------------------------------------------------------

_CONDITIONS: Mapping[str, str] = {
    "e2e-p99": "e2e_seconds:p99",
    "ttft-p95": "ttft_seconds:p95",
    "kv-cache": "kv_cache_ratio",
    "waiting": "requests_waiting",
    "failures": "requests_failed",
    "cost": "usd_per_million_output_tokens",
    "idle-cost": "idle_usd_per_day_at_least",
    "headroom": "headroom_ratio_at_most",
}
_BURNS: Mapping[str, tuple[str, str]] = {"1h": ("1h", "5m"), "6h": ("6h", "30m")}
"""The two periods of a burn rate alert, by the end of its name."""


def _alerts(alerts: Sequence[AlertRule], known: Mapping[str, Recorded]) -> Iterator[dict[str, Any]]:
    """The alerts that have a threshold and whose figures are recorded (`known`, by name)."""
    for each in alerts:
        sign = "<" if each.is_below else ">"
        target, _, stretch = each.name.partition("-burn-")
        figure = known.get(_CONDITIONS.get(each.name, ""))
        if each.name == "no-data":
            yield _alert(each.name, _silence(), "its series have disappeared")
        elif stretch and _burn(target, stretch) in known:
            rates = [known[_burn(target, over)].record for over in _BURNS[stretch]]
            burning = " and ".join(f"{rate} > {each.threshold:g}" for rate in rates)
            summary = f"{each.title}: at least {{{{ $value }}}} ×, {each.limit}"
            yield _alert(each.name, burning, summary, lasting="1m")
        elif figure is not None and each.threshold is not None:
            expression = f"{figure.record} {sign} {each.threshold:g}"
            summary = f"{each.title} {{{{ $value }}}}, {each.limit}"
            yield _alert(each.name, expression, summary, whose=figure.whose)
            if each.name == "cost":
                yield _without_tokens()


def _without_tokens() -> dict[str, Any]:
    """An alert for no output tokens, and so no cost per token, with the cost per hour."""
    without = _recorded_as("usd_per_hour_without_tokens")
    summary = "no output tokens for an hour, so no cost per token; USD {{ $value }} per hour"
    return _alert("cost-without-tokens", f"{without} > 0", summary, severity="info")


def _targets(slo: Slo) -> Iterator[dict[str, Any]]:
    for name, seconds in slo.targets.items():
        metric = name.removesuffix("_p95_seconds")
        expression = f"{_recorded_as(f'{metric}_seconds:p95')} > {seconds:g}"
        summary = f"p95 {metric.upper()} {{{{ $value }}}} s, its target is {seconds:g} s"
        yield _alert(f"{metric}-target", expression, summary)


def _alert(
    name: str,
    expression: str,
    summary: str,
    *,
    severity: str = "warning",
    lasting: str = _OVER,
    whose: str = _WHOSE[_LEVEL],
) -> dict[str, Any]:
    return {
        "alert": "Vllm" + "".join(part.capitalize() for part in name.split("-")),
        "expr": expression,
        "for": lasting,
        "labels": {"severity": severity, "service": "vllm-capacity", "rule": name},
        "annotations": {"summary": f"{whose}: {summary}"},
    }


def _silence() -> str:
    """An alert for targets that had vLLM series within the last day and have none now."""
    by = "count by (job, instance)"
    before = f"{by} (present_over_time({RUNNING}[1d]))"
    return f"{before} unless {by} ({RUNNING})"


# --- dashboard ----------------------------------------------------------------------------------

_SOURCE = {"type": "prometheus", "uid": "${datasource}"}
_DATA_SOURCE = {"name": "datasource", "type": "datasource", "query": "prometheus"}
_MODELS = {
    "name": "model",
    "type": "query",
    "datasource": _SOURCE,
    "query": f"label_values({RUNNING}, model_name)",
    "refresh": 2,
    "includeAll": True,
    "multi": True,
    "allValue": ".*",
    "current": {"text": "All", "value": "$__all"},
}


def _panel(at: int, title: str, own: Sequence[Recorded]) -> dict[str, Any]:
    return {
        "id": at + 1,
        "title": title,
        "type": "timeseries",
        "datasource": _SOURCE,
        "gridPos": {
            "x": _WIDTH * (at % 2),
            "y": _HEIGHT * (at // 2),
            "w": _WIDTH,
            "h": _HEIGHT,
        },
        "fieldConfig": {"defaults": {"unit": own[0].unit, "min": 0}, "overrides": []},
        "targets": [
            {
                "refId": chr(ord("A") + place),
                "expr": _of_models(each.expression),
                "legendFormat": " ".join(filter(None, ("{{instance}}", each.legend))),
            }
            for place, each in enumerate(own)
        ],
    }


def _of_models(expression: str) -> str:
    """The expression, limited to the models chosen on the dashboard."""
    return f'({expression}) and on (model_name) ({RUNNING}{{model_name=~"$model"}})'
