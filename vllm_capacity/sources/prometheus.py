"""Prometheus, and what speaks its API (Thanos, Mimir, VictoriaMetrics): raw samples, not rates.

An instant query on a range selector, `x[1h]`, answers with the samples as they were scraped; a
range query would evaluate at steps, at most 11,000 of them. Families are asked for by the hour.

A series a bucket, as Prometheus answers, into one state a scrape, as canonical rows have it.

Buckets are cumulative over `le` on the wire, and per bucket here. What a scraper's configuration
puts on every series of a target (namespace, pod, cluster …) is on that target's `up`, too: that is
how it is told from the server's own labels.
"""

from __future__ import annotations

import math
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Annotated, Any, Generic, Literal, TypeVar

import httpx
import msgspec
import polars as pl

from vllm_capacity.errors import SourceError, plain
from vllm_capacity.facts.metrics import keeps
from vllm_capacity.sources.http import (
    BUSY,
    TransientError,
    address,
    decoded,
    transport_errors,
    with_retries,
)
from vllm_capacity.sources.otlp import Child, Wire, as_schema, of_job, series_of, serving
from vllm_capacity.sources.parquet import LOOKBACK, cut
from vllm_capacity.telemetry.rows import (
    HISTOGRAMS_SCHEMA,
    INTAKE_SCHEMA,
    SAMPLES_SCHEMA,
    Rows,
    microseconds,
)
from vllm_capacity.timerange import TimeRange

HISTOGRAM_PARTS = ("_bucket", "_sum", "_count")
_RAW: dict[str, Any] = {"child": pl.Int64, "ms": pl.Int64, "value": pl.Float64}
_STATES: dict[str, Any] = {
    "series_id": pl.Int64,
    "rank": pl.Int8,
    "ms": pl.Int64,
    "count": pl.Float64,
    "sum": pl.Float64,
    "counts": pl.List(pl.Float64),
}
_Labels = tuple[tuple[str, str], ...]
_UnixSeconds = Annotated[float, msgspec.Meta(ge=-1e11, le=1e11)]


class Series(msgspec.Struct):
    """One series of an answer: its labels, and its samples as (Unix seconds, number as text)."""

    metric: dict[str, str]
    values: list[tuple[_UnixSeconds, str]] = []


@dataclass(frozen=True)
class Families:
    """What there is to ask for: scalars and histograms by name, with their declared kinds."""

    scalars: tuple[str, ...]
    histograms: tuple[str, ...]
    kinds: Mapping[str, str]


def families(names: Sequence[str], kinds: Mapping[str, str]) -> Families:
    """The families behind metric names, those that border 1 keeps."""
    histograms = [n.removesuffix("_bucket") for n in names if n.endswith("_bucket")]
    parts = {base + suffix for base in histograms for suffix in HISTOGRAM_PARTS}
    return Families(
        scalars=tuple(name for name in names if name not in parts and keeps(name)),
        histograms=tuple(base for base in histograms if keeps(base)),
        kinds=kinds,
    )


@dataclass
class _Known:
    """The children seen so far, by series id; `targets` are the labels put on, by instance."""

    targets: Mapping[str, set[tuple[str, str]]]
    children: dict[int, Child] = field(default_factory=dict)

    def series_id(
        self, wire: Wire, labels: Mapping[str, str], bounds: tuple[float, ...] | None = None
    ) -> int:
        instance = labels.get("instance", "")
        added = self.targets.get(instance, set())
        own = {k: v for k, v in labels.items() if (k, v) not in added}
        job = labels.get("job", "")
        jobs = {value for name, value in added if name == "job"}
        child = Child(wire, of_job(wire.key(instance, own, bounds), job, jobs), job)
        self.children[child.key.series_id] = child
        return child.key.series_id


