"""A stand-in of Prometheus: series in memory, and the few shapes of queries that a pull asks.

Values of a label are those of all time.

Raw samples of a range (open at its left), the last value in each minute, and falls in two.
"""

import json
import math
import re
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from itertools import pairwise
from urllib.parse import parse_qs

import httpx

from vllm_capacity.telemetry.window import Window

Wire = Mapping[str, Sequence[tuple[float, float]]]
"""Samples (Unix seconds, value) of each series, by its labels as JSON."""


def prometheus(series: Wire, asked: list[str] | None = None) -> httpx.MockTransport:
    """A server with these series; `asked` gets its queries."""

    def handler(request: httpx.Request) -> httpx.Response:
        if request.url.path.endswith("values"):
            label, selector = request.url.path.split("/")[-2], request.url.params.get("match[]", "")
            found = {labels.get(label) for labels, _ in _selected(series, selector)}
            data = sorted(value for value in found if value)
            return httpx.Response(200, json={"status": "success", "data": data})
        if request.url.path.endswith("metadata"):
            return httpx.Response(404)
        form = {key: value[0] for key, value in parse_qs(request.content.decode()).items()}
        if asked is not None:
            asked.append(form["query"])
        result = _ranged(series, form) if "step" in form else _raw(series, form)
        kept = [
            {"metric": metric, "values": [[t, str(v)] for t, v in values]}
            for metric, values in result
            if values
        ]
        data = {"resultType": "matrix", "result": kept}
        return httpx.Response(200, json={"status": "success", "data": data})

    return httpx.MockTransport(handler)


_Answer = Iterator[tuple[dict[str, str], Sequence[tuple[float, float]]]]


def _raw(series: Wire, form: Mapping[str, str]) -> _Answer:
    selector, length = re.fullmatch(r"(\{.*\})\[(\d+)ms\]", form["query"]).groups()
    end = float(form["time"])
    for metric, values in _selected(series, selector):
        yield metric, _inside(values, end, int(length) / 1000)


def _ranged(series: Wire, form: Mapping[str, str]) -> _Answer:
    first, last, step = (float(form[name]) for name in ("start", "end", "step"))
    moments = [first + step * n for n in range(int((last - first) / step) + 1)]
    ends = re.fullmatch(r"last_over_time\((\{.*\})\[1m\]\)", form["query"])
    if ends:
        for metric, values in _selected(series, ends[1]):
            found = ((t, values[n - 1]) for t in moments if (n := _until(values, t)))
            yield metric, [(t, value) for t, (ts, value) in found if ts > t - 60]
        return
    fell: dict[tuple[str, str], set[float]] = {}
    for term in form["query"].split(" or "):
        shape = r"max by \(instance, job\) \(resets\((\{.*\})\[2m\]\)\) > 0"
        for metric, values in _selected(series, re.fullmatch(shape, term)[1]):
            falls = [(a[0], b[0]) for a, b in pairwise(values) if b[1] < a[1]]
            inside = {t for t in moments for a, b in falls if t - 120 < a and b <= t}
            if inside:
                target = (metric.get("instance", ""), metric.get("job", ""))
                fell.setdefault(target, set()).update(inside)
    for (instance, job), times in fell.items():
        yield {"instance": instance, "job": job}, [(t, 1.0) for t in sorted(times)]


def _selected(series: Wire, selector: str) -> _Answer:
    found = re.findall(r'(\w+)=~?"((?:[^"\\]|\\.)*)"', selector)
    matchers = [(name, re.compile(pattern.replace("\\\\", "\\"))) for name, pattern in found]
    for key, values in series.items():
        labels = _labels(key)
        if all(pattern.fullmatch(labels.get(name, "")) for name, pattern in matchers):
            yield labels, values


@cache
def _labels(key: str) -> dict[str, str]:
    return json.loads(key)


def _inside(values: Sequence[tuple[float, float]], end: float, length: float):
    return values[_until(values, end - length) : _until(values, end)]


def _until(values: Sequence[tuple[float, float]], end: float) -> int:
    """How many of them there are up to then."""
    return bisect_right(values, (end, math.inf))


def on_the_wire(window: Window) -> dict[str, list[tuple[float, float]]]:
    """Every sample of a window as a Prometheus would have it that scraped its targets."""
    found = {}
    for key in window.sql("select * from series order by metric, instance, labels").to_dicts():
        is_state = key["kind"] == "histogram"
        rows = window.sql(
            f"select * from {'histograms' if is_state else 'samples'} "
            "where series_id = $id order by ts",
            id=key["series_id"],
        )
        labels = {"instance": key["instance"], "job": "vllm", **json.loads(key["labels"])}
        labels |= {n: key[n] for n in ("engine", "model_name") if key[n] is not None}
        times = [ts.timestamp() for ts in rows["ts"]]
        columns = {key["exposed"]: rows["value"]} if not is_state else _parts(key, rows)
        for name, values in columns.items():
            exposed, _, edge = name.partition(" ")
            whose = {"__name__": exposed, **labels, **({"le": edge} if edge else {})}
            found[json.dumps(whose, sort_keys=True)] = list(zip(times, values, strict=True))
    return found


def as_openmetrics(window: Window) -> str:
    """Every sample of a window as text that `promtool` puts into a real Prometheus."""
    lines = []
    for key, samples in on_the_wire(window).items():
        labels = json.loads(key)
        name = labels.pop("__name__")
        head = ",".join(f"{label}={json.dumps(value)}" for label, value in labels.items())
        lines += [f"{name}{{{head}}} {value} {ts:.3f}" for ts, value in samples]
    return "\n".join([*lines, "# EOF", ""])


def _parts(key, rows):
    """The columns of a histogram on the wire, by name and bound."""
    counts = rows["counts"].to_list()
    edges = [*(f"{bound:g}" for bound in key["bounds"]), "+Inf"]
    buckets = {
        f"{key['exposed']}_bucket {edge}": [sum(row[: at + 1]) for row in counts]
        for at, edge in enumerate(edges)
    }
    parts = {f"{key['exposed']}_{part}": rows[part].to_list() for part in ("count", "sum")}
    return {**buckets, **parts}
