"""Every query of figures/sql on a few rows, so that a failure names the query.

Times are seconds after T0, in the rows, in the parameters and in what is expected.
"""

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from importlib.resources import files

import duckdb
import pytest

from vllm_capacity.telemetry.window import query_text

T0 = datetime(2026, 11, 24, 8, tzinfo=UTC)
TOKENS, REQUESTS = "vllm:generation_tokens_total", "vllm:request_success_total"
RUNNING, TTFT = "vllm:num_requests_running", "vllm:time_to_first_token_seconds"
START = "process_start_time_seconds"

TABLES = {
    "series": "series_id int, metric text, kind text, instance text, engine text, labels text, "
    "starts_at_zero bool, model_name text default 'm', exposed text default 'as seen', "
    "bounds double[] default [1.0]",
    "samples": "series_id int, run int, ts timestamptz, value double",
    "histograms": "series_id int, run int, ts timestamptz, count double, sum double, "
    "counts double[]",
    "minutes": "series_id int, t0 timestamptz, n int, sum double, min double, max double",
    "intake": '"check" text, instance text, ts timestamptz, subject text, detail text, count int',
}
TIMES = {"samples": 2, "histograms": 2, "minutes": 1, "intake": 2}  # index of the time column


@dataclass(frozen=True)
class Case:
    """Rows in, rows out: `columns` of the answer are compared, in its order."""

    query: str
    title: str
    columns: str
    expected: list[tuple]
    params: dict = field(default_factory=dict)
    series: list[tuple] = field(default_factory=list)
    samples: list[tuple] = field(default_factory=list)
    histograms: list[tuple] = field(default_factory=list)
    minutes: list[tuple] = field(default_factory=list)
    intake: list[tuple] = field(default_factory=list)


def at(seconds):
    return None if seconds is None else T0 + timedelta(seconds=seconds)


def counter(series_id, metric=TOKENS, instance="a", *, labels="{}", zero=False):
    return (series_id, metric, "counter", instance, "0", labels, zero)


def gauge(series_id, metric=RUNNING, instance="a", engine="0", labels="{}"):
    return (series_id, metric, "gauge", instance, engine, labels, None)


def histogram(series_id, metric=TTFT, instance="a", *, zero=False):
    return (series_id, metric, "histogram", instance, "0", "{}", zero)


def up(series_id, instance="a", labels="{}"):
    return gauge(series_id, "up", instance, engine=None, labels=labels)


def starts(series_id, instance="a"):
    return gauge(series_id, START, instance, engine=None)


ADAPTERS = (
    Case(
        "adapters",
        "the states of adapters in a scrape, the one of now last",
        "instance labels ts value",
        [("a", '{"r": "x"}', 0, 5.0), ("a", '{"r": "x"}', 10, 5.0), ("a", '{"r": "y"}', 10, 9.0)],
        {"metric": "vllm:lora_requests_info", "start": 0, "end": 20},
        series=[
            gauge(1, "vllm:lora_requests_info", engine=None, labels='{"r": "x"}'),
            gauge(2, "vllm:lora_requests_info", engine=None, labels='{"r": "y"}'),
            gauge(3),
        ],
        samples=[(1, 0, 0, 5.0), (1, 0, 10, 5.0), (2, 0, 10, 9.0), (1, 0, 20, 5.0), (3, 0, 0, 1.0)],
    ),
)

ATTEMPTS = (
    Case(
        "attempts",
        "a failed scrape is an attempt, and the samples of a watched target are none",
        "instance ts is_good source",
        [("a", 0, True, "{}"), ("a", 10, False, "{}")],
        {"end": 20},
        series=[up(1), gauge(2)],
        samples=[(1, 0, 0, 1), (1, 0, 10, 0), (1, 0, 20, 1), (2, 0, 3, 5)],
    ),
    Case(
        "attempts",
        "without `up` the times of the samples are the attempts, once each",
        "instance ts is_good source",
        [("a", 0, True, ""), ("a", 10, True, "")],
        {"end": 20},
        series=[gauge(1), counter(2), gauge(3, "scrape_duration_seconds")],
        samples=[(1, 0, 0, 1), (2, 0, 0, 9), (1, 0, 10, 1), (3, 0, 15, 0.01), (1, 0, 20, 1)],
    ),
    Case(
        "attempts",
        "two jobs that scrape one target stay two sources",
        "ts source",
        [(0, '{"job": "x"}'), (5, '{"job": "y"}')],
        {"end": 20},
        series=[up(1, labels='{"job": "x"}'), up(2, labels='{"job": "y"}')],
        samples=[(2, 0, 5, 1), (1, 0, 0, 1)],
    ),
)