@dataclass
class SeriesReader:
    """Collects raw series; a child is one label set, buckets apart from scalars."""

    found: Families
    _labels: dict[tuple[str, _Labels], int] = field(default_factory=dict)
    _frames: list[pl.DataFrame] = field(default_factory=list)
    _warnings: Counter[str] = field(default_factory=Counter)

    def add(self, matrix: Sequence[Series]) -> None:
        """Take in the answer of a query; SourceError where a series is none of Prometheus'."""
        for series in matrix:
            labels = dict(series.metric)
            name = labels.pop("__name__", "")
            if not name or (name.endswith("_bucket") and _edge(labels.get("le")) is None):
                raise SourceError(
                    f"Prometheus answers with a series that has no name or bound: {series.metric}"
                )
            child = self._labels.setdefault(
                (name, tuple(sorted(labels.items()))), len(self._labels)
            )
            frame = pl.DataFrame(
                {
                    "ms": [round(moment * 1000) for moment, _ in series.values],
                    "value": [_number(value) for _, value in series.values],
                },
                schema={"ms": pl.Int64, "value": pl.Float64},
            )
            self._frames.append(frame.select(pl.lit(child, pl.Int64).alias("child"), "ms", "value"))

    def warn(self, warnings: Sequence[str]) -> None:
        """Take in that an answer may not hold all there is, for the quality report."""
        self._warnings.update(warnings)

    def rows(self) -> Rows:
        """Everything taken in, as canonical rows, a sample that came twice counted once."""
        raw = pl.concat([pl.DataFrame(schema=_RAW), *self._frames])
        raw = raw.filter(pl.col("value").is_not_nan()).unique(["child", "ms"])
        known = _Known(self._target_labels())
        samples = self._scalars(raw, known)
        states = self._histograms(raw, known)
        own = serving(known.children)
        kept = pl.Series(list(own), dtype=pl.Int64).implode()
        times = {"ts": pl.from_epoch(pl.col("ms") * 1000, time_unit="us")}
        samples, states = (
            frame.filter(pl.col("series_id").is_in(kept))
            .with_columns(**times)
            .sort("series_id", "ts")
            for frame in (samples, states)
        )
        return Rows(
            series_of(own.values()),
            as_schema(samples, SAMPLES_SCHEMA),
            as_schema(states, HISTOGRAMS_SCHEMA),
            self._intake(),
        )

    def _intake(self) -> pl.DataFrame:
        notes = [
            ("coverage", None, None, "partial answer", plain(warning)[:300], count)
            for warning, count in self._warnings.items()
        ]
        return pl.DataFrame(notes, schema=INTAKE_SCHEMA, orient="row")

    def _target_labels(self) -> dict[str, set[tuple[str, str]]]:
        """What the scraper puts on every series of a target, by instance."""
        targets: dict[str, set[tuple[str, str]]] = {}
        for name, labels in self._labels:
            if name == "up":
                targets.setdefault(dict(labels).get("instance", ""), set()).update(labels)
        return targets

    def _scalars(self, raw: pl.DataFrame, known: _Known) -> pl.DataFrame:
        names = set(self.found.scalars)
        rows = []
        for (name, labels), child in self._labels.items():
            if name in names:
                wire = Wire.of(name, _kind(self.found.kinds.get(name, "")))
                series_id = known.series_id(wire, dict(labels))
                rows.append((child, series_id, wire.rank, wire.scale))
        schema = {"child": pl.Int64, "series_id": pl.Int64, "rank": pl.Int8, "scale": pl.Float64}
        named = pl.DataFrame(rows, schema=schema, orient="row")
        return raw.join(named, on="child").select(
            "series_id", "rank", "ms", value=pl.col("value") * pl.col("scale")
        )

    def _histograms(self, raw: pl.DataFrame, known: _Known) -> pl.DataFrame:
        frames = [pl.DataFrame(schema=_STATES)]
        for base in self.found.histograms:
            states, label_sets = self._states(raw, base)
            wire = Wire.of(base, "histogram")
            keys = states.select("group", "bounds").unique(maintain_order=True)
            ids = [
                known.series_id(wire, dict(label_sets[group]), tuple(bounds))
                for group, bounds in keys.iter_rows()
            ]
            named = keys.with_columns(
                pl.Series("series_id", ids, dtype=pl.Int64),
                pl.lit(wire.rank, pl.Int8).alias("rank"),
            )
            frames.append(states.join(named, on=["group", "bounds"]).select(list(_STATES)))
        return pl.concat(frames)

    def _states(self, raw: pl.DataFrame, base: str) -> tuple[pl.DataFrame, list[_Labels]]:
        """A family's states (group, ms, bounds, counts, count, sum) and the groups' label sets."""
        groups: dict[_Labels, int] = {}
        buckets, sums = [], []
        for (name, labels), child in self._labels.items():
            bare = tuple(item for item in labels if item[0] != "le")
            if name == f"{base}_bucket":
                edge = _edge(dict(labels)["le"])
                buckets.append((child, groups.setdefault(bare, len(groups)), edge))
            elif name == f"{base}_sum":
                sums.append((child, groups.setdefault(bare, len(groups))))
        bucket_schema = {"child": pl.Int64, "group": pl.Int64, "edge": pl.Float64}
        edges = pl.DataFrame(buckets, schema=bucket_schema, orient="row")
        totals = pl.DataFrame(sums, schema={"child": pl.Int64, "group": pl.Int64}, orient="row")
        per_scrape = (
            raw.join(edges, on="child")
            .sort("group", "ms", "edge")
            .group_by("group", "ms", maintain_order=True)
            .agg(bounds="edge", counts=pl.col("value").cum_max())
            .filter(pl.col("bounds").list.last().is_infinite())
            .with_columns(
                bounds=pl.col("bounds").list.head(pl.col("bounds").list.len() - 1),
                # Cumulative over the edges on the wire, per bucket here.
                counts=pl.col("counts").list.eval(pl.element().diff().fill_null(pl.element())),
            )
        )
        total = raw.join(totals, on="child").select("group", "ms", sum="value")
        joined = per_scrape.join(total, on=["group", "ms"], how="left")
        return joined.with_columns(count=pl.col("counts").list.sum()), list(groups)


