"""Counters: what they grew by, added up, per label and per second."""

import polars as pl
import pytest

from tests.figures.small_windows import at, counter, small_window, time_range
from vllm_capacity.facts.metrics import (
    GENERATION_TOKENS,
    OLD_PREFIX_HITS,
    OLD_PREFIX_QUERIES,
    PREFIX_HITS,
    PREFIX_QUERIES,
    PROMPT_TOKENS,
    PROMPT_TOKENS_BY_SOURCE,
    PROMPT_TOKENS_CACHED,
    REQUESTS,
)
from vllm_capacity.figures import traffic

SCHEMA = {
    "metric": pl.String,
    "labels": pl.String,
    "increase": pl.Float64,
    "base_ts": pl.Datetime("us", "UTC"),
    "last_ts": pl.Datetime("us", "UTC"),
}


def grown(*rows):
    """Increases as (metric, increase), then labels, base and last second where they matter."""
    filled = [(*row, *("{}", 0, 10)[len(row) - 2 :]) for row in rows]
    result = [(metric, labels, n, at(base), at(last)) for metric, n, labels, base, last in filled]
    return pl.DataFrame(result, schema=SCHEMA, orient="row")


@pytest.fixture(scope="module")
def window(tmp_path_factory):
    """A counter of two children, one of them born in the window, which restarts."""
    return small_window(
        tmp_path_factory.mktemp("traffic"),
        counter(REQUESTS, {0: 10, 10: 14, 20: 20, 30: 1}, finished_reason="stop"),
        counter(REQUESTS, {20: 2, 30: 0}, finished_reason="abort"),
    )


@pytest.mark.parametrize(
    ("start", "end", "stop", "abort"),
    [
        pytest.param(0, 40, 4 + 6 + 1, 2, id="the whole window, over the restart"),
        pytest.param(5, 15, 4, None, id="a part has its base before it"),
        pytest.param(15, 25, 6, 2, id="a child that appears counts from zero"),
        pytest.param(25, 40, 1, 0, id="after the restart all of it is new"),
    ],
)
def test_increases_of_a_part(window, start, end, stop, abort):
    increases = traffic.counter_increases(window, [REQUESTS], time_range=time_range(start, end))
    found = traffic.total_by_label(increases, REQUESTS, "finished_reason")
    assert found == {k: v for k, v in (("abort", abort), ("stop", stop)) if v is not None}


def test_increases_from_scrape_to_scrape(window):
    found = traffic.scrape_increases(window, [REQUESTS], time_range=time_range(5, 40))
    stop = found.filter(pl.col("labels").str.contains("stop"))
    expected = [(at(0), at(10), 4.0), (at(10), at(20), 6.0), (at(20), at(30), 1.0)]
    assert stop.select("ts_before", "ts", "increase").rows() == expected


def test_total_is_over_all_series_of_the_metric():
    increases = grown((REQUESTS, 3), (REQUESTS, 4), (GENERATION_TOKENS, 100))
    assert traffic.total(increases, REQUESTS) == 7


def test_a_metric_that_was_absent_has_no_total():
    assert traffic.total(grown((REQUESTS, 3)), GENERATION_TOKENS) is None


def test_a_series_without_the_label_is_under_the_empty_one():
    increases = grown((REQUESTS, 3), (REQUESTS, 4, '{"finished_reason": "stop"}'))
    assert traffic.total_by_label(increases, REQUESTS, "finished_reason") == {"": 3, "stop": 4}


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        pytest.param([(REQUESTS, 30, "{}", 0, 10)], 3, id="over the time between its scrapes"),
        pytest.param(
            [(REQUESTS, 30, "{}", 0, 10), (REQUESTS, 30, "{}", 5, 20)],
            3,
            id="from the earliest base to the latest scrape of all series",
        ),
        pytest.param([(REQUESTS, 5, "{}", 10, 10)], None, id="one scrape takes no time"),
        pytest.param([(GENERATION_TOKENS, 5)], None, id="another metric"),
        pytest.param([(REQUESTS, 0)], 0, id="nothing came: 0 per second"),
    ],
)
def test_rate(rows, expected):
    assert traffic.rate_per_second(grown(*rows), REQUESTS) == expected


@pytest.mark.parametrize(
    ("by_reason", "expected"),
    [
        pytest.param({"stop": 5, "length": 2, "repetition": 1}, 8, id="the three good ends"),
        pytest.param({"stop": 5, "abort": 9, "error": 9}, 5, id="aborts and errors are none"),
        pytest.param({"abort": 3}, 0, id="all aborted"),
        pytest.param({"": 7}, None, id="a server that does not say why"),
        pytest.param({}, None, id="not counted at all"),
    ],
)
def test_successful_requests(by_reason, expected):
    assert traffic.successful(by_reason) == expected


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        pytest.param(
            [
                (PROMPT_TOKENS_BY_SOURCE, 60, '{"source": "local_compute"}'),
                (PROMPT_TOKENS_BY_SOURCE, 40, '{"source": "local_cache_hit"}'),
                *((PROMPT_TOKENS, 999), (PROMPT_TOKENS_CACHED, 1)),
            ],
            60,
            id="the split by source comes first",
        ),
        pytest.param(
            [(PROMPT_TOKENS, 100), (PROMPT_TOKENS_CACHED, 30)], 70, id="prompt less cached"
        ),
        pytest.param([(PROMPT_TOKENS, 100)], None, id="how many were cached is not known"),
        pytest.param([(PROMPT_TOKENS_CACHED, 30)], None, id="how many there were is not known"),
    ],
)
def test_prompt_tokens_computed(rows, expected):
    assert traffic.prompt_tokens_computed(grown(*rows)) == expected


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        pytest.param([(PREFIX_QUERIES, 200), (PREFIX_HITS, 50)], 0.25, id="hits over queries"),
        pytest.param([(PREFIX_QUERIES, 0), (PREFIX_HITS, 0)], None, id="nothing looked up"),
        pytest.param([(OLD_PREFIX_QUERIES, 8), (OLD_PREFIX_HITS, 2)], 0.25, id="the older pair"),
        pytest.param(
            [
                *((PREFIX_QUERIES, 200), (PREFIX_HITS, 50)),
                *((OLD_PREFIX_QUERIES, 8), (OLD_PREFIX_HITS, 8)),
            ],
            0.25,
            id="the pairs are never mixed",
        ),
        pytest.param([(PREFIX_QUERIES, 200), (OLD_PREFIX_HITS, 50)], None, id="half of each pair"),
    ],
)
def test_prefix_cache_hit_ratio(rows, expected):
    assert traffic.prefix_cache_hit_ratio(grown(*rows)) == expected
