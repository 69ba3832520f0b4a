"""Prometheus, and what speaks its API (Thanos, Mimir, VictoriaMetrics): raw samples, not rates.

An instant query on a range selector, `x[1h]`, answers with the samples as they were scraped; a
range query would evaluate at steps, at most 11,000 of them. Families are asked for by the hour.

A series a bucket, as Prometheus answers, into one state a scrape, as canonical rows have it.

Buckets are cumulative over `le` on the wire, and per bucket here. What a scraper's configuration
puts on every series of a target (namespace, pod, cluster …) is on that target's `up`, too: that is
how it is told from the server's own labels. It is kept apart, as the labels of `target_info`.
"""

from __future__ import annotations

import json
import math
import re
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial
from typing import Annotated, Any, Generic, Literal, TypeVar

import httpx
import msgspec
import numpy as np
import polars as pl
from numpy.typing import NDArray

from vllm_capacity.errors import SourceError, plain
from vllm_capacity.facts.metrics import keeps
from vllm_capacity.selector import Selector
from vllm_capacity.sources.answers import AnswerCache, Step
from vllm_capacity.sources.http import (
    BUSY,
    TransientError,
    address,
    decoded,
    transport_errors,
    with_retries,
)
from vllm_capacity.sources.otlp import Child, Wire, as_schema, is_label, of_job, series_of, serving
from vllm_capacity.sources.parquet import LOOKBACK, cut_in_parts
from vllm_capacity.telemetry.parts import Held, RowsInParts, Spool, Tables
from vllm_capacity.telemetry.processes import TARGET_INFO
from vllm_capacity.telemetry.rows import (
    HISTOGRAMS_SCHEMA,
    INTAKE_SCHEMA,
    SAMPLES_SCHEMA,
    Rows,
    SeriesKey,
    microseconds,
)
from vllm_capacity.timerange import TimeRange

