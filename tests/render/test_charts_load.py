"""The charts against load: whose points and whose curve they show, and what they leave out."""

import re

import polars as pl
import pytest
from answer_by_hand import STEPS, analysis, unknown
from charts_by_hand import AGAINST_LOAD, CURVE, caption, fitted, marks, names, notes_of, rows_with

from vllm_capacity.analysis import Analysis
from vllm_capacity.assumptions import Assumptions, Slo
from vllm_capacity.errors import InputError
from vllm_capacity.facts.metrics import PREEMPTIONS, RUNNING
from vllm_capacity.render import charts
from vllm_capacity.render.charts import theme
from vllm_capacity.telemetry.rows import RowBuffer, SeriesKey
from vllm_capacity.telemetry.store import write_window
from vllm_capacity.telemetry.window import open_window
from vllm_capacity.timerange import TimeRange, parse_instant

AXES = {
    "concurrency": "concurrency: running requests, mean per step",
    "kv-usage": "KV-cache usage, mean per step",
}
each_axis = pytest.mark.parametrize("axis", AXES)
each_chart = pytest.mark.parametrize("draw", [charts.CHARTS[name] for name in AGAINST_LOAD])
FIVE_LEFT_OUT = "; 5 steps with a gap or a restart left out"


def spec_of(draw, axis="concurrency", **made):
    """The chart of the analysis by hand, with these of its properties."""
    return draw(analysis(**{"load_curve": fitted()} | made), axis=axis).to_dict()


def points(spec):
    return next(each for each in spec["layer"] if each["mark"]["type"] == "point")


@pytest.fixture(scope="module")
def replicas(two_replicas):
    return Analysis.of(two_replicas)


def test_fit_is_drawn_over_the_points():
    spec = spec_of(charts.saturation)
    without = spec_of(charts.saturation, load_curve=fitted(curve=CURVE.clear()))
    assert set(marks(spec)) - set(marks(without)) == {"area", "line"}


def test_fit_is_of_concurrency_alone():
    assert "line" not in marks(spec_of(charts.saturation, "kv-usage"))


def test_only_engine_is_not_named():
    assert caption(spec_of(charts.saturation)).startswith("Output levels off")


def test_steps_that_were_not_fitted_are_counted():
    spec = spec_of(charts.saturation, load_curve=fitted(left_out=9))
    assert caption(spec).endswith(
        f"{FIVE_LEFT_OUT}; of the finer steps that the curve is fitted to, 9"
    )


@pytest.mark.parametrize(
    "engine",
    [
        pytest.param(fitted(curve=CURVE.clear(), left_out=9), id="without a curve"),
        pytest.param(fitted(left_out=5), id="as many as are not drawn"),
    ],
)
def test_steps_left_out_are_counted_once(engine):
    assert caption(spec_of(charts.saturation, load_curve=engine)).endswith(FIVE_LEFT_OUT)


@each_chart
@each_axis
def test_one_of_several_engines_is_named_and_drawn_alone(draw, axis):
    spec = spec_of(draw, axis, load_curve=fitted(engines=2, points=STEPS.tail(60)))
    own = STEPS.tail(60).filter(~pl.col("is_gap") & ~pl.col("is_restart"))
    is_reported = caption(spec).startswith("Only engine r1/0 is drawn: of 2, it is the nearest to")
    assert (is_reported, len(notes_of(spec)["table"]["rows"])) == (True, own.height)


@each_chart
@each_axis
def test_window_without_an_engine_says_so(draw, axis):
    notes = notes_of(spec_of(draw, axis, load_curve=None))
    assert notes["empty"] == "No engine reported to this window."


@each_chart
def test_an_unknown_axis_lists_the_existing_ones(draw):
    with pytest.raises(InputError, match="'load' of load; give 'concurrency' or 'kv-usage'"):
        spec_of(draw, "load")


def test_engine_has_its_own_capacity():
    assert {"capacity 150 tokens/s", "knee at 13.0"} < set(names(spec_of(charts.saturation)))


def test_engine_has_its_own_preemptions():
    assert "7 preemptions in all" in caption(spec_of(charts.preemptions_by_load))


def test_unknown_capacity_draws_no_band():
    engine = fitted(capacity=unknown(), capacity_running=unknown(), curve=CURVE.clear())
    assert set(marks(spec_of(charts.saturation, load_curve=engine))) == {"point"}


def test_engine_has_its_own_throughput_within_the_targets(replicas):
    of = replicas.load_curve.of(replicas.answer, Slo(2.0, 0.1))
    named = [each for each in of.slo.throughput.basis if "met with" in each]
    assert len(named) == 1  # a sum over engines would name each one's load


