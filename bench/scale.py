"""All figures of engine-days ÷ the obvious SQL of four questions by the hour, in time and memory.

One, ten and a hundred engines for a day, scraped every 2 s: the first answer, which computes what
hours leave behind, and the next one, which reads that. The four questions are output tokens of each
engine, the buckets of p95 TTFT, the fullest KV cache and the mean of running requests.

`--month` measures the next answer alone, and a report with a price, of what is kept of up to a
hundred engines for thirty days (engine_month.py).
"""

import json
import math
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import polars as pl

from bench.engine_day import engine_day
from bench.engine_month import engine_month
from bench.measure import (
    TIMEOUT_SECONDS,
    Ratio,
    by_turns,
    cost_of,
    cpu_seconds,
    peak_megabytes,
)
from vllm_capacity.telemetry.manifest import TABLES

ENGINES = (1, 10, 100)
MONTH = ((1, 1), (10, 1), (100, 7), (100, 30))  # engines, days
_GOALS = {"again": "2", "first": "8"}
_MONTH_GOALS = {  # of the largest: seconds, CPU seconds, and peak megabytes
    "figures": ("ours < 10", "", "ours < 4096"),
    "report": ("", "ours < 40", "ours < 4096"),
}


def measure(folder: Path, *, runs: int, sizes: Sequence[int] = ENGINES) -> list[Ratio]:
    found = []
    for engines in sizes:
        path = engine_days(folder, engines)
        for which, goal in _GOALS.items():
            ours, bare = by_turns(
                lambda path=path, which=which: _alone(which, path),
                lambda path=path: _alone("sql", path),
                runs=runs if engines <= 10 else 1,
            )
            title = _title(engines, which)
            units = (("CPU s", goal), ("peak MB", ""))
            found += [
                Ratio(
                    title,
                    "the obvious SQL of four questions",
                    unit,
                    tuple(one[at] for one in ours),
                    tuple(one[at] for one in bare),
                    wanted,
                )
                for at, (unit, wanted) in enumerate(units)
            ]
    return found


def quick(folder: Path) -> list[Ratio]:
    """One engine for a day, once."""
    return measure(folder, runs=1, sizes=ENGINES[:1])


def month(folder: Path, *, runs: int, sizes: Sequence[tuple[int, int]] = MONTH) -> list[Ratio]:
    """The commands `figures` and `report` on the summaries of many engines and days.

    Hundreds of engine-days are measured once.
    """
    found = []
    for engines, days in sizes:
        path = engine_month(folder, engines, days)
        times = runs if engines * days <= 10 else 1
        bare = [_whole("read", path) for _ in range(times)]
        for which, goals in _MONTH_GOALS.items():
            ours = [_whole(which, path) for _ in range(times)]
            found += [
                Ratio(
                    _month_title(engines, days, which),
                    "polars reading every frame of it",
                    unit,
                    tuple(one[at] for one in ours),
                    tuple(one[at] for one in bare),
                    goals[at] if (engines, days) == MONTH[-1] else "",
                )
                for at, unit in enumerate(("s", "CPU s", "peak MB"))
            ]
    return found


def _month_title(engines: int, days: int, which: str = "figures") -> str:
    return f"{which} of engines × days {engines} × {days}, kept"


def growth(found: Sequence[Ratio]) -> list[str]:
    """How the measurements grow with the number of engines: the exponents, from size to size."""
    lines = []
    for which in _GOALS:
        for unit in ("CPU s", "peak MB"):
            of = [
                (engines, statistics.median(ratio.ours))
                for ratio in found
                for engines in ENGINES
                if ratio.ours_is == _title(engines, which) and ratio.unit == unit
            ]
            if each := _exponents(of):
                lines.append(f"figures {which}, {unit} by engines: exponent {each}.")
    for unit in ("CPU s", "peak MB"):
        of = [
            (engines * days, statistics.median(ratio.ours))
            for engines, days in MONTH
            for ratio in found
            if ratio.ours_is == _month_title(engines, days) and ratio.unit == unit
        ]
        if each := _exponents(of):
            lines.append(f"figures kept, {unit} by engine-days: exponent {each}.")
    return lines


def _exponents(of: Sequence[tuple[int, float]]) -> str:
    """The exponent of growth from each size to the next; empty for fewer than two sizes."""
    return ", ".join(
        f"{math.log(b / a) / math.log(m / n):.2f} from {n:,} to {m:,}"
        for (n, a), (m, b) in pairwise(of)
    )


def _title(engines: int, which: str) -> str:
    return f"figures of {engines} engine-day{'s' if engines > 1 else ''}, {which}"


