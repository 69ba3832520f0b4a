"""The canonical tables: the one form that telemetry has after ingestion, whatever its format was.

`series`      one row per series: what it measures, on which engine, with which bounds
`samples`     one row per (series, sample time): counters and gauges
`histograms`  one row per (series, sample time): cumulative over time, per bucket (not cumulative
              over buckets), the overflow bucket last
`intake`      one row per ingest note: duplicates, late, stale, renamed, unreadable

A series is identified by its meaning, not its spelling: canonical metric name, instance, labels
and, for a histogram, its bounds. Other bounds make another series, so histograms with different
bounds are never added by accident. `series_id` is a hash of that identity: it is the same in every
pull, so hours that were pulled separately can be joined.

Sources return `samples` and `histograms` without `run` (the ordinal of the process); the store adds
it. `alias_priority` ranks the spelling of a row: 0 is vLLM's newest name of the concept. If a
scrape has a concept under two names, the store keeps the lowest alias_priority. `arrival` is the
order in which the scrape arrived, null if the source does not know it: it distinguishes a clock
that was set back from rows that arrived late (clocks.py).
"""

from __future__ import annotations

import hashlib
import json
import math
from array import array
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import numpy as np
import polars as pl
from msgspec import Struct, field
from numpy.typing import NDArray

UTC_MICROSECONDS = pl.Datetime("us", "UTC")
_CLOCKS_APART_US = 2_000_000  # a creation time further than this after its scrape is invalid
_FAR_US, _FAR_SPANS = 7 * 86_400_000_000, 10

SERIES_SCHEMA: dict[str, Any] = {
    "series_id": pl.Int64,
    "metric": pl.String,  # canonical name, e.g. vllm:generation_tokens_total
    "kind": pl.String,  # counter, gauge, histogram, info
    "instance": pl.String,  # the target: host:port, pod, or the name given to it
    "engine": pl.String,  # data-parallel rank, "0" if there is only one; null for server-wide
    "model_name": pl.String,
    "labels": pl.String,  # the other labels, a JSON object with sorted keys
    "bounds": pl.List(pl.Float64),  # finite upper bounds of a histogram, else null
    "exposed": pl.String,  # the newest spelling seen on the wire
    "starts_at_zero": pl.Boolean,  # its first sample counts from 0; null: the store decides
}
SAMPLES_SCHEMA: dict[str, Any] = {
    "series_id": pl.Int64,
    "ts": UTC_MICROSECONDS,
    "value": pl.Float64,
    "alias_priority": pl.Int8,
    "arrival": pl.Int64,
}
HISTOGRAMS_SCHEMA: dict[str, Any] = {
    "series_id": pl.Int64,
    "ts": UTC_MICROSECONDS,
    "count": pl.Float64,
    "sum": pl.Float64,
    "counts": pl.List(pl.Float64),
    "alias_priority": pl.Int8,
    "arrival": pl.Int64,
}
INGEST_NOTES_SCHEMA: dict[str, Any] = {
    "check": pl.String,  # a check of the quality report: duplicate, late, renamed, gap, …
    "instance": pl.String,
    "ts": UTC_MICROSECONDS,
    "subject": pl.String,  # the metric, line or column it is about
    "detail": pl.String,
    "count": pl.Int64,
}


class Rows(Struct, frozen=True):
    """The result of a source: four frames in the schemas above.

    `begin` is the requested start: earlier samples were carried in as the baseline of the first
    increase. None if everything was read.
    """

    series: pl.DataFrame
    samples: pl.DataFrame
    histograms: pl.DataFrame
    ingest_notes: pl.DataFrame
    begin: datetime | None = None


class SeriesKey(Struct, frozen=True):
    """The identity of a series; `labels` are those other than model_name and engine, sorted."""

    metric: str
    kind: str
    instance: str
    engine: str | None = None
    model_name: str | None = None
    labels: tuple[tuple[str, str], ...] = ()
    bounds: tuple[float, ...] | None = None

    @property
    def series_id(self) -> int:
        """A signed 64-bit hash of the identity, equal in every process and on every machine."""
        identity = json.dumps(
            [
                self.metric,
                self.kind,
                self.instance,
                self.engine,
                self.model_name,
                self.labels,
                self.bounds,
            ]
        )
        digest = hashlib.blake2b(identity.encode(), digest_size=8).digest()
        return int.from_bytes(digest, "big", signed=True)


