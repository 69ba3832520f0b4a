"""Prometheus' own test cases, run on this package: one window of telemetry, one answer per case.

A case's series become one target of a window (every histogram a target of its own), and the answers
come from the package's own figures. A part of a window is [start, end) and PromQL's range is
(start, end], so both ends move by a microsecond.
"""

import json
import math
from collections import defaultdict
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path

from vllm_capacity.errors import InputError
from vllm_capacity.figures.histogram import bucket_quantile, fraction, merge
from vllm_capacity.figures.latency import histogram_increases
from vllm_capacity.figures.traffic import counter_increases, rate_per_second
from vllm_capacity.telemetry.rows import RowBuffer, SeriesKey, microseconds
from vllm_capacity.timerange import TimeRange

HERE = Path(__file__).parent
CASES = json.loads((HERE / "promql_cases.json").read_text())["cases"]
EPOCH = datetime(2026, 1, 1, tzinfo=UTC)
LOOK_BACK_SECONDS = 300
REFUSED = "refused"  # InputError: no number would be right


def number(value):
    """A number of the JSON, where NaN and the infinities are strings; None stays None."""
    return None if value is None else float(value)


def is_histogram(case):
    return case["fn"].startswith("histogram")


def labels_of(series, *without):
    kept = {k: v for k, v in series["labels"].items() if k not in ("__name__", *without)}
    return json.dumps(kept, sort_keys=True)


def metric_of(case):
    return f"case:{CASES.index(case)}"


def at(seconds):
    return EPOCH + timedelta(seconds=seconds)


def bucket_series(case):
    """The case's bucket series by histogram: {labels: {le: {time: value}}}, equal bounds added."""
    histograms = defaultdict(lambda: defaultdict(lambda: defaultdict(float)))
    for series in case["series"]:
        try:
            edge = float(series["labels"]["le"])
        except (KeyError, ValueError):
            continue  # without le it is not a histogram bucket
        for ts, value in series["samples"]:
            if value is not None:
                histograms[labels_of(series, "le")][edge][ts] += number(value)
    return histograms


def states(buckets):
    """(edges, [(time, counts)]) of one histogram: per-bucket counts wherever all buckets are."""
    edges = sorted(buckets)
    times = set.intersection(*(set(values) for values in buckets.values()))
    cumulative = [(ts, [0.0, *(buckets[edge][ts] for edge in edges)]) for ts in sorted(times)]
    counts = [(ts, [high - low for low, high in pairwise(row)]) for ts, row in cumulative]
    return tuple(edge for edge in edges if math.isfinite(edge)), counts


def all_rows():
    """The rows of every case, as a source returns them."""
    buffer = RowBuffer()
    for case in CASES:
        if not is_histogram(case):
            _counter_rows(case, buffer)
        elif case["inner_fn"]:
            _histogram_rows(case, buffer)
    return buffer.rows()


def _counter_rows(case, buffer):
    metric = metric_of(case)
    for series in case["series"]:
        labels = tuple(sorted(json.loads(labels_of(series)).items()))
        series_id = buffer.series(SeriesKey(metric, "counter", metric, labels=labels), exposed="")
        for ts, value in series["samples"]:
            if value is not None:
                buffer.sample(series_id, microseconds(at(ts)), number(value))


def _histogram_rows(case, buffer):
    metric = metric_of(case)
    for labels, buckets in bucket_series(case).items():
        edges, counted = states(buckets)
        key = SeriesKey(metric, "histogram", labels, bounds=edges)
        series_id = buffer.series(key, exposed="")
        for ts, counts in counted:
            buffer.histogram(
                series_id, microseconds(at(ts)), count=sum(counts), total=0.0, counts=counts
            )


def part_of(case):
    end = case["eval_time_seconds"] - case["offset_seconds"]
    instant = timedelta(microseconds=1)
    return TimeRange(at(end - case["range_seconds"]) + instant, at(end) + instant)


def answer(case, window):
    """What the package says, by labels: a number, None (nothing was observed) or REFUSED."""
    if case["fn"] == "resets":
        return _resets(case, window)
    if is_histogram(case):
        return {
            labels: _of_histogram(case, edges, counts)
            for labels, (edges, counts) in _histograms(case, window).items()
        }
    metric = metric_of(case)
    increases = counter_increases(window, [metric], time_range=part_of(case))
    if case["fn"] == "increase":
        return dict(increases.select("labels", "increase").iter_rows())
    return {
        str(labels): rate_per_second(series, metric)
        for (labels,), series in increases.partition_by("labels", as_dict=True).items()
    }


def _resets(case, window):
    """How often each counter fell in the part: the runs that the store settled, counted."""
    time_range = part_of(case)
    runs = window.sql(
        "select labels, ts, run from samples join series using (series_id) "
        "where metric = $metric and ts < $end order by labels, ts",
        metric=metric_of(case),
        end=time_range.end,
    )
    found = {}
    for (labels,), series in runs.partition_by("labels", as_dict=True).items():
        inside = series.filter(series["ts"] >= time_range.start)["run"].to_list()
        before = series.filter(series["ts"] < time_range.start)["run"].to_list()
        anchor = before[-1:] if case["modifier"] == "anchored" else []
        if inside:
            found[str(labels)] = float(inside[-1] - [*anchor, *inside][0])
    return found


def _histograms(case, window):
    """{labels: (edges, counts)}: the newest state, or the increase over the part, aggregated."""
    if not case["inner_fn"]:
        return {
            labels: (edges, counted[-1][1])
            for labels, buckets in bucket_series(case).items()
            for edges, counted in [states(buckets)]
            if counted and case["eval_time_seconds"] - counted[-1][0] < LOOK_BACK_SECONDS
        }
    by = (case["aggregate"] or {}).get("by")
    groups = defaultdict(list)
    for increase in histogram_increases(window, [metric_of(case)], time_range=part_of(case)):
        labels = json.loads(increase.instance)
        kept = {name: labels[name] for name in by if name != "le"} if by else labels
        groups[json.dumps(kept, sort_keys=True)].append((increase.edges, increase.counts))
    return {
        labels: merge(members) if len(members) > 1 else members[0]
        for labels, members in groups.items()
    }


def _of_histogram(case, edges, counts):
    try:
        if case["fn"] == "histogram_quantile":
            return bucket_quantile(edges, counts, number(case["quantile"]))
        return fraction(edges, counts, number(case["lower"]), number(case["upper"]))
    except InputError:
        return REFUSED


def expected(case):
    """What Prometheus says, by labels; None for the NaN of a histogram without observations."""
    found = {}
    for entry in case["expected"]:
        value = number(entry["value"])
        is_nothing = math.isnan(value) and is_histogram(case)
        found[json.dumps(entry["labels"], sort_keys=True)] = None if is_nothing else value
    return found
