"""The rules that every chart keeps; and what charts over time and of cost show."""

import inspect
import json
import re
from datetime import timedelta

import altair as alt
import polars as pl
import pytest
from answer_by_hand import ANSWER, COSTS, STEPS, analysis, answer, estimate
from charts_by_hand import (
    CHARTS,
    FULL,
    HOURS,
    NO_PLAN,
    NONE_AHEAD,
    NOTHING,
    PLAN,
    caption,
    fitted,
    notes_of,
    rows_with,
    spec_of,
)

from vllm_capacity.analysis import Analysis
from vllm_capacity.assumptions import Assumptions, Slo
from vllm_capacity.figures.series import MAX_POINTS
from vllm_capacity.plan import Plan
from vllm_capacity.render import charts
from vllm_capacity.render.charts import theme
from vllm_capacity.render.report import CHART_NOTES, HOVER, NOTEBOOK_WIDTH
from vllm_capacity.render.report.vega import page_chart
from vllm_capacity.render.sections.definitions import DEFINITIONS

each_chart = pytest.mark.parametrize("name", CHARTS)


def encodings(spec, channel):
    return [
        layer["encoding"][channel]
        for layer in spec.get("layer", [spec])
        if channel in layer.get("encoding", {})
    ]


@each_chart
def test_title_says_what_it_is_about_and_caption_what_was_found(name):
    title = spec_of(name)["title"]
    assert (bool(title["text"]), bool(title["subtitle"])) == (True, True)


@each_chart
def test_axes_are_titled(name):
    spec = spec_of(name)
    titles = {
        channel: [
            each.get("title") or (each.get("axis") or {}).get("title")
            for each in encodings(spec, channel)
        ]
        for channel in ("x", "y")
    }
    alone = name == "regimes"  # with one engine, the strip has no engine axis
    assert (any(titles["x"]), any(titles["y"]) or alone) == (True, True)


@each_chart
def test_chart_without_data_says_why(name):
    assert len(notes_of(CHARTS[name](NOTHING, NO_PLAN).to_dict())["empty"]) > 10


@each_chart
def test_chart_has_the_table_behind_it(name):
    table = notes_of(spec_of(name))["table"]
    assert {len(row) for row in table["rows"]} == {len(table["columns"])}


@each_chart
def test_pointer_has_no_more_points_than_a_page_bears(name):
    spec = spec_of(name)
    hovered = [layer for layer in spec["layer"] if str(layer.get("name", "")).startswith(HOVER)]
    sizes = [len(spec["datasets"][layer["data"]["name"]]) for layer in hovered]
    assert max([0, *sizes]) <= MAX_POINTS


@each_chart
def test_chart_is_as_wide_as_a_notebook(name):
    assert spec_of(name)["width"] == NOTEBOOK_WIDTH


@each_chart
def test_chart_asks_for_nothing_outside(name):
    spec = json.dumps(spec_of(name) | {"$schema": ""})
    assert not re.search(r'"(href|url)"|"type": "image"|https?://', spec)


@each_chart
def test_colors_are_variables(name):
    assert not re.search(r'"#[0-9a-fA-F]{3,8}"', json.dumps(spec_of(name)["layer"]))


@each_chart
def test_two_drawings_are_the_same(name):
    assert spec_of(name) == CHARTS[name](FULL, PLAN).to_dict()


@each_chart
def test_chart_links_to_a_definition(name):
    assert notes_of(spec_of(name))["definition"] in {each.figure for each in DEFINITIONS}


@each_chart
def test_static_image_is_drawn(name):
    still = page_chart(spec_of(name), number=1).still
    assert ("<svg" in still, "NaN" in still) == (True, False)


@pytest.mark.parametrize("draw", charts.CHARTS.values(), ids=charts.CHARTS)
def test_docstring_names_the_columns_used(draw):
    assert "Columns used: " in " ".join((draw.__doc__ or "").split())


