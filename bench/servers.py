"""A window's samples as a scraper has them, in a real Prometheus and a real VictoriaMetrics.

Both run on a loopback port with a folder of their own, and are ended when the bench is done.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
import subprocess
import time
from collections.abc import Collection, Iterator
from pathlib import Path

import httpx
import numpy as np
import polars as pl

from vllm_capacity.telemetry.window import Window

_START_SECONDS = 120


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


def is_there(name: str) -> bool:
    """Whether the program is installed."""
    return shutil.which(name) is not None


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
