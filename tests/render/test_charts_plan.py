"""The plan's charts keep the rules of every chart, and hide neither a doubt nor a rejected row."""

import json
import re
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import polars as pl
import pytest
from answer_by_hand import ANSWER, START, answer, estimate, unknown

from vllm_capacity.render.charts import plan as charts_plan
from vllm_capacity.render.charts import theme
from vllm_capacity.render.charts import time as timeline
from vllm_capacity.render.report.contract import HOVER, NOTEBOOK_WIDTH
from vllm_capacity.render.report.vega import page_chart
from vllm_capacity.render.sections.definitions import DEFINITIONS
from vllm_capacity.verdicts.forecast import forecast_demand
from vllm_capacity.verdicts.idle import idle_by_hour_of_week

PRICED = "median of 3 on-demand offers (2026-11-09), from $1.19 RunPod to $2.49 Lambda"
NO_PRICE = "no on-demand price of L40-PCIe in gpu_prices.csv"


def option(gpu, worth, reason=""):
    return {
        "gpu": gpu,
        "dtype": "bf16",
        "price_row": PRICED,
        "usd_per_gpu_hour": estimate(1.5, 1.2, 2.5) if not reason else unknown(reason),
        "slo_output_tokens_per_second": estimate(300.0),
        "tokens_per_usd": worth,
        "usd_per_request": estimate(0.001),
        "replicas": estimate(3.0, 2.0, 4.0),
        "usd_per_month": estimate(3000.0) if not reason else unknown(reason),
        "reason": reason,
    }


OPTIONS = [
    option("T4-PCIe", unknown("no kernel"), "T4-PCIe cannot run bf16 weights"),
    option("A100-80GB-PCIe", estimate(500_000.0, 300_000.0, 700_000.0)),
    option("H100-80GB-SXM", estimate(800_000.0, 600_000.0, 900_000.0)),
    option("L4-PCIe", estimate(200_000.0, 150_000.0, 300_000.0)),
    option("L40-PCIe", unknown(NO_PRICE), NO_PRICE),
]
WORDS = {"lines", "words_at"}
CASES = {
    "now": estimate(3.0),
    "demand doubles": estimate(5.0, 4.0, 6.0),
    "prefix caching off": unknown("no hit ratio was observed"),
}
HOURS = [START.replace(hour=0) + timedelta(hours=i) for i in range(200)]
HISTORY = pl.DataFrame(
    {"ts": HOURS, "requests": [1000.0 + 500 * (i % 24) for i in range(200)]},
    schema={"ts": pl.Datetime("us", "UTC"), "requests": pl.Float64},
)
AHEAD = forecast_demand(HISTORY).frame
DEMAND = pl.concat([HISTORY, AHEAD], how="diagonal")
WEEK = idle_by_hour_of_week(
    pl.DataFrame(
        {
            "ts": HOURS[:100],
            "cost_usd": [2.0] * 100,
            "utilisation_ratio": [(i % 24) / 24 for i in range(100)],
        }
    )
)


@dataclass(frozen=True)
class Plan:
    """A chart of the plan, rows for it, rows of the same kind that say nothing."""

    draw: Any
    rows: Any
    nothing: Any


PLANS = (
    Plan(charts_plan.tokens_per_dollar, OPTIONS, []),
    Plan(charts_plan.replicas_by_case, CASES, {"now": unknown("no knee was seen")}),
    Plan(charts_plan.demand_forecast, DEMAND, DEMAND.clear()),
    Plan(charts_plan.idle_by_hour, WEEK, idle_by_hour_of_week(WEEK.clear().select(
        ts=pl.lit(START), cost_usd="cost_usd", utilisation_ratio="utilisation_ratio"
    ))),
)  # fmt: skip
each_chart = pytest.mark.parametrize("plan", PLANS, ids=[plan.draw.__name__ for plan in PLANS])


def spec_of(plan, rows=None, *given):
    return plan.draw(plan.rows if rows is None else rows, ANSWER, *given).to_dict()


def notes_of(spec):
    return spec["usermeta"]["vllm_capacity"]


def rows_with(spec, *columns):
    """The rows of the first data set that has these columns."""
    return next(rows for rows in spec["datasets"].values() if rows and set(columns) <= set(rows[0]))