def test_every_public_function_of_a_module_of_charts_is_a_chart():
    assert {draw.__annotations__["return"] for draw in charts.CHARTS.values()} == {"Chart"}


def test_chart_of_the_package_is_the_function_though_a_module_has_its_name():
    assert charts.saturation is charts.CHARTS["saturation"]


@pytest.mark.parametrize(
    ("drawn", "of"),
    [pytest.param(FULL, Analysis, id="an analysis"), pytest.param(PLAN, Plan, id="a plan")],
)
def test_charts_of_one_object_are_its_methods(drawn, of):
    found = charts.Charts(drawn)
    assert set(charts.charts_of(of)) <= set(dir(found))


def test_method_draws_the_chart_and_keeps_its_docstring_and_its_keywords():
    method = charts.Charts(FULL).saturation
    assert method(axis="kv-usage").to_dict() == spec_of("saturation, KV")
    assert method.__doc__ == charts.CHARTS["saturation"].__doc__
    assert list(inspect.signature(method).parameters) == ["axis"]


def test_an_unknown_chart_lists_the_existing_ones():
    with pytest.raises(AttributeError, match=r"No chart 'saturated'; there are .*saturation"):
        _ = charts.Charts(FULL).saturated


def test_time_is_written_in_utc_in_tooltips():
    tips = [tip for each in encodings(spec_of("queue"), "tooltip") for tip in each]
    times = [tip["timeUnit"] for tip in tips if tip["type"] == "temporal"]
    assert (bool(times), all(unit.startswith("utc") for unit in times)) == (True, True)


@pytest.mark.parametrize(
    ("draw", "name"),
    [
        pytest.param(charts.ttft, "p95 target 2.00\xa0s", id="TTFT"),
        pytest.param(charts.itl, "p95 target 100\xa0ms", id="ITL"),
    ],
)
def test_target_is_drawn_with_its_value(draw, name):
    of = analysis(assumptions=Assumptions(slo=Slo(ttft_p95_seconds=2.0, itl_p95_seconds=0.1)))
    assert [row["name"] for row in rows_with(draw(of).to_dict(), "limit")] == [name]


def test_gap_is_one_shaded_span_and_a_restart_one_mark():
    spec = spec_of("throughput")
    rows = [row["name"] for rows in spec["datasets"].values() for row in rows if "name" in row]
    assert sorted(rows) == ["not scraped", "restart"]


GAP_AT, SHORT_GAP = (40, 44), (80, 82)  # steps without a scrape; steps partly in a gap


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
    starts = STEPS["start"].dt.epoch("ms").to_list()
    return [(starts.index(row["t"]), starts.index(row["t_end"])) for row in rows]


@pytest.mark.parametrize(
    ("name", "span"),
    [
        pytest.param("not scraped", GAP_AT, id="steps without a scrape, not those beside them"),
        pytest.param("gap", SHORT_GAP, id="a gap that is shorter than a step"),
    ],
)
@pytest.mark.parametrize("draw", [charts.throughput, charts.tokens], ids=["lines", "stacked areas"])
def test_gap_is_shaded_where_nothing_was_scraped(draw, name, span):
    wider = steps_with().with_columns(
        is_gap=pl.col("is_gap") | pl.int_range(pl.len()).is_in([GAP_AT[0] - 1, GAP_AT[1]])
    )
    assert span_of(draw(analysis(series=wider)).to_dict(), name) == [span]


@pytest.mark.parametrize(
    ("restart", "drawn", "is_reported"),
    [
        pytest.param((-1, -1), 100, True, id="a counter carries on over a gap"),
        pytest.param(GAP_AT, 96, False, id="what was counted before a restart is lost, not zero"),
    ],
)
@pytest.mark.parametrize("draw", [charts.throughput, charts.request_rate, charts.tokens])
def test_rate_over_a_gap_is_its_mean_but_where_a_restart_hides_it(
    draw, restart, drawn, is_reported
):
    spec = draw(analysis(series=steps_with(restart=restart))).to_dict()
    table = notes_of(spec)["table"]["rows"]
    result = caption(spec).endswith("; where nothing was scraped, its mean over the gap")
    assert (sum(row[1] != "–" for row in table), result) == (drawn, is_reported)


