"""The charts against load: whose points and whose curve they show, and what they leave out."""

import polars as pl
import pytest
from answer_by_hand import ANSWER, STEPS, answer, estimate, unknown

from vllm_capacity.figures import gauges, traffic
from vllm_capacity.load_curve import LoadCurve
from vllm_capacity.render import charts
from vllm_capacity.render.charts import theme
from vllm_capacity.render.study import study
from vllm_capacity.telemetry.rows import RowBuffer, SeriesKey
from vllm_capacity.telemetry.store import write_window
from vllm_capacity.verdicts.saturation import STEP_SCHEMA

CURVE = pl.DataFrame(
    {
        "running_requests": [float(n) for n in range(1, 28)],
        "low": [280 * n / (n + 9) for n in range(1, 28)],
        "mid": [300 * n / (n + 9) for n in range(1, 28)],
        "high": [320 * n / (n + 9) for n in range(1, 28)],
    }
)


AGAINST = {
    "output by requests": charts.saturation_curve,
    "output by cache": charts.kv_saturation_curve,
    "latency by requests": charts.latency_by_load,
    "latency by cache": charts.latency_by_kv,
    "preemptions by requests": charts.preemptions_by_load,
    "preemptions by cache": charts.preemptions_by_kv,
}
TITLES = ("running requests, mean of a step", "KV cache in use, mean of a step")
each_against = pytest.mark.parametrize("draw", AGAINST.values(), ids=AGAINST)


def fitted(**changes):
    own = {
        "engine": "r1/0",
        "engines": 1,
        "curve": CURVE,
        "points": STEPS.tail(60),
        "steps": pl.DataFrame(schema=STEP_SCHEMA),
        "capacity_kind": "measured",
        "capacity": estimate(150.0, 140.0, 160.0),
        "capacity_running": estimate(13.0),
        "preemptions": 7.0,
        "left_out": 0,
    }
    return LoadCurve(**own | changes)


def marks(spec):
    return [layer["mark"]["type"] for layer in spec["layer"]]


def points(spec):
    return next(each for each in spec["layer"] if each["mark"]["type"] == "point")


def rows_of(spec, column):
    return next(rows for rows in spec["datasets"].values() if column in rows[0])


def names(spec):
    return [row["name"] for rows in spec["datasets"].values() for row in rows if "name" in row]


def subtitle(spec):
    return spec["title"]["subtitle"]


@pytest.fixture(scope="module")
def replicas(examples):
    return study(str(examples / "vllm-two-replicas"))


def test_fit_is_drawn_over_the_points():
    spec = charts.saturation_curve(STEPS, ANSWER, fitted()).to_dict()
    without = charts.saturation_curve(STEPS, ANSWER).to_dict()
    assert set(marks(spec)) - set(marks(without)) == {"area", "line"}


def test_only_engine_is_not_named():
    assert subtitle(charts.saturation_curve(STEPS, ANSWER, fitted()).to_dict())[:6] == "Output"


def test_steps_that_were_not_fitted_are_counted():
    spec = charts.saturation_curve(STEPS, ANSWER, fitted(left_out=9)).to_dict()
    assert subtitle(spec).endswith(
        "; 5 steps with a gap or a restart left out; the curve's own finer steps leave out 9"
    )


@pytest.mark.parametrize(
    "engine",
    [
        pytest.param(fitted(curve=CURVE.clear(), left_out=9), id="without a curve"),
        pytest.param(fitted(left_out=5), id="as many as are not drawn"),
    ],
)
def test_steps_left_out_are_counted_once(engine):
    spec = charts.saturation_curve(STEPS, ANSWER, engine).to_dict()
    assert subtitle(spec).endswith("; 5 steps with a gap or a restart left out")


@each_against
def test_one_of_several_engines_is_named_and_drawn_alone(draw):
    spec = draw(STEPS, ANSWER, engine=fitted(engines=2)).to_dict()
    own = fitted().points.filter(~pl.col("is_gap") & ~pl.col("is_restart"))
    table = spec["usermeta"]["vllm_capacity"]["table"]
    told = subtitle(spec).startswith("Engine r1/0 alone, of 2 the nearest to its limit. ")
    assert (told, len(table["rows"])) == (True, own.height)


@each_against
def test_several_engines_of_which_none_was_chosen_are_said_to_be_added(draw):
    spec = draw(STEPS, answer(window__engines=3)).to_dict()
    assert subtitle(spec).startswith("All 3 engines added up. ")


def test_engine_drawn_alone_has_its_own_capacity():
    spec = charts.saturation_curve(STEPS, ANSWER, fitted(engines=2)).to_dict()
    assert {"capacity 150 tokens/s", "knee at 13.0"} < set(names(spec))


def test_engine_drawn_alone_has_its_own_preemptions():
    spec = charts.preemptions_by_load(STEPS, ANSWER, fitted(engines=2)).to_dict()
    assert "7 preemptions in all" in subtitle(spec)