class _Columns(Struct):
    """The columns that samples and histogram states have in common, as typed arrays."""

    series_id: array[int] = field(default_factory=lambda: array("q"))
    ts: array[int] = field(default_factory=lambda: array("q"))
    alias_priority: array[int] = field(default_factory=lambda: array("b"))
    arrival: array[int] = field(default_factory=lambda: array("q"))

    def append(self, series_id: int, ts_us: int, alias_priority: int, arrival: int) -> None:
        self.series_id.append(series_id)
        self.ts.append(ts_us)
        self.alias_priority.append(alias_priority)
        self.arrival.append(arrival)

    def extend(
        self,
        series_ids: NDArray[np.int64],
        ts_us: int,
        alias_priorities: NDArray[np.int8],
        arrival: int,
    ) -> None:
        self.series_id.frombytes(series_ids.tobytes())
        self.ts.extend(array("q", [ts_us]) * len(series_ids))
        self.alias_priority.frombytes(alias_priorities.tobytes())
        self.arrival.extend(array("q", [arrival]) * len(series_ids))

    def frame(self, **more: pl.Series) -> pl.DataFrame:
        columns = {
            "series_id": pl.Series(self.series_id, dtype=pl.Int64),
            "ts": _instants(pl.Series(self.ts, dtype=pl.Int64)),
            **more,
            "alias_priority": pl.Series(self.alias_priority, dtype=pl.Int8),
            "arrival": pl.Series(self.arrival, dtype=pl.Int64),
        }
        return pl.DataFrame(columns)


class _Samples(_Columns):
    value: array[float] = field(default_factory=lambda: array("d"))


class _Histograms(_Columns):
    count: array[float] = field(default_factory=lambda: array("d"))
    total: array[float] = field(default_factory=lambda: array("d"))
    counts: array[float] = field(default_factory=lambda: array("d"))  # of all rows, concatenated
    ends: array[int] = field(default_factory=lambda: array("q", [0]))  # where a row's counts end


def _instants(microseconds: pl.Series) -> pl.Series:
    return microseconds.cast(pl.Datetime("us")).dt.replace_time_zone("UTC")


