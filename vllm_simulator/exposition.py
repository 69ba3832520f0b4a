"""A simulated engine's scrape, as Prometheus text and as canonical rows.

Every HELP line says that it is simulated: text that is saved or served stays recognisable.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate

from prometheus_client import CollectorRegistry
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector

from vllm_capacity.facts.metrics import Kind, keeps, match
from vllm_capacity.telemetry.rows import RowBuffer, SeriesKey
from vllm_simulator.families import Family, Labels, families
from vllm_simulator.stats import Histogram, Stats

_SCRAPE_SECONDS = 0.008  # what a scrape of vLLM took in the median of the recorded sweep


@dataclass(frozen=True, eq=False)
class _Snapshot(Collector):
    """Families already known, in the shape prometheus_client writes out."""

    known: list[Family]
    created_seconds: float

    def collect(self) -> Iterator[Metric]:
        for family in self.known:
            yield _metric(family, self.created_seconds)


def _metric(family: Family, created: float) -> Metric:
    about = f"Simulated. {family.about}."
    metric: Metric
    if family.kind == "counter":
        counter = metric = CounterMetricFamily(family.name, about)
        for labels, value in family.children:
            assert isinstance(value, float)
            counter.add_sample(f"{counter.name}_total", dict(labels), value)
            counter.add_sample(f"{counter.name}_created", dict(labels), created)
    elif family.kind == "histogram":
        metric = HistogramMetricFamily(family.name, about)
        for labels, value in family.children:
            assert isinstance(value, Histogram)
            _add_histogram(metric, labels, value, created)
    else:
        metric = GaugeMetricFamily(family.name, about)
        for labels, value in family.children:
            assert isinstance(value, float)
            metric.add_sample(family.name, dict(labels), value)
    return metric


def _add_histogram(metric: Metric, labels: Labels, value: Histogram, created: float) -> None:
    edges = [*(str(bound) for bound in value.bounds), "+Inf"]
    for edge, count in zip(edges, accumulate(value.counts), strict=True):
        metric.add_sample(f"{metric.name}_bucket", {**labels, "le": edge}, count)
    metric.add_sample(f"{metric.name}_count", dict(labels), value.count)
    metric.add_sample(f"{metric.name}_sum", dict(labels), value.total)
    metric.add_sample(f"{metric.name}_created", dict(labels), created)


def exposition_text(stats: Stats, process_start_seconds: float) -> str:
    """The body of `GET /metrics`, classic text, `_created` families included."""
    registry = CollectorRegistry(auto_describe=False)
    known = families(stats, process_start_seconds)
    registry.register(_Snapshot(known, process_start_seconds))
    return generate_latest(registry).decode()


def saved_scrape(stats: Stats, process_start_seconds: float, t_seconds: float, target: str) -> str:
    """One line of a file of saved scrapes: a JSON object and a line end."""
    line = {
        "t": t_seconds,
        "dur": _SCRAPE_SECONDS,
        "target": target,
        "status": 200,
        "text": exposition_text(stats, process_start_seconds),
    }
    return json.dumps(line) + "\n"


def record(
    buffer: RowBuffer, stats: Stats, *, process_start_seconds: float, t_seconds: float, target: str
) -> None:
    """Put one good scrape into the buffer: the rows that reading its text would give."""
    ts_us = round(t_seconds * 1_000_000)
    buffer.scrape(target, ts_us, is_up=True, seconds=_SCRAPE_SECONDS)
    for family in families(stats, process_start_seconds):
        if not keeps(family.name):
            continue
        for labels, value in family.children:
            bounds = value.bounds if isinstance(value, Histogram) else None
            key, rank = _series_key(family, labels, target, bounds)
            series_id = buffer.series(key, exposed=family.name, rank=rank)
            if isinstance(value, Histogram):
                buffer.histogram(
                    series_id,
                    ts_us,
                    count=value.count,
                    total=value.total,
                    counts=value.counts,
                    rank=rank,
                )
            else:
                buffer.sample(series_id, ts_us, value, rank)


def _series_key(
    family: Family, labels: Labels, target: str, bounds: tuple[float, ...] | None
) -> tuple[SeriesKey, int]:
    found = match(family.name)
    is_info = found is not None and found.metric.kind is Kind.INFO
    has_engine = found.metric.has_engine if found else "engine" in labels
    rest = sorted((k, v) for k, v in labels.items() if k not in ("engine", "model_name"))
    key = SeriesKey(
        metric=found.metric.name if found else family.name,
        kind="info" if is_info else family.kind,
        instance=target,
        engine=labels.get("engine", "0") if has_engine else None,
        model_name=labels.get("model_name"),
        labels=tuple(rest),
        bounds=bounds,
    )
    return key, found.rank if found else 0