@pytest.fixture
def light_pair(tmp_path):
    """Two engines too light to fit, r0 with one request, r1 with two; both preempt every 2 s."""
    buffer, start = RowBuffer(), 1_795_492_800
    for second in range(0, 60, 2):
        at = (start + second) * 1_000_000
        for instance, running, preempted in (("r0", 1.0, 3.0), ("r1", 2.0, 1.0)):
            buffer.scrape(instance, at, is_up=True, seconds=None)
            values = {RUNNING: running, PREEMPTIONS: preempted * second / 2}
            for metric, value in values.items():
                kind = "gauge" if metric == RUNNING else "counter"
                key = SeriesKey(metric, kind, instance, "0", "m")
                buffer.sample(buffer.series(key, exposed=metric), at, value)
    return Analysis.of(
        open_window(write_window(tmp_path / "pair", buffer.rows(), {"source": "test"}))
    )


def test_of_engines_too_light_to_fit_the_heavier_is_drawn_with_its_own_preemptions(light_pair):
    drawn = light_pair.load_curve
    found = (drawn.engine, drawn.curve.height, drawn.preemptions, light_pair.answer.preemptions)
    assert found == ("r1/0", 0, 29.0, 29 * 4)


@pytest.mark.parametrize(
    ("axis", "limit"),
    [
        pytest.param("concurrency", "knee at 13.0", id="requests, at the knee"),
        pytest.param("kv-usage", "90\xa0% full", id="cache, where it is full"),
    ],
)
@each_chart
def test_limit_of_the_load_is_a_named_rule(draw, axis, limit):
    assert limit in names(spec_of(draw, axis))


def test_unknown_knee_has_no_rule():
    engine = fitted(capacity_running=unknown())
    assert not names(spec_of(charts.preemptions_by_load, load_curve=engine))


@each_chart
@each_axis
def test_figure_is_drawn_against_the_load_that_was_asked_for(draw, axis):
    assert points(spec_of(draw, axis))["encoding"]["x"]["title"] == AXES[axis]


@each_chart
@each_axis
def test_a_load_without_steps_is_given_as_the_reason(draw, axis):
    blind = STEPS.with_columns(
        pl.lit(None, dtype=pl.Float64).alias(name)
        for name in ("running_mean", "kv_cache_ratio_mean")
    )
    empty = notes_of(spec_of(draw, axis, load_curve=fitted(points=blind)))["empty"]
    assert empty.startswith("No data for this chart: no step has both ")
    assert empty.endswith(f" and its load ({AXES[axis]}).")


@pytest.mark.parametrize(
    ("total", "caption"),
    [
        pytest.param(0, "No request was preempted; ", id="none"),
        pytest.param(
            7,
            "7 preemptions in all; KV-cache usage peaked at 100\xa0%, none of them in a step that "
            "can be drawn; ",
            id="in a gap alone",
        ),
    ],
)
@each_axis
def test_points_all_on_the_axis_are_replaced_by_a_sentence(axis, total, caption):
    still = STEPS.with_columns(preemptions_per_minute=pl.lit(0.0))
    engine = fitted(points=still, preemptions=total)
    spec = spec_of(charts.preemptions_by_load, axis, load_curve=engine)
    assert notes_of(spec)["empty"].startswith(caption)


@pytest.mark.parametrize("draw", [charts.saturation, charts.latency_by_load])
def test_cache_all_but_empty_is_a_sentence(draw):
    unused = STEPS.with_columns(kv_cache_ratio_max=pl.lit(0.0018))
    empty = notes_of(spec_of(draw, "kv-usage", load_curve=fitted(points=unused)))["empty"]
    assert empty == "KV-cache usage peaked at 0.18\xa0%: it was no bottleneck."


@each_chart
@each_axis
def test_chart_against_one_load_stands_beside_that_against_the_other(draw, axis):
    assert notes_of(spec_of(draw, axis))["half"]


def test_curve_lies_in_its_band(replicas):
    curve = replicas.load_curve.curve
    assert curve.filter(~pl.col("mid").is_between("low", "high")).is_empty()


def test_engine_nearest_to_its_limit_is_the_kv_bound_one(replicas):
    curve = replicas.load_curve
    assert (curve.engine, curve.engines, curve.points.height <= 150) == ("r1/0", 2, True)


def test_load_too_light_to_fit_has_points_and_no_curve(examples):
    light = Analysis.of(open_window(examples / "a100-gpt-oss-20b"))
    drawn = marks(charts.saturation(light).to_dict())
    assert (light.load_curve.curve.height, "line" in drawn, "point" in drawn) == (0, False, True)


def test_curve_ends_where_it_reaches_a_capacity_that_was_seen(sweep):
    found = Analysis.of(sweep).load_curve
    *before, last = found.curve["mid"]
    capacity = found.fit.capacity.mid
    assert (max(before) <= capacity < last, last < 1.02 * capacity) == (True, True)


def test_loads_that_show_no_capacity_have_no_curve(sweep):
    start, end = (parse_instant(f"2026-11-24T04:0{minute}:00Z") for minute in (0, 3))
    few = Analysis(sweep, TimeRange(start, end))
    drawn = marks(charts.saturation(few).to_dict())
    curve = few.load_curve
    assert (curve.fit.capacity.mid, curve.curve.height, "line" in drawn) == (None, 0, False)


