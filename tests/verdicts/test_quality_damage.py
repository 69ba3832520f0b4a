"""The quality report against deliberate damage: it claims at least as much as the damage did.

A good window (a stretch of the recorded sweep) is damaged, and the figures before and after are
compared with the effect that the finding claims.
"""

from datetime import UTC, datetime, timedelta

import numpy as np
import polars as pl
import pytest

from tests.answering import answer
from vllm_capacity.telemetry.rows import INGEST_NOTES_SCHEMA, Rows, SeriesKey, series_frame
from vllm_capacity.telemetry.store import write_window
from vllm_capacity.telemetry.window import open_window

START = datetime(2026, 11, 24, 4, 9, 0, tzinfo=UTC)
END = datetime(2026, 11, 24, 4, 20, 0, tzinfo=UTC)
UNKNOWN = {"alias_priority": pl.lit(0, pl.Int8), "arrival": pl.lit(None, pl.Int64)}


@pytest.fixture(scope="module")
def good(sweep):
    """Eleven minutes of the sweep, 8 to 48 clients, as a source would hand them over."""
    inside = "where ts >= $start and ts < $end"
    samples = sweep.sql(f"select * from samples {inside}", start=START, end=END)
    histograms = sweep.sql(f"select * from histograms {inside}", start=START, end=END)
    return Rows(
        sweep.sql("select * from series").with_columns(starts_at_zero=pl.lit(None, pl.Boolean)),
        samples.drop("run").with_columns(**UNKNOWN),
        histograms.drop("run").with_columns(**UNKNOWN),
        pl.DataFrame(schema=INGEST_NOTES_SCHEMA),
    )


@pytest.fixture
def answered(tmp_path):
    def tell(rows, name="w"):
        return answer(open_window(write_window(tmp_path / name, rows, {})))

    return tell


@pytest.fixture(scope="module")
def before(good, tmp_path_factory):
    path = write_window(tmp_path_factory.mktemp("good") / "w", good, {})
    return answer(open_window(path))


def finding(result, check):
    found = [f for f in result["quality"] if f["check"] == check]
    assert found, f"no {check} in {[f['check'] for f in result['quality']]}"
    return found[0]


def figure(result, path):
    for key in path.split("."):
        result = result[key]
    return result


def on_both(rows, change):
    return Rows(rows.series, change(rows.samples), change(rows.histograms), rows.ingest_notes)


def check_claims(before, after, found):
    for path, most in found["max_effect"].items():
        if path in ("tokens", "requests.finished"):
            continue
        assert abs(figure(after, path) - figure(before, path)) <= most, path


def assert_totals_unmoved(before, after):
    for path in ("requests.finished", "tokens.generation", "tokens.prompt", "preemptions"):
        assert figure(after, path) == figure(before, path), path


def test_a_good_window_has_no_findings(before):
    assert {f["severity"] for f in before["quality"]} == {"info"}


@pytest.mark.parametrize("share", [0.05, 0.3])
@pytest.mark.parametrize("seed", range(3))
def test_dropped_scrapes(good, before, answered, share, seed):
    times = good.samples.get_column("ts").unique().sort()
    rng = np.random.default_rng(seed)
    lost = times[1:-1].filter(pl.Series(rng.random(times.len() - 2) < share))
    after = answered(on_both(good, lambda f: f.filter(~pl.col("ts").is_in(lost.implode()))))
    found = finding(after, "coverage")
    assert found["count"] == pytest.approx(lost.len(), abs=0.1 * lost.len() + 1)
    assert_totals_unmoved(before, after)
    check_claims(before, after, found)


def test_a_gap(good, before, answered):
    hole = (datetime(2026, 11, 24, 4, 14, tzinfo=UTC), datetime(2026, 11, 24, 4, 16, tzinfo=UTC))
    after = answered(on_both(good, lambda f: f.filter(~pl.col("ts").is_between(*hole))))
    assert finding(after, "gap")["count"] == 1
    assert finding(after, "coverage")["count"] == 60
    assert_totals_unmoved(before, after)
    check_claims(before, after, finding(after, "coverage"))


def test_duplicated_rows(good, before, answered):
    after = answered(on_both(good, lambda f: pl.concat([f, f.sample(fraction=0.2, seed=1)])))
    assert finding(after, "duplicate")["severity"] == "info"
    before_figures = {k: v for k, v in before.items() if k != "quality"}
    assert {k: v for k, v in after.items() if k != "quality"} == before_figures


def test_rows_that_arrive_in_any_order(good, before, answered):
    after = answered(on_both(good, lambda f: f.sample(fraction=1, shuffle=True, seed=2)))
    assert after == before


