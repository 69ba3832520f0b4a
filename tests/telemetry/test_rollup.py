"""Hours computed apart, cached under the hash of what they came from, stitched exactly."""

import json
import os
import shutil
import subprocess
import sys
from datetime import UTC, datetime, timedelta

import polars as pl
import polars.testing
import pytest

from tests.answering import answer
from tests.figures.small_windows import counter, histogram, small_window
from tests.telemetry.windows import of_format_1
from vllm_capacity.errors import WindowError
from vllm_capacity.telemetry import rollup
from vllm_capacity.telemetry.late import extend_window, stored_rows
from vllm_capacity.telemetry.rows import Rows
from vllm_capacity.telemetry.store import write_window
from vllm_capacity.telemetry.window import open_window

STITCHED = """
select series_id, minute, sum(
    case when before is null then last - first when run = run_before then last - before else last
    end
)::double as increase
from (
    select *, lag(last) over w as before, lag(run) over w as run_before
    from minutes window w as (partition by series_id order by minute, run)
) join series using (series_id) where kind = 'counter'
group by all order by series_id, minute
"""
DIRECT = """
select series_id, minute, sum(
    case when before is null then 0 when run = run_before then value - before else value end
)::double as increase
from (
    select series_id, make_timestamptz((epoch_us(ts) // 60000000) * 60000000) as minute, value, run,
        lag(value) over w as before, lag(run) over w as run_before
    from samples window w as (partition by series_id order by ts)
) join series using (series_id) where kind = 'counter'
group by all order by series_id, minute
"""

GROUPED = {
    "minutes": """
        select series_id, make_timestamptz((epoch_us(ts) // 60000000) * 60000000) as minute, run,
            arg_min(value, ts) as first, arg_max(value, ts) as last, min(ts) as t0, max(ts) as t1,
            count(*)::int as n, min(value) as min, max(value) as max, sum(value)::double as sum
        from samples group by series_id, epoch_us(ts) // 60000000, run
        order by series_id, minute, run
    """,
    "minute_histograms": """
        select series_id, make_timestamptz((epoch_us(ts) // 60000000) * 60000000) as minute, run,
            arg_min(count, ts) as first_count, arg_min(sum, ts) as first_sum,
            arg_min(counts, ts) as first_counts, arg_max(count, ts) as count,
            arg_max(sum, ts) as sum, arg_max(counts, ts) as counts, min(ts) as t0, max(ts) as t1,
            count(*)::int as n
        from histograms group by series_id, epoch_us(ts) // 60000000, run
        order by series_id, minute, run
    """,
}
"""The obvious way, which holds whatever the order of the rows."""


@pytest.mark.parametrize("view", GROUPED)
@pytest.mark.parametrize("name", ["vllm-restart", "vllm-sweep", "vllm-two-replicas"])
def test_the_rows_are_those_that_grouping_gives(examples, name, view):
    window = open_window(examples / name)
    rows = window.sql(f"select * from {view} order by series_id, minute, run")
    pl.testing.assert_frame_equal(rows, window.sql(GROUPED[view]), rel_tol=1e-12)


def test_a_folder_named_like_a_pattern_is_rolled_up(examples, tmp_path):
    path = tmp_path / "w[1]"
    shutil.copytree(examples / "vllm-restart", path, ignore=shutil.ignore_patterns(".rollup"))
    assert len(computed(path)) == 1


@pytest.fixture
def copy(examples, tmp_path):
    target = tmp_path / "vllm-restart"
    ignored = shutil.ignore_patterns(".rollup")
    return shutil.copytree(examples / "vllm-restart", target, ignore=ignored)


def computed(path):
    window = open_window(path)
    return rollup.make_views(window.manifest, window.database.cursor())


def test_increases_from_the_rollup_are_those_from_the_samples(copy):
    window = open_window(copy)
    assert window.sql(STITCHED).equals(window.sql(DIRECT))


def test_an_hour_is_computed_once(copy):
    assert len(computed(copy)) == 1
    assert computed(copy) == []


def test_an_hour_without_histograms_has_minutes_of_the_others(tmp_path):
    values = {second: second for second in range(0, 7200, 30)}
    seen = {second: ((1.0, 0.0), 0.5) for second in (10, 20)}
    small_window(tmp_path, counter("c", values), histogram("h", (1.0,), seen))
    window = open_window(tmp_path / "w")
    assert window.sql("select count(*) as n from minutes").item() == 120
    assert window.sql("select n from minute_histograms").rows() == [(2,)]


def test_damaged_histograms_of_format_1_are_reported(copy):
    """Without a list of hashes, reading them shows it."""
    of_format_1(copy)
    (hour,) = (copy / "histograms").glob("*.parquet")
    data = bytearray(hour.read_bytes())
    data[100:2000] = bytes(1900)
    hour.write_bytes(data)
    with pytest.raises(WindowError, match=r"histograms/.* cannot be read"):
        computed(copy)


def count_samples(path):
    """Make the window of format 1 say what it holds now."""
    note = json.loads((path / "window.json").read_text())
    note["counts"]["samples"] = pl.scan_parquet(path / "samples").select(pl.len()).collect().item()
    (path / "window.json").write_text(json.dumps(note))


