import ast
import inspect
import json
import re
from datetime import timedelta
from pathlib import Path

import polars as pl
import pytest
from answer_by_hand import ANSWER, COSTS, EMPTY_FRAMES, FRAMES, STEPS, answer, unknown

from vllm_capacity.render import charts
from vllm_capacity.render.charts import CHARTS, theme
from vllm_capacity.render.charts import time as timeline
from vllm_capacity.render.report.contract import HOVER, NOTEBOOK_WIDTH

BY_NAME = {chart.name: chart for chart in CHARTS}
each_chart = pytest.mark.parametrize("chart", CHARTS, ids=[chart.name for chart in CHARTS])
UNKNOWN = {
    f"{part}__{name}": unknown("the reason")
    for part in ("cost", "saturation")
    for name, value in ANSWER[part].items()
    if isinstance(value, dict)
}


def spec_of(chart, frames=FRAMES, of=ANSWER):
    return chart(frames, of).to_dict()


def notes_of(spec):
    return spec["usermeta"]["vllm_capacity"]


def encodings(spec, channel):
    return [
        layer["encoding"][channel]
        for layer in spec.get("layer", [spec])
        if channel in layer.get("encoding", {})
    ]


@each_chart
def test_title_asks_and_subtitle_says_what_was_found(chart):
    title = spec_of(chart)["title"]
    assert (title["text"][-1], bool(title["subtitle"])) == ("?", True)


@each_chart
def test_axes_are_titled(chart):
    spec = spec_of(chart)
    titles = {
        channel: [e["title"] for e in encodings(spec, channel) if e.get("title")]
        or [e["axis"]["title"] for e in encodings(spec, channel) if e.get("axis", {}).get("title")]
        for channel in ("x", "y")
    }
    alone = chart.name == "regimes"  # one engine: its strip needs no axis of engines
    assert (bool(titles["x"]), bool(titles["y"]) or alone) == (True, True)


@each_chart
def test_chart_without_data_says_why(chart):
    notes = notes_of(spec_of(chart, EMPTY_FRAMES, answer(saturation__regimes=[], **UNKNOWN)))
    assert len(notes["empty"]) > 10


@each_chart
def test_chart_has_the_table_behind_it(chart):
    table = notes_of(spec_of(chart))["table"]
    assert {len(row) for row in table["rows"]} == {len(table["columns"])}


@each_chart
def test_pointer_has_no_more_points_than_a_page_bears(chart):
    spec = spec_of(chart)
    hovered = [layer for layer in spec["layer"] if str(layer.get("name", "")).startswith(HOVER)]
    sizes = [len(spec["datasets"][layer["data"]["name"]]) for layer in hovered]
    assert max([0, *sizes]) <= timeline.POINTS_AT_MOST


@each_chart
def test_chart_is_as_wide_as_a_notebook(chart):
    assert spec_of(chart)["width"] == NOTEBOOK_WIDTH


@each_chart
def test_chart_asks_for_nothing_outside(chart):
    spec = json.dumps(spec_of(chart) | {"$schema": ""})
    assert not re.search(r'"(href|url)"|"type": "image"|https?://', spec)


@each_chart
def test_two_drawings_are_the_same(chart):
    assert spec_of(chart) == spec_of(chart)


@each_chart
def test_docstring_names_the_columns_used(chart):
    assert "Columns used: " in (chart.draw.__doc__ or "")


def test_every_chart_there_is_stands_in_the_registry():
    drawn = {
        node.name
        for path in Path(inspect.getfile(charts)).parent.glob("charts_*.py")
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.FunctionDef) and node.name[0] != "_"
        if node.args.args[0].arg in FRAMES  # a plan's charts are drawn from its options
    }
    assert drawn == set(BY_NAME)


def test_panels_of_the_guide_are_all_there():
    assert {
        "request_rate",
        "whole_answer",
        "first_token",
        "tokens",
        "kv_cache",
        "queue",
        "cost_per_request",
        "outcomes",
    } <= set(BY_NAME)


def test_time_is_written_in_utc_in_tooltips():
    tips = [tip for each in encodings(spec_of(BY_NAME["queue"]), "tooltip") for tip in each]
    times = [tip["timeUnit"] for tip in tips if tip["type"] == "temporal"]
    assert (bool(times), all(unit.startswith("utc") for unit in times)) == (True, True)


