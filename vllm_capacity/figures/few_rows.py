"""A window with few rows: they are read once, and shipped queries are answered from them.

DuckDB takes longer to plan a query than to answer it from some ten thousand rows, and an analysis
runs twenty queries. So the rows of a small window stay in memory, sorted by series and time, and
most queries are answered from row positions (sorted_rows.py); ingestion notes and labels are only a
handful of rows. The SQL remains the definition of each query: results are bit-for-bit the same.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

import polars as pl
from msgspec import field

from vllm_capacity.facts.metrics import GENERATION_TOKENS, KV_CACHE, REQUESTS, RUNNING
from vllm_capacity.figures.pieces import NO_BASE
from vllm_capacity.figures.sorted_rows import (
    NAMES,
    ORDER,
    SortedRows,
    SortedWindow,
    before,
    is_first,
    is_within,
    stretch_ends,
)
from vllm_capacity.telemetry.manifest import TABLES
from vllm_capacity.telemetry.processes import PROCESS_START
from vllm_capacity.telemetry.window import Answers, Window

MAX_ROWS = 200_000
"""A window with more rows is not kept in memory: queries read its files."""

_OF_ENGINES = (RUNNING, GENERATION_TOKENS, REQUESTS, KV_CACHE)  # as in engines.sql
_RELABELLED = ("respelled", "relabelled")
_OF_THE_SCRAPER = ("up", "scrape_duration_seconds")
_OTHER_NOTES = (*_RELABELLED, "contradicted", "uncounted", "untimed")


class FewRows(SortedWindow, frozen=True):
    """A window with all rows in memory; its files are read only for the more complex queries."""

    notes: pl.DataFrame = field(default_factory=pl.DataFrame)
    """The ingestion notes, unsorted."""

    def shipped_sql(self, package: str, name: str, params: Mapping[str, object]) -> pl.DataFrame:
        """The result of a shipped query."""
        answered = _ANSWERED.get(name)
        found = None if answered is None else answered(self, params)
        return super().shipped_sql(package, name, params) if found is None else found


def with_few_rows(window: Window) -> FewRows | None:
    """The window with cached query results, computed from rows in memory; None if there are many.

    Also None for a window in S3.
    """
    rows = sum(file.rows for file in window.manifest.files if file.table in TABLES)
    if window.manifest.origin is not None or rows > MAX_ROWS:
        return None
    found = FewRows(
        **{**window.fields, "answers": Answers()},
        series=pl.concat(window.manifest.frames("series")),
        notes=pl.concat(window.manifest.frames("intake")),
        samples=_sorted_rows(window, "samples", NO_BASE.samples),
        histograms=_sorted_rows(window, "histograms", NO_BASE.histograms),
    )
    vars(found)["extent"] = window.extent
    return found


def _sorted_rows(window: Window, table: str, none: pl.DataFrame) -> SortedRows:
    frames = [frame.select(none.columns) for frame in window.manifest.frames(table)]
    return SortedRows(none, pl.concat([none, *frames]).sort("series_id", "ts"))


def _series(window: FewRows, params: Mapping[str, Any]) -> pl.DataFrame:
    return window.series


def _instances(window: FewRows, params: Mapping[str, Any]) -> pl.DataFrame:
    return window.series.select(pl.col("instance").unique().sort())


def _models(window: FewRows, params: Mapping[str, Any]) -> pl.DataFrame:
    return window.series.select(pl.col("model_name").drop_nulls().unique().sort())


def _makes(window: FewRows, params: Mapping[str, Any]) -> pl.DataFrame:
    return (
        window.series.filter(pl.col("metric").is_in(params["metrics"]))
        .sort("instance", "engine", "metric", "labels", nulls_last=True)
        .select("instance", "engine", "labels")
    )


def _attempts(window: FewRows, params: Mapping[str, Any]) -> pl.DataFrame:
    ups = window.series.filter(pl.col("metric") == "up").sort("series_id")
    rows, which = before(*window.samples.of(ups["series_id"]), params["end"])
    watched = ups.select("instance", source="labels")[which].hstack(
        rows.select("ts", is_good=pl.col("value") > 0)
    )
    others = window.series.filter(
        ~pl.col("metric").is_in(_OF_THE_SCRAPER),
        ~pl.col("instance").is_in(watched["instance"].implode()),
    ).sort("series_id")
    rows, which = before(*window.samples.of(others["series_id"]), params["end"])
    unwatched = others.select("instance")[which].hstack(rows.select("ts")).unique()
    answers = unwatched.with_columns(source=pl.lit(""), is_good=pl.lit(True))
    columns = ("instance", "ts", "is_good", "source")
    found = pl.concat([watched.select(columns), answers.select(columns)])
    return found.sort("instance", "ts", "source")


def _process_starts(window: FewRows, params: Mapping[str, Any]) -> pl.DataFrame:
    own = window.series.filter(pl.col("metric") == PROCESS_START)["series_id"].sort()
    return window.samples.of(own)[0].select("series_id", "ts", "value")


def _lifetimes(window: FewRows, params: Mapping[str, Any]) -> pl.DataFrame:
    ends = pl.concat(
        [
            _ends(window.samples.own, params["end"], value="value"),
            _ends(window.histograms.own, params["end"], value="count"),
        ]
    )
    return (
        ends.join(window.series, on="series_id")
        .sort(*ORDER, "series_id", nulls_last=True)
        .select(
            *("series_id", "metric", "kind", "instance", "engine", "labels", "bounds", "exposed"),
            *("starts_at_zero", "first_ts", "last_ts", "first_value", "last_value"),
        )
    )


def _engines(window: FewRows, params: Mapping[str, Any]) -> pl.DataFrame:
    own = window.series.filter(pl.col("metric").is_in(_OF_ENGINES), pl.col("engine").is_not_null())
    return (
        _ends(window.samples.own, params["end"], value="value")
        .join(own, on="series_id", maintain_order="left")
        .group_by("instance", "engine")
        .agg(
            pl.col("model_name").drop_nulls().first(),
            pl.col("first_ts").min(),
            pl.col("last_ts").max(),
        )
        .sort("instance", "engine")
    )


def _first_values(window: FewRows, params: Mapping[str, Any]) -> pl.DataFrame:
    own = window.series.filter(
        pl.col("metric").is_in(params["metrics"]), pl.col("kind") == "counter"
    )
    return (
        _ends(window.samples.own, params["end"], value="value")
        .filter(pl.col("first_ts") >= params["start"])
        .join(own, on="series_id")
        .sort("metric", "instance", "series_id")
        .select("series_id", "metric", "instance", "starts_at_zero", "first_ts", "first_value")
    )


def _good_after(window: FewRows, params: Mapping[str, Any]) -> pl.DataFrame:
    later = window.samples.own.filter(pl.col("ts") >= params["end"])["series_id"].unique()
    own = window.series.filter(
        pl.col("series_id").is_in(later.implode()), ~pl.col("metric").is_in(_OF_THE_SCRAPER)
    )
    return own.select(pl.col("instance").unique().sort())


def _ends(rows: pl.DataFrame, end: datetime, *, value: str) -> pl.DataFrame:
    """The first and last row of each series before `end`, from rows sorted by series and time."""
    own, series_ids = before(rows, rows["series_id"].to_numpy(), end)
    firsts, lasts = stretch_ends(series_ids)
    first, last = own[firsts], own[lasts]
    return first.select("series_id", first_ts="ts", first_value=value).hstack(
        last.select(last_ts="ts", last_value=value)
    )


def _counter_increase(window: FewRows, params: Mapping[str, Any]) -> pl.DataFrame:
    wanted = window.wanted(params, ("counter",)).sort(*ORDER, "series_id", nulls_last=True)
    rows, which = before(*window.samples.of(wanted["series_id"]), params["end"])
    is_inside = (rows["ts"] >= params["start"]).to_numpy()
    firsts, lasts = stretch_ends(which, rows["run"].to_numpy(), is_inside)
    named = wanted.select("series_id", *NAMES, "starts_at_zero")
    states = named[which[firsts]].with_columns(
        rows["run"].gather(firsts),
        pl.Series("is_inside", is_inside[firsts]),
        rows["value"].gather(firsts).alias("first"),
        rows["value"].gather(lasts).alias("last"),
        rows["ts"].gather(firsts).alias("t0"),
        rows["ts"].gather(lasts).alias("t1"),
        pl.Series("is_first", is_first(which[firsts])),
    )
    last, t1, run = pl.col("last"), pl.col("t1"), pl.col("run")
    increase = (
        pl.when(pl.col("is_first") & pl.col("starts_at_zero").fill_null(False))
        .then(last)
        .when("is_first")
        .then(last - pl.col("first"))
        .when(run == run.shift(1))
        .then(last - last.shift(1))
        .otherwise(last)
    )
    target_before = t1.filter(~pl.col("is_inside")).max().over("instance")
    base_ts = (
        pl.when("is_first")
        .then("t0")
        .when(t1.shift(1) < params["start"])
        .then(target_before)
        .otherwise(t1.shift(1))
    )
    return (
        states.with_columns(increase=increase, base_ts=base_ts)
        .filter("is_inside")
        .group_by(named.columns, maintain_order=True)
        .agg(pl.col("increase").sum(), pl.col("base_ts").min(), last_ts=t1.max())
    )


def _same_processes(window: FewRows, params: Mapping[str, Any]) -> pl.DataFrame | None:
    own = window.series.filter(pl.col("metric") == PROCESS_START).sort("series_id")
    rows, which = window.samples.of(own["series_id"])
    started = own.select("instance")[which].hstack(rows.select("value")).unique()
    is_shared = started["value"].is_duplicated().any()
    return None if is_shared else pl.DataFrame(schema={"instance": pl.String, "other": pl.String})


def _intake_notes(window: FewRows, params: Mapping[str, Any]) -> pl.DataFrame:
    key = ("check", "instance", "subject", "detail")
    return (
        window.notes.filter(
            pl.col("ts").is_null() | is_within(params), ~pl.col("check").is_in(_OTHER_NOTES)
        )
        .group_by(key)
        .agg(pl.col("count").sum(), first_ts=pl.col("ts").min())
        .sort(key, nulls_last=True)
    )


def _contradicted(window: FewRows, params: Mapping[str, Any]) -> pl.DataFrame:
    return (
        window.notes.filter(pl.col("check") == "contradicted")
        .group_by("instance")
        .agg(pl.col("detail").sort().str.join("; "), scrapes=pl.col("count").sum())
        .sort("instance", nulls_last=True)
    )


def _uncounted(window: FewRows, params: Mapping[str, Any]) -> pl.DataFrame:
    return (
        window.notes.filter(
            pl.col("check") == "uncounted", pl.col("subject").is_in(params["metrics"])
        )
        .group_by("instance", metric="subject")
        .agg(grown=pl.col("count").sum().cast(pl.Float64))
        .sort("instance", "metric", nulls_last=True)
    )


def _untimed(window: FewRows, params: Mapping[str, Any]) -> pl.DataFrame:
    return (
        window.notes.filter(pl.col("check") == "untimed")
        .group_by("instance", "ts")
        .agg(reason=pl.col("detail").min())
        .sort("instance", "ts", nulls_last=True)
    )


def _relabelled(window: FewRows, params: Mapping[str, Any]) -> pl.DataFrame | None:
    noted = window.notes.filter(pl.col("check").is_in(_RELABELLED), is_within(params))
    if not noted.is_empty():
        return None
    return noted.select(
        *("check", "instance"),
        metric="subject",
        detail="detail",
        count=pl.col("count").cast(pl.Int64),
        first_ts="ts",
        at_most=pl.lit(None, pl.Float64),
    )


_ANSWERED: dict[str, Callable[[FewRows, Mapping[str, Any]], pl.DataFrame | None]] = {
    "attempts": _attempts,
    "contradicted": _contradicted,
    "counter_increase": _counter_increase,
    "engines": _engines,
    "first_values": _first_values,
    "good_after": _good_after,
    "instances": _instances,
    "intake_notes": _intake_notes,
    "lifetimes": _lifetimes,
    "makes": _makes,
    "models": _models,
    "process_starts": _process_starts,
    "relabelled": _relabelled,
    "same_processes": _same_processes,
    "series": _series,
    "uncounted": _uncounted,
    "untimed": _untimed,
}