ONE_RESTART = [(1, 0, 0, 10), (1, 0, 10, 15), (1, 1, 20, 3), (1, 1, 30, 7)]
INCREASE = "increase base_ts last_ts"
COUNTER_INCREASE = (
    Case(
        "counter_increase",
        "the base is the last sample before the part",
        INCREASE,
        [(8, 0, 20)],
        {"metrics": [TOKENS], "start": 5, "end": 30},
        series=[counter(1)],
        samples=[(1, 0, 0, 10), (1, 0, 10, 15), (1, 0, 20, 18), (1, 0, 30, 99)],
    ),
    Case(
        "counter_increase",
        "after a restart everything counts",
        INCREASE,
        [(5 + 7, 0, 30)],
        {"metrics": [TOKENS], "start": 5, "end": 40},
        series=[counter(1)],
        samples=ONE_RESTART,
    ),
    Case(
        "counter_increase",
        "adjoining parts: up to the restart",
        INCREASE,
        [(5, 0, 10)],
        {"metrics": [TOKENS], "start": 5, "end": 15},
        series=[counter(1)],
        samples=ONE_RESTART,
    ),
    Case(
        "counter_increase",
        "adjoining parts: from the restart on",
        INCREASE,
        [(7, 10, 30)],
        {"metrics": [TOKENS], "start": 15, "end": 40},
        series=[counter(1)],
        samples=ONE_RESTART,
    ),
    Case(
        "counter_increase",
        "a first sample counts where the series starts at zero, and only there",
        "series_id increase base_ts",
        [(1, 6, 10), (2, 2, 10), (3, 0, 20)],
        {"metrics": [TOKENS], "start": 0, "end": 40},
        series=[counter(1, zero=True), counter(2, instance="b"), counter(3, instance="c")],
        samples=[(1, 0, 10, 4), (1, 0, 20, 6), (2, 0, 10, 4), (2, 0, 20, 6), (3, 0, 20, 5)],
    ),
    Case(
        "counter_increase",
        "a child that was away is counted from its target's last scrape before the part",
        "series_id increase base_ts",
        [(1, 2, 40), (2, 1, 40)],
        {"metrics": [TOKENS], "start": 45, "end": 60},
        series=[counter(1, labels='{"x": "1"}'), counter(2, labels='{"x": "2"}')],
        samples=[(1, 0, 0, 5), (2, 0, 40, 1), (1, 0, 50, 7), (2, 0, 50, 2)],
    ),
    Case(
        "counter_increase",
        "other metrics, gauges, and counters without a sample in the part give no row",
        INCREASE,
        [],
        {"metrics": [TOKENS], "start": 5, "end": 40},
        series=[counter(1), counter(2, REQUESTS), gauge(3, TOKENS)],
        samples=[(1, 0, 0, 1), (2, 0, 10, 1), (3, 0, 10, 1)],
    ),
)

SCRAPE_INCREASES = (
    Case(
        "scrape_increases",
        "from scrape to scrape, across a restart, the base from before the part",
        "ts_before ts increase",
        [(0, 10, 5), (10, 20, 3), (20, 30, 4)],
        {"metrics": [TOKENS], "start": 5, "end": 40},
        series=[counter(1)],
        samples=ONE_RESTART,
    ),
    Case(
        "scrape_increases",
        "a first scrape has no increase, unless the series starts at zero",
        "instance ts_before ts increase",
        [("a", None, 10, 4), ("b", None, 10, None)],
        {"metrics": [TOKENS], "start": 10, "end": 20},
        series=[counter(1, zero=True), counter(2, instance="b"), counter(3, REQUESTS)],
        samples=[(1, 0, 10, 4), (2, 0, 10, 4), (2, 0, 20, 9), (3, 0, 10, 1)],
    ),
)