def test_target_is_drawn_with_its_value():
    spec = charts.first_token(STEPS, ANSWER, 2.0).to_dict()
    rows = [row for rows in spec["datasets"].values() for row in rows if "limit" in row]
    assert rows == [{"limit": 2.0, "name": "target 2.00\xa0s"}]


def test_gap_is_one_shaded_span_and_a_restart_one_mark():
    spec = spec_of(BY_NAME["throughput"])
    rows = [row["name"] for rows in spec["datasets"].values() for row in rows if "name" in row]
    assert sorted(rows) == ["not scraped", "restart"]


GAP_AT, SHORT_GAP = (40, 44), (80, 82)  # steps without a scrape, and steps that a gap touches


def steps_with(*, restart=(-1, -1)):
    """The steps of a second gap, that leaves each of its steps a scrape, and of a restart."""
    at = pl.int_range(pl.len())
    return STEPS.with_columns(
        is_gap=pl.col("is_gap") | at.is_between(*SHORT_GAP, closed="left"),
        is_restart=at.is_between(*restart, closed="left"),
        output_tokens_per_second=pl.lit(5.0),
    )


def span_of(spec, name):
    """From which step to which one a gap of that name is shaded."""
    rows = [row for rows in spec["datasets"].values() for row in rows if row.get("name") == name]
    starts = [timeline.milliseconds(ts) for ts in STEPS["ts"]]
    return [(starts.index(row["t"]), starts.index(row["t_end"])) for row in rows]


@pytest.mark.parametrize(
    ("name", "span"),
    [
        pytest.param("not scraped", GAP_AT, id="steps without a scrape, not those beside them"),
        pytest.param("gap", SHORT_GAP, id="a gap that is shorter than a step"),
    ],
)
def test_gap_is_shaded_where_nothing_was_scraped(name, span):
    wider = steps_with().with_columns(
        is_gap=pl.col("is_gap") | pl.int_range(pl.len()).is_in([GAP_AT[0] - 1, GAP_AT[1]])
    )
    assert span_of(charts.throughput(wider, ANSWER).to_dict(), name) == [span]


@pytest.mark.parametrize(
    ("restart", "drawn", "said"),
    [
        pytest.param((-1, -1), 100, True, id="a counter carries on over a gap"),
        pytest.param(GAP_AT, 96, False, id="what was counted before a restart is lost, not zero"),
    ],
)
@pytest.mark.parametrize("draw", [charts.throughput, charts.request_rate, charts.tokens])
def test_rate_over_a_gap_is_its_mean_but_where_a_restart_hides_it(draw, restart, drawn, said):
    spec = draw(steps_with(restart=restart), ANSWER).to_dict()
    table = notes_of(spec)["table"]["rows"]
    told = spec["title"]["subtitle"].endswith("; where nothing was scraped, its mean over the gap")
    assert (sum(row[1] != "–" for row in table), told) == (drawn, said)


@each_chart
def test_no_name_of_a_line_lies_over_the_lines(chart):
    lines = [each for each in spec_of(chart)["layer"] if each["mark"]["type"] == "line"]
    named = [each for each in lines if "color" in each["encoding"]]
    over_time = [each for each in lines if each["encoding"]["x"]["field"] == "t"]
    assert named == (over_time if len(over_time) > 1 else [])


@pytest.mark.parametrize("most", [None, 0.0018, 0.5])
def test_cache_all_but_empty_is_told_not_drawn(most):
    spec = charts.kv_cache(STEPS, answer(kv_cache_ratio={"mean": 0.001, "max": most})).to_dict()
    empty = "0.10\xa0% full on average, 0.18\xa0% at most; 561 preemptions."
    assert notes_of(spec).get("empty") == (empty if most == 0.0018 else None)


def test_restart_over_several_steps_is_marked_once():
    steps = STEPS.with_columns(is_restart=pl.int_range(pl.len()).is_between(40, 50))
    spec = charts.throughput(steps, ANSWER).to_dict()
    names = [row["name"] for rows in spec["datasets"].values() for row in rows if "name" in row]
    assert names.count("restart") == 1


def test_unknown_capacity_draws_no_band():
    spec = spec_of(BY_NAME["saturation_curve"], of=answer(**UNKNOWN))
    marks = {layer["mark"]["type"] for layer in spec["layer"]}
    assert marks == {"point"}


