"""Rows settled hour by hour, in whatever parts they come, are those settled at once."""

import gc
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory

import polars as pl
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace
from polars.testing import assert_frame_equal

from vllm_capacity.telemetry.parts import RowsInParts, Spool
from vllm_capacity.telemetry.rows import RowBuffer, SeriesKey
from vllm_capacity.telemetry.settling import settle, settle_stretches

T0 = int(datetime(2026, 11, 24, 8, tzinfo=UTC).timestamp())
MINUTES = st.sampled_from([1, 5, 5, 5, 12, 40, 200])
EVENTS = st.sampled_from(
    ["", "", "", "", "", "restart", "relabel", "behind", "twice", "failed", "child", "silent"]
)
SCRAPES = st.lists(st.tuples(MINUTES, EVENTS, st.sampled_from("ab")), min_size=1, max_size=40)


def captured(scrapes, *, tells_start, begins=None):
    """Scrapes of two targets, each some minutes after the one before, with what happened in it."""
    buffer = RowBuffer()
    now, behind, done, life, label, children = T0, 0, 100, 0, 0, 1
    for minutes, event, target in scrapes:
        now, done = now + 60 * minutes, done + minutes
        life, done = (now - 60, 3) if event == "restart" else (life, done)
        label += event == "relabel"
        children += event == "child"
        behind = 600 - behind if event == "behind" else behind
        ts_us = (now - behind) * 1_000_000
        buffer.scrape(target, ts_us, is_up=event != "failed", seconds=0.1)
        if event == "failed":
            continue
        if tells_start:
            start = SeriesKey("process_start_time_seconds", "gauge", target)
            buffer.sample(buffer.series(start, exposed=start.metric), ts_us, float(life or T0 - 60))
        for alias_priority in range(1 + (event == "twice")):
            put(buffer, target, ts_us, done, alias_priority, f"m{label // 2}", children)
        if event == "silent":
            buffer.note("coverage", subject="x", detail="y", instance=target, ts_us=ts_us)
    return replace(buffer.rows(), begin=begins)


def put(buffer, target, ts_us, done, alias_priority, model, children):
    for child in range(children):
        labels = (("finished_reason", f"{child}"),)
        key = SeriesKey("vllm:request_success_total", "counter", target, "0", model, labels)
        series_id = buffer.series(key, exposed=key.metric, alias_priority=alias_priority)
        buffer.sample(series_id, ts_us, float(done + child), alias_priority)
    for metric in ("vllm:num_requests_running", "vllm:generation_tokens_total"):
        kind = "counter" if metric.endswith("total") else "gauge"
        key = SeriesKey(metric, kind, target, "0", model)
        buffer.sample(buffer.series(key, exposed=metric), ts_us, float(done))
    ttft = SeriesKey(
        "vllm:time_to_first_token_seconds", "histogram", target, "0", model, (), (1.0,)
    )
    series_id = buffer.series(ttft, exposed=ttft.metric)
    buffer.histogram(series_id, ts_us, count=done, total=done / 2, counts=[done - 1, 1.0])


def cut(rows, every):
    """The rows in parts of so many scrapes each."""

    def part(first):
        within = pl.col("arrival").is_between(first, first + every, closed="left")
        return rows.samples.filter(within), rows.histograms.filter(within)

    last = int(rows.samples["arrival"].max())
    parts = [lambda first=first: part(first) for first in range(1, last + 1, every)]
    return RowsInParts(rows.series, parts, rows.ingest_notes, rows.begin)


def without_arrival(rows):
    unknown = pl.lit(None, pl.Int64).alias("arrival")

    def forgotten(part):
        return tuple(frame.with_columns(unknown) for frame in part())

    return replace(rows, parts=[lambda part=part: forgotten(part) for part in rows.parts])


def check(rows):
    """That these rows, hour by hour, are what they are at once."""
    expected, found = settle(rows.whole()), []
    with TemporaryDirectory() as folder:
        series, ingest_notes = settle_stretches(
            rows, Spool(Path(folder)), found.append, stretch_rows=1
        )
    for name, frames in zip(("samples", "histograms"), zip(*found, strict=True), strict=True):
        assert_frame_equal(
            pl.concat(frames).sort("series_id", "ts"),
            getattr(expected, name).sort("series_id", "ts"),
        )
    assert_frame_equal(series, expected.series)
    order = ["check", "instance", "ts", "subject", "detail"]
    assert_frame_equal(ingest_notes.sort(order), expected.ingest_notes.sort(order))


@settings(deadline=None, max_examples=30)
@given(SCRAPES, st.integers(1, 20), st.booleans())
def test_scrapes_in_the_order_in_which_they_came(scrapes, every, tells_start):
    check(cut(captured(scrapes, tells_start=tells_start), every))


@settings(deadline=None, max_examples=15)
@given(SCRAPES, st.integers(1, 20), st.integers(0, 300))
def test_scrapes_with_a_state_carried_in(scrapes, every, minutes):
    begins = datetime.fromtimestamp(T0 + 60 * minutes, UTC)
    check(cut(captured(scrapes, tells_start=True, begins=begins), every))


@settings(deadline=None, max_examples=30)
@given(SCRAPES, st.integers(1, 20), st.booleans())
def test_scrapes_of_an_unknown_order_one_part_after_the_other(scrapes, every, tells_start):
    orderly = [(minutes, event.replace("behind", ""), target) for minutes, event, target in scrapes]
    check(without_arrival(cut(captured(orderly, tells_start=tells_start), every)))


def most_rows(hours, folder):
    """The most rows in memory at a time while scrapes of two targets in parts of an hour settle."""
    rows = cut(captured([(2, "", "a"), (3, "", "b")] * 12 * hours, tells_start=True), 24)
    tables = [part() for part in rows.parts]
    paths = [(folder / f"{n}-samples", folder / f"{n}-histograms") for n in range(len(tables))]
    for frames, own in zip(tables, paths, strict=True):
        for frame, path in zip(frames, own, strict=True):
            frame.write_parquet(path)
    del tables, rows.parts[:]
    counts = []
    gc.collect()
    gc.freeze()  # what other tests left behind is not looked at, a million objects each time

    def counted(*_):
        counts.append(sum(len(each) for each in gc.get_objects() if isinstance(each, pl.DataFrame)))

    def part(own):
        counted()
        return pl.read_parquet(own[0]), pl.read_parquet(own[1])

    class CountingSpool(Spool):
        def add(self, samples, histograms):
            counted()
            super().add(samples, histograms)

    known = replace(rows, parts=[lambda own=own: part(own) for own in paths])
    settle_stretches(known, CountingSpool(folder / "spool"), counted, stretch_rows=1)
    return max(counts)


def test_the_rows_in_memory_do_not_grow_with_hours(tmp_path):
    (tmp_path / "few").mkdir()
    (tmp_path / "many").mkdir()
    few, many = most_rows(2, tmp_path / "few"), most_rows(8, tmp_path / "many")
    assert many <= 1.05 * few
