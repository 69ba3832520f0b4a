"""The charts against load: whose points and whose curve they show, and what they leave out."""

import polars as pl
import pytest
from answer_by_hand import ANSWER, STEPS, answer, estimate, unknown

from vllm_capacity.pages import charts
from vllm_capacity.pages.load_curve import LoadCurve
from vllm_capacity.pages.study import study

CURVE = pl.DataFrame(
    {
        "running_requests": [float(n) for n in range(1, 28)],
        "low": [280 * n / (n + 9) for n in range(1, 28)],
        "mid": [300 * n / (n + 9) for n in range(1, 28)],
        "high": [320 * n / (n + 9) for n in range(1, 28)],
    }
)


def fitted(**changes):
    own = {
        "engine": "r1/0",
        "engines": 1,
        "curve": CURVE,
        "points": STEPS.select("ts", "running", "waiting", "output_tokens_per_second").head(50),
        "capacity": estimate(150.0, 140.0, 160.0),
        "capacity_running": estimate(13.0),
        "left_out": 0,
    }
    return LoadCurve(**own | changes)


def marks(spec):
    return [layer["mark"]["type"] for layer in spec["layer"]]


def rows_of(spec, column):
    return next(rows for rows in spec["datasets"].values() if column in rows[0])


def names(spec):
    return [row["name"] for rows in spec["datasets"].values() for row in rows if "name" in row]


@pytest.fixture(scope="module")
def replicas(examples):
    return study(str(examples / "vllm-two-replicas"))


def test_fit_of_the_only_engine_is_drawn_over_the_points_of_the_window():
    spec = charts.saturation_curve(STEPS, ANSWER, fitted()).to_dict()
    without = charts.saturation_curve(STEPS, ANSWER).to_dict()
    assert (set(marks(spec)) - set(marks(without)), rows_of(spec, "state")) == (
        {"area", "line"},
        rows_of(without, "state"),
    )


def test_fit_of_the_only_engine_leaves_the_subtitle_as_it_was():
    drawn = [charts.saturation_curve(STEPS, ANSWER, fit).to_dict() for fit in (fitted(), None)]
    assert len({each["title"]["subtitle"] for each in drawn}) == 1


def test_steps_that_were_not_fitted_are_counted():
    spec = charts.saturation_curve(STEPS, ANSWER, fitted(left_out=1)).to_dict()
    assert spec["title"]["subtitle"].endswith("leaves out 1 step with a gap or a restart")


def test_one_of_several_engines_is_named_and_drawn_with_its_own_points_and_capacity():
    spec = charts.saturation_curve(STEPS, ANSWER, fitted(engines=2)).to_dict()
    told = spec["title"]["subtitle"].startswith("Engine r1/0 alone, of 2 the nearest")
    assert (told, "capacity 150 tokens/s" in names(spec), len(rows_of(spec, "state"))) == (
        True,
        True,
        fitted().points.drop_nulls().height,
    )


def test_engine_nearest_to_its_limit_is_the_one_its_cache_holds_back(replicas):
    curve = replicas.curve
    assert (curve.engine, curve.engines, curve.points.height <= 150) == ("r1/0", 2, True)


def test_curve_lies_in_its_band(replicas):
    curve = replicas.curve.curve
    assert curve.filter(~pl.col("mid").is_between("low", "high")).is_empty()


def test_load_too_light_to_fit_has_no_curve(examples):
    assert study(str(examples / "a100-gpt-oss-20b")).curve is None


def test_curve_is_fitted_once(replicas):
    assert replicas.curve is replicas.curve


def test_target_has_the_colour_of_what_it_is_for():
    spec = charts.latency_by_load(STEPS, ANSWER, 2.0, 0.1).to_dict()
    rules = [layer["mark"]["color"] for layer in spec["layer"] if layer["mark"]["type"] == "rule"]
    points = next(each for each in spec["layer"] if each["mark"]["type"] == "point")
    scale = points["encoding"]["color"]["scale"]
    assert (rules, scale["domain"]) == (scale["range"], ["first token", "between tokens"])


def test_targets_are_drawn_with_their_values_and_what_they_are_for():
    spec = charts.latency_by_load(STEPS, ANSWER, 2.0, 0.1).to_dict()
    assert set(names(spec)) == {
        "target 2.00\xa0s, first token",
        "target 100\xa0ms, between tokens",
    }


def test_latency_without_targets_has_no_rule():
    assert set(marks(charts.latency_by_load(STEPS, ANSWER).to_dict())) == {"point"}


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
    subtitle = charts.latency_by_load(STEPS, of).to_dict()["title"]["subtitle"]
    assert subtitle == f"{said}; 5 steps with a gap or a restart left out"


@pytest.mark.parametrize("draw", [charts.latency_by_load, charts.preemptions_by_load])
def test_gaps_and_restarts_are_no_points(draw):
    spec = draw(STEPS, ANSWER).to_dict()
    undisturbed = STEPS.filter(~pl.col("is_gap") & ~pl.col("is_restart"))
    table = spec["usermeta"]["vllm_capacity"]["table"]
    assert {len(rows_of(spec, "state")), len(table["rows"])} == {undisturbed.height, 95}


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
    assert spec["title"]["subtitle"].startswith(said)