def test_failures_have_the_colour_of_limits():
    spec = spec_of(BY_NAME["outcomes"])
    scale = next(e["scale"] for e in encodings(spec, "color"))
    assert dict(zip(scale["domain"], scale["range"], strict=True))["error"] == theme.LIMIT


def costs_of(*minutes):
    """Costs of parts that begin at these minutes of the window of 25, a thousand dollars each."""
    starts = [COSTS["ts"][0] + timedelta(minutes=each) for each in minutes]
    return COSTS.head(len(minutes)).with_columns(
        ts=pl.Series(starts), usd_per_request=pl.lit(1000.0)
    )


@pytest.mark.parametrize(
    ("minutes", "bars"),
    [
        pytest.param((0, 6, 12, 18), 4, id="all as long"),
        pytest.param((0, 7, 14, 21), 4, id="a last one of more than half"),
        pytest.param((0, 6, 12, 18, 24), 4, id="a last one of less than half is no bar"),
    ],
)
def test_part_that_is_cut_short_has_no_bar_but_a_row(minutes, bars):
    spec = charts.cost_per_request(costs_of(*minutes), ANSWER).to_dict()
    drawn = next(rows for rows in spec["datasets"].values() if "allocation_usd" in rows[0])
    assert (len(drawn), len(notes_of(spec)["table"]["rows"])) == (bars, len(minutes))


def test_course_of_two_parts_is_a_sentence():
    notes = notes_of(charts.cost_per_request(costs_of(0, 10, 20.5), ANSWER).to_dict())
    assert notes["empty"].endswith("; too short a window to tell its course.")


@pytest.mark.parametrize(
    ("used", "beside"),
    [
        pytest.param(0.2, ("left", "bottom"), id="right above it where there is room"),
        pytest.param(0.8, ("right", "top"), id="left below it elsewhere"),
    ],
)
def test_name_of_a_point_on_the_cost_curve_is_clear_of_the_curve(used, beside):
    utilisation = {**ANSWER["cost"]["utilisation"], "mid": used}
    spec = charts.cost_by_utilisation(STEPS, answer(cost__utilisation=utilisation)).to_dict()
    names = [each["mark"] for each in spec["layer"] if each["mark"]["type"] == "text"]
    placed = [(each["align"], each["baseline"]) for each in names]
    assert placed == [beside, beside, ("right", "top"), ("right", "top")]


def test_hour_without_a_request_has_no_bar():
    spec = charts.cost_per_request(COSTS, ANSWER).to_dict()
    bars = next(rows for rows in spec["datasets"].values() if "allocation_usd" in rows[0])
    assert [row["usd_per_request"] is None for row in bars] == [False, False, True, False, False]


@pytest.mark.parametrize(
    ("hours", "seconds"),
    [
        pytest.param(0.1, 10.0, id="never finer than ten seconds"),
        pytest.param(25 / 60, 10.0, id="25 minutes in 150 points"),
        pytest.param(3.15, 120.0, id="three hours"),
        pytest.param(24, 600.0, id="a day"),
        pytest.param(24 * 365 * 9, 604800.0, id="years in weeks"),
    ],
)
def test_steps_are_round_and_few(hours, seconds):
    assert charts.readable_step_seconds(answer(window__hours=hours)) == seconds


def test_lab_gets_what_its_older_runtime_draws():
    bundle, _ = theme.for_lab(spec_of(BY_NAME["queue"]))
    vega = bundle[theme.LAB_MIME]
    assert (vega["$schema"][-7:], vega["width"], vega["usermeta"]["embedOptions"]["renderer"]) == (
        "v5.json",
        NOTEBOOK_WIDTH,
        "svg",
    )


def test_lab_shows_its_own_paper_under_a_chart_in_every_theme():
    bundle, _ = theme.for_lab(spec_of(BY_NAME["queue"]))
    assert bundle[theme.LAB_MIME]["background"] == "transparent"


@pytest.mark.parametrize("colour", [theme.GRID, theme.SHADE, theme.INK, theme.SOFT, theme.PAPER])
def test_what_is_no_data_has_the_page_s_colour_else_lab_s_else_one_of_its_own(colour):
    assert re.fullmatch(r"var\(--\w+, var\(--jp-[\w-]+, #\w{6}\)\)", colour)