@pytest.mark.parametrize("lost_scrapes", [1, 10])
def test_a_restart(good, before, answered, lost_scrapes):
    """The process dies after `at`; it counted on for some scrapes that nobody read."""
    at = datetime(2026, 11, 24, 4, 15, tzinfo=UTC)
    died = at + timedelta(seconds=2 * lost_scrapes)
    counters = good.series.filter(pl.col("kind") == "counter").get_column("series_id").implode()
    base = (
        good.samples.filter(pl.col("ts") < died)
        .sort("ts")
        .group_by("series_id")
        .agg(base=pl.col("value").last())
    )
    restarted = good.samples.join(base, on="series_id").with_columns(
        value=pl.when((pl.col("ts") >= died) & pl.col("series_id").is_in(counters))
        .then(pl.col("value") - pl.col("base"))
        .otherwise("value")
    )
    samples = restarted.select(good.samples.columns).filter(
        ~pl.col("ts").is_between(at, died, closed="left")
    )
    after = answered(Rows(good.series, samples, good.histograms, good.ingest_notes))
    found = finding(after, "restart")
    for path in ("requests.finished", "tokens.generation"):
        gone = figure(before, path) - figure(after, path)
        lost = figure(after, path.partition(".")[0] + ".lost")
        assert lost["low"] <= gone <= lost["high"], path
    assert found["max_effect"]["requests.finished"] == after["requests"]["lost"]["high"]


def test_renamed_families_are_read_under_their_old_names(good, before, answered):
    old = {"vllm:kv_cache_usage_perc": "vllm:gpu_cache_usage_perc"}
    series = good.series.with_columns(exposed=pl.col("metric").replace(old))
    after = answered(Rows(series, good.samples, good.histograms, good.ingest_notes))
    assert finding(after, "renamed")["severity"] == "info"
    assert after["kv_cache_ratio"] == before["kv_cache_ratio"]


def test_a_family_that_is_gone_is_missing_and_its_figure_unknown(good, answered):
    series = good.series.filter(pl.col("metric") != "vllm:kv_cache_usage_perc")
    ids = series.get_column("series_id").implode()
    samples = good.samples.filter(pl.col("series_id").is_in(ids))
    after = answered(Rows(series, samples, good.histograms, good.ingest_notes))
    assert "vllm:kv_cache_usage_perc" in finding(after, "missing")["effect"]
    assert after["kv_cache_ratio"] == {"mean": None, "max": None}


def test_a_gauge_that_stays_up_while_no_tokens_come(good, answered):
    since = datetime(2026, 11, 24, 4, 17, tzinfo=UTC)
    frozen = good.samples.sort("ts").with_columns(
        value=pl.when(pl.col("ts") >= since)
        .then(pl.col("value").filter(pl.col("ts") < since).last().over("series_id"))
        .otherwise("value")
    )
    after = answered(Rows(good.series, frozen, good.histograms, good.ingest_notes))
    assert finding(after, "stale-gauge")["severity"] == "warning"


@pytest.mark.parametrize("every", [5, 15, 30])
def test_a_coarse_scrape_interval_reports_what_it_misses(good, before, answered, every):
    times = good.samples.get_column("ts").unique().sort()
    kept = times.gather_every(every // 2).implode()
    after = answered(on_both(good, lambda f: f.filter(pl.col("ts").is_in(kept))))
    if every > 5:
        check_claims(before, after, finding(after, "jitter"))
    assert {f["severity"] for f in after["quality"]} == {"info"}


def test_an_interval_that_changes_does_not_bend_the_mean(good, before, answered):
    middle = datetime(2026, 11, 24, 4, 11, tzinfo=UTC)
    times = good.samples.get_column("ts").unique().sort()
    kept = pl.concat([times.filter(times < middle), times.filter(times >= middle).gather_every(15)])
    after = answered(on_both(good, lambda f: f.filter(pl.col("ts").is_in(kept.implode()))))
    # The plain mean over these samples would be off by more than a third.
    assert after["running"]["mean"] == pytest.approx(before["running"]["mean"], rel=0.1)
    assert finding(after, "jitter")["severity"] == "info"


def test_bounds_that_change_inside_the_window_are_merged_on_common_edges(good, before, answered):
    """A new process with coarser TTFT buckets takes over half way."""
    metric, middle = "vllm:time_to_first_token_seconds", datetime(2026, 11, 24, 4, 15, tzinfo=UTC)
    row = good.series.filter(pl.col("metric") == metric).row(0, named=True)
    kept = [i for i, edge in enumerate(row["bounds"]) if edge in (0.1, 0.5, 1.0, 5.0, 10.0, 20.0)]
    key = SeriesKey(
        metric,
        "histogram",
        row["instance"],
        row["engine"],
        row["model_name"],
        bounds=tuple(row["bounds"][i] for i in kept),
    )
    own = pl.col("series_id") == row["series_id"]
    late = good.histograms.filter(own & (pl.col("ts") >= middle))

    def coarser(counts):
        cumulative = np.cumsum(counts)
        picked = np.concatenate([cumulative[kept], cumulative[-1:]])
        return np.diff(picked, prepend=0.0).tolist()

    moved = late.with_columns(
        series_id=pl.lit(key.series_id, pl.Int64),
        counts=pl.Series([coarser(c) for c in late.get_column("counts").to_list()]),
    )
    histograms = pl.concat([good.histograms.filter(~(own & (pl.col("ts") >= middle))), moved])
    series = pl.concat([good.series, series_frame({key: metric})])
    after = answered(Rows(series, good.samples, histograms, good.ingest_notes))
    assert "share" in finding(after, "bounds")["effect"]
    ours, theirs = (x["latency"]["ttft_seconds"]["p95"] for x in (after, before))
    assert ours["lower"] <= theirs["value"] <= ours["upper"]
