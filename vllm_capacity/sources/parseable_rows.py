"""What Parseable answered, as canonical rows, or as the minutes of a thinned window."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl

from vllm_capacity.sources.otlp import as_schema, series_of, serving
from vllm_capacity.sources.parseable_minutes import MINUTE_HISTOGRAMS, MINUTES
from vllm_capacity.sources.parseable_pull import (
    ATTEMPTS,
    HISTOGRAMS,
    SCALARS,
    Pulled,
)
from vllm_capacity.sources.parseable_series import (
    COUNTS,
    MINUTE_MS,
    Reader,
    instant,
    intake,
    minute_histograms_of,
    minutes_of,
)
from vllm_capacity.telemetry.clocks import correction
from vllm_capacity.telemetry.rows import (
    HISTOGRAMS_SCHEMA,
    INTAKE_SCHEMA,
    SAMPLES_SCHEMA,
    UTC_MICROSECONDS,
    Rows,
)
from vllm_capacity.telemetry.stamps import Correction
from vllm_capacity.telemetry.store import settle

# The columns of the rollup's two tables.
MINUTES_SCHEMA: dict[str, Any] = {
    "series_id": pl.Int64,
    "minute": UTC_MICROSECONDS,
    "run": pl.Int32,
    "first": pl.Float64,
    "last": pl.Float64,
    "t0": UTC_MICROSECONDS,
    "t1": UTC_MICROSECONDS,
    "n": pl.Int32,
    "min": pl.Float64,
    "max": pl.Float64,
    "sum": pl.Float64,  # of a counter that moved: null, it means nothing and is not sent
}
MINUTE_HISTOGRAMS_SCHEMA: dict[str, Any] = {
    "series_id": pl.Int64,
    "minute": UTC_MICROSECONDS,
    "run": pl.Int32,
    "first_count": pl.Float64,
    "first_sum": pl.Float64,
    "first_counts": pl.List(pl.Float64),
    "count": pl.Float64,
    "sum": pl.Float64,
    "counts": pl.List(pl.Float64),
    "t0": UTC_MICROSECONDS,
    "t1": UTC_MICROSECONDS,
    "n": pl.Int32,
}
_MERGED = (MINUTES_SCHEMA.keys() | MINUTE_HISTOGRAMS_SCHEMA.keys()) - {
    *("series_id", "minute", "run", "t0", "t1"),
}
# The columns of a row, and in which columns of a minute its first and last state hold them.
_VALUE = {"value": ("first", "last")}
_STATE = {"sum": ("first_sum", "sum"), "counts": ("first_counts", "counts")}


@dataclass(frozen=True)
class ThinnedRows:
    """A thinned pull: the minutes, and the states they begin and end with as rows.

    `minutes` and `minute_histograms` have the columns of the rollup. `rows` holds every scrape
    attempt (`up`), and of the rest only first and last states: what lies between was not moved.
    """

    rows: Rows
    minutes: pl.DataFrame
    minute_histograms: pl.DataFrame


def whole_rows(pulled: Pulled) -> Rows:
    """The canonical rows of a pull at full resolution, with the last state before it."""
    reader = Reader(pulled, {})
    scalars = reader.table(pulled.whole, SCALARS)
    histograms = reader.table(pulled.whole, HISTOGRAMS, is_histogram=True)
    samples = scalars.select("series_id", "rank", "ms", value=pl.col("v") * pl.col("scale"))
    states = histograms.select("series_id", "rank", "ms", sum="s", counts=pl.col("b").cast(COUNTS))
    return _rows(reader, samples, states, _before(reader))


def thinned_rows(pulled: Pulled) -> ThinnedRows:
    """The minutes of a thinned pull, and what goes into the canonical tables with them."""
    reader = Reader(pulled, {})
    minutes = _newest(minutes_of(reader.table(pulled.thinned, MINUTES)))
    histograms = _newest(
        minute_histograms_of(reader.table(pulled.thinned, MINUTE_HISTOGRAMS, is_histogram=True))
    )
    before, attempts = _before(reader), _attempts(reader)
    samples = pl.concat([_ends(minutes, _VALUE), attempts])
    states = _ends(histograms, _STATE)
    samples = samples.unique(["series_id", "ms"], keep="first", maintain_order=True)
    rows = _rows(reader, samples, states, before)
    clock, settled = correction(rows), settle(rows, is_thinned=True)
    scalar_parts, histogram_parts = (
        [_restamped(time_range, clock) for time_range in parts]
        for parts in ([before[0], minutes], [before[1], histograms])
    )
    return ThinnedRows(
        rows,
        _with_run(scalar_parts, settled.samples, MINUTES_SCHEMA),
        _with_run(histogram_parts, settled.histograms, MINUTE_HISTOGRAMS_SCHEMA),
    )


def _restamped(minutes: pl.DataFrame, clock: Correction) -> pl.DataFrame:
    """The minutes, both their ends at their true times; gone where either was left out."""
    for end in ("ms", "t1_ms"):
        ts = instant(end).dt.replace_time_zone("UTC")
        stamped = minutes.with_columns(ts=ts, arrival=pl.lit(None, pl.Int64))
        moved = clock.applied(stamped).with_columns(pl.col("ts").dt.epoch("ms").alias(end))
        minutes = moved.drop("ts", "arrival")
    return minutes


def _newest(minutes: pl.DataFrame) -> pl.DataFrame:
    """Without the rows of an older spelling where a newer one has the same series and minute."""
    best = pl.col("rank").min().over("series_id", pl.col("ms") // MINUTE_MS)
    return minutes.filter(pl.col("rank") == best)


def _ends(minutes: pl.DataFrame, columns: Mapping[str, tuple[str, str]]) -> pl.DataFrame:
    """The states that minutes begin and end with, as rows: series_id, rank, ms, and `columns`."""
    first = minutes.select(
        "series_id", "rank", "ms", **{name: pl.col(begin) for name, (begin, _) in columns.items()}
    )
    last = minutes.filter(pl.col("t1_ms") > pl.col("ms")).select(
        "series_id",
        "rank",
        ms="t1_ms",
        **{name: pl.col(end) for name, (_, end) in columns.items()},
    )
    return pl.concat([first, last])


def _before(reader: Reader) -> tuple[pl.DataFrame, pl.DataFrame]:
    """The last state of every series before the start, as minutes of one point each."""
    before = reader.pulled.before
    scalars = minutes_of(reader.table(before, MINUTES))
    histograms = minute_histograms_of(reader.table(before, MINUTE_HISTOGRAMS, is_histogram=True))
    newest = pl.col("t1_ms") == pl.col("t1_ms").max().over("series_id")
    alone = {"ms": pl.col("t1_ms"), "n": pl.lit(1, pl.Int64), "twins": pl.lit(None, pl.Int64)}
    last = pl.col("last")
    return (
        scalars.filter(newest).with_columns(first=last, min=last, max=last, sum=last, **alone),
        histograms.filter(newest).with_columns(
            first_count="count", first_sum="sum", first_counts="counts", **alone
        ),
    )


def _attempts(reader: Reader) -> pl.DataFrame:
    """Every scrape attempt: series_id, rank, ms, value."""
    packed = reader.table(reader.pulled.attempts, ATTEMPTS)
    one_by_one = packed.explode("at", "v", empty_as_null=False)
    return one_by_one.select(
        "series_id", "rank", ms=pl.col("m") * MINUTE_MS + pl.col("at"), value="v"
    )


def _rows(
    reader: Reader,
    samples: pl.DataFrame,
    states: pl.DataFrame,
    before: tuple[pl.DataFrame, pl.DataFrame],
) -> Rows:
    """Canonical rows of the inference servers, with the states before of series that are inside."""
    own = serving(reader.children)
    inside = pl.concat([samples.select("series_id"), states.select("series_id")]).unique()
    inside = inside.filter(pl.col("series_id").is_in(pl.Series(list(own)).implode()))
    earlier = (_ends(before[0], _VALUE), _ends(before[1], _STATE))
    scalars, histograms = (
        pl.concat([first.select(frame.columns), frame]).join(inside, on="series_id", how="semi")
        for first, frame in zip(earlier, (samples, states), strict=True)
    )
    seen = set(inside.get_column("series_id").to_list())
    children = [child for series_id, child in own.items() if series_id in seen]
    counted = histograms.with_columns(count=pl.col("counts").list.sum())
    return Rows(
        series_of(children),
        as_schema(_in_time(scalars), SAMPLES_SCHEMA),
        as_schema(_in_time(counted), HISTOGRAMS_SCHEMA),
        as_schema(intake(reader, children), INTAKE_SCHEMA),
        reader.pulled.start,
    )


def _in_time(frame: pl.DataFrame) -> pl.DataFrame:
    return frame.with_columns(ts=instant("ms")).sort("series_id", "ts", "rank", maintain_order=True)


def _with_run(
    parts: Sequence[pl.DataFrame], settled: pl.DataFrame, schema: Mapping[str, Any]
) -> pl.DataFrame:
    """The minutes in the rollup's columns, their run the one that the store settled for `t0`.

    The point before the start may lie in the first minute, and two jobs may have scraped a server
    in the same one: then both are one.
    """
    begun = settled.select("series_id", "run", ms=pl.col("ts").dt.epoch("ms"))
    minutes = pl.concat([time_range.select(parts[0].columns) for time_range in parts])
    is_state = "counts" in schema
    merged = [_merged(n, is_state=is_state) for n in minutes.columns if n in _MERGED]
    clock = {"t0": pl.col("ms").first(), "t1": pl.col("t1_ms").max()}
    named = (
        minutes.join(begun, on=["series_id", "ms"])
        .with_columns(minute=pl.col("ms") // MINUTE_MS * MINUTE_MS)
        .sort("series_id", "ms")
        .group_by("series_id", "minute", "run", maintain_order=True)
        .agg(*merged, **clock)
        .with_columns(instant(name).alias(name) for name in ("minute", "t0", "t1"))
    )
    return as_schema(named, schema).sort("series_id", "minute", "run")


def _merged(column: str, *, is_state: bool) -> pl.Expr:
    """How a column of the rollup comes from parts of one minute in order of time.

    `is_state`: the minutes are a histogram's, whose `sum` is a state and not an addition.
    """
    value = pl.col(column)
    if column == "sum" and not is_state:
        return pl.when(value.is_not_null().all()).then(value.sum())
    if column in ("n", "min", "max"):
        return {"n": value.sum(), "min": value.min(), "max": value.max()}[column]
    return value.first() if column.startswith("first") else value.sort_by("t1_ms").last()
