"""What is read of a source in slices does not depend on where the slices end."""

import random
from datetime import UTC, datetime, timedelta
from functools import partial

import httpx
import polars as pl
import pytest
from polars.testing import assert_frame_equal

from tests.figures.small_windows import small_window
from tests.figures.test_by_hour import a_server
from tests.standin.prometheus import on_the_wire, prometheus
from vllm_capacity.live.pull import pull_files, pull_prometheus
from vllm_capacity.sources import prometheus_pull
from vllm_capacity.sources.prometheus import Prometheus
from vllm_capacity.sources.slices import SliceSeries, Times, WireSeries, series_in, slice_part
from vllm_capacity.telemetry.window import open_window
from vllm_capacity.timerange import TimeRange, split

BEGIN = datetime(2026, 11, 24, 8, tzinfo=UTC)
PART = TimeRange(BEGIN + timedelta(minutes=47), BEGIN + timedelta(minutes=200))
NAMES = ("vllm:num_requests_running", "vllm:generation_tokens_total", "vllm:request_success_total")


def points_of(rng):
    """Points of two targets over five hours: two jobs, restarts, late, stale, sent twice."""
    points = []
    for target in ("a", "b"):
        jobs = ["vllm", "probe"] if target == "a" and rng.random() < 0.5 else ["vllm"]
        counted = 0
        for minute in range(0, 300, rng.choice([3, 7])):
            sampled = BEGIN + timedelta(minutes=minute, seconds=rng.random())
            arrived = sampled + timedelta(seconds=rng.choice([1, 1, 1, 70, 4000]))
            counted = 0 if rng.random() < 0.03 else counted + rng.randrange(9)
            for job in jobs:
                values = {"up": 1.0} if job == "probe" else {"up": 1.0, NAMES[0]: 2.0}
                if job == "vllm":
                    values |= {NAMES[1]: 5.0 * counted, NAMES[2]: float(counted)}
                    if minute > 150:  # a family that appears later, with a label of its own
                        values["vllm:later_total"] = float(counted)
                for name, value in values.items():
                    points.append(
                        {
                            "p_timestamp": arrived.replace(tzinfo=None),
                            "time_unix_nano": sampled.replace(tzinfo=None),
                            "metric_name": name,
                            "metric_type": "sum" if name.endswith("_total") else "gauge",
                            "data_point_value": value,
                            "data_point_flags": float(rng.random() < 0.02),
                            "service.instance.id": target,
                            "service.name": job,
                            "model_name": "m" if name.startswith("vllm") else None,
                            "finished_reason": "stop" if name == NAMES[2] else None,
                            "reason": "x" if name == "vllm:later_total" else None,
                        }
                    )
            if rng.random() < 0.1:
                points.append(
                    points[-1]
                    | {"p_timestamp": (arrived + timedelta(seconds=9)).replace(tzinfo=None)}
                )
    return points


def store_of(folder, points, *, by_hour):
    """A store of these points, filed by the minute of arrival, or all in the first hour."""
    (folder / "s" / ".stream").mkdir(parents=True)
    files = {}
    for point in sorted(points, key=lambda each: each["p_timestamp"]):
        at = point["p_timestamp"] if by_hour else BEGIN
        files.setdefault(f"date={at:%Y-%m-%d}/hour={at:%H}/minute={at:%M}", []).append(point)
    for place, rows in files.items():
        (folder / "s" / place).mkdir(parents=True)
        frame = pl.DataFrame(rows, infer_schema_length=None)
        known = [name for name in frame.columns if frame[name].null_count() < frame.height]
        frame.select(known).write_parquet(folder / "s" / place / "h.data.1.parquet")
    return str(folder)


def contents(path):
    """A window's tables, but not where its files end."""
    window = open_window(path)
    order = {"series": "1", "samples": "1, 3", "histograms": "1, 3", "intake": "1, 2, 4, 5"}
    return {name: window.sql(f"select * from {name} order by {by}") for name, by in order.items()}


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("asked", [None, PART], ids=["the whole stream", "a range"])
def test_a_stream_is_the_same_in_any_slices(tmp_path, seed, asked):
    points = points_of(random.Random(seed))
    hours, one = (
        contents(
            pull_files(
                store_of(tmp_path / f"store-{by_hour}", points, by_hour=by_hour),
                "s",
                tmp_path / f"w-{by_hour}",
                asked,
                late=timedelta(hours=9),
            )
        )
        for by_hour in (True, False)
    )
    for name, frame in hours.items():
        assert_frame_equal(frame, one[name])
    assert {"late", "series"} <= set(hours["intake"]["check"])


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("is_downsampled", [False, True], ids=["whole", "downsampled"])
def test_a_prometheus_is_the_same_in_any_slices(tmp_path, seed, is_downsampled, monkeypatch):
    rng = random.Random(seed)
    lines = [line for name in "ab" for line in a_server(rng, name, every=rng.choice([10, 40]))]
    made = small_window(tmp_path / "made", *lines)
    span = TimeRange(made.extent.start + timedelta(minutes=61, seconds=7), made.extent.end)
    span = TimeRange(span.start, span.start + timedelta(minutes=95))
    with httpx.Client(base_url="http://p", transport=prometheus(on_the_wire(made))) as client:
        server, found = Prometheus(client), []
        for most in (600, 7):
            monkeypatch.setattr(prometheus_pull, "_SLICE_TARGET_MINUTES", most)
            monkeypatch.setattr(prometheus_pull, "_DOWNSAMPLED_TARGET_MINUTES", most)
            path = tmp_path / str(most)
            pull_prometheus(server, span, path, is_downsampled=is_downsampled)
            found.append(contents(path))
    for name, frame in found[0].items():
        assert_frame_equal(frame, found[1][name])


def test_a_range_is_split_at_whole_minutes_of_the_hour():
    span = TimeRange(BEGIN + timedelta(minutes=50, seconds=3), BEGIN + timedelta(minutes=85))
    ends = [each.end - BEGIN for each in split(span, 15)]
    assert ends == [timedelta(minutes=each) for each in (60, 75, 85)]


def test_a_series_has_the_earliest_times_of_its_slices():
    one = WireSeries(NAMES[0], "gauge", "a", "vllm", ())
    begin = BEGIN.replace(tzinfo=None)
    times = [Times(begin), Times(begin - timedelta(1), begin), Times(begin + timedelta(1))]
    none = pl.DataFrame()
    parts = [partial(slice_part, SliceSeries([one], [own]), none, none, none) for own in times]
    assert series_in(parts) == {one: Times(begin - timedelta(1), begin)}
