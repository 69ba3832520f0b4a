"""The store of days: what is due, replaced and removed; the source is a function here."""

from datetime import UTC, date, datetime, timedelta

import pytest

from vllm_capacity.errors import InputError, SourceError
from vllm_capacity.live.days import Outcome, Reach, Source, day_store
from vllm_capacity.telemetry.rows import RowBuffer, SeriesKey, microseconds
from vllm_capacity.telemetry.store import write_window
from vllm_capacity.telemetry.window import open_window
from vllm_capacity.timerange import TimeRange, iso

HERE = Source("http://prometheus:9090")
NIGHTLY = Reach(last=timedelta(hours=24), late=timedelta(days=1))
DAY = date(2026, 11, 2)
MORNING = datetime(2026, 11, 3, 6, tzinfo=UTC)


def serving(*hours, value=1.0):
    """A source that has one sample in each of these hours of a day."""

    def pull(time_range, target):
        buffer = RowBuffer()
        key = SeriesKey("vllm:num_requests_running", "gauge", "gpu-0:8000", "0", "m", ())
        running = buffer.series(key, exposed="vllm:num_requests_running")
        times = [time_range.start + timedelta(hours=hour) for hour in hours]
        for at in times:
            if at < time_range.end:
                buffer.sample(running, microseconds(at), value)
        write_window(target, buffer.rows(), {"source": "made up", "end": iso(time_range.end)})

    return pull


def dead(time_range, target):
    raise SourceError("Nothing answers.")


def pulled(folder, source, *, day=DAY, now=MORNING, reported=True):
    with day_store(folder, HERE) as store:
        outcome = store.pull(day, source, now=now)
        for each in store.unreported() if reported else ():
            store.reported(each)
        return outcome


def due(folder, now, reach=NIGHTLY, source=HERE):
    with day_store(folder, source) as store:
        return [day.day for day in store.due(reach, now)]


@pytest.mark.parametrize(
    ("now", "reach", "expected"),
    [
        pytest.param(MORNING, NIGHTLY, [2], id="the day before"),
        pytest.param(
            MORNING, Reach(timedelta(days=3), timedelta(days=1)), [31, 1, 2], id="three days"
        ),
        pytest.param(
            MORNING,
            Reach(timedelta(hours=24), timedelta(days=1), has_today=True),
            [2, 3],
            id="and today so far",
        ),
        pytest.param(
            MORNING, Reach(timedelta(hours=2), timedelta(hours=2)), [3], id="today, if it is all"
        ),
        pytest.param(MORNING.replace(hour=0), NIGHTLY, [2], id="at midnight sharp"),
    ],
)
def test_days_of_an_empty_store(tmp_path, now, reach, expected):
    assert due(tmp_path, now, reach) == expected


@pytest.mark.parametrize(
    ("hours_later", "keep", "expected"),
    [
        pytest.param(1, None, [2], id="it is looked at again until samples can no longer be late"),
        pytest.param(24, None, [2, 3], id="the next night"),
        pytest.param(96, None, [2, 3, 4, 5, 6], id="nights that were missed"),
        pytest.param(96, 2, [5, 6], id="but none that would be removed at once"),
    ],
)
def test_days_of_a_store_with_a_day(tmp_path, hours_later, keep, expected):
    pulled(tmp_path, serving(1))
    reach = Reach(NIGHTLY.last, NIGHTLY.late, keep and timedelta(days=keep))
    assert due(tmp_path, MORNING + timedelta(hours=hours_later), reach) == expected


def test_a_day_pulled_after_the_late_period_is_final(tmp_path):
    pulled(tmp_path, serving(1), now=MORNING + timedelta(hours=24))
    assert due(tmp_path, MORNING + timedelta(hours=24)) == [3]


@pytest.mark.parametrize(
    ("again", "outcome", "kept_hours", "is_new_page"),
    [
        pytest.param(serving(1, 2), Outcome.SAME, [1, 2], False, id="the same"),
        pytest.param(serving(1, 2, 3), Outcome.CHANGED, [1, 2, 3], True, id="more"),
        pytest.param(serving(1, 2, value=2.0), Outcome.CHANGED, [1, 2], True, id="other values"),
        pytest.param(serving(2), Outcome.SAME, [1, 2], False, id="a source that forgot"),
        pytest.param(serving(), Outcome.SAME, [1, 2], False, id="a source that forgot all"),
    ],
)
def test_a_day_is_pulled_again(tmp_path, again, outcome, kept_hours, is_new_page):
    pulled(tmp_path, serving(1, 2))
    assert pulled(tmp_path, again, reported=False) == outcome
    times = open_window(tmp_path / "2026-11-02").sql("select ts from samples order by ts")["ts"]
    assert [at.hour for at in times] == kept_hours
    with day_store(tmp_path, HERE) as store:
        assert store.unreported() == [DAY] * is_new_page