FIRST_VALUES = (
    Case(
        "first_values",
        "of those that begin in the part, what they had counted by then",
        "series_id instance starts_at_zero first_ts first_value",
        [(2, "b", False, 10, 4)],
        {"metrics": [TOKENS], "start": 10, "end": 40},
        series=[counter(1), counter(2, instance="b"), counter(3, REQUESTS), counter(4)],
        samples=[
            (1, 0, 0, 1),
            (1, 0, 10, 2),
            (2, 0, 10, 4),
            (2, 0, 20, 9),
            (3, 0, 10, 1),
            (4, 0, 40, 1),
        ],
    ),
)

ENGINES = (
    Case(
        "engines",
        "a pair of target and engine label, from its first sample to its last",
        "instance engine model_name first_ts last_ts",
        [("a", "0", "m", 0, 20), ("a", "1", "m", 10, 10), ("b", "0", "m", 5, 5)],
        {"end": 30},
        series=[gauge(1), gauge(2, engine="1"), counter(3), counter(4, instance="b")],
        samples=[(1, 0, 0, 1), (2, 0, 10, 1), (3, 0, 20, 1), (4, 0, 5, 1), (1, 0, 30, 1)],
    ),
    Case(
        "engines",
        "what has no engine label, or is none of an engine's metrics, makes no engine",
        "instance engine",
        [],
        {"end": 30},
        series=[up(1), gauge(2, "vllm:other"), gauge(3, engine=None)],
        samples=[(1, 0, 0, 1), (2, 0, 0, 1), (3, 0, 0, 1)],
    ),
)

FASTEST_MEANS = (
    Case(
        "fastest_means",
        "the least mean over a stretch of enough observations (9 in 5 s are not)",
        "metric fastest_seconds observed seconds",
        [(TTFT, 6 / 10, 19, 11)],
        {"metrics": [TTFT], "least": 10},
        series=[histogram(1), histogram(2, "vllm:other"), counter(3, TTFT)],
        histograms=[
            *((1, 0, 0, 10, 0, []), (1, 0, 10, 14, 3, []), (1, 0, 20, 19, 5, [])),
            *((1, 0, 30, 29, 11, []), (2, 0, 0, 0, 0, []), (2, 0, 10, 90, 1, [])),
            *((3, 0, 0, 0, 0, []), (3, 0, 10, 90, 1, [])),
        ],
    ),
    Case(
        "fastest_means",
        "too few observations for a stretch, none taken across a restart",
        "metric fastest_seconds observed seconds",
        [(TTFT, None, 2 + 3, 1 + 6)],
        {"metrics": [TTFT], "least": 10},
        series=[histogram(1)],
        histograms=[
            *((1, 0, 0, 5, 5, []), (1, 0, 10, 7, 6, [])),
            *((1, 1, 20, 1, 9, []), (1, 1, 30, 4, 15, [])),
        ],
    ),
    Case(
        "fastest_means",
        "nothing observed has no mean",
        "metric observed seconds",
        [],
        {"metrics": [TTFT], "least": 10},
        series=[histogram(1)],
        histograms=[(1, 0, 0, 5, 5, []), (1, 0, 10, 5, 5, [])],
    ),
)

GAUGES = (
    Case(
        "gauge_samples",
        "gauges and infos in the part, no counter, no sample at its end",
        "metric instance ts value",
        [(RUNNING, "a", 10, 2), (RUNNING, "a", 20, 3), (RUNNING, "b", 10, 7)],
        {"metrics": [RUNNING], "start": 10, "end": 30},
        series=[
            *(gauge(1), counter(2, RUNNING, "c")),
            (3, RUNNING, "info", "b", "0", "{}", None),
        ],
        samples=[(1, 0, t, t / 10 + 1) for t in (0, 10, 20, 30)] + [(2, 0, 10, 1), (3, 0, 10, 7)],
    ),
    Case(
        "gauge_minutes",
        "mean, least and most of the minutes that begin in the part",
        "metric ts n value min max",
        [(RUNNING, 60, 4, 2.5, 1, 4)],
        {"metrics": [RUNNING], "start": 60, "end": 120},
        series=[gauge(1), gauge(2, "vllm:other")],
        minutes=[
            (1, 0, 9, 9, 1, 1),
            (1, 60, 4, 10, 1, 4),
            (1, 120, 9, 9, 1, 1),
            (2, 60, 1, 1, 1, 1),
        ],
    ),
)

