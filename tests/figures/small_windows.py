"""Windows of a few scrapes, written by the product; times are seconds after T0."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import polars as pl
from msgspec import Struct

from vllm_capacity.telemetry.rows import RowBuffer, Rows, SeriesKey, microseconds
from vllm_capacity.telemetry.store import write_window
from vllm_capacity.telemetry.window import Window, open_window
from vllm_capacity.timerange import TimeRange

T0 = datetime(2026, 11, 24, 8, tzinfo=UTC)
ATTEMPTS_SCHEMA = {"instance": pl.String, "ts": pl.Datetime("us", "UTC"), "is_good": pl.Boolean}


class Line(Struct, frozen=True):
    """One series: its value at each second; a histogram's value is (counts, sum)."""

    key: SeriesKey
    values: Mapping[float, float | tuple[Sequence[float], float]]


def at(seconds: float) -> datetime:
    return T0 + timedelta(seconds=seconds)


def time_range(start: float, end: float) -> TimeRange:
    return TimeRange(at(start), at(end))


def counter(metric, values, *, instance="a", engine="0", **labels) -> Line:
    key = SeriesKey(metric, "counter", instance, engine, "m", tuple(sorted(labels.items())))
    return Line(key, values)


def gauge(metric, values, *, instance="a", engine="0") -> Line:
    return Line(SeriesKey(metric, "gauge", instance, engine, "m"), values)


def histogram(metric, bounds, values, *, instance="a", engine="0") -> Line:
    return Line(SeriesKey(metric, "histogram", instance, engine, "m", bounds=bounds), values)


def up(values, *, instance="a", **labels) -> Line:
    """Scrape attempts: 1 was good, 0 failed."""
    return Line(SeriesKey("up", "gauge", instance, labels=tuple(sorted(labels.items()))), values)


def small_window(folder: Path, *lines: Line, **provenance: object) -> Window:
    """The window of these series."""
    return open_window(write_window(folder / "w", small_rows(*lines), provenance))


def small_rows(*lines: Line) -> Rows:
    """The rows of these series, as a source returns them."""
    buffer = RowBuffer()
    for line in lines:
        series_id = buffer.series(line.key, exposed=line.key.metric)
        for seconds, value in line.values.items():
            ts = microseconds(at(seconds))
            if line.key.kind == "histogram":
                counts, total = value
                buffer.histogram(series_id, ts, count=sum(counts), total=total, counts=counts)
            else:
                buffer.sample(series_id, ts, float(value))
    return buffer.rows()


def attempts(**good: Sequence[float]) -> pl.DataFrame:
    """Scrape attempts of each target; a negative second is one that failed, at that second."""
    rows = [
        (instance, at(abs(seconds)), seconds >= 0)
        for instance, times in good.items()
        for seconds in times
    ]
    return pl.DataFrame(rows, schema=ATTEMPTS_SCHEMA, orient="row")


def seconds_of(instant: datetime | None) -> float | None:
    return None if instant is None else (instant - T0).total_seconds()
