"""Charts in a time zone: the ticks of their axes, what is written beside them, and on tooltips."""

import json
import re
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
import vl_convert

import vllm_capacity as vc
from tests.long_window import long_window
from vllm_capacity.errors import InputError
from vllm_capacity.render.charts.time import time_axis, whole_window
from vllm_capacity.render.charts.zone import Clock, drawn_by
from vllm_capacity.timerange import TimeRange

BERLIN, KOLKATA = "Europe/Berlin", "Asia/Kolkata"
SPRING, AUTUMN = datetime(2026, 3, 29, 1, tzinfo=UTC), datetime(2026, 10, 25, 1, tzinfo=UTC)
HOUR = timedelta(hours=1)


def spanning(start: datetime, hours: float) -> TimeRange:
    return TimeRange(start, start + hours * HOUR)


def shown(clock: Clock, time_range: TimeRange) -> list[str]:
    """The ticks as people of that zone read them."""
    zone = ZoneInfo(clock.zone)
    ticks = (datetime.fromtimestamp(tick / 1000, UTC) for tick in clock.ticks(time_range))
    return [f"{tick.astimezone(zone):%d %H:%M}" for tick in ticks]


@pytest.mark.parametrize(
    ("zone", "start", "hours", "ticks"),
    [
        pytest.param(
            BERLIN,
            datetime(2026, 10, 23, 10, tzinfo=UTC),
            96,
            ["24 00:00", "25 00:00", "26 00:00", "27 00:00"],
            id="days over a repeated hour begin at midnight",
        ),
        pytest.param(
            BERLIN,
            SPRING - 2 * HOUR,
            5,
            ["29 00:00", "29 01:00", "29 03:00", "29 04:00", "29 05:00", "29 06:00"],
            id="an hour that is skipped has no tick",
        ),
        pytest.param(
            BERLIN,
            AUTUMN - 2 * HOUR,
            5,
            ["25 01:00", "25 02:00", "25 03:00", "25 04:00", "25 05:00"],
            id="an hour that is repeated has one",
        ),
        pytest.param(
            KOLKATA,
            datetime(2026, 11, 24, 4, tzinfo=UTC),
            20,
            ["24 12:00", "24 15:00", "24 18:00", "24 21:00", "25 00:00", "25 03:00"],
            id="half an hour from a whole one",
        ),
        pytest.param(BERLIN, AUTUMN + HOUR / 7, 1e-5, [], id="no round second"),
    ],
)
def test_ticks_are_round_times_of_the_zone(zone, start, hours, ticks):
    time_range = spanning(start, hours)
    assert shown(Clock.of(zone, time_range), time_range) == ticks


@pytest.mark.parametrize("days", [0.01, 0.5, 1, 2, 3, 7, 8, 21, 30, 90, 800])
def test_a_range_of_any_length_has_a_few_ticks(days):
    time_range = spanning(AUTUMN - 24 * HOUR, 24 * days)
    assert 3 <= len(Clock.of(BERLIN, time_range).ticks(time_range)) <= 8


@pytest.mark.parametrize("change", [SPRING, AUTUMN])
@pytest.mark.parametrize("hours", [-50, -1, -0.25, 0, 0.25, 1, 50])
def test_what_is_written_is_what_clocks_show_at_that_instant(change, hours):
    at = change + hours * HOUR
    clock = Clock.of(BERLIN, spanning(change - 100 * HOUR, 200))
    text = re.sub(
        r"(time\(value\)) < (\d+) \? (-?\d+) : ",
        lambda found: f"{found[3]} if {found[1]} < {found[2]} else ",
        clock.local("value"),
    )
    moved = eval(text, {"value": at.timestamp() * 1000, "time": float})
    wall = at.astimezone(ZoneInfo(BERLIN)).replace(tzinfo=UTC)
    assert datetime.fromtimestamp(moved / 1000, UTC) == wall


def test_unknown_zone_is_refused():
    with pytest.raises(InputError, match="No time zone 'Mars/X'"):
        Clock.of("Mars/X", spanning(AUTUMN, 1))


@pytest.fixture(scope="module")
def days(tmp_path_factory):
    """Two days in which clocks are put back."""
    path = tmp_path_factory.mktemp("zone") / "days"
    long_window(path, days=2, start=AUTUMN - 25 * HOUR)
    return vc.open(path)


OVER_TIME = ("throughput", "request_rate", "tokens", "regimes", "cost_per_request")


@pytest.mark.parametrize("name", OVER_TIME)
def test_axis_and_tooltip_are_in_the_zone(days, name):
    drawn = getattr(days.analyze(price=1.0, time_zone=BERLIN).charts, name)()
    spec = json.dumps(drawn.to_dict())
    assert f"time ({BERLIN}), from 24 Oct 2026" in spec
    assert '"utcyearmonthdatehoursminutesseconds"' in spec
    assert "(UTC)" not in re.sub(r'"columns".*?"rows"', "", spec)
    svg = vl_convert.vegalite_to_svg(drawn.to_dict(), allowed_base_urls=[])
    labels = re.findall(r">(\d\d:\d\d|\d+ Oct)<", svg)
    assert labels == ["12:00", "25 Oct", "12:00", "26 Oct"][-len(labels) :]
    assert len(labels) >= 3


def test_every_tick_of_a_week_is_labelled():
    week = spanning(datetime(2026, 10, 20, tzinfo=UTC), 168)
    with drawn_by(Clock.of(BERLIN, week)):
        drawn = whole_window(week, time_axis(week)).properties(width=700)
    svg = vl_convert.vegalite_to_svg(drawn.to_dict(), allowed_base_urls=[])
    assert re.findall(r">(\d+) Oct<", svg) == [str(day) for day in range(21, 28)]


def test_charts_are_in_utc_unless_asked(days):
    a = days.analyze(price=1.0)
    in_zone = days.analyze(price=1.0, time_zone=BERLIN).charts.tokens().to_dict()
    assert a.charts.tokens().to_dict() != in_zone
    assert a.charts.tokens().to_dict() == vc.charts.tokens(a).to_dict()


def test_hours_of_the_week_are_those_of_the_analysis(days):
    a = days.analyze(price=1.0, time_zone=BERLIN)
    assert (
        a.charts.idle_by_hour().to_dict() == vc.charts.idle_by_hour(a, time_zone=BERLIN).to_dict()
    )
