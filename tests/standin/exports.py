"""Small OTLP/JSON exports, as a collector sends them: for what no recording holds."""

from datetime import datetime
from itertools import pairwise

from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from vllm_capacity.telemetry.rows import microseconds


def export(*metrics: dict, instance: str = "10.0.0.1:8000", job: str = "vllm") -> dict:
    """One export of these metrics from one target."""
    resource = [_attribute("service.name", job), _attribute("service.instance.id", instance)]
    return {
        "resourceMetrics": [
            {
                "resource": {"attributes": resource},
                "scopeMetrics": [{"scope": {"name": "test"}, "metrics": list(metrics)}],
            }
        ]
    }


def counter(name: str, ts: datetime, value: float, **labels: str) -> dict:
    """A cumulative counter with one point."""
    point = {**_point(ts, labels), "asDouble": value}
    return {
        "name": name,
        "sum": {"dataPoints": [point], "aggregationTemporality": 2, "isMonotonic": True},
    }


def gauge(name: str, ts: datetime, value: float | str, **labels: str) -> dict:
    """A gauge with one point."""
    return {"name": name, "gauge": {"dataPoints": [{**_point(ts, labels), "asDouble": value}]}}


def histogram(
    name: str, ts: datetime, counts: list[int], *, total: float, bounds: list[float], **labels: str
) -> dict:
    """A cumulative histogram with one point; `counts` per bucket."""
    point = {
        **_point(ts, labels),
        "count": str(sum(counts)),
        "sum": total,
        "bucketCounts": [str(count) for count in counts],
        "explicitBounds": bounds,
    }
    return {"name": name, "histogram": {"dataPoints": [point], "aggregationTemporality": 2}}


def stale(metric: dict) -> dict:
    """The metric as a marker of staleness."""
    kind = next(kind for kind in ("sum", "gauge", "histogram") if kind in metric)
    point = dict(metric[kind]["dataPoints"][0])
    for key in ("asDouble", "sum", "count"):
        point.pop(key, None)
    if kind == "histogram":
        point |= {"bucketCounts": [], "explicitBounds": []}
    return {**metric, kind: {**metric[kind], "dataPoints": [{**point, "flags": 1}]}}


def scraped(text: str, ts: datetime, *, instance: str) -> dict:
    """A scrape as the collector's Prometheus receiver exports it: `up` added, empty labels out."""
    metrics = [gauge("up", ts, 1.0, engine="", model_name="")]
    for family in text_string_to_metric_families(text):
        exposed = f"{family.name}_total" if family.type == "counter" else family.name
        if family.type == "histogram":
            metrics += _histograms(family, ts)
        elif not exposed.endswith("_created"):
            make = counter if family.type == "counter" else gauge
            metrics += [
                make(exposed, ts, sample.value, **_NO_LABELS | sample.labels)
                for sample in family.samples
                if sample.name == exposed
            ]
    return export(*metrics, instance=instance)


def _histograms(family: Metric, ts: datetime) -> list[dict]:
    """The children of a histogram family, their buckets no longer cumulative."""
    children: dict[tuple, dict[str, float]] = {}
    for sample in family.samples:
        labels = tuple((k, v) for k, v in sample.labels.items() if k != "le")
        part = sample.labels.get("le", sample.name.rsplit("_", 1)[-1])
        children.setdefault(labels, {})[part] = sample.value
    made = []
    for labels, parts in children.items():
        edges = sorted(float(part) for part in parts if part not in ("sum", "count", "created"))
        cumulative = {float(k): v for k, v in parts.items() if k not in ("sum", "count", "created")}
        counts = [cumulative[edge] for edge in edges]
        each = [int(b - a) for a, b in pairwise([0.0, *counts])]
        bounds = edges[:-1]
        named = _NO_LABELS | dict(labels)
        made.append(histogram(family.name, ts, each, total=parts["sum"], bounds=bounds, **named))
    return made


_NO_LABELS = {"engine": "", "model_name": ""}


def _point(ts: datetime, labels: dict[str, str]) -> dict:
    named = {"model_name": "m", "engine": "0", **labels}
    return {
        "attributes": [_attribute(key, value) for key, value in named.items() if value],
        "timeUnixNano": str(microseconds(ts) * 1000),
    }


def _attribute(key: str, value: str) -> dict:
    return {"key": key, "value": {"stringValue": value}}