def _edge(text: str | None) -> float | None:
    """The bound of a bucket; None where there is none to be read."""
    try:
        edge = float(text or "")
    except ValueError:
        return None
    return None if math.isnan(edge) else edge


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise SourceError(f"Prometheus answers with the value {text!r}, no number.") from None


def _kind(declared: str) -> str:
    """The declared type in our words; empty where none was declared."""
    return declared if declared in ("counter", "gauge") else ""


_SLICE = timedelta(hours=1)
_TOGETHER = 8  # scalar families asked for in one query
_QUESTION_SECONDS = 60.0  # for what is asked about the server; a query has the client's own time
_Data = TypeVar("_Data")
_Answer = TypeVar("_Answer")


class _Success(msgspec.Struct, Generic[_Data]):
    """A good answer. `warnings`: what is in it may not be all there is (Thanos, Mimir)."""

    status: Literal["success"]
    data: _Data
    warnings: list[str] | None = None


class _Refusal(msgspec.Struct):
    """What else it says."""

    error: str = ""


class _Declared(msgspec.Struct):
    """What a family was declared as."""

    type: str


class _Matrix(msgspec.Struct, rename="camel"):
    """The raw samples of a range."""

    result_type: Literal["matrix"]
    result: list[Series]


@dataclass(frozen=True)
class Samples:
    """Raw samples, and the server's warnings that there may be more than these."""

    series: list[Series]
    warnings: list[str]