def test_changed_data_makes_exactly_the_hours_it_touches_new(examples, tmp_path):
    path = tmp_path / "w"
    shutil.copytree(examples / "vllm-sweep", path, ignore=shutil.ignore_patterns(".rollup"))
    of_format_1(path)
    hour = path / "samples" / "2026-11-24T04.parquet"
    later = hour.with_name("2026-11-24T05.parquet")
    frame = pl.read_parquet(hour)
    frame.with_columns(pl.col("ts") + pl.duration(hours=1)).write_parquet(later)
    count_samples(path)
    computed(path)
    frame.head(frame.height - 1).with_columns(pl.col("ts") + pl.duration(hours=1)).write_parquet(
        later
    )
    count_samples(path)
    again = computed(path)
    assert [key.rpartition(".")[0] for key in again] == ["minutes-2026-11-24T05"]


def test_a_window_that_cannot_be_written_is_still_rolled_up(copy, monkeypatch, tmp_path):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    (copy / ".rollup").write_text("in the way")
    assert open_window(copy).sql("select count(*) as n from minutes").item() > 0


def minutes_of(path):
    return open_window(path).sql("select * from minutes order by series_id, minute, run")


def cut(path):
    path.write_bytes(path.read_bytes()[:-10])


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(cut, id="cut short"),
        pytest.param(lambda path: path.write_bytes(b""), id="empty"),
        pytest.param(
            lambda path: pl.read_parquet(path).with_columns(last=-1.0).write_parquet(path),
            id="other values",
        ),
        pytest.param(lambda path: (path.unlink(), os.mkfifo(path)), id="a pipe"),
    ],
)
def test_a_kept_hour_that_was_damaged_is_computed_anew(copy, damage):
    before = minutes_of(copy)
    (kept,) = (copy / ".rollup").glob("minutes-*/minutes.parquet")
    damage(kept)
    assert minutes_of(copy).equals(before)


def test_what_a_killed_run_left_among_the_hours_is_removed(copy):
    (copy / ".rollup").mkdir()
    (copy / ".rollup" / ".minutes-2026-11-24T04-0.x.partial").mkdir()
    minutes_of(copy)
    assert [path for path in (copy / ".rollup").iterdir() if path.name.startswith(".")] == []


ELSEWHERE = """
import sys
from vllm_capacity.telemetry.window import open_window
print(open_window(sys.argv[1]).sql("select count(*) as n from minutes").item())
"""


@pytest.mark.parametrize(
    ("make", "is_used"),
    [
        pytest.param(lambda folder: None, True, id="not there yet"),
        pytest.param(lambda folder: folder.mkdir(mode=0o700), True, id="this user's"),
        pytest.param(lambda folder: folder.mkdir(mode=0o777), False, id="open to others"),
        pytest.param(lambda folder: folder.symlink_to(folder.parent), False, id="a link"),
        pytest.param(lambda folder: folder.write_text("x"), False, id="a file"),
    ],
)
def test_only_a_private_temporary_folder_is_used(copy, tmp_path, make, is_used):
    expected = minutes_of(copy).height
    shutil.rmtree(copy / ".rollup")
    (copy / ".rollup").write_text("in the way")
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    own = temporary / f"vllm-capacity-rollup-{os.getuid()}"
    make(own)
    result = subprocess.run(
        [sys.executable, "-c", ELSEWHERE, str(copy)],
        check=True,
        capture_output=True,
        env={**os.environ, "TMPDIR": str(temporary)},
    )
    assert int(result.stdout) == expected
    assert any(temporary.rglob("minutes-*/minutes.parquet")) is is_used


def late_scrapes(window, start, end):
    """The rows of the restart capture in [start, end), and the window without them."""
    inside = (pl.col("ts") >= start) & (pl.col("ts") < end)
    whole = stored_rows(window.path)

    def part(keep):
        return Rows(
            whole.series.with_columns(starts_at_zero=pl.lit(None, pl.Boolean)),
            whole.samples.filter(keep),
            whole.histograms.filter(keep),
            whole.ingest_notes.clear(),
        )

    return part(inside), part(~inside)


def test_late_data_change_exactly_the_hours_they_touch_and_give_the_same_figures(
    sweep, answer_of, tmp_path
):
    start = datetime(2026, 11, 24, 4, 10, tzinfo=UTC)
    late, early = late_scrapes(sweep, start, start + timedelta(minutes=3))
    path = write_window(tmp_path / "w", early, {})
    open_window(path).sql("select count(*) from minutes")
    before = {p.name for p in (path / ".rollup").iterdir()}
    assert extend_window(path, late) == ["2026-11-24T04"]
    again = open_window(path)
    again.sql("select count(*) from minutes")
    new = {p.name for p in (path / ".rollup").iterdir()} - before
    assert {name.partition(".")[0][-13:] for name in new} == {"2026-11-24T04"}
    result, whole = answer(again), answer_of("vllm-sweep")
    for part in ("requests", "tokens", "latency", "running", "kv_cache_ratio", "preemptions"):
        assert result[part] == whole[part], part
    assert [p.name for p in tmp_path.iterdir()] == ["w"]


def test_the_same_rows_again_change_nothing(sweep, tmp_path):
    start = datetime(2026, 11, 24, 4, 10, tzinfo=UTC)
    late, _ = late_scrapes(sweep, start, start + timedelta(minutes=3))
    path = tmp_path / "w"
    shutil.copytree(sweep.path, path)
    assert extend_window(path, late) == []
