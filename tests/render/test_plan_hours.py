"""The plan hour by hour: charts where a window has days, a line that says why where it has not."""

import pytest

from tests.long_window import long_window
from vllm_capacity import study
from vllm_capacity.plan import Ask, plan
from vllm_capacity.render.sections.plan import demand_seen_and_ahead, idle_hours, idle_savings
from vllm_capacity.verdicts.sizing import Policy


def planned(asked):
    return plan(asked.opened, Ask(), terms=asked.terms, told=asked.answer)


@pytest.fixture(scope="module")
def days(tmp_path_factory):
    path = tmp_path_factory.mktemp("w") / "w"
    long_window(path, days=4)
    return study(str(path), usd_per_hour=2.0)


@pytest.fixture(scope="module")
def minutes(examples):
    return study(str(examples / "vllm-sweep"), usd_per_hour=0.1)


def rows_of(chart):
    return chart.to_dict()["usermeta"]["vllm_capacity"]["table"]["rows"]


def test_minutes_have_no_chart_of_demand(minutes):
    assert demand_seen_and_ahead(minutes, planned(minutes)) is None


def test_minutes_say_in_a_line_why_no_idle_hours_are_shown(minutes):
    assert repr(idle_hours(minutes)) == (
        "No picture of idle hours: 0 whole hours in this window, a day of them is the least."
    )


def test_minutes_say_in_a_line_why_no_saving_is_known(minutes):
    assert repr(idle_savings(minutes, Policy())) == (
        "What that would save is not known: 0 days with at least 12 observed hours; 3 are the "
        "least to tell a habit from a day."
    )


def test_days_are_drawn_with_what_is_foreseen(days):
    rows = rows_of(demand_seen_and_ahead(days, planned(days)))
    is_seen, is_foreseen = ([bool(row[column].strip("–—- ")) for row in rows] for column in (1, 3))
    assert (len(rows), sum(is_seen), sum(is_foreseen)) == (96 + 24, 96, 24)


def test_days_without_a_forecast_are_drawn_with_the_reason(days):
    refused = {"forecast": {"forecast": None, "reason": "nothing in the last day"}}
    chart = demand_seen_and_ahead(days, refused).to_dict()
    assert chart["title"]["subtitle"] == "No forecast: nothing in the last day"


def test_hours_of_the_week_are_drawn(days):
    chart = idle_hours(days).to_dict()
    assert chart["title"]["subtitle"].endswith("96 of 168 hours of the week were observed")
    assert len(rows_of(idle_hours(days))) == 96


def test_ways_out_of_idle_time_are_priced(days):
    rows = idle_savings(days, Policy()).content["rows"]
    assert [row[1] == "not known" for row in rows] == [False, False, True]
    assert rows[2][3] == "one replica cannot be consolidated; see the schedule instead"