@each_chart
def test_no_name_of_a_line_lies_over_the_lines(name):
    lines = [each for each in spec_of(name)["layer"] if each["mark"]["type"] == "line"]
    named = [each for each in lines if "color" in each["encoding"]]
    over_time = [each for each in lines if each["encoding"]["x"]["field"] == "t"]
    is_labelled = name == "demand_forecast"  # each line has its label at its peak
    several = over_time if len(over_time) > 1 and not is_labelled else []
    assert named == (lines if name == "cost_by_itl" else several)  # one mark draws all GPUs


@pytest.mark.parametrize("most", [None, 0.0018, 0.5])
def test_an_almost_empty_cache_is_a_sentence_not_a_chart(most):
    of = answer(kv_cache_ratio__mean=0.001, kv_cache_ratio__max=most)
    empty = notes_of(charts.kv_cache(analysis(answer=of)).to_dict()).get("empty")
    assert (empty is not None) == (most == 0.0018)


def test_restart_over_several_steps_is_marked_once():
    steps = STEPS.with_columns(is_restart=pl.int_range(pl.len()).is_between(40, 50))
    spec = charts.throughput(analysis(series=steps)).to_dict()
    names = [row["name"] for rows in spec["datasets"].values() for row in rows if "name" in row]
    assert names.count("restart") == 1


@pytest.mark.parametrize("engines", [1, 2])
def test_engines_are_named_in_full_where_there_are_several(engines):
    found = ANSWER.saturation.regimes
    more = [
        type(each)(each.start, each.end, "gpu-1.cluster:8000/0", each.regime, each.evidence)
        for each in found
    ]
    of = answer(saturation__regimes=(*found, *more[: (engines - 1) * len(found)]))
    (y,) = encodings(charts.regimes(analysis(answer=of)).to_dict(), "y")
    assert y["axis"].get("labelLimit", "no labels") == (0 if engines > 1 else "no labels")


def test_failures_have_the_color_of_limits():
    scale = next(each["scale"] for each in encodings(spec_of("outcomes"), "color"))
    assert dict(zip(scale["domain"], scale["range"], strict=True))["error"] == theme.LIMIT


def costs_of(*minutes, is_stub=False):
    """Costs of parts that begin at these minutes of the window of 25, a thousand dollars each."""
    starts = [COSTS["start"][0] + timedelta(minutes=each) for each in minutes]
    return COSTS.head(len(minutes)).with_columns(
        start=pl.Series(starts),
        usd_per_request=pl.lit(1000.0),
        is_stub=pl.lit(is_stub) & (pl.int_range(pl.len()) == len(minutes) - 1),
    )


@pytest.mark.parametrize(
    ("is_stub", "bars"),
    [
        pytest.param(False, 5, id="all as long"),
        pytest.param(True, 4, id="a last one of less than half is no bar"),
    ],
)
def test_part_that_is_cut_short_has_no_bar_but_a_row(is_stub, bars):
    costs = costs_of(0, 6, 12, 18, 24, is_stub=is_stub)
    spec = charts.cost_per_request(analysis(costs=costs)).to_dict()
    drawn = rows_with(spec, "allocation_usd")
    assert (len(drawn), len(notes_of(spec)["table"]["rows"])) == (bars, 5)


def test_course_of_two_parts_is_a_sentence():
    costs = costs_of(0, 10, 20.5, is_stub=True)
    notes = notes_of(charts.cost_per_request(analysis(costs=costs)).to_dict())
    assert notes["empty"].endswith("; the window is too short to show how it changed.")