@pytest.mark.parametrize(
    ("kind", "is_reported"),
    [
        pytest.param("measured", True, id="measured"),
        pytest.param("extrapolated", False, id="extrapolated"),
    ],
)
def test_a_measured_capacity_is_labelled_a_mean(kind, is_reported):
    found = caption(spec_of(charts.saturation, load_curve=fitted(kind=kind)))
    assert ("it is a mean, so that steps lie above and below it" in found) == is_reported


def within(ttft_p95_seconds=None, itl_p95_seconds=None):
    return Assumptions(slo=Slo(ttft_p95_seconds, itl_p95_seconds))


def test_target_has_the_color_of_limits():
    spec = spec_of(charts.latency_by_load, assumptions=within(2.0, 0.1))
    rules = [layer["mark"]["color"] for layer in spec["layer"] if layer["mark"]["type"] == "rule"]
    assert rules[-2:] == [theme.LIMIT] * 2


@pytest.mark.parametrize(
    ("loads", "waits", "place"),
    [
        pytest.param([9.0], [0.05], ("left", "bottom"), id="no point near"),
        pytest.param([1.0, 10.0], [2.5, 9.0], ("left", "top"), id="points above its left end"),
        pytest.param([1.0, 1.0, 10.0], [2.5, 1.5, 9.0], ("right", "bottom"), id="points at left"),
    ],
)
def test_target_label_is_where_the_fewest_points_are(loads, waits, place):
    rows = STEPS.head(len(loads)).with_columns(
        running_mean=pl.Series(loads),
        ttft_p95_seconds=pl.Series(waits),
        itl_p95_seconds=pl.lit(0.001),
    )
    engine = fitted(points=rows, capacity_running=unknown())
    spec = spec_of(charts.latency_by_load, load_curve=engine, assumptions=within(2.0))
    label = next(each["mark"] for each in spec["layer"] if each["mark"]["type"] == "text")
    assert (label["align"], label["baseline"]) == place


@pytest.mark.parametrize(
    ("itl_seconds", "baseline"),
    [
        pytest.param(0.15, "bottom", id="the axis ends at the rule"),
        pytest.param(0.05, "top", id="the axis goes on below"),
    ],
)
def test_target_label_never_covers_the_axis_labels(itl_seconds, baseline):
    rows = STEPS.head(1).with_columns(
        ttft_p95_seconds=pl.lit(0.12), itl_p95_seconds=pl.lit(itl_seconds)
    )
    rows = pl.concat([rows.with_columns(running_mean=load) for load in (1.0, 9.0)])
    spec = spec_of(
        charts.latency_by_load,
        load_curve=fitted(points=rows, capacity_running=unknown()),
        assumptions=within(None, 0.1),
    )
    label = next(each["mark"] for each in spec["layer"] if each["mark"]["type"] == "text")
    assert label["baseline"] == baseline


def test_targets_are_drawn_with_their_values_and_what_they_are_for():
    spec = spec_of(charts.latency_by_load, assumptions=within(2.0, 0.1))
    assert set(names(spec)) - {"knee at 13.0"} == {
        "TTFT target 2.00\xa0s",
        "ITL target 100\xa0ms",
    }


def test_latency_without_targets_has_the_knee_s_rule_alone():
    assert names(spec_of(charts.latency_by_load)) == ["knee at 13.0"]


def test_throughput_within_the_targets_that_is_not_known_says_why():
    why = "Throughput within the latency targets not known: no latency target was given"
    assert caption(spec_of(charts.latency_by_load)) == f"{why}{FIVE_LEFT_OUT}"


def test_throughput_within_the_targets_is_stated(sweep):
    of = Analysis.of(sweep, assumptions=within(2.0))
    found = caption(charts.latency_by_load(of).to_dict())
    assert re.match("It can serve 2.* output tokens/s within the latency targets$", found)


@each_chart
@each_axis
def test_gaps_and_restarts_are_no_points_and_counted(draw, axis):
    spec = spec_of(draw, axis)
    rows = notes_of(spec)["table"]["rows"]
    assert {len(rows_with(spec, "state")), len(rows)} == {95}
    assert FIVE_LEFT_OUT in caption(spec)


def test_preemptions_are_counted_per_minute(sweep):
    points = Analysis.of(sweep).load_curve.points.drop_nulls("preemptions")
    minutes = (points["end"] - points["start"]).dt.total_microseconds() / 60e6
    assert (points["preemptions_per_minute"] * minutes).to_list() == pytest.approx(
        points["preemptions"].to_list()
    )


@pytest.mark.parametrize(
    ("total", "found"),
    [
        pytest.param(561, "561 preemptions in all", id="counted"),
        pytest.param(0, "No request was preempted", id="none"),
        pytest.param(None, "Preemptions were not counted", id="not counted is not none"),
    ],
)
def test_preemptions_say_how_many_there_were(total, found):
    spec = spec_of(charts.preemptions_by_load, load_curve=fitted(preemptions=total))
    assert caption(spec).startswith(found)
