"""The plan's charts hide neither uncertainty nor rejected rows."""

import json

import polars as pl
import pytest
from answer_by_hand import analysis, answer, estimate, unknown
from charts_by_hand import (
    AHEAD,
    FULL,
    HOURS,
    NO_PLAN,
    NO_PRICE,
    OPTIONS,
    PLAN,
    PRICED,
    caption,
    marks,
    notes_of,
    option,
    rows_with,
    spec_of,
)
from msgspec.structs import replace

from tests.long_window import long_window
from vllm_capacity.analysis import Analysis
from vllm_capacity.assumptions import Assumptions, pricing
from vllm_capacity.render import charts
from vllm_capacity.render.report.vega import page_chart
from vllm_capacity.telemetry.window import open_window


@pytest.fixture(scope="module")
def days(tmp_path_factory):
    """Four days that come and go, of a telemetry made up."""
    path = tmp_path_factory.mktemp("w") / "w"
    long_window(path, days=4)
    return Analysis.of(open_window(path), assumptions=Assumptions(pricing(2.0)))


TEXT = {"lines", "text_at"}


def text_of(spec):
    """The rows of text, from the top."""
    rows = [row for rows in spec["datasets"].values() for row in rows if set(row) == TEXT]
    return sorted(rows, key=lambda row: row["text_at"])


def test_best_gpu_stands_first_and_the_rejected_last():
    table = notes_of(spec_of("tokens_per_dollar"))["table"]["rows"]
    assert [row[0] for row in table] == [each.gpu for each in OPTIONS]


def test_options_of_no_plan_are_drawn_alike():
    assert charts.tokens_per_dollar(OPTIONS).to_dict() == spec_of("tokens_per_dollar")


def test_rejected_gpus_stand_under_their_reason_each_reason_once():
    a40 = NO_PRICE.replace("L40", "A40")
    spec = charts.tokens_per_dollar([*OPTIONS, option("A40-PCIe", unknown(a40), a40)]).to_dict()
    lines = [" ".join(row["lines"].split("\n")) for row in text_of(spec)]
    assert lines[3:] == [
        "Rejected, no on-demand price of it in gpu_prices.csv: L40-PCIe, A40-PCIe",
        "Rejected, cannot run bf16 weights: T4-PCIe",
    ]


def test_no_line_of_text_is_longer_than_a_phone_is_wide():
    rows = text_of(spec_of("tokens_per_dollar"))
    assert max(len(line) for row in rows for line in row["lines"].split("\n")) <= 52


def test_no_line_of_the_ranking_lies_on_another():
    spec = spec_of("tokens_per_dollar")
    assert [row["text_at"] for row in text_of(spec)] == [0.0, 34.0, 68.0, 102.0, 136.0]
    assert spec["height"] == 155  # the first reason takes two lines


def test_bar_has_its_interval_and_the_provenance_of_its_price():
    spec = spec_of("tokens_per_dollar")
    row = rows_with(spec, "low", "high", "price_row")[0]
    assert (row["low"], row["high"], row["price_row"]) == (600_000.0, 900_000.0, PRICED)
    assert '"price_row"' in json.dumps([each["encoding"].get("tooltip") for each in spec["layer"]])


def test_caption_names_gpus_with_overlapping_intervals():
    assert caption(spec_of("tokens_per_dollar")) == (
        "H100-80GB-SXM: 800,000 (between 600,000 and 900,000) output tokens per dollar; "
        "the intervals of 1 of 2 others overlap it; 2 GPUs rejected, with the reason"
    )


def test_ranking_of_nothing_but_rejected_gpus_still_lists_them():
    spec = charts.tokens_per_dollar(OPTIONS[3:]).to_dict()
    assert caption(spec) == "None can be compared: 2 GPUs rejected, with the reason"
    assert len(notes_of(spec)["table"]["rows"]) == 2
    assert "<svg" in page_chart(spec, number=1).still


@pytest.mark.parametrize(
    "draw",
    [charts.tokens_per_dollar, charts.replicas_by_case, charts.cost_by_itl],
    ids=["GPUs", "replicas", "ITL"],
)
def test_plan_without_rows_has_the_plan_s_reason(draw):
    assert notes_of(draw(NO_PLAN).to_dict())["empty"] == "Not known: the reason."


def test_a_gpu_states_its_distance_from_measured_cases():
    near = replace(OPTIONS[0], label="near")
    spec = charts.tokens_per_dollar([near, *OPTIONS[1:]]).to_dict()
    assert text_of(spec)[0]["lines"] == "H100-80GB-SXM, near: 0.800 (between 0.600 and 0.900)"