def test_a_day_that_is_being_read_is_left_for_the_next_run(tmp_path):
    pulled(tmp_path, serving(1))
    reading = open_window(tmp_path / "2026-11-02")
    assert pulled(tmp_path, serving(1, 2)) == Outcome.IN_USE
    assert reading.sql("select count(*) from samples").item() == 1
    del reading
    assert pulled(tmp_path, serving(1, 2)) == Outcome.CHANGED


def test_a_day_without_data_is_remembered_as_such(tmp_path):
    assert pulled(tmp_path, serving()) == Outcome.EMPTY
    with day_store(tmp_path, HERE) as store:
        assert store.unreported() == []
    assert due(tmp_path, MORNING + timedelta(hours=24)) == [2, 3]
    assert pulled(tmp_path, serving(5), now=MORNING + timedelta(hours=24)) == Outcome.NEW


def test_a_page_can_be_made_again_while_its_window_exists(tmp_path):
    pulled(tmp_path, serving(1))
    pulled(tmp_path, serving(), day=date(2026, 11, 1))
    with day_store(tmp_path, HERE) as store:
        for day in (DAY, date(2026, 11, 1), date(2026, 11, 9)):
            store.report_again(day)
        assert store.unreported() == [DAY]


def test_a_dead_source_leaves_everything_as_it_was(tmp_path):
    pulled(tmp_path, serving(1))
    before = (tmp_path / "days.json").read_bytes()
    with pytest.raises(SourceError):
        pulled(tmp_path, dead)
    assert (tmp_path / "days.json").read_bytes() == before
    assert open_window(tmp_path / "2026-11-02").sql("select count(*) from samples").item() == 1


def test_only_one_run_at_a_time_works_on_a_store(tmp_path):
    with (
        day_store(tmp_path, HERE),
        pytest.raises(SourceError, match="Another run is working"),
        day_store(tmp_path, HERE),
    ):
        pass


def test_old_days_are_removed_unless_being_read(tmp_path):
    later = MORNING + timedelta(days=5)
    for day in (DAY, DAY + timedelta(days=1), date(2026, 11, 7)):
        pulled(tmp_path, serving(1), day=day, now=later)
    reading = open_window(tmp_path / "2026-11-03")
    with day_store(tmp_path, HERE) as store:
        assert store.prune(Reach(NIGHTLY.last, NIGHTLY.late, timedelta(days=2)), later) == [DAY]
    assert sorted(path.name for path in tmp_path.glob("2026*")) == ["2026-11-03", "2026-11-07"]
    del reading


@pytest.mark.parametrize(
    ("day", "hours"),
    [
        pytest.param(date(2026, 3, 29), 23, id="clocks go forward"),
        pytest.param(date(2026, 10, 25), 25, id="clocks go back"),
        pytest.param(date(2026, 11, 2), 24, id="any day"),
    ],
)
def test_days_are_those_of_the_time_zone(tmp_path, day, hours):
    with day_store(tmp_path, Source("x", zone="Europe/Berlin")) as store:
        assert store.time_range(day).hours == hours


@pytest.mark.parametrize(
    ("source", "says"),
    [
        pytest.param(
            Source("http://other:9090"), "contains days of http://prom", id="another source"
        ),
        pytest.param(
            Source(HERE.origin, zone="Asia/Tokyo"), "time zone UTC, not", id="another zone"
        ),
        pytest.param(
            Source(HERE.origin, match='{a="b"}', tenant="me"),
            'series {a="b"}, tenant me, time zone',
            id="other series of the source",
        ),
        pytest.param(
            Source(HERE.origin, zone="Mars/Base"), "No time zone 'Mars/Base'", id="no zone"
        ),
    ],
)
def test_a_store_has_one_source_and_time_zone(tmp_path, source, says):
    pulled(tmp_path, serving(1))
    with pytest.raises(InputError, match=says), day_store(tmp_path, source):
        pass


def test_without_its_days_json_a_store_pulls_its_days_again(tmp_path):
    pulled(tmp_path, serving(1), now=MORNING + timedelta(days=2))
    (tmp_path / "days.json").unlink()
    assert due(tmp_path, MORNING) == [2]
    (tmp_path / "days.json").write_text("{")
    with pytest.raises(InputError, match=r"days\.json is damaged"), day_store(tmp_path, HERE):
        pass


def test_what_a_killed_run_left_is_no_window(tmp_path):
    pulled(tmp_path, serving(1))
    left = tmp_path / ".pulling" / "2026-11-03"
    serving(1)(TimeRange(MORNING, MORNING + timedelta(days=1)), left)
    assert pulled(tmp_path, serving(1), day=DAY + timedelta(days=1)) == Outcome.NEW
    assert not (tmp_path / ".pulling").exists()


def test_keeping_less_than_is_looked_at_is_refused():
    with pytest.raises(InputError, match="--keep is shorter"):
        Reach(timedelta(days=7), timedelta(days=1), timedelta(days=2))