GOOD_AFTER = (
    Case(
        "good_after",
        "a sample from the end on is an answer; a failed attempt's bookkeeping is none",
        "instance",
        [("a",)],
        {"end": 10},
        series=[
            gauge(1),
            gauge(2, instance="b"),
            up(3, "c"),
            gauge(4, "scrape_duration_seconds", "c"),
        ],
        samples=[(1, 0, 10, 1), (2, 0, 9, 1), (3, 0, 20, 0), (4, 0, 20, 0.1)],
    ),
)

HISTOGRAM_STATES = (
    Case(
        "histogram_states",
        "one row per step: its first and last state; step -1 is what came before",
        "run step first_sum first_counts sum counts t0 t1",
        [
            (0, -1, 1.0, [1, 0], 2.0, [2, 0], -20, -10),
            (0, 0, 3.0, [3, 0], 4.0, [4, 0], 0, 5),
            (1, 1, 0.5, [0, 1], 0.5, [0, 1], 10, 10),
        ],
        {"metrics": [TTFT], "start": 0, "end": 20, "step_us": 10_000_000, "last_step": 9},
        series=[histogram(1), histogram(2, "vllm:other")],
        histograms=[
            *((1, 0, -20, 1, 1.0, [1, 0]), (1, 0, -10, 2, 2.0, [2, 0])),
            *((1, 0, 0, 3, 3.0, [3, 0]), (1, 0, 5, 4, 4.0, [4, 0])),
            *((1, 1, 10, 1, 0.5, [0, 1]), (1, 1, 20, 9, 9.0, [9, 0]), (2, 0, 5, 9, 9.0, [9, 0])),
        ],
    ),
    Case(
        "histogram_states",
        "the last step holds the rest of the part",
        "step t0 t1",
        [(0, 5, 5), (1, 15, 35)],
        {"metrics": [TTFT], "start": 0, "end": 40, "step_us": 10_000_000, "last_step": 1},
        series=[histogram(1)],
        histograms=[(1, 0, t, t, 1.0, [t, 0]) for t in (5, 15, 25, 35)],
    ),
)

INTAKE_NOTES = (
    Case(
        "intake_notes",
        "notes of the part and those without a time, alike ones added up",
        "check instance subject detail count first_ts",
        [("late", "a", "x", "d", 5, 10), ("late", "a", "y", "d", 7, None)],
        {"start": 10, "end": 30},
        intake=[
            *(("late", "a", 10, "x", "d", 2), ("late", "a", 20, "x", "d", 3)),
            *(("late", "a", 30, "x", "d", 9), ("late", "a", 0, "x", "d", 9)),
            ("late", "a", None, "y", "d", 7),
        ],
    ),
)

CONTRADICTED = (
    Case(
        "contradicted",
        "the scrapes left out of each target, of whatever time, with their reasons side by side",
        "instance detail scrapes",
        [("a", "one; two", 5), ("b", "one", 7)],
        intake=[
            *(("contradicted", "a", 0, "x", "two", 3), ("contradicted", "a", 99, "x", "one", 2)),
            *(("contradicted", "b", None, "x", "one", 7), ("late", "a", 0, "x", "one", 9)),
        ],
    ),
)

UNCOUNTED = (
    Case(
        "uncounted",
        "the wanted metrics of each target, of whatever time",
        "instance metric grown",
        [("a", TOKENS, 5.0), ("b", TOKENS, 7.0)],
        {"metrics": [TOKENS, TTFT]},
        intake=[
            *(("uncounted", "a", 0, TOKENS, "d", 3), ("uncounted", "a", None, TOKENS, "d", 2)),
            *(("uncounted", "b", None, TOKENS, "d", 7), ("uncounted", "a", 0, REQUESTS, "d", 9)),
            ("contradicted", "a", 0, TOKENS, "d", 9),
        ],
    ),
)

UNTIMED = (
    Case(
        "untimed",
        "a row per target and time, once, the one without a time too",
        "instance ts reason",
        [("a", 5, "d"), ("a", None, "d"), ("b", 9, "d")],
        intake=[
            *(("untimed", "a", 5, "a", "d", 1), ("untimed", "a", 5, "a", "other", 1)),
            *(("untimed", "a", None, "a", "d", 1), ("untimed", "b", 9, "b", "d", 1)),
            ("contradicted", "c", 0, "c", "d", 9),
        ],
    ),
)

