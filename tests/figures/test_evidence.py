"""Facts of the quality report: gauges that stand still while no token comes, and time ranges."""

import polars as pl
import pytest

from tests.figures.small_windows import at, seconds_of
from vllm_capacity.verdicts.quality.evidence import spans, stale_gauges

SCHEMA = {
    **dict.fromkeys(("instance", "engine"), pl.String),
    **dict.fromkeys(("start", "end"), pl.Datetime("us", "UTC")),
    **dict.fromkeys(("running_mean", "output_tokens_per_second"), pl.Float64),
}


def steps(*rows, seconds=30):
    """Steps of one engine, one after the other: (running, output tokens per second)."""
    result = [
        ("a", "0", at(seconds * n), at(seconds * (n + 1)), running, tokens)
        for n, (running, tokens) in enumerate(rows)
    ]
    return pl.DataFrame(result, schema=SCHEMA, orient="row")


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        pytest.param([(1, 9), (2, 0), (4, 0), (1, 9)], [(30, 90, 3)], id="a minute of it"),
        pytest.param([(1, 9), (2, 0), (1, 9), (2, 0)], [], id="less than a minute each time"),
        pytest.param([(0, 0), (0, 0), (0, 0)], [], id="idle"),
        pytest.param([(2, None), (2, None), (2, None)], [], id="tokens were not observed"),
        pytest.param([(None, 0), (None, 0)], [], id="running was not observed"),
        pytest.param(
            [(2, 0), (2, 0), (1, 5), (3, 0), (3, 0)], [(0, 60, 2), (90, 150, 3)], id="twice"
        ),
    ],
)
def test_stretches_with_running_requests_but_no_tokens(rows, expected):
    found = stale_gauges(steps(*rows)).select("start", "end", "value").rows()
    assert [(seconds_of(start), seconds_of(end), value) for start, end, value in found] == expected


@pytest.mark.parametrize(
    ("count", "listed", "ending"),
    [(1, 1, "08:00:10Z"), (20, 20, "08:20:00Z"), (1025, 20, "; and 1,005 more")],
)
def test_at_most_twenty_time_ranges_are_listed(count, listed, ending):
    ranges = ((at(60 * n), at(60 * n + (10 if count == 1 else 60))) for n in range(count))
    found = spans(ranges, count)
    assert found.count(" … ") == listed
    assert found.endswith(ending)