@each_chart
def test_title_asks_and_subtitle_says_what_was_found(plan):
    title = spec_of(plan)["title"]
    assert (title["text"][-1], bool(title["subtitle"])) == ("?", True)


@each_chart
def test_axes_are_titled(plan):
    for channel in ("x", "y"):
        titles = [layer["encoding"].get(channel, {}).get("title") for layer in
                  spec_of(plan)["layer"]]  # fmt: skip
        axes = [layer["encoding"].get(channel, {}).get("axis") or {} for layer in
                spec_of(plan)["layer"]]  # fmt: skip
        assert any(titles) or any(axis.get("title") for axis in axes)


@each_chart
def test_chart_without_data_says_why(plan):
    assert len(notes_of(spec_of(plan, plan.nothing))["empty"]) > 10


@each_chart
def test_reason_that_is_given_is_the_reason_that_is_told(plan):
    empty = notes_of(spec_of(plan, plan.nothing, "the moon is full"))["empty"]
    assert "the moon is full" in empty


@each_chart
def test_chart_has_the_table_behind_it(plan):
    table = notes_of(spec_of(plan))["table"]
    assert {len(row) for row in table["rows"]} == {len(table["columns"])}


@each_chart
def test_pointer_has_no_more_points_than_a_page_bears(plan):
    spec = spec_of(plan)
    hovered = [layer for layer in spec["layer"] if str(layer.get("name", "")).startswith(HOVER)]
    sizes = [len(spec["datasets"][layer["data"]["name"]]) for layer in hovered]
    assert max([0, *sizes]) <= timeline.POINTS_AT_MOST


@each_chart
def test_chart_is_as_wide_as_a_notebook(plan):
    assert spec_of(plan)["width"] == NOTEBOOK_WIDTH


@each_chart
def test_chart_asks_for_nothing_outside(plan):
    spec = json.dumps(spec_of(plan) | {"$schema": ""})
    assert not re.search(r'"(href|url)"|"type": "image"|https?://', spec)


@each_chart
def test_colours_are_variables(plan):
    assert not re.search(r'"#[0-9a-fA-F]{3,8}"', json.dumps(spec_of(plan)["layer"]))


@each_chart
def test_two_drawings_are_the_same(plan):
    assert spec_of(plan) == spec_of(plan)


@each_chart
def test_docstring_names_the_columns_used(plan):
    assert "Columns used: " in " ".join((plan.draw.__doc__ or "").split())


@each_chart
def test_chart_links_to_a_definition(plan):
    assert notes_of(spec_of(plan))["definition"] in {each.figure for each in DEFINITIONS}


@each_chart
def test_still_is_drawn_with_its_words(plan):
    chart = page_chart(spec_of(plan), number=1)
    assert ("<svg" in chart.still, "NaN" in chart.still) == (True, False)


@each_chart
def test_lab_can_draw_it(plan):
    bundle, _ = theme.for_lab(spec_of(plan))
    assert bundle[theme.LAB_MIME]["width"] == NOTEBOOK_WIDTH


def test_best_gpu_stands_first_and_the_rejected_last():
    table = notes_of(spec_of(PLANS[0]))["table"]["rows"]
    gpus = ["H100-80GB-SXM", "A100-80GB-PCIe", "L4-PCIe", "T4-PCIe", "L40-PCIe"]
    assert [row[0] for row in table] == gpus


def test_rejected_gpus_stand_under_their_reason_each_reason_once():
    a40 = NO_PRICE.replace("L40", "A40")
    spec = spec_of(PLANS[0], [*OPTIONS, option("A40-PCIe", unknown(a40), a40)])
    said = [" ".join(row["lines"].split("\n")) for row in words_of(spec)]
    assert said[3:] == [
        "Rejected, cannot run bf16 weights: T4-PCIe",
        "Rejected, no on-demand price of it in gpu_prices.csv: L40-PCIe, A40-PCIe",
    ]


def test_no_line_of_words_is_longer_than_a_phone_is_wide():
    lines = [line for row in words_of(spec_of(PLANS[0])) for line in row["lines"].split("\n")]
    assert max(len(line) for line in lines) <= 52