RELABELLED = (
    Case(
        "relabelled",
        "alike changes of the part added up, and what the counters had counted by the first",
        "check instance metric detail count first_ts at_most",
        [
            ("relabelled", "a", TOKENS, "d", 3, 10, 8 + 2),
            ("respelled", "a", RUNNING, "d", 1, 20, None),
        ],
        {"start": 10, "end": 30},
        series=[counter(1), counter(2), counter(3, instance="b"), gauge(4), counter(5, REQUESTS)],
        samples=[
            *((1, 0, 0, 5), (1, 0, 10, 8), (1, 0, 20, 99), (2, 0, 5, 2), (2, 0, 20, 4)),
            *((3, 0, 5, 50), (4, 0, 5, 60), (5, 0, 5, 70)),
        ],
        intake=[
            *(("relabelled", "a", 10, TOKENS, "d", 1), ("relabelled", "a", 20, TOKENS, "d", 2)),
            *(("relabelled", "a", 0, TOKENS, "d", 9), ("relabelled", "a", 30, TOKENS, "d", 9)),
            *(("respelled", "a", 20, RUNNING, "d", 1), ("late", "a", 20, TOKENS, "d", 9)),
        ],
    ),
)

LIFETIMES = (
    Case(
        "lifetimes",
        "first and last seen, a histogram by its count",
        "metric kind first_ts last_ts first_value last_value",
        [(TOKENS, "counter", 0, 20, 5, 2), (TTFT, "histogram", 10, 20, 1, 4)],
        {"end": 30},
        series=[counter(1), histogram(2), counter(3, REQUESTS)],
        samples=[(1, 0, 0, 5), (1, 0, 10, 9), (1, 1, 20, 2), (1, 1, 30, 8), (3, 0, 30, 1)],
        histograms=[(2, 0, 10, 1, 0.5, [1]), (2, 0, 20, 4, 2.0, [4]), (2, 0, 30, 9, 9.0, [9])],
    ),
)

PROCESS_STARTS = (
    Case(
        "process_starts",
        "every start that was reported, by series and time, and nothing else",
        "series_id ts value",
        [(1, 0, 100), (1, 10, 200), (2, 5, 100)],
        series=[starts(1), starts(2, "b"), gauge(3)],
        samples=[(2, 0, 5, 100), (1, 1, 10, 200), (1, 0, 0, 100), (3, 0, 0, 1)],
    ),
)

RUN_STARTS = (
    Case(
        "run_starts",
        "a target restarted after the newest sample before any of its counters fell",
        "instance ts_before ts",
        [("a", 15, 20), ("b", 0, 10)],
        series=[counter(1), counter(2, REQUESTS), counter(3, instance="b")],
        samples=[
            *((1, 0, 10, 9), (1, 1, 20, 1), (1, 1, 30, 2)),
            *((2, 0, 15, 9), (2, 1, 20, 1)),
            *((3, 0, 0, 9), (3, 1, 10, 1)),
        ],
    ),
)


BEGAN = T0.timestamp() - 100


def twins(counts, others, *, began=BEGAN, more=(), apart=5):
    """A start that two targets share, and the counts that they report in turn."""
    return {
        "params": {"metric": TOKENS, "fewest": 5},
        "series": [
            *(starts(1), starts(2, "b"), counter(3), counter(4, instance="b")),
            *(counter(5, labels='{"x": "1"}'), counter(6, REQUESTS)),
        ],
        "samples": [
            *((1, 0, 5, began), (2, 0, 5, began), *more),
            *((3, 0, 10 * n, float(value)) for n, value in enumerate(counts)),
            *((4, 0, 10 * n + apart, float(value)) for n, value in enumerate(others)),
        ],
    }