class RowBuffer(Struct):
    """Collects rows one by one into columns, for sources that read text instead of tables."""

    _ids: dict[SeriesKey, int] = field(default_factory=dict)
    _exposed: dict[int, tuple[int, str]] = field(default_factory=dict)
    _created: dict[int, tuple[int, int]] = field(default_factory=dict)  # (scrape time, created)
    _unread: set[int] = field(default_factory=set)  # registered, without a sample so far
    _older: set[int] = field(default_factory=set)  # existed before their first readable sample
    _samples: _Samples = field(default_factory=_Samples)
    _histograms: _Histograms = field(default_factory=_Histograms)
    _ingest_notes: list[tuple[str, str | None, int | None, str, str, int]] = field(
        default_factory=list
    )
    _arrivals: int = 0
    _taken: list[NDArray[np.int64]] = field(default_factory=list)  # times of rows already taken

    @property
    def height(self) -> int:
        """The number of rows in the buffer."""
        return len(self._samples.ts) + len(self._histograms.ts)

    def series(self, key: SeriesKey, *, exposed: str, alias_priority: int = 0) -> int:
        """The id of a series, registered on first use."""
        series_id = self._ids.get(key)
        if series_id is None:
            series_id = self._ids[key] = key.series_id
            self._unread.add(series_id)
        if series_id not in self._exposed or alias_priority < self._exposed[series_id][0]:
            self._exposed[series_id] = (alias_priority, exposed)
        return series_id

    def created(self, series_id: int, ts_us: int, created_us: int) -> None:
        """Record the creation time of a series (`…_created`) from the scrape at `ts_us`."""
        earliest = self._created.get(series_id)
        if earliest is None or ts_us < earliest[0]:
            self._created[series_id] = (ts_us, created_us)

    def sample(self, series_id: int, ts_us: int, value: float, alias_priority: int = 0) -> None:
        """Add one sample; NaN and infinity are not observations and are dropped.

        A series whose first values were dropped existed before: its first readable sample does not
        count from 0.
        """
        if not math.isfinite(value):
            if series_id in self._unread:
                self._older.add(series_id)
            return
        self._unread.discard(series_id)
        self._samples.append(series_id, ts_us, alias_priority, self._arrivals)
        self._samples.value.append(value)

    def samples(
        self,
        series_ids: NDArray[np.int64],
        ts_us: int,
        values: NDArray[np.float64],
        alias_priorities: NDArray[np.int8],
    ) -> None:
        """Add samples of one scrape, each as by `sample`."""
        if not np.isfinite(values).all():
            for each in zip(
                series_ids.tolist(), values.tolist(), alias_priorities.tolist(), strict=True
            ):
                series_id, value, alias_priority = each
                self.sample(series_id, ts_us, value, alias_priority)
            return
        self._unread.difference_update(series_ids.tolist())
        self._samples.extend(series_ids, ts_us, alias_priorities, self._arrivals)
        self._samples.value.frombytes(values.tobytes())

    def histogram(
        self,
        series_id: int,
        ts_us: int,
        *,
        count: float,
        total: float,
        counts: Sequence[float],
        alias_priority: int = 0,
    ) -> None:
        """Add one histogram state; `counts` are per bucket, one more than there are bounds."""
        own = self._histograms
        own.append(series_id, ts_us, alias_priority, self._arrivals)
        own.count.append(count)
        own.total.append(total)
        own.counts.extend(counts)
        own.ends.append(len(own.counts))

    def histograms(
        self,
        series_ids: NDArray[np.int64],
        ts_us: int,
        *,
        count: Sequence[float],
        total: NDArray[np.float64],
        counts: Sequence[float],
        ends: Sequence[int],
        alias_priorities: NDArray[np.int8],
    ) -> None:
        """Add histogram states of one scrape; `counts` are concatenated, `ends` are their ends."""
        own = self._histograms
        begin = len(own.counts)
        own.extend(series_ids, ts_us, alias_priorities, self._arrivals)
        own.count.extend(count)
        own.total.frombytes(total.tobytes())
        own.counts.extend(counts)
        own.ends.extend(begin + end for end in ends)

    def scrape(self, instance: str, ts_us: int, *, is_up: bool, seconds: float | None) -> None:
        """Add a scrape attempt, successful or failed: `up` and `scrape_duration_seconds` samples.

        Rows added before the next attempt belong to this scrape's arrival.
        """
        self._arrivals += 1
        up = SeriesKey("up", "gauge", instance)
        self.sample(self.series(up, exposed="up"), ts_us, float(is_up))
        if seconds is not None:
            duration = SeriesKey("scrape_duration_seconds", "gauge", instance)
            series_id = self.series(duration, exposed="scrape_duration_seconds")
            self.sample(series_id, ts_us, seconds)

    def note(
        self,
        check: str,
        *,
        subject: str,
        detail: str,
        instance: str | None = None,
        ts_us: int | None = None,
        count: int = 1,
    ) -> None:
        """Add one ingest note, for the quality report."""
        self._ingest_notes.append((check, instance, ts_us, subject, detail, count))

    def rows(self) -> Rows:
        """The contents as frames; the buffer is not changed."""
        return Rows(self._series_frame(), *self._tables(), self._notes())

    def take(self) -> tuple[pl.DataFrame, pl.DataFrame]:
        """Remove and return the samples and histograms; series and notes stay."""
        tables = self._tables()
        self._taken.append(self._times())
        self._samples, self._histograms = _Samples(), _Histograms()
        return tables

    def _tables(self) -> tuple[pl.DataFrame, pl.DataFrame]:
        samples, histograms = self._samples, self._histograms
        return (
            samples.frame(value=pl.Series(samples.value, dtype=pl.Float64)),
            histograms.frame(
                count=pl.Series(histograms.count, dtype=pl.Float64),
                sum=pl.Series(histograms.total, dtype=pl.Float64),
                counts=_lists(histograms.counts, histograms.ends),
            ),
        )

    def _times(self) -> NDArray[np.int64]:
        return np.unique(np.concatenate([self._samples.ts, self._histograms.ts]))

    def _notes(self) -> pl.DataFrame:
        return pl.DataFrame(
            self._ingest_notes,
            schema={
                **{name: INGEST_NOTES_SCHEMA[name] for name in ("check", "instance")},
                "ts": pl.Int64,
                **{name: INGEST_NOTES_SCHEMA[name] for name in ("subject", "detail", "count")},
            },
            orient="row",
        ).with_columns(pl.from_epoch("ts", time_unit="us").dt.replace_time_zone("UTC"))

    def _series_frame(self) -> pl.DataFrame:
        frame = series_frame({k: self._exposed[i][1] for k, i in self._ids.items()})
        result = {**dict.fromkeys(self._born(), True), **dict.fromkeys(self._older, False)}
        ids = frame.get_column("series_id").to_list()
        return frame.with_columns(
            pl.Series("starts_at_zero", [result.get(i) for i in ids], dtype=pl.Boolean)
        )

    def _born(self) -> list[int]:
        """The series that were created in the capture, according to their first scrapes."""
        begin = _begin_us(np.concatenate([*self._taken, self._times()]))
        return [
            series_id
            for series_id, (ts_us, created_us) in self._created.items()
            if begin <= created_us <= ts_us + _CLOCKS_APART_US
        ]

    def has_serving_series(self) -> bool:
        """Whether there is any vLLM series, beyond the scraper's own bookkeeping."""
        return any(key.metric.startswith("vllm:") for key in self._ids)