@dataclass(frozen=True)
class Prometheus:
    """One server. `pause` waits between attempts, so that tests need not."""

    client: httpx.Client
    pause: Callable[[float], None] = time.sleep

    @property
    def address(self) -> str:
        """Where it is, for messages and notes: without credentials."""
        return address(self.client)

    def names(self, time_range: TimeRange) -> list[str]:
        """The metric names with samples in the range."""
        found = self._get(
            "/api/v1/label/__name__/values",
            {"start": _seconds(time_range.start), "end": _seconds(time_range.end)},
            list[str],
        )
        return sorted(found)

    def kinds(self) -> dict[str, str]:
        """What each family was declared as; empty for a server that does not keep it."""
        try:
            found = self._get("/api/v1/metadata", {}, dict[str, list[_Declared]])
        except SourceError:
            return {}  # Thanos and Mimir may not have it; names and the catalogue must do
        return {name: entries[0].type for name, entries in found.items() if entries}

    def samples(self, names: Sequence[str], time_range: TimeRange) -> Samples:
        """The raw samples of these metrics in [start, end): Prometheus' `matrix`.

        Ranges are open at the left in Prometheus 3 and closed before: there, the last sample of the
        hour before may come twice.
        """
        escaped = "|".join(re.escape(name).replace("\\", "\\\\") for name in names)
        length_ms = int(time_range.seconds * 1000)
        question = {
            "query": f'{{__name__=~"{escaped}"}}[{length_ms}ms]',
            "time": _seconds(time_range.end - timedelta(milliseconds=1)),
        }
        found = self._asked(
            lambda: self.client.post("/api/v1/query", data=question), _Success[_Matrix]
        )
        return Samples(found.data.result, found.warnings or [])

    def _get(self, path: str, params: Mapping[str, str], data: type[_Data]) -> _Data:
        def ask() -> httpx.Response:
            return self.client.get(path, params=params, timeout=_QUESTION_SECONDS)

        return self._asked(ask, _Success[data]).data  # type: ignore[valid-type]

    def _asked(self, ask: Callable[[], httpx.Response], shape: type[_Answer]) -> _Answer:
        def answered() -> _Answer:
            with transport_errors(self.address):
                response = ask()
            _require_success(response, self.address)
            return decoded(response.content, shape, at=self.address, dialect="Prometheus")

        return with_retries(answered, self.pause)


def _require_success(response: httpx.Response, at: str) -> None:
    """Every status but 200 as an error that says what to do."""
    status = response.status_code
    if status == 200:
        return
    if status in (401, 403):
        raise SourceError(
            f"{at} refused the credentials ({status}). Set PROMETHEUS_USER and "
            "PROMETHEUS_PASSWORD, or PROMETHEUS_TOKEN."
        )
    text = " ".join(_reason(response).split())[:300]
    if status in BUSY:
        raise TransientError(f"{at} is not ready ({status}): {text}")
    if status == 422:
        raise SourceError(f"{at} could not run the query: {text}. Ask for a shorter range.")
    raise SourceError(f"{at} does not answer as Prometheus does ({status}): {text}")


def _reason(response: httpx.Response) -> str:
    try:
        sentence = msgspec.json.decode(response.content, type=_Refusal).error
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        sentence = ""
    return sentence or response.text


def read_prometheus(
    server: Prometheus,
    time_range: TimeRange,
    *,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Rows:
    """The canonical rows of a range, and the last sample before it of every series in it.

    SourceError where the server has no vLLM series then.
    """
    wide = TimeRange(time_range.start - LOOKBACK, time_range.end)
    found = families(server.names(wide), server.kinds())
    questions = list(_questions(found, wide))
    reader = SeriesReader(found)
    for done, (names, time_range) in enumerate(questions, start=1):
        found_samples = server.samples(names, time_range)
        reader.add(found_samples.series)
        reader.warn(found_samples.warnings)
        progress(done, len(questions))
    return cut(reader.rows(), time_range)


def _questions(found: Families, wide: TimeRange) -> Iterator[tuple[list[str], TimeRange]]:
    together = [
        list(found.scalars[at : at + _TOGETHER]) for at in range(0, len(found.scalars), _TOGETHER)
    ]
    together += [[base + suffix for suffix in HISTOGRAM_PARTS] for base in found.histograms]
    start = wide.start
    while start < wide.end:
        time_range = TimeRange(start, min(start + _SLICE, wide.end))
        yield from ((names, time_range) for names in together)
        start = time_range.end


def _seconds(moment: datetime) -> str:
    return f"{microseconds(moment) / 1e6:.3f}"