def words_of(spec):
    """The rows of words, from the top."""
    rows = [row for rows in spec["datasets"].values() for row in rows if set(row) == WORDS]
    return sorted(rows, key=lambda row: row["words_at"])


def test_no_line_of_the_ranking_lies_on_another():
    spec = spec_of(PLANS[0])
    assert [row["words_at"] for row in words_of(spec)] == [0.0, 34.0, 68.0, 102.0, 121.0]
    assert spec["height"] == 155  # the last reason takes two lines


def test_bar_has_its_interval_and_the_provenance_of_its_price():
    row = rows_with(spec_of(PLANS[0]), "low", "high", "price_row")[0]
    assert (row["low"], row["high"], row["price_row"]) == (600_000.0, 900_000.0, PRICED)
    tips = json.dumps([layer["encoding"].get("tooltip") for layer in spec_of(PLANS[0])["layer"]])
    assert '"price_row"' in tips


def test_found_says_who_may_be_as_good():
    said = spec_of(PLANS[0])["title"]["subtitle"]
    assert said == (
        "H100-80GB-SXM: 800,000 (between 600,000 and 900,000) output tokens for a dollar; "
        "by the intervals 1 of 2 others may beat it; 2 GPUs rejected, with the reason"
    )


def test_ranking_of_nothing_but_rejected_gpus_still_lists_them():
    spec = spec_of(PLANS[0], [OPTIONS[0], OPTIONS[4]])
    assert spec["title"]["subtitle"] == "None can be told: 2 GPUs rejected, with the reason"
    assert len(notes_of(spec)["table"]["rows"]) == 2
    assert "<svg" in page_chart(spec, number=1).still


def test_unknown_case_is_a_line_with_its_reason():
    spec = spec_of(PLANS[1])
    assert "prefix caching off: no hit ratio was observed" in json.dumps(spec["datasets"])
    assert spec["title"]["subtitle"] == (
        "3 in the case “now”; 5 (between 4 and 6) in the case “demand doubles”"
    )


def test_cases_that_all_take_the_same_say_so():
    spec = spec_of(PLANS[1], {"now": estimate(3.0), "prompts double": estimate(3.0)})
    assert spec["title"]["subtitle"] == "3 in the case “now”; no case takes more"


def test_forecast_keeps_its_band_and_the_latest_hours():
    spec = spec_of(PLANS[2])
    rows = rows_with(spec, "requests", "low", "high")
    assert len(rows) == 150
    assert sum(row["mid"] is not None for row in rows) == 24
    assert "area" in [layer["mark"]["type"] for layer in spec["layer"]]


def test_history_without_a_forecast_is_drawn_and_says_why():
    history = pl.concat([HISTORY.head(20), AHEAD.clear()], how="diagonal")
    spec = charts_plan.demand_forecast(history, ANSWER, "the rows span 20 h").to_dict()
    assert spec["title"]["subtitle"] == "No forecast: the rows span 20 h"
    assert "area" not in [layer["mark"]["type"] for layer in spec["layer"]]


def test_hour_that_was_never_observed_is_an_outline_not_a_zero():
    spec = spec_of(PLANS[3])
    cells = rows_with(spec, "idle_usd")
    outlines = next(rows for rows in spec["datasets"].values() if set(rows[0]) == {"day", "hour"})
    assert (len(cells), len(outlines)) == (100, 68)
    assert "100 of 168 hours of the week were observed" in spec["title"]["subtitle"]


def test_hours_that_idle_as_dearly_are_counted():
    subtitle = spec_of(PLANS[3])["title"]["subtitle"]
    assert "$2.00 in that hour, and as much in 4 others" in subtitle


def test_hour_of_the_week_is_said_in_its_own_zone():
    spec = charts_plan.idle_by_hour(WEEK, ANSWER, time_zone="Europe/Berlin").to_dict()
    assert "hour of the day (Europe/Berlin)" in json.dumps(spec)


def test_idle_money_that_is_unknown_has_the_reason_of_the_bill():
    told = answer(cost__idle_usd=unknown("no price given"))
    spec = charts_plan.idle_by_hour(PLANS[3].nothing, told).to_dict()
    assert notes_of(spec)["empty"] == "Not known: no price given."