def test_cost_at_the_same_itl_has_its_target_and_intervals():
    spec = spec_of("cost_by_itl")
    assert caption(spec).replace("\N{NO-BREAK SPACE}", " ") == (
        "Cheapest within the ITL target of 100 ms: H100-80GB-SXM, $0.250 (between $0.200 and "
        "$0.325) per million output tokens; each load of this window, transferred to the other GPUs"
    )
    assert rows_with(spec, "target") == [
        {"name": "p95 target 100\N{NO-BREAK SPACE}ms", "target": 0.1}
    ]
    assert len(notes_of(spec)["table"]["rows"]) == 6
    assert "p95 ITL, milliseconds (log scale)" in json.dumps(spec)


def test_no_gpu_may_meet_the_target():
    slow = replace(PLAN.interactivity, itl_target_seconds=0.001)
    assert caption(charts.cost_by_itl(slow).to_dict()).startswith("No GPU meets the ITL target")


def test_unknown_case_is_a_line_with_its_reason():
    spec = spec_of("replicas_by_case")
    assert "prefix caching off: no hit ratio was observed" in json.dumps(spec["datasets"])
    assert caption(spec) == "3 in the case “now”; 5 (between 4 and 6) in the case “demand doubles”"


def test_cases_with_the_same_need_say_so():
    cases = {"now": estimate(3.0), "prompts double": estimate(3.0)}
    spec = charts.replicas_by_case(replace(PLAN, sensitivity=cases)).to_dict()
    assert caption(spec) == "3 in the case “now”; no case needs more"


def test_forecast_keeps_its_band_and_the_latest_hours():
    before = HOURS.with_columns(ts=HOURS["ts"].dt.offset_by("-100h"))
    hours = pl.concat([before, HOURS])
    spec = charts.demand_forecast(analysis(hours=hours, demand_ahead=AHEAD)).to_dict()
    rows = rows_with(spec, "requests", "low", "high")
    assert (len(rows), sum(row["mid"] is not None for row in rows)) == (150, 24)
    assert "area" in marks(spec)


def test_caption_of_a_forecast_is_its_busiest_hour():
    assert caption(spec_of("demand_forecast")) == (
        "The busiest hour is expected from 29 Nov 03:00 UTC: 1,023 (between 900 and 2,000) requests"
    )


def test_history_without_a_forecast_is_drawn_and_says_why():
    refused = replace(AHEAD, forecast=None, reason="the data span 20 h")
    spec = charts.demand_forecast(analysis(hours=HOURS, demand_ahead=refused)).to_dict()
    assert caption(spec) == "No forecast: the data span 20 h"
    assert "area" not in marks(spec)


@pytest.mark.parametrize(
    ("hours", "empty"),
    [
        pytest.param(1, "Needs at least 24 h of data; this window has 1 whole hour.", id="one"),
        pytest.param(23, "Needs at least 24 h of data; this window has 23 whole hours.", id="23"),
        pytest.param(24, None, id="a day"),
    ],
)
def test_a_day_of_hours_is_the_minimum(hours, empty):
    of = analysis(hours=HOURS.head(hours), demand_ahead=AHEAD)
    drawn = [charts.demand_forecast(of), charts.idle_by_hour(of)]
    assert {notes_of(each.to_dict()).get("empty") for each in drawn} == {empty}


def test_hour_that_was_never_observed_is_an_outline_not_a_zero():
    spec = spec_of("idle_by_hour")
    cells = rows_with(spec, "idle_usd")
    outlines = next(rows for rows in spec["datasets"].values() if set(rows[0]) == {"day", "hour"})
    assert (len(cells), len(outlines)) == (100, 68)
    assert "100 of 168 hours of the week were observed" in caption(spec)


def test_hours_with_equal_idle_cost_are_counted():
    assert "$2.00 in that hour, and as much in 4 others" in caption(spec_of("idle_by_hour"))


def test_hour_of_the_week_is_in_the_given_time_zone():
    spec = charts.idle_by_hour(FULL, time_zone="Europe/Berlin").to_dict()
    assert "hour of the day (Europe/Berlin)" in json.dumps(spec)
    assert caption(spec).startswith("Most on Tue from 01:00")


def test_idle_money_that_is_unknown_has_the_reason_of_the_bill():
    unpriced = HOURS.with_columns(cost_usd=None)
    of = analysis(answer=answer(cost__idle_usd=unknown("no price given")), hours=unpriced)
    assert notes_of(charts.idle_by_hour(of).to_dict())["empty"] == "Not known: no price given."


def test_days_are_drawn_with_what_is_expected(days):
    rows = notes_of(charts.demand_forecast(days).to_dict())["table"]["rows"]
    is_observed, is_expected = ([row[column] != "–" for row in rows] for column in (1, 3))
    assert (len(rows), sum(is_observed), sum(is_expected)) == (96 + 24, 96, 24)


def test_hours_of_the_week_are_those_of_the_days(days):
    spec = charts.idle_by_hour(days).to_dict()
    assert caption(spec).endswith("96 of 168 hours of the week were observed")
    assert len(notes_of(spec)["table"]["rows"]) == 96