SAME_PROCESSES = (
    Case(
        "same_processes",
        "one start, and one count that grows through the samples of both, or stands still",
        "instance other",
        [("a", "b")],
        **twins([0, 2, 4, 6, 6, 8, 9, 10], [1, 3, 5, 6], more=[(6, 0, 12, 999.0)]),
    ),
    Case(
        "same_processes",
        "what was reported and counted before the start is ignored",
        "instance other",
        [("a", "b")],
        **twins([0, 2, 4], [1, 3, 5], more=[(1, 0, -200, 7.0), (3, 0, -150, 900.0)]),
    ),
    Case(
        "same_processes",
        "the children of a counter are one count",
        "instance other",
        [("a", "b")],
        **twins([0, 2, 1, 6], [1, 3, 5], more=[(5, 0, 20, 3.0)]),
    ),
    Case(
        "same_processes",
        "two processes that started together count apart",
        "instance other",
        [],
        **twins([0, 2, 4, 6], [101, 103, 105]),
    ),
    *(
        Case(
            "same_processes",
            f"two processes whose counts differ at one instant count apart, {which} being ahead",
            "instance other",
            [],
            **twins([0, 2, 4, 6], [1, 3, 5], more=[(3, 0, 50, a), (4, 0, 50, b)]),
        )
        for which, a, b in (("a", 9.0, 8.0), ("b", 8.0, 9.0))
    ),
    Case(
        "same_processes",
        "two counts of one moment are two processes, however they are ordered",
        "instance other",
        [],
        **twins([0, 2, 4, 6, 8], [1, 3, 5, 7, 9], apart=0),
    ),
    Case(
        "same_processes",
        "a start of 0 is none",
        "instance other",
        [],
        **twins([0, 2, 4, 6], [1, 3, 5], began=0.0),
    ),
    Case(
        "same_processes",
        "a count that hardly moves is no proof",
        "instance other",
        [],
        **twins([0, 2, 4, 4], [1, 3, 4]),
    ),
)

WHOLE = (
    Case(
        "instances",
        "each target once, by name",
        "instance",
        [("a",), ("b",)],
        series=[gauge(1, instance="b"), counter(2), gauge(3)],
    ),
    Case(
        "series",
        "every series with its labels and bounds, whether or not it has a sample",
        "series_id metric kind instance engine labels bounds",
        [
            (1, TOKENS, "counter", "a", "0", '{"x": "1"}', [1.0]),
            (2, "up", "gauge", "b", None, "{}", [1.0]),
        ],
        series=[counter(1, labels='{"x": "1"}'), up(2, "b")],
    ),
    Case(
        "models",
        "each model once; a series that names none does not count",
        "model_name",
        [("m",), ("n",)],
        series=[counter(1), counter(2), (*up(3), None), (*counter(4), "n")],
    ),
    Case(
        "makes",
        "labels of the families asked for, each series of them",
        "instance engine labels",
        [("a", "0", '{"gpu": "A100"}'), ("b", "0", "{}")],
        params={"metrics": [TOKENS]},
        series=[
            *(counter(1, labels='{"gpu": "A100"}'), counter(2, instance="b")),
            counter(3, REQUESTS),
        ],
    ),
)

CASES = (
    *WHOLE,
    *ADAPTERS,
    *ATTEMPTS,
    *COUNTER_INCREASE,
    *SCRAPE_INCREASES,
    *FIRST_VALUES,
    *ENGINES,
    *FASTEST_MEANS,
    *GAUGES,
    *GOOD_AFTER,
    *HISTOGRAM_STATES,
    *INTAKE_NOTES,
    *CONTRADICTED,
    *UNCOUNTED,
    *UNTIMED,
    *RELABELLED,
    *LIFETIMES,
    *PROCESS_STARTS,
    *RUN_STARTS,
    *SAME_PROCESSES,
)


@pytest.fixture(scope="module")
def connection():
    with duckdb.connect(":memory:") as made:
        made.execute("set TimeZone = 'UTC'")
        yield made


def fill(connection, case):
    """The tables of a window, with the rows of the case."""
    for name, columns in TABLES.items():
        connection.execute(f"create or replace table {name} ({columns})")
        names = [column.split()[0] for column in columns.split(", ")]
        for row in getattr(case, name):
            values = [at(v) if i == TIMES.get(name) else v for i, v in enumerate(row)]
            marks = ", ".join("?" * len(row))
            into = ", ".join(names[: len(row)])
            connection.execute(f"insert into {name} ({into}) values ({marks})", values)


def plain(value):
    """A time as seconds after T0."""
    return (value - T0).total_seconds() if isinstance(value, datetime) else value


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.query}: {case.title}")
def test_query_gives_these_rows_of_those(connection, case):
    fill(connection, case)
    params = {k: at(v) if k in ("start", "end") else v for k, v in case.params.items()}
    found = connection.sql(query_text("figures", case.query), params=params or None)
    chosen = found.select(*case.columns.split())
    assert [tuple(map(plain, row)) for row in chosen.fetchall()] == case.expected


def test_every_query_has_a_case():
    shipped = files("vllm_capacity.figures").joinpath("sql").iterdir()
    assert {case.query for case in CASES} == {file.name.removesuffix(".sql") for file in shipped}
