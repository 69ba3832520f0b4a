"""The figures as a Prometheus textfile, for node_exporter's textfile collector and a dashboard.

An estimate is one sample per known end, distinguished by the label `end`: `value`, `low` and
`high`, or `at_least`, or `at_most`. Unknown values have no sample, so that they are not read as 0.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from datetime import datetime

from msgspec import Struct
from prometheus_client import CollectorRegistry, Gauge, Metric, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from vllm_capacity.analysis import Analysis
from vllm_capacity.estimate import Estimate
from vllm_capacity.render.exports.currency import Currency
from vllm_capacity.verdicts.cost.bill import Costs

_TOKENS = {
    "usd_per_million_output_tokens": "output",
    "usd_per_million_total_tokens": "total",
    "usd_per_million_input_tokens_split": "input_split",
    "usd_per_million_output_tokens_split": "output_split",
}


class _Metric(Struct, frozen=True):
    """A metric: its name, its help text, and its estimates with their labels."""

    name: str
    help: str
    found: tuple[tuple[Mapping[str, str], Estimate], ...]


class Exposed(Struct, frozen=True):
    """The exposed figures of one window: its costs, those of each engine, headroom and capacity.

    `output_tokens_per_second` is None if it was not counted.
    """

    window: str
    end: datetime
    costs: Costs
    engines: Mapping[str, Costs]
    headroom: Estimate
    capacity: Estimate
    output_tokens_per_second: float | None

    @classmethod
    def of(cls, analysis: Analysis) -> Exposed:
        """The exposed figures of an analysis."""
        found = analysis.answer
        return cls(
            analysis.window.name,
            analysis.time_range.end,
            found.cost,
            analysis.bill.parts,
            found.saturation.headroom_ratio,
            found.saturation.capacity,
            found.throughput.output_tokens_per_second,
        )


def to_prometheus(analysis: Analysis, currency: Currency) -> str:
    """The figures of the fleet and of each engine in Prometheus' text format.

    Every sample has the labels `window` and `end`; money also has `currency`.
    """
    return prometheus_text([Exposed.of(analysis)], currency)


def prometheus_text(exposed: Sequence[Exposed], currency: Currency) -> str:
    """The figures of these windows, distinguished by the label `window`."""
    return generate_latest(_registry(exposed, currency)).decode()


def _registry(exposed: Sequence[Exposed], currency: Currency) -> CollectorRegistry:
    registry = CollectorRegistry()
    for same in zip(*(_metrics(each, currency) for each in exposed), strict=True):
        _register(registry, same, [each.window for each in exposed])
    return registry


@dataclass(eq=False)  # a registry identifies collectors by identity
class LiveFigures(Collector):
    """The same figures, but current, for a /metrics endpoint; recomputed every `seconds`.

    `analysis` gives the current analysis, or None if there is no telemetry: then the figures are
    left out, and `vllm_capacity_has_telemetry` is 0.
    """

    analysis: Callable[[], AbstractContextManager[Analysis | None]]
    currency: Currency
    seconds: float
    _made: tuple[Metric, ...] = ()
    _until: float = 0.0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def describe(self) -> Iterator[Metric]:
        """Nothing: naming its metrics would require computing them."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        """The figures, as prometheus_client requests them."""
        with self._lock:
            if time.monotonic() >= self._until:
                self._made = tuple(self._now())
                self._until = time.monotonic() + self.seconds
            return iter(self._made)

    def _now(self) -> Iterator[Metric]:
        with self.analysis() as found:
            has = float(found is not None)
            yield GaugeMetricFamily("vllm_capacity_has_telemetry", "1 where there is any.", has)
            if found is not None:
                yield from _registry([Exposed.of(found)], self.currency).collect()


def _metrics(found: Exposed, currency: Currency) -> Iterator[_Metric]:
    money = {"currency": currency.code}
    costs, engines = found.costs, found.engines
    yield _Metric(
        "cost_per_million_tokens",
        "Cost per million tokens: the bill over output tokens or all tokens, or split between "
        "both.",
        tuple(_per_million(costs, money, currency)),
    )
    yield _Metric(
        "engine_cost_per_million_output_tokens",
        "Cost per million output tokens by engine, idle included.",
        tuple(
            ({**money, "engine": name}, currency.of(each.usd_per_million_output_tokens))
            for name, each in engines.items()
        ),
    )
    yield _Metric(
        "cost", "The bill of the window, idle included.", _one(money, currency.of(costs.total))
    )
    yield _Metric(
        "idle_cost",
        "Cost of capacity that nobody used.",
        _one(money, currency.of(costs.idle_usd)),
    )
    yield _Metric(
        "utilization_ratio", "Output divided by capacity, 0..1.", _one({}, costs.utilization)
    )
    yield _Metric(
        "engine_utilization_ratio",
        "Output divided by capacity, 0..1, by engine.",
        tuple(({"engine": name}, each.utilization) for name, each in engines.items()),
    )
    yield _Metric(
        "headroom_ratio",
        "The share of the capacity that is free, 0..1.",
        _one({}, found.headroom),
    )
    yield _Metric(
        "capacity_output_tokens_per_second",
        "Maximum output tokens per second of the fleet.",
        _one({}, found.capacity),
    )
    served = found.output_tokens_per_second
    yield _Metric(
        "output_tokens_per_second",
        "Mean output tokens per second of the fleet.",
        () if served is None else _one({}, Estimate.exact(served)),
    )
    yield _Metric(
        "window_end_timestamp_seconds",
        "End of the window that these figures describe.",
        _one({}, Estimate.exact(found.end.timestamp())),
    )


def _one(
    labels: Mapping[str, str], found: Estimate
) -> tuple[tuple[Mapping[str, str], Estimate], ...]:
    return ((labels, found),)


def _per_million(
    costs: Costs, money: Mapping[str, str], currency: Currency
) -> Iterator[tuple[Mapping[str, str], Estimate]]:
    for name, tokens in _TOKENS.items():
        yield {**money, "tokens": tokens}, currency.of(getattr(costs, name))


def _register(registry: CollectorRegistry, same: Sequence[_Metric], windows: Sequence[str]) -> None:
    """Register a metric with its samples of each window, unless none of its figures is known."""
    samples = [
        ({"window": window, **labels, "end": end}, value)
        for metric, window in zip(same, windows, strict=True)
        for labels, estimate in metric.found
        for end, value in _ends(estimate).items()
    ]
    if not samples:
        return
    name = f"vllm_capacity_{same[0].name}"
    gauge = Gauge(name, same[0].help, list(samples[0][0]), registry=registry)
    for labels, value in samples:
        gauge.labels(**labels).set(value)


def _ends(found: Estimate) -> dict[str, float]:
    """The known ends by name; an exact figure has only its value."""
    if found.mid is None:
        ends = {"at_least": found.low, "at_most": found.high}
    elif found.low == found.high:
        ends = {"value": found.mid}
    else:
        ends = {"value": found.mid, "low": found.low, "high": found.high}
    return {name: value for name, value in ends.items() if value is not None}
