"""The minute rollup: the last state of every series in every minute and run, an hour at a time.

Hours are computed apart and kept beside the window in `.rollup/`, each under the hash of the hour
file it came from: an hour whose data did not change is never computed again, and late data makes
exactly the hours it touches new. Stitching is exact because a row is a state, not an increase:
increases are taken on read, across hour borders like across minutes.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from importlib.resources import files
from pathlib import Path

import duckdb

_SHAPES = {"samples": "minutes", "histograms": "minute_histograms"}
_EMPTY = {
    "minutes": "select 0::bigint as series_id, now()::timestamptz as minute, 0::int as run, "
    "0::double as first, 0::double as last, now()::timestamptz as t0, now()::timestamptz as t1, "
    "0::int as n, 0::double as min, 0::double as max, 0::double as sum where false",
    "minute_histograms": "select 0::bigint as series_id, now()::timestamptz as minute, 0::int as "
    "run, "
    "0::double as first_count, 0::double as first_sum, []::double[] as first_counts, "
    "0::double as count, 0::double as sum, []::double[] as counts, "
    "now()::timestamptz as t0, now()::timestamptz as t1, 0::int as n where false",
}


def make_views(path: Path, connection: duckdb.DuckDBPyConnection) -> list[Path]:
    """Create the views `minutes` and `minute_histograms`; returns the hours computed just now."""
    computed: list[Path] = []
    for table, view in _SHAPES.items():
        pulled = path / f"{view}.parquet"
        if pulled.exists():  # a thinned window came with its minutes
            connection.read_parquet(str(pulled)).to_view(view, replace=True)
            continue
        hours = []
        for source in sorted((path / table).glob("*.parquet")):
            target = _cache(path) / f"{view}-{source.stem}-{_digest(source)}.parquet"
            if not target.exists():
                _roll_hour(source, target, view, connection)
                computed.append(target)
            hours.append(str(target))
        if hours:
            connection.read_parquet(hours).to_view(view, replace=True)
        else:
            connection.sql(_EMPTY[view]).to_view(view, replace=True)
    return computed


def _cache(path: Path) -> Path:
    """Beside the window; where that cannot be written, a folder of the user's own."""
    beside = path / ".rollup"
    try:
        beside.mkdir(exist_ok=True)
    except OSError:
        beside = Path(tempfile.gettempdir()) / f"vllm-capacity-rollup-{os.getuid()}"
        beside.mkdir(exist_ok=True, mode=0o700)
    return beside


def _digest(source: Path) -> str:
    return hashlib.blake2b(source.read_bytes(), digest_size=12).hexdigest()


def _roll_hour(
    source: Path, target: Path, view: str, connection: duckdb.DuckDBPyConnection
) -> None:
    query = files("vllm_capacity.telemetry").joinpath("sql", f"{view}.sql").read_text()
    partial = target.with_name(f".{target.name}.{os.getpid()}")
    cursor = connection.cursor()
    cursor.read_parquet(str(source)).to_view("hour")
    cursor.sql(query).write_parquet(str(partial), compression="zstd")
    partial.replace(target)