HISTOGRAM_PARTS = ("_bucket", "_sum", "_count")
_STATES: dict[str, Any] = {
    "series_id": pl.Int64,
    "rank": pl.Int8,
    "ms": pl.Int64,
    "count": pl.Float64,
    "sum": pl.Float64,
    "counts": pl.List(pl.Float64),
}
_ANSWER: dict[str, Any] = {
    "metric": pl.String,  # its labels, a JSON object; null of a warning
    "ms": pl.List(pl.Int64),
    "value": pl.List(pl.Float64),
    "warning": pl.String,
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
    _ids: dict[tuple[str, _Labels, tuple[float, ...] | None], int] = field(default_factory=dict)

    def series_id(
        self, wire: Wire, labels: _Labels, bounds: tuple[float, ...] | None = None
    ) -> int:
        key = (wire.exposed, labels, bounds)
        if key not in self._ids:
            self._ids[key] = self._new(wire, dict(labels), bounds)
        return self._ids[key]

    def _new(self, wire: Wire, labels: Mapping[str, str], bounds: tuple[float, ...] | None) -> int:
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
    """Collects raw series; a child is one label set, buckets apart from scalars.

    Only when all are seen is it known which labels a scraper puts on every series of a target:
    until then samples wait in `raw`, those of scalars apart from those of histograms.
    """

    found: Families
    raw: Held | Spool = field(default_factory=Held)
    _labels: dict[tuple[str, _Labels], int] = field(default_factory=dict)
    _children: dict[str, int] = field(default_factory=dict)
    _warnings: Counter[str] = field(default_factory=Counter)

    def add(self, answers: Sequence[pl.DataFrame], time_range: TimeRange) -> None:
        """Take in what was sampled in the range, and how often an answer may not be complete.

        SourceError where a series is none of Prometheus'. A sample that came twice counts once.
        """
        answer = pl.concat(answers)
        self._warnings.update(answer["warning"].drop_nulls())
        answer = answer.filter(pl.col("metric").is_not_null())
        children = [self._child(metric) for metric in answer["metric"]]
        start, end = (microseconds(each) // 1000 for each in (time_range.start, time_range.end))
        samples = (
            answer.select(pl.Series("child", children, dtype=pl.Int64), "ms", "value")
            .explode("ms", "value", empty_as_null=False)
            .filter(pl.col("ms").is_between(start, end, closed="left"))
            .filter(pl.col("value").is_not_nan())
            .unique(["child", "ms"])
        )
        scalars = set(self.found.scalars)
        own = [child for (name, _), child in self._labels.items() if name in scalars]
        is_scalar = pl.col("child").is_in(pl.Series(own, dtype=pl.Int64).implode())
        self.raw.add(samples.filter(is_scalar), samples.filter(~is_scalar))

    def _child(self, metric: str) -> int:
        if metric not in self._children:
            labels: dict[str, str] = json.loads(metric)
            name = labels.pop("__name__", "")
            if not name or (name.endswith("_bucket") and _edge(labels.get("le")) is None):
                raise SourceError(
                    f"Prometheus answers with a series that has no name or bound: {metric}"
                )
            key = (name, tuple(sorted(labels.items())))
            self._children[metric] = self._labels.setdefault(key, len(self._labels))
        return self._children[metric]

    def rows(self, spool: Held | Spool) -> RowsInParts:
        """Everything taken in, as canonical rows; a part for each time that `add` was called."""
        targets = self._target_labels()
        known = _Known(targets)
        infos = {name: _target_info(name, labels) for name, labels in targets.items()}
        scalars = self._named_scalars(known)
        bases = [_Base.of(base, self._labels) for base in self.found.histograms]
        for part in self.raw.parts:
            raw_scalars, raw_buckets = part()
            samples = raw_scalars.join(scalars, on="child").select(
                "series_id", "rank", "ms", value=pl.col("value") * pl.col("scale")
            )
            samples = pl.concat([samples, self._target_samples(raw_scalars, infos)])
            states = [base.states(raw_buckets, known) for base in bases]
            spool.add(
                _canonical(samples, SAMPLES_SCHEMA),
                _canonical(pl.concat([pl.DataFrame(schema=_STATES), *states]), HISTOGRAMS_SCHEMA),
            )
        known.children.update({info.key.series_id: info for info in infos.values() if info})
        own = serving(known.children)
        kept = pl.Series(list(own), dtype=pl.Int64)
        parts = [partial(_of_series, part, kept) for part in spool.parts]
        return RowsInParts(series_of(own.values()), parts, self._intake())

    def _target_samples(
        self, scalars: pl.DataFrame, infos: Mapping[str, Child | None]
    ) -> pl.DataFrame:
        """A sample of the info series of each target whose `up` was sampled."""
        found = {}
        for (name, labels), child in self._labels.items():
            info = infos.get(dict(labels).get("instance", "")) if name == "up" else None
            if info is not None:
                found[child] = info.key.series_id
        first = scalars.filter(pl.col("child").is_in(list(found))).sort("ms")
        return first.select(
            pl.col("child").replace_strict(found, return_dtype=pl.Int64).alias("series_id"),
            pl.lit(0, pl.Int8).alias("rank"),
            "ms",
            pl.lit(1.0).alias("value"),
        ).unique("series_id", keep="first", maintain_order=True)

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

    def _named_scalars(self, known: _Known) -> pl.DataFrame:
        """What the samples of each child are: child, series_id, rank, scale."""
        names = set(self.found.scalars)
        rows = []
        for (name, labels), child in self._labels.items():
            if name in names:
                wire = Wire.of(name, _kind(self.found.kinds.get(name, "")))
                rows.append((child, known.series_id(wire, labels), wire.rank, wire.scale))
        schema = {"child": pl.Int64, "series_id": pl.Int64, "rank": pl.Int8, "scale": pl.Float64}
        return pl.DataFrame(rows, schema=schema, orient="row")


@dataclass(frozen=True)
class _Base:
    """The children of one histogram family: buckets and sums, in groups of one label set each."""

    wire: Wire
    groups: list[_Labels]
    edges: pl.DataFrame
    totals: pl.DataFrame

    @classmethod
    def of(cls, base: str, children: Mapping[tuple[str, _Labels], int]) -> _Base:
        groups: dict[_Labels, int] = {}
        buckets, sums = [], []
        for (name, labels), child in children.items():
            bare = tuple(item for item in labels if item[0] != "le")
            if name == f"{base}_bucket":
                edge = _edge(dict(labels)["le"])
                buckets.append((child, groups.setdefault(bare, len(groups)), edge))
            elif name == f"{base}_sum":
                sums.append((child, groups.setdefault(bare, len(groups))))
        bucket_schema = {"child": pl.Int64, "group": pl.Int64, "edge": pl.Float64}
        return cls(
            Wire.of(base, "histogram"),
            list(groups),
            pl.DataFrame(buckets, schema=bucket_schema, orient="row"),
            pl.DataFrame(sums, schema={"child": pl.Int64, "group": pl.Int64}, orient="row"),
        )

    def states(self, raw: pl.DataFrame, known: _Known) -> pl.DataFrame:
        """The states of the family among these samples, in the columns of `_STATES`."""
        per_scrape = (
            raw.join(self.edges, on="child")
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
        total = raw.join(self.totals, on="child").select("group", "ms", sum="value")
        states = per_scrape.join(total, on=["group", "ms"], how="left")
        states = states.with_columns(count=pl.col("counts").list.sum())
        keys = states.select("group", "bounds").unique(maintain_order=True)
        ids = [
            known.series_id(self.wire, self.groups[group], tuple(bounds))
            for group, bounds in keys.iter_rows()
        ]
        named = keys.with_columns(
            pl.Series("series_id", ids, dtype=pl.Int64),
            pl.lit(self.wire.rank, pl.Int8).alias("rank"),
        )
        return states.join(named, on=["group", "bounds"]).select(list(_STATES))


def _target_info(instance: str, labels: Collection[tuple[str, str]]) -> Child | None:
    """The series that keeps the labels of a target; None where it has none but its name and job.

    A label that changed while it was scraped has the last of its values, by name.
    """
    own = {name: value for name, value in sorted(labels) if value and is_label(name)}
    if not own:
        return None
    key = SeriesKey(TARGET_INFO, "info", instance, labels=tuple(sorted(own.items())))
    return Child(Wire(TARGET_INFO, "info", None), key)


def _canonical(frame: pl.DataFrame, schema: Mapping[str, Any]) -> pl.DataFrame:
    times = frame.with_columns(ts=pl.from_epoch(pl.col("ms") * 1000, time_unit="us"))
    return as_schema(times.sort("series_id", "ts"), schema)


def _of_series(part: Callable[[], Tables], kept: pl.Series) -> Tables:
    samples, histograms = part()
    is_kept = pl.col("series_id").is_in(kept.implode())
    return samples.filter(is_kept), histograms.filter(is_kept)


def _answer_frame(series: Sequence[Series], warnings: Sequence[str]) -> pl.DataFrame:
    """An answer as it is kept: a row a series, and a row a warning."""
    times = [np.array([moment for moment, _ in each.values], np.float64) for each in series]
    samples = {
        "metric": [json.dumps(each.metric, sort_keys=True) for each in series],
        "ms": [np.rint(each * 1000).astype(np.int64) for each in times],
        "value": [_numbers(each) for each in series],
        "warning": [None] * len(series),
    }
    return pl.concat(
        [
            pl.DataFrame(samples, schema=_ANSWER),
            pl.DataFrame({"warning": list(warnings)}, schema={"warning": pl.String}),
        ],
        how="diagonal",
    )


def _numbers(series: Series) -> NDArray[np.float64]:
    try:
        return np.array([float(text) for _, text in series.values], np.float64)
    except ValueError as error:
        raise SourceError(f"Prometheus answers with a value that is no number: {error}.") from None


def _edge(text: str | None) -> float | None:
    """The bound of a bucket; None where there is none to be read."""
    try:
        edge = float(text or "")
    except ValueError:
        return None
    return None if math.isnan(edge) else edge


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
    """One server, and which of its series are asked for; None: all there are.

    `pause` waits between attempts, so that tests need not.
    """

    client: httpx.Client
    pause: Callable[[float], None] = time.sleep
    only: Selector | None = None

    @property
    def address(self) -> str:
        """Where it is, for messages and notes: without credentials."""
        return address(self.client)

    def names(self, time_range: TimeRange) -> list[str]:
        """The metric names with samples in the range."""
        asked = {"start": _seconds(time_range.start), "end": _seconds(time_range.end)}
        if self.only is not None:
            asked["match[]"] = self._selector(".+")
        return sorted(self._get("/api/v1/label/__name__/values", asked, list[str]))

    def _selector(self, names: str) -> str:
        """The series whose names match, among those that are asked for."""
        among = "" if self.only is None else f",{self.only.bare}"
        return f'{{__name__=~"{names}"{among}}}'

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
            "query": f"{self._selector(escaped)}[{length_ms}ms]",
            "time": _seconds(time_range.end - timedelta(milliseconds=1)),
        }
        found = self._asked(
            lambda: self.client.post("/api/v1/query", data=question), _Success[_Matrix]
        )
        return Samples(found.data.result, found.warnings or [])

    def answer(self, names: Sequence[str], time_range: TimeRange) -> pl.DataFrame:
        """The samples of these metrics in the range as a frame, with the server's warnings."""
        found = self.samples(names, time_range)
        return _answer_frame(found.series, found.warnings)

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


def read_prometheus(server: Prometheus, time_range: TimeRange) -> Rows:
    """The canonical rows of a range, and the last sample before it of every series in it.

    NoTelemetryError where the server has no vLLM series then.
    """
    return prometheus_in_parts(server, time_range, raw=Held(), spool=Held()).whole()


def prometheus_in_parts(
    server: Prometheus,
    time_range: TimeRange,
    *,
    raw: Held | Spool,
    spool: Held | Spool,
    cache: AnswerCache | None = None,
    progress: Callable[[Step], None] = lambda step: None,
) -> RowsInParts:
    """As `read_prometheus`, an hour in memory at a time.

    Samples wait in `raw`, rows in `spool`; what `cache` holds is not asked for.
    """
    wide = TimeRange(time_range.start - LOOKBACK, time_range.end)
    found = families(server.names(wide), server.kinds())
    together, slices = _together(found), list(_slices(wide))
    reader, kept, done = SeriesReader(found, raw), cache or AnswerCache(), 0
    for own in slices:
        answers = []
        for names in together:
            asked = (server.address, *([str(server.only)] if server.only else []), *names)
            question = "\n".join([*asked, *map(_seconds, (own.start, own.end))])
            answers.append(kept.frame(question, own, partial(server.answer, names, own)))
            done += 1
            progress(Step(done, len(slices) * len(together), 0))
        if answers:
            reader.add(answers, own)
    return cut_in_parts(reader.rows(spool), time_range)


def _together(found: Families) -> list[list[str]]:
    """The names that are asked for in one query."""
    scalars = found.scalars
    together = [list(scalars[at : at + _TOGETHER]) for at in range(0, len(scalars), _TOGETHER)]
    return together + [[base + suffix for suffix in HISTOGRAM_PARTS] for base in found.histograms]


def _slices(wide: TimeRange) -> Iterator[TimeRange]:
    start = wide.start
    while start < wide.end:
        own = TimeRange(start, min(start + _SLICE, wide.end))
        yield own
        start = own.end


def _seconds(moment: datetime) -> str:
    return f"{microseconds(moment) / 1e6:.3f}"
