"""Bytes of a downsampled pull against `select *`, from a real Parseable with hours of telemetry.

The hours are the recorded sweep, repeated end to end, scraped every 2 s, exported in the batches of
the project's Collector. Run by `make test-live`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import duckdb
import httpx
import polars as pl
import pytest

from bench.engine_day import repeated_rows
from tests.integration.real_parseable import ROOT, real_parseable, rows_shown, wait_for
from tests.standin.exports import counter, export, gauge, histogram
from vllm_capacity.sources.parseable import Parseable
from vllm_capacity.sources.parseable_pull import PullRequest, pull
from vllm_capacity.telemetry.rows import Rows
from vllm_capacity.timerange import TimeRange

pytestmark = pytest.mark.live

STREAM = "vllm_metrics"
HOURS = 2
BATCH_POINTS = 4000


def test_a_downsampled_pull_transfers_about_a_fiftieth_of_select_star(
    tmp_path_factory: pytest.TempPathFactory, record_property: Any
) -> None:
    rows = repeated_rows(HOURS * 3600)
    ts = rows.samples.get_column("ts")
    time_range = TimeRange(ts.min(), ts.max())
    folder = tmp_path_factory.mktemp("hours")
    with (
        real_parseable(folder) as server,
        httpx.Client(base_url=server.url, auth=ROOT, timeout=300) as client,
    ):
        for body in exports_of(rows):
            server.ingest(STREAM, json.dumps(body))
        # Wait until all rows are in files: reading those is the harder case for the ratio.
        count = rows.samples.height + rows.histograms.height
        wait_for(lambda: _rows_in_files(server.store) == count, seconds=300)
        parseable = Parseable(client)
        since = time_range.start
        wait_for(lambda: rows_shown(parseable, STREAM, since) == count, seconds=300)
        late = datetime.now(UTC) - time_range.start + timedelta(hours=1)
        moved = []
        for ask in (
            lambda: parseable.query(
                f"select * from {STREAM}", TimeRange(time_range.start, time_range.end + late)
            ),
            lambda: pull(parseable, PullRequest(STREAM, time_range, late=late)),
        ):
            before = parseable.traffic.wire_bytes
            ask()
            moved.append(parseable.traffic.wire_bytes - before)
    record_property(f"kB of select *, {HOURS} h of one engine, compressed", round(moved[0] / 1e3))
    record_property(f"kB of a thinned pull, {HOURS} h of one engine", round(moved[1] / 1e3))
    # Normally 2.1 %; while Parseable writes files, it may return rows twice or not at all.
    assert moved[1] / moved[0] < 0.022


def _rows_in_files(store: Path) -> int:
    files = [str(path) for path in (store / STREAM).rglob("*.parquet")]
    return duckdb.read_parquet(files, union_by_name=True).shape[0] if files else 0


def exports_of(rows: Rows) -> Iterator[dict[str, Any]]:
    """The rows as OTLP exports in order of time, each about so many points of one target."""
    tables = (
        rows.samples.select("series_id", "ts", "value"),
        rows.histograms.select("series_id", "ts", "counts", total="sum"),
    )
    points = pl.concat(tables, how="diagonal").join(rows.series, on="series_id").sort("ts")
    for batch in points.iter_slices(BATCH_POINTS):
        made = [_metric(point) for point in batch.iter_rows(named=True)]
        yield export(*made, instance=batch.item(0, "instance"))


def _metric(point: dict[str, Any]) -> dict[str, Any]:
    labels: dict[str, str] = json.loads(point["labels"])
    labels |= {name: point[name] or "" for name in ("engine", "model_name")}
    if point["kind"] == "histogram":
        counts, bounds = [int(n) for n in point["counts"]], list(point["bounds"])
        shape = {"total": point["total"], "bounds": bounds[: len(counts) - 1]}
        return histogram(point["metric"], point["ts"], counts, **shape, **labels)
    make = counter if point["kind"] == "counter" else gauge
    return make(point["metric"], point["ts"], point["value"], **labels)