def test_engine_drawn_alone_is_told_what_it_alone_holds_within_the_targets(replicas):
    held = replicas.curve.told(replicas.answer, 2.0, 0.1)["slo"]
    own = held["capacity_output_tokens_per_second"]
    assert own["basis"].count("met with") == 1  # a sum over engines names the load of each


@pytest.fixture
def light_pair(tmp_path):
    """Two engines too light to fit, r0 with one request, r1 with two; both preempt every 2 s."""
    buffer, start = RowBuffer(), 1_795_492_800
    for second in range(0, 60, 2):
        at = (start + second) * 1_000_000
        for instance, running, preempted in (("r0", 1.0, 3.0), ("r1", 2.0, 1.0)):
            buffer.scrape(instance, at, is_up=True, seconds=None)
            told = {gauges.RUNNING: running, traffic.PREEMPTIONS: preempted * second / 2}
            for metric, value in told.items():
                kind = "gauge" if metric == gauges.RUNNING else "counter"
                key = SeriesKey(metric, kind, instance, "0", "m")
                buffer.sample(buffer.series(key, exposed=metric), at, value)
    return study(str(write_window(tmp_path / "pair", buffer.rows(), {"source": "test"})))


def test_of_engines_too_light_to_fit_the_heavier_is_drawn_with_its_own_preemptions(light_pair):
    drawn = light_pair.curve
    told = (drawn.engine, drawn.curve.height, drawn.preemptions, light_pair.answer["preemptions"])
    assert told == ("r1/0", 0, 29.0, 29 * 4)


@pytest.mark.parametrize(
    ("draw", "limit"),
    [
        pytest.param(charts.latency_by_load, "knee at 27.0", id="requests, at the knee"),
        pytest.param(charts.latency_by_kv, "90\xa0% full", id="cache, where it is full"),
    ],
)
def test_load_s_limit_is_a_named_rule(draw, limit):
    assert limit in names(draw(STEPS, ANSWER).to_dict())


def test_unknown_knee_has_no_rule():
    of = answer(saturation__capacity_running_requests=unknown())
    assert not names(charts.preemptions_by_load(STEPS, of).to_dict())


@pytest.mark.parametrize(
    ("draw", "title"),
    [pytest.param(each, TITLES[name.endswith("cache")]) for name, each in AGAINST.items()],
    ids=AGAINST,
)
def test_figure_is_drawn_against_the_load_of_its_name(draw, title):
    assert points(draw(STEPS, ANSWER).to_dict())["encoding"]["x"]["title"] == title


@each_against
def test_load_that_no_step_tells_is_said_to_be_the_reason(draw):
    blind = STEPS.with_columns(
        pl.lit(None, dtype=pl.Float64).alias(name) for name in ("running", "kv_cache_ratio_mean")
    )
    empty = draw(blind, ANSWER).to_dict()["usermeta"]["vllm_capacity"]["empty"]
    assert empty.startswith("No step tells both")


@pytest.mark.parametrize(
    ("total", "said"),
    [
        pytest.param(0, "No request was preempted; ", id="none"),
        pytest.param(
            7,
            "7 preemptions in all; the KV cache was 100\xa0% full at most, none of them in a step "
            "that can be drawn; ",
            id="in a gap alone",
        ),
    ],
)
@pytest.mark.parametrize("draw", [charts.preemptions_by_load, charts.preemptions_by_kv])
def test_points_that_would_all_lie_on_the_axis_are_a_sentence(draw, total, said):
    spec = draw(STEPS.with_columns(preemptions=pl.lit(0.0)), answer(preemptions=total)).to_dict()
    assert spec["usermeta"]["vllm_capacity"]["empty"].startswith(said)


@pytest.mark.parametrize("draw", [charts.kv_saturation_curve, charts.latency_by_kv])
def test_cache_all_but_empty_is_a_sentence(draw):
    of = answer(kv_cache_ratio={"mean": 0.001, "max": 0.0018})
    empty = draw(STEPS, of).to_dict()["usermeta"]["vllm_capacity"]["empty"]
    assert empty == "The KV cache was 0.18\xa0% full at most: it held nothing back."


@each_against
def test_chart_against_a_load_stands_beside_that_against_the_other(draw):
    assert draw(STEPS, ANSWER).to_dict()["usermeta"]["vllm_capacity"]["half"]


@pytest.fixture(scope="module")
def sweep(examples):
    return study(str(examples / "vllm-sweep"))


def test_curve_ends_where_it_reaches_a_capacity_that_was_seen(sweep):
    *before, last = sweep.curve.curve["mid"]
    capacity = sweep.curve.capacity["mid"]
    assert (max(before) <= capacity < last, last < 1.02 * capacity) == (True, True)


