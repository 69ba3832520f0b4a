"""Small windows for the tests of what is kept, written by the product."""

import json
from datetime import UTC, datetime
from pathlib import Path

import polars as pl

from vllm_capacity.telemetry.rows import RowBuffer, Rows, SeriesKey
from vllm_capacity.telemetry.store import put_window, reserved, write_window
from vllm_capacity.telemetry.window import open_window

T0 = int(datetime(2026, 11, 24, 3, 50, tzinfo=UTC).timestamp())
TOKENS = "vllm:generation_tokens_total"
TTFT = "vllm:time_to_first_token_seconds"


def rows_at(minutes, *, target: str = "a:1") -> Rows:
    """A counter and a histogram, scraped in these minutes after 03:50; both count the minutes."""
    buffer = RowBuffer()
    counter = SeriesKey(TOKENS, "counter", target, "0", "m")
    histogram = SeriesKey(TTFT, "histogram", target, "0", "m", bounds=(1.0,))
    for minute in minutes:
        ts = (T0 + 60 * minute) * 1_000_000
        buffer.scrape(target, ts, is_up=True, seconds=0.01)
        buffer.sample(buffer.series(counter, exposed=TOKENS), ts, float(minute))
        buffer.histogram(
            buffer.series(histogram, exposed=TTFT),
            ts,
            count=minute,
            total=minute / 2,
            counts=[minute, 0],
        )
    return buffer.rows()


def written(path: Path, minutes=range(20), **more) -> Path:
    """A window of two hours."""
    return write_window(path, rows_at(minutes, **more), {"source": "made up for a test"})


def downsampled(path: Path) -> Path:
    """A window as a downsampled pull writes it: the rollup is next to the tables."""
    whole = open_window(written(path.with_name("whole")))
    minutes = {
        name: whole.sql(f"select * from {name}") for name in ("minutes", "minute_histograms")
    }
    rows = rows_at(range(20))
    up = rows.series.filter(metric="up").select("series_id")
    kept = Rows(
        rows.series,
        rows.samples.join(up, on="series_id", how="semi"),
        rows.histograms.clear(),
        rows.ingest_notes,
    )
    with reserved(path) as place:
        return put_window(place, kept, {"grain": "minute"}, minutes)


def of_format_1(path: Path) -> Path:
    """The window at `path`, as one of format 1: it lists no files."""
    note = noted(path)
    del note["files"]
    (path / "window.json").write_text(json.dumps(note | {"format": 1}))
    return path


def noted(path: Path) -> dict:
    return json.loads((path / "window.json").read_text())


def hours(path: Path, table: str) -> list[Path]:
    return sorted((path / table).glob("*.parquet"))


def scraped_minutes(path: Path) -> list[int]:
    """The minutes that a window holds, read as anybody reads it."""
    result = open_window(path).sql(
        "select value from samples join series using (series_id) where metric = $m order by ts",
        m=TOKENS,
    )
    return result["value"].cast(pl.Int64).to_list()
