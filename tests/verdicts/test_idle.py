from datetime import UTC, datetime, timedelta

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vllm_capacity.errors import InputError
from vllm_capacity.estimate import Estimate
from vllm_capacity.timerange import HOURS_PER_MONTH
from vllm_capacity.verdicts.cost.idle import idle_by_hour_of_week, savings
from vllm_capacity.verdicts.sizing import month_usd

MONDAY = datetime(2026, 11, 23, tzinfo=UTC)
SCHEMA = {"ts": pl.Datetime("us", "UTC"), "cost_usd": pl.Float64, "utilization_ratio": pl.Float64}


def hours(ratios, cost_usd=2.0, start=MONDAY):
    """One row per hour from Monday on; a ratio of None is an hour not observed."""
    stamps = [start + timedelta(hours=i) for i in range(len(ratios))]
    columns = {"ts": stamps, "cost_usd": [cost_usd] * len(ratios), "utilization_ratio": ratios}
    return pl.DataFrame(columns, schema=SCHEMA)


NIGHT_OFF = [0.0] * 8 + [0.5] * 16


def saved(ratios, *, replicas=4, lead=1800.0, target=0.8, **kwargs):
    return savings(
        hours(ratios, **kwargs),
        replicas=replicas,
        startup_lead_seconds=lead,
        target_utilization_ratio=target,
    )


def test_the_week_has_168_rows_and_hours_never_seen_are_null():
    table = idle_by_hour_of_week(hours([0.25, None, 1.0]))
    assert table.height == 168
    assert table.head(4).select("observed_hours", "idle_usd").rows() == [
        (1, 1.5), (0, None), (1, 0.0), (0, None)
    ]  # fmt: skip


def test_an_hour_seen_in_two_weeks_is_their_mean():
    table = idle_by_hour_of_week(hours([0.0] + [1.0] * 167 + [0.5]))
    first = table.row(0, named=True)
    assert (first["observed_hours"], first["utilization_ratio"], first["idle_usd"]) == (
        2,
        0.25,
        1.5,
    )


def test_the_week_is_shown_in_the_given_time_zone():
    table = idle_by_hour_of_week(hours([0.5]), time_zone="Asia/Tokyo")
    seen = table.filter(pl.col("observed_hours") > 0)
    assert seen.select("weekday", "hour").rows() == [(1, 9)]


@pytest.mark.parametrize("zone", ["Foo/Bar", "../UTC", "Europe"])
def test_an_unknown_time_zone_is_an_input_error(zone):
    with pytest.raises(InputError, match="No time zone"):
        idle_by_hour_of_week(hours([0.5]), time_zone=zone)


def test_nothing_observed_is_a_week_of_nulls():
    assert idle_by_hour_of_week(hours([]))["idle_usd"].null_count() == 168


def test_a_schedule_saves_the_hours_idle_every_day():
    found = saved(NIGHT_OFF * 5)
    assert found.hours_off == tuple(range(8))
    assert found.schedule.mid == pytest.approx(8 / 24 * 2.0 * HOURS_PER_MONTH)
    assert "0 of 40 hours switched off had load" in found.schedule.sources


def test_a_month_saved_is_as_long_as_a_month_planned():
    planned = month_usd(Estimate.exact(1, "one GPU"), Estimate.exact(2.0, "a price"))
    assert saved(NIGHT_OFF * 5).schedule.mid == pytest.approx(8 / 24 * planned.mid)


def test_a_schedule_is_judged_on_days_it_was_not_derived_from():
    woken = NIGHT_OFF * 4 + [0.6, *NIGHT_OFF[1:]]
    found = saved(woken)
    assert found.hours_off == tuple(range(1, 8))
    assert "1 of 36 hours switched off had load" in found.schedule.sources


@pytest.mark.parametrize(
    ("lead_hours", "paid_hours"),
    [
        pytest.param(0.0, 0.0, id="an instant start pays nothing"),
        pytest.param(0.5, 0.5, id="half an hour of start-up is paid"),
        pytest.param(3.0, 3.0, id="three hours of start-up are paid"),
        pytest.param(9.0, 8.0, id="a start-up longer than the night saves nothing"),
    ],
)
def test_scale_to_zero_pays_the_start_up(lead_hours, paid_hours):
    found = saved(NIGHT_OFF * 5, lead=lead_hours * 3600).scale_to_zero
    assert found.mid == pytest.approx((8 - paid_hours) / 24 * 2.0 * HOURS_PER_MONTH)


def test_an_hour_not_observed_ends_a_run_without_load():
    broken = [0.0] * 4 + [None] + [0.0] * 3 + [0.5] * 16
    found = saved(broken * 5, lead=3600.0).scale_to_zero
    assert found.mid == pytest.approx((3 + 2) / 23 * 2.0 * HOURS_PER_MONTH)


