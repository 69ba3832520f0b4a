"""Four hourly queries: on hourly summaries ÷ on servers with the same samples.

Output tokens of each engine, p95 TTFT, the fullest KV cache and the mean of running requests: of a
window, of a real Prometheus and of a real VictoriaMetrics, and by the obvious SQL on its Parquet.
Servers run on a loopback port with a folder of their own, hold only the four families, and their
own CPU time counts, cold (just started) and warm. Ours is a process of its own each time.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from datetime import timedelta
from pathlib import Path

import httpx
import numpy as np
import polars as pl

from bench.measure import TIMEOUT_SECONDS, Ratio, cpu_seconds, peak_megabytes
from bench.scale import engine_days, obvious_sql
from vllm_capacity.facts.metrics import GENERATION_TOKENS, KV_CACHE, RUNNING, TTFT
from vllm_capacity.telemetry.window import Window, open_window
from vllm_capacity.timerange import TimeRange

ENGINES = 10
FAMILIES = (GENERATION_TOKENS, TTFT, KV_CACHE, RUNNING)
Answers = Mapping[str, Mapping[tuple[str, int], float]]
"""By question: a number for each (engine, or nothing; Unix time at which its hour begins)."""
_START_SECONDS = 120
_HOUR = 3600


def measure(folder: Path, *, runs: int, engines: int = ENGINES) -> list[Ratio]:
    path = engine_days(folder, engines)
    _alone("ours", path)  # stores the hourly results
    own, sql = ([_alone(which, path) for _ in range(runs)] for which in ("ours", "sql"))
    title = f"four questions by the hour, {engines} engine-day{'s' if engines > 1 else ''}, kept"
    found = [
        Ratio(title, "the obvious SQL", unit, *(tuple(of[at] for of in one) for one in (own, sql)))
        for at, unit in enumerate(("CPU s", "peak MB"))
    ]
    taken = tuple(seconds for seconds, _ in own)
    reported = json.loads(subprocess.run(_command("answers", path), **_QUIETLY).stdout)
    answers = {name: {(e, h): v for e, h, v in rows} for name, rows in reported.items()}
    for name, run in (("prometheus", prometheus), ("victoria-metrics", victoria_metrics)):
        if shutil.which(name) is None:
            print(f"  no {name} here: apt-get install {name}")
            continue
        window, cold, warm = open_window(path), [], []
        for _ in range(runs + 1):
            with run(window, folder, FAMILIES) as (url, pid):
                theirs = asked(url, window.extent)
                cold.append(_seconds_of(pid))  # start-up and the first answers
                asked(url, window.extent)
                warm.append(_seconds_of(pid) - cold[-1])
        for which, each in (("cold", cold[1:]), ("warm", warm[1:])):
            found.append(Ratio(title, f"{name}, {which}", "CPU s", taken, tuple(each)))
        print(f"  {name}: {_difference(answers, theirs)}")
    return found


def quick(folder: Path) -> list[Ratio]:
    """One engine for a day, once."""
    return measure(folder, runs=1, engines=1)


def ours(path: Path) -> dict[str, list[tuple[str, int, float]]]:
    """The four answers of a window: rows of (engine, hour, number)."""
    from vllm_capacity.figures.by_hour import by_hour
    from vllm_capacity.figures.histogram import bucket_quantile
    from vllm_capacity.figures.latency import of_minutes
    from vllm_capacity.figures.steps import Grid

    window = open_window(path)
    read = by_hour(window, window.extent)
    hours = Grid(_hours(window.extent), _HOUR)
    grown, gauges, latency = (
        read.hourly(name)  # type: ignore[attr-defined]
        for name in ("increases", "gauges", "latency")
    )
    tokens = (
        grown.filter(metric=GENERATION_TOKENS)
        .group_by("instance", "hour")
        .agg(pl.col("increase").sum())
    )
    first = int(hours.time_range.start.timestamp())
    of_hour = (
        gauges.filter(pl.col("metric").is_in([KV_CACHE, RUNNING]))
        .group_by("metric", step=hours.of("ts"))
        .agg(mean=pl.col("total").sum() / pl.col("n").sum(), max=pl.col("max").max())
    )
    found = {"tokens": [(e, int(h.timestamp()), v) for e, h, v in tokens.iter_rows()]}
    for name, metric, column in (("KV", KV_CACHE, "max"), ("running", RUNNING, "mean")):
        rows = of_hour.filter(metric=metric).select("step", column).drop_nulls().iter_rows()
        found[name] = [("", first + step * _HOUR, value) for step, value in rows]
    waits = of_minutes(latency.filter(metric=TTFT).with_columns(step=hours.of("ts")))
    p95 = ((each.step, bucket_quantile(each.edges, each.counts, 0.95)) for each in waits)
    found["p95 TTFT"] = [("", first + step * _HOUR, value) for step, value in p95 if value]
    return found


def _hours(whole: TimeRange) -> TimeRange:
    begin = whole.start.replace(minute=0, second=0, microsecond=0)
    return TimeRange(begin, whole.end)


def asked(url: str, whole: TimeRange) -> Answers:
    """The four answers of a server, at the last millisecond of every hour."""
    of = "[1h]"
    queries = {
        "tokens": f"sum by (instance) (increase({GENERATION_TOKENS}{of}))",
        "p95 TTFT": f"histogram_quantile(0.95, sum by (le) (increase({TTFT}_bucket{of})))",
        "KV": f"max(max_over_time({KV_CACHE}{of}))",
        "running": f"sum(avg_over_time({RUNNING}{of}))",
    }
    hours = _hours(whole)
    span = {
        "start": f"{(hours.start + timedelta(hours=1)).timestamp() - 0.001:.3f}",
        "end": f"{hours.end.timestamp():.3f}",
        "step": str(_HOUR),
        "nocache": "1",
    }
    found: dict[str, dict[tuple[str, int], float]] = {}
    with httpx.Client(base_url=url, timeout=TIMEOUT_SECONDS) as client:
        for name, query in queries.items():
            answer = client.post("/api/v1/query_range", data={"query": query, **span})
            result = answer.raise_for_status().json()["data"]["result"]
            found[name] = {
                (one["metric"].get("instance", ""), round(ts) - _HOUR): float(value)
                for one in result
                for ts, value in one["values"]
            }
    return found


def _difference(ours: Answers, theirs: Answers) -> str:
    """How far two sets of answers are apart at most, by question, over the hours that both have.

    Their first hour is left out: what is before the first sample is not known to a server.
    """
    reported = []
    for name, own in ours.items():
        both = sorted(own.keys() & theirs[name].keys(), key=lambda key: key[1])
        first = both[0][1] if both else 0
        apart = [
            abs(theirs[name][key] - own[key]) / max(abs(own[key]), 1e-9)
            for key in both
            if key[1] > first
        ]
        reported.append(f"{name} {max(apart, default=0.0):.2g} of {len(apart)}")
    return "largest relative difference: " + ", ".join(reported)


def _seconds_of(pid: int) -> float:
    """The CPU seconds of a process so far."""
    values = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(values[11]) + int(values[12])) / os.sysconf("SC_CLK_TCK")


_QUIETLY = {"capture_output": True, "check": True, "timeout": TIMEOUT_SECONDS}


def _command(what: str, path: Path) -> list[str]:
    return [sys.executable, "-m", "bench.servers", what, str(path)]


def _alone(what: str, path: Path) -> tuple[float, float]:
    """CPU seconds and peak megabytes in a process of its own, imports included."""
    seconds, megabytes = json.loads(subprocess.run(_command(what, path), **_QUIETLY).stdout)
    return seconds, megabytes


# --- servers ------------------------------------------------------------------------------------


def wire(
    window: Window, metrics: Collection[str] | None = None
) -> Iterator[tuple[dict[str, str], np.ndarray, np.ndarray]]:
    """Every series as it is on the wire: its labels, times (ms) and values; cumulative buckets.

    Of all families, or of these `metrics`.
    """
    for key in window.sql("select * from series order by instance, metric, labels").to_dicts():
        if metrics is not None and key["metric"] not in metrics:
            continue
        table = "histograms" if key["kind"] == "histogram" else "samples"
        rows = window.sql(
            f"select * from {table} where series_id = $id order by ts", id=key["series_id"]
        )
        labels = {"instance": key["instance"], "job": "vllm", **json.loads(key["labels"])}
        labels |= {n: key[n] for n in ("engine", "model_name") if key[n] is not None}
        ms, exposed = rows["ts"].dt.epoch("ms").to_numpy(), key["exposed"]
        if table == "samples":
            yield {"__name__": exposed, **labels}, ms, rows["value"].to_numpy()
            continue
        cumulative = np.cumsum(np.array(rows["counts"].to_list(), float), axis=1)
        for at, edge in enumerate([*(f"{bound:g}" for bound in key["bounds"]), "+Inf"]):
            yield {"__name__": f"{exposed}_bucket", **labels, "le": edge}, ms, cumulative[:, at]
        yield {"__name__": f"{exposed}_count", **labels}, ms, rows["count"].to_numpy()
        yield {"__name__": f"{exposed}_sum", **labels}, ms, rows["sum"].to_numpy()


@contextlib.contextmanager
def prometheus(
    window: Window, folder: Path, metrics: Collection[str] | None = None
) -> Iterator[tuple[str, int]]:
    """The URL and process id of a Prometheus with the window's samples, of all or these metrics."""
    store = folder / "prometheus"
    if not store.exists():
        _create_blocks(window, folder, store, metrics)
    config = folder / "prometheus.yml"
    config.write_text("global: {}\n")
    kept = "--storage.tsdb.retention.time=30y"
    command = ["prometheus", f"--config.file={config}", f"--storage.tsdb.path={store}", kept]
    with _running(command, "--web.listen-address=127.0.0.1:{}", "/-/ready") as found:
        yield found