@pytest.mark.parametrize(
    ("used", "beside"),
    [
        pytest.param(0.2, ("left", "bottom"), id="right above it where there is room"),
        pytest.param(0.8, ("right", "top"), id="left below it elsewhere"),
    ],
)
def test_name_of_a_point_on_the_cost_curve_is_clear_of_the_curve(used, beside):
    of = answer(cost__utilization=estimate(used, used - 0.02, used + 0.02))
    spec = charts.cost_by_utilization(analysis(answer=of)).to_dict()
    names = [each["mark"] for each in spec["layer"] if each["mark"]["type"] == "text"]
    placed = [(each["align"], each["baseline"]) for each in names]
    assert placed == [beside, beside, ("right", "top"), ("right", "top")]


IDLE = STEPS.with_columns(
    *(pl.col(name) * 0 for name in STEPS.columns if name.startswith(("finished_", "running_"))),
    *(pl.col(name) * 0 for name in STEPS.columns if name.endswith(("_per_second", "waiting_mean"))),
)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        pytest.param("throughput", "Not one token was generated in this window.", id="output"),
        pytest.param("request_rate", "No request finished in this window.", id="requests"),
        pytest.param("tokens", "Not one token was read or generated in this window.", id="tokens"),
        pytest.param("outcomes", "No request finished in this window.", id="outcomes"),
        pytest.param("queue", "12.0 running on average, 40 at most; up to 45 waiting.", id="queue"),
        pytest.param(
            "saturation", "No request ran in this window: there is no load to draw.", id="load"
        ),
        pytest.param(
            "latency_by_load", "No request ran in this window: there is no load to draw.", id="KV"
        ),
        pytest.param("demand_forecast", "No request came in 100 whole hours.", id="demand"),
    ],
)
def test_window_in_which_nothing_ran_is_a_sentence_not_a_line_on_the_axis(name, sentence):
    idle = analysis(
        series=IDLE,
        load_curve=fitted(points=IDLE),
        hours=HOURS.with_columns(requests=pl.lit(0.0)),
        demand_ahead=NONE_AHEAD,
    )
    assert notes_of(charts.CHARTS[name](idle).to_dict())["empty"] == sentence


def test_hour_without_a_request_has_no_bar():
    bars = rows_with(spec_of("cost_per_request"), "allocation_usd")
    assert [row["usd_per_request"] is None for row in bars] == [False, False, True, False, False]


def test_lab_gets_what_its_older_runtime_draws():
    bundle, _ = theme.for_lab(spec_of("queue"))
    vega = bundle[theme.LAB_MIME]
    assert (vega["$schema"][-7:], vega["width"], vega["usermeta"]["embedOptions"]["renderer"]) == (
        "v5.json",
        NOTEBOOK_WIDTH,
        "svg",
    )


def test_lab_shows_its_own_paper_under_a_chart_in_every_theme():
    bundle, _ = theme.for_lab(spec_of("queue"))
    assert bundle[theme.LAB_MIME]["background"] == "transparent"


@pytest.mark.parametrize("color", [theme.GRID, theme.SHADE, theme.INK, theme.SOFT, theme.PAPER])
def test_what_is_no_data_has_the_page_s_color_else_lab_s_else_one_of_its_own(color):
    assert re.fullmatch(r"var\(--\w+, var\(--jp-[\w-]+, #\w{6}\)\)", color)


@each_chart
def test_report_run_shows_what_was_validated_here(name):
    assert theme.page_bundle(CHARTS[name](FULL, PLAN)) == theme.for_page(spec_of(name))


@pytest.mark.parametrize(
    ("usermeta", "is_shown"),
    [
        pytest.param({CHART_NOTES: {}}, True, id="ours is valid: every one of them is tested"),
        pytest.param({}, False, id="an analyst's is validated when it is shown"),
    ],
)
def test_report_run_validates_charts_that_are_not_ours(usermeta, is_shown):
    chart = alt.Chart(pl.DataFrame({"a": [1]}), usermeta=usermeta).mark_point().encode(x="a:Q")
    chart["height"] = "tall"
    assert bool(theme.page_bundle(chart)) is is_shown