@pytest.mark.parametrize(
    ("peak", "replicas", "kept"),
    [
        pytest.param(0.5, 4, 3, id="half of four at 80 % needs three"),
        pytest.param(0.4, 6, 3, id="exactly three replicas' worth needs three"),
        pytest.param(0.9, 4, 4, id="above the target nothing goes"),
        pytest.param(0.0, 4, 1, id="an idle fleet keeps one"),
    ],
)
def test_consolidation_keeps_what_the_highest_hour_needs(peak, replicas, kept):
    found = saved([peak] * 24 * 5, replicas=replicas).consolidation
    assert found.low == pytest.approx((replicas - kept) / replicas * 2.0 * HOURS_PER_MONTH)


def test_one_replica_is_not_consolidated():
    assert "cannot be consolidated" in saved(NIGHT_OFF * 5, replicas=1).consolidation.reason


def test_a_busy_fleet_saves_exactly_nothing_and_says_why():
    found = saved([0.5] * 24 * 5)
    assert (found.schedule.mid, found.scale_to_zero.mid) == (0.0, 0.0)
    assert "was idle on every day" in found.schedule.sources
    assert "without load longer than" in found.scale_to_zero.sources


@pytest.mark.parametrize(
    "ratios",
    [
        pytest.param([], id="nothing"),
        pytest.param(NIGHT_OFF * 2, id="two days"),
        pytest.param(([0.0] * 11 + [None] * 13) * 5, id="days of eleven observed hours"),
    ],
)
def test_too_few_days_are_refused(ratios):
    found = saved(ratios)
    reasons = {found.schedule.reason, found.scale_to_zero.reason, found.consolidation.reason}
    assert len(reasons) == 1
    assert "3 are needed" in reasons.pop()


@pytest.mark.parametrize(
    ("given_hours", "options", "output"),
    [
        pytest.param(hours([1.2]), {}, "utilization_ratio in 0..1", id="over 100 %"),
        pytest.param(hours([0.5], cost_usd=-1.0), {}, "cost_usd ≥ 0", id="a negative bill"),
        pytest.param(
            pl.concat([hours([0.5]), hours([0.5])]), {}, "one row per hour", id="an hour twice"
        ),
        pytest.param(hours([0.5]), {"replicas": 0}, "at least one replica", id="no replica"),
        pytest.param(
            hours([0.5]), {"startup_lead_seconds": -1.0}, "lead of 0 s or more", id="a lead back"
        ),
        pytest.param(
            hours([0.5]), {"target_utilization_ratio": 0.0}, "target in", id="a target of nothing"
        ),
    ],
)
def test_what_makes_no_sense_is_an_input_error(given_hours, options, output):
    with pytest.raises(InputError, match=output):
        savings(given_hours, **({"replicas": 2, "startup_lead_seconds": 60.0} | options))


ratios_of_days = st.lists(
    st.one_of(st.none(), st.just(0.0), st.floats(0, 1)), min_size=0, max_size=24 * 6
)


@settings(max_examples=60, deadline=None)
@given(ratios_of_days, st.integers(1, 8), st.floats(0, 4 * 3600))
def test_no_saving_exceeds_the_bill_or_falls_under_nothing(ratios, replicas, lead):
    found = saved(ratios, replicas=replicas, lead=lead)
    for estimate in (found.schedule, found.scale_to_zero, found.consolidation):
        if estimate.is_known:
            assert 0 <= estimate.low <= estimate.high <= 2.0 * HOURS_PER_MONTH * (1 + 1e-9)


@settings(max_examples=40, deadline=None)
@given(ratios_of_days, st.floats(0, 3600), st.floats(0, 3 * 3600))
def test_a_longer_start_up_never_saves_more(ratios, lead, longer_by):
    short = saved(ratios, lead=lead).scale_to_zero
    long = saved(ratios, lead=lead + longer_by).scale_to_zero
    assert not short.is_known or long.mid <= short.mid + 1e-9


@settings(max_examples=40, deadline=None)
@given(ratios_of_days, st.floats(0.05, 0.5), st.floats(0, 0.5))
def test_a_higher_target_never_saves_less(ratios, target, more):
    cautious = saved(ratios, target=target).consolidation
    bold = saved(ratios, target=target + more).consolidation
    assert not cautious.is_known or bold.mid >= cautious.mid - 1e-9


@settings(max_examples=30, deadline=None)
@given(ratios_of_days, st.floats(0.01, 1e4))
def test_savings_are_in_proportion_to_the_price(ratios, price):
    plain, dear = saved(ratios), saved(ratios, cost_usd=2.0 * price)
    assert plain.hours_off == dear.hours_off
    if plain.schedule.is_known:
        assert dear.schedule.mid == pytest.approx(plain.schedule.mid * price)
        assert dear.scale_to_zero.mid == pytest.approx(plain.scale_to_zero.mid * price)