def test_loads_that_let_no_capacity_be_told_have_no_curve(examples):
    few = study(
        str(examples / "vllm-sweep"), start="2026-11-24T04:00:00Z", end="2026-11-24T04:03:00Z"
    )
    spec = charts.saturation_curve(few.steps, few.answer, few.curve).to_dict()
    assert (few.curve.capacity["mid"], few.curve.curve.height, "line" in marks(spec)) == (
        None,
        0,
        False,
    )


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        pytest.param("measured", True, id="measured"),
        pytest.param("extrapolated", False, id="extrapolated"),
    ],
)
def test_capacity_that_was_seen_is_said_to_be_a_mean(kind, said):
    of = answer(saturation__capacity_kind=kind)
    found = subtitle(charts.saturation_curve(STEPS, of).to_dict())
    assert ("the mean of steps that scatter about it" in found) == said


def test_engine_nearest_to_its_limit_is_the_one_its_cache_holds_back(replicas):
    curve = replicas.curve
    assert (curve.engine, curve.engines, curve.points.height <= 150) == ("r1/0", 2, True)


def test_curve_lies_in_its_band(replicas):
    curve = replicas.curve.curve
    assert curve.filter(~pl.col("mid").is_between("low", "high")).is_empty()


def test_load_too_light_to_fit_has_points_and_no_curve(examples):
    light = study(str(examples / "a100-gpt-oss-20b"))
    spec = charts.saturation_curve(light.steps, light.answer, light.curve).to_dict()
    assert (light.curve.curve.height, "line" in marks(spec), "point" in marks(spec)) == (
        0,
        False,
        True,
    )


def test_curve_is_fitted_once(replicas):
    assert replicas.curve is replicas.curve


def test_target_has_the_colour_of_limits():
    spec = charts.latency_by_load(STEPS, ANSWER, 2.0, 0.1).to_dict()
    rules = [layer["mark"]["color"] for layer in spec["layer"] if layer["mark"]["type"] == "rule"]
    assert rules[:2] == [theme.LIMIT] * 2


@pytest.mark.parametrize(
    ("loads", "waits", "place"),
    [
        pytest.param([9.0], [0.05], ("left", "bottom"), id="no point near"),
        pytest.param([1.0, 10.0], [2.5, 9.0], ("left", "top"), id="points above its left end"),
        pytest.param([1.0, 1.0, 10.0], [2.5, 1.5, 9.0], ("right", "bottom"), id="points at left"),
    ],
)
def test_name_of_a_target_stands_where_fewest_points_lie(loads, waits, place):
    rows = STEPS.head(len(loads)).with_columns(
        running=pl.Series(loads), ttft_p95_seconds=pl.Series(waits), itl_p95_seconds=pl.lit(0.001)
    )
    spec = charts.latency_by_load(rows, ANSWER, 2.0).to_dict()
    label = next(each["mark"] for each in spec["layer"] if each["mark"]["type"] == "text")
    assert (label["align"], label["baseline"]) == place


def test_targets_are_drawn_with_their_values_and_what_they_are_for():
    spec = charts.latency_by_load(STEPS, ANSWER, 2.0, 0.1).to_dict()
    assert set(names(spec)) - {"knee at 27.0"} == {
        "target 2.00\xa0s, first token",
        "target 100\xa0ms, between tokens",
    }


def test_latency_without_targets_has_the_knee_s_rule_alone():
    assert names(charts.latency_by_load(STEPS, ANSWER).to_dict()) == ["knee at 27.0"]


@pytest.mark.parametrize(
    ("held", "said"),
    [
        pytest.param(estimate(220.0), "Within the targets it holds 220 output tokens/s", id="held"),
        pytest.param(
            unknown("no target given"),
            "What it holds within the targets is not known: no target given",
            id="not known says why",
        ),
    ],
)
def test_latency_says_what_is_held_within_the_targets(held, said):
    of = answer(slo__capacity_output_tokens_per_second=held)
    spec = charts.latency_by_load(STEPS, of).to_dict()
    assert subtitle(spec) == f"{said}; 5 steps with a gap or a restart left out"


@each_against
def test_gaps_and_restarts_are_no_points_and_counted(draw):
    spec = draw(STEPS, ANSWER).to_dict()
    table = spec["usermeta"]["vllm_capacity"]["table"]
    assert {len(rows_of(spec, "state")), len(table["rows"])} == {95}
    assert "; 5 steps with a gap or a restart left out" in subtitle(spec)


def test_preemptions_are_counted_a_minute():
    rows = rows_of(charts.preemptions_by_load(STEPS, ANSWER).to_dict(), "amount")
    assert {row["amount"] for row in rows} == {0.0, 12.0}  # three in a step of 15 s


@pytest.mark.parametrize(
    ("total", "said"),
    [
        pytest.param(561, "561 preemptions in all", id="counted"),
        pytest.param(0, "No request was preempted", id="none"),
        pytest.param(None, "Preemptions were not counted", id="not counted is not none"),
    ],
)
def test_preemptions_say_how_many_there_were(total, said):
    spec = charts.preemptions_by_load(STEPS, answer(preemptions=total)).to_dict()
    assert subtitle(spec).startswith(said)