def _create_blocks(
    window: Window, folder: Path, store: Path, metrics: Collection[str] | None
) -> None:
    text = folder / "samples.openmetrics"
    with text.open("wb") as out:
        for labels, ms, values in wire(window, metrics):
            name = labels.pop("__name__")
            head = ",".join(f"{key}={json.dumps(value)}" for key, value in labels.items())
            lines = pl.select(
                pl.concat_str(
                    pl.lit(f"{name}{{{head}}} "),
                    pl.Series(values),
                    pl.lit(" "),
                    pl.Series(ms / 1e3),
                )
            )
            lines.write_csv(out, include_header=False, quote_style="never")
        out.write(b"# EOF\n")
    create = ["promtool", "tsdb", "create-blocks-from", "openmetrics", "-q"]
    subprocess.run([*create, str(text), str(store)], check=True, capture_output=True)
    text.unlink()


@contextlib.contextmanager
def victoria_metrics(
    window: Window, folder: Path, metrics: Collection[str] | None = None
) -> Iterator[tuple[str, int]]:
    """The URL and process id of a VictoriaMetrics with the window's samples."""
    store = folder / "victoria"
    is_new = not store.exists()
    command = ["victoria-metrics", f"-storageDataPath={store}", "-retentionPeriod=100y"]
    with _running(command, "-httpListenAddr=127.0.0.1:{}", "/health") as (url, pid):
        if is_new:
            for labels, ms, values in wire(window, metrics):
                line = {"metric": labels, "values": values.tolist(), "timestamps": ms.tolist()}
                httpx.post(f"{url}/api/v1/import", content=json.dumps(line)).raise_for_status()
            httpx.get(f"{url}/internal/force_flush").raise_for_status()
        yield url, pid


@contextlib.contextmanager
def _running(command: list[str], listen: str, ready: str) -> Iterator[tuple[str, int]]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url, quiet = f"http://127.0.0.1:{port}", subprocess.DEVNULL
    with subprocess.Popen([*command, listen.format(port)], stdout=quiet, stderr=quiet) as process:
        try:
            for _ in range(_START_SECONDS * 10):
                with contextlib.suppress(httpx.TransportError):
                    if httpx.get(f"{url}{ready}", timeout=2).status_code == 200:
                        break
                time.sleep(0.1)
            yield url, process.pid
        finally:
            process.terminate()


if __name__ == "__main__":
    action, path = sys.argv[1], Path(sys.argv[2])
    if action == "answers":
        print(json.dumps(ours(path)))
    else:
        asking: Callable[[Path], object] = ours if action == "ours" else obvious_sql
        print(json.dumps([cpu_seconds(lambda: asking(path)), peak_megabytes()]))