def _begin_us(times: np.ndarray) -> int:
    """When the capture begins, in microseconds, ignoring stamps far before all others.

    A clock that is not set yet reads 1970, and a series created after that did not necessarily
    start in the capture (clocks.py leaves such stamps out).
    """
    if not times.size:
        return 0
    seen = np.unique(times)
    steps, spans = np.diff(seen), seen[-1] - seen[1:]
    is_far = (steps > _FAR_US) & (steps > _FAR_SPANS * spans)
    return int(seen[np.flatnonzero(is_far).max(initial=-1) + 1])


def _lists(flat: array[float], ends: array[int]) -> pl.Series:
    """A column of lists, from their concatenated items and the ends of the lists."""
    import pyarrow as pa  # slow to import, and reading a window needs no buffer

    offsets, items = (pa.array(np.frombuffer(part, dtype=part.typecode)) for part in (ends, flat))
    return pl.Series(pa.LargeListArray.from_arrays(offsets, items), dtype=pl.List(pl.Float64))


def series_frame(exposed_by_key: Mapping[SeriesKey, str]) -> pl.DataFrame:
    """The `series` table of these identities, sorted by metric, instance, labels.

    `starts_at_zero` is null in all rows; the caller or the store sets it. Empty in, empty out.
    """
    ordered = sorted(
        exposed_by_key.items(),
        key=lambda item: (
            item[0].metric,
            item[0].instance,
            item[0].engine or "",
            item[0].model_name or "",
            item[0].labels,
            item[0].bounds or (),
        ),
    )
    rows = [
        {
            "series_id": key.series_id,
            "metric": key.metric,
            "kind": key.kind,
            "instance": key.instance,
            "engine": key.engine,
            "model_name": key.model_name,
            "labels": json.dumps(dict(key.labels), sort_keys=True),
            "bounds": None if key.bounds is None else list(key.bounds),
            "exposed": exposed,
            "starts_at_zero": None,
        }
        for key, exposed in ordered
    ]
    return pl.DataFrame(rows, schema=SERIES_SCHEMA)


def microseconds(instant: datetime) -> int:
    """Microseconds since the epoch, exact (unlike a float of seconds)."""
    whole = int(instant.replace(microsecond=0).timestamp())
    return whole * 1_000_000 + instant.microsecond