def engine_days(folder: Path, engines: int) -> Path:
    """A day of that many engines, each the day of one under another name; in format 1."""
    day, path = engine_day(folder), folder / f"engines-{engines}"
    for table in TABLES:
        (path / table).mkdir(parents=True, exist_ok=True)
        for hour in sorted((day / table).glob("*.parquet")):
            copies = [_renamed(pl.read_parquet(hour), number) for number in range(engines)]
            together = pl.concat(copies).sort("series_id", "ts")
            together.write_parquet(path / table / hour.name, compression="zstd")
    series = pl.read_parquet(day / "series.parquet")
    named = [
        _renamed(series, number).with_columns(instance=pl.col("instance") + f"-{number}")
        for number in range(engines)
    ]
    pl.concat(named).write_parquet(path / "series.parquet")
    shutil.copy(day / "intake.parquet", path)
    note = json.loads((day / "window.json").read_text())
    counts = {name: engines * rows for name, rows in note["counts"].items()}
    note = {**note, "format": 1, "counts": counts}
    note.pop("files")
    (path / "window.json").write_text(json.dumps(note))
    return path


def _renamed(frame: pl.DataFrame, number: int) -> pl.DataFrame:
    """The rows under other series, as those of another engine are."""
    return frame.with_columns(pl.col("series_id") ^ (number << 32))


def _alone(what: str, path: Path) -> tuple[float, float]:
    """CPU seconds and peak megabytes in a process of its own, interpreter and imports included."""
    if what == "first":
        shutil.rmtree(path / ".rollup", ignore_errors=True)
    command = [sys.executable, "-m", "bench.scale", what, str(path)]
    ran = subprocess.run(command, capture_output=True, check=True, timeout=TIMEOUT_SECONDS)
    seconds, megabytes = json.loads(ran.stdout)
    return seconds, megabytes


def _whole(what: str, path: Path) -> list[float]:
    """`whole` in a process of its own, because the peak is that of all its children."""
    command = [sys.executable, "-m", "bench.scale", "whole", what, str(path)]
    ran = subprocess.run(command, capture_output=True, check=True, timeout=TIMEOUT_SECONDS)
    found: list[float] = json.loads(ran.stdout)
    return found


def obvious_sql(path: Path) -> None:
    """The four questions, as one would write them in DuckDB."""
    import duckdb

    db = duckdb.connect()
    for table in ("series", *TABLES):
        hours = sorted(str(hour) for hour in path.glob(f"{table}/*.parquet"))
        db.read_parquet(hours or [str(path / f"{table}.parquet")]).to_view(table)
    for query in _QUESTIONS:
        db.sql(query).fetchall()


_OF = "series_id in (select series_id from series where metric = 'vllm:{}')"
_QUESTIONS = (
    f"""
    select instance, hour, sum(case when grown < 0 then value else grown end)
    from (
        select series_id, date_trunc('hour', ts) as hour, value,
            value - lag(value) over (partition by series_id order by ts) as grown
        from samples where {_OF.format("generation_tokens_total")}
    ) join series using (series_id) group by all""",
    f"""
    select hour, bucket, sum(greatest(count - coalesce(before, count), 0))
    from (
        select date_trunc('hour', ts) as hour, unnest(counts) as count,
            unnest(lag(counts) over (partition by series_id order by ts)) as before,
            generate_subscripts(counts, 1) as bucket
        from histograms where {_OF.format("time_to_first_token_seconds")}
    ) group by all""",
    f"""
    select date_trunc('hour', ts) as hour, max(value)
    from samples where {_OF.format("kv_cache_usage_perc")} group by all""",
    f"""
    select hour, sum(mean)
    from (
        select series_id, date_trunc('hour', ts) as hour, avg(value) as mean
        from samples where {_OF.format("num_requests_running")} group by all
    ) group by all""",
)


def read(path: Path) -> None:
    """Every frame of a window's summaries that figures read: of days, and of hours in no day."""
    entries = {entry: entry.name.partition(".")[0] for entry in path.glob(".rollup/2*")}
    days = {begin for begin in entries.values() if "T" not in begin}
    read = [entry for entry, begin in entries.items() if begin in days or begin[:10] not in days]
    for name in sorted({frame.name for entry in read for frame in entry.iterdir()}):
        pl.read_parquet([entry / name for entry in sorted(read)], glob=False)


def figures(path: Path) -> None:
    from vllm_capacity.analysis import Analysis
    from vllm_capacity.telemetry.window import open_window

    _ = Analysis.of(open_window(path)).answer


def whole(what: str, path: Path) -> list[float]:
    """Seconds, CPU seconds and peak megabytes of a command, its start and children included."""
    with tempfile.TemporaryDirectory() as out:
        verb = ["figures"] if what == "figures" else ["report", "--out", out]
        ours = ["vllm_capacity", *verb, str(path), "--usd-per-hour", "1.64"]
        command = ["bench.scale", what, str(path)] if what == "read" else ours
        cost = cost_of([sys.executable, "-m", *command], folder=Path.cwd())
    kilobytes = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    return [cost.seconds, cost.cpu_seconds, kilobytes / 1024]


if __name__ == "__main__":
    if sys.argv[1] == "whole":
        print(json.dumps(whole(sys.argv[2], Path(sys.argv[3]))))
    else:
        action = {"sql": obvious_sql, "read": read}.get(sys.argv[1], figures)
        print(json.dumps([cpu_seconds(lambda: action(Path(sys.argv[2]))), peak_megabytes()]))
