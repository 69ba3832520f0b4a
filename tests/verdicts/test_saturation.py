import math
from datetime import timedelta
from statistics import NormalDist, fmean

import numpy as np
import polars as pl
import pytest
from made_steps import START, made_steps, queued, steady
from polars.testing import assert_frame_equal

from vllm_capacity.estimate import Estimate
from vllm_capacity.figures.steps import engine_frames, engine_steps
from vllm_capacity.telemetry.window import open_window
from vllm_capacity.timerange import TimeRange
from vllm_capacity.verdicts.saturation import fit
from vllm_capacity.verdicts.saturation.capacity import fleet_sum
from vllm_capacity.verdicts.saturation.fit import Stretch, engine_fits, saturation
from vllm_capacity.verdicts.saturation.plateau import block_bootstrap
from vllm_capacity.verdicts.saturation.regimes import BY_SEVERITY
from vllm_capacity.verdicts.saturation.stretches import regimes, stretch_frame
from vllm_capacity.verdicts.utilization import headroom, utilization

HELD = 297.0
"""Output tokens/s that the recorded sweep held from 32 clients on, by its own summary."""


def first_seconds(window, seconds):
    start = window.extent.start
    time_range = TimeRange(start, start + timedelta(seconds=seconds))
    return engine_steps(window, time_range=time_range)


@pytest.mark.parametrize("step_seconds", [10.0, 20.0, 30.0, 60.0])
def test_recorded_plateau(sweep, step_seconds):
    found = saturation(engine_steps(sweep, time_range=sweep.extent, step_seconds=step_seconds))
    assert found.capacity.mid == pytest.approx(HELD, rel=0.05)
    assert found.capacity.low >= 0.85 * found.capacity.mid
    assert found.capacity.high <= 1.15 * found.capacity.mid
    assert found.capacity_running_requests.mid == pytest.approx(27, abs=1)
    assert (found.regime, found.bottleneck) == ("client-bound", "kv-bound")


def test_recorded_plateau_is_predicted_from_its_lighter_half(sweep):
    found = saturation(first_seconds(sweep, 914))  # up to 16 clients
    assert found.capacity.low < HELD < found.capacity.high
    running = found.capacity_running_requests
    assert running.low < 27 < running.high
    assert found.bottleneck is None


@pytest.mark.parametrize(
    ("seconds", "why", "held"),
    [
        pytest.param(554, "tokens came as fast at the heaviest load", 102, id="up to 4 clients"),
        pytest.param(
            734, "Finding it would take about 17.4 running requests", 180, id="up to 8 clients"
        ),
    ],
)
def test_too_light_a_load_gives_the_observed_output_as_a_lower_bound(sweep, seconds, why, held):
    found = saturation(first_seconds(sweep, seconds)).capacity
    assert (found.mid, found.high) == (None, None)
    assert why in found.reason
    assert found.low == pytest.approx(held, rel=0.1)
    assert found.low < HELD


def test_an_almost_idle_gpu_has_no_known_capacity(examples):
    window = open_window(examples / "a100-gpt-oss-20b")
    found = saturation(engine_steps(window, time_range=window.extent)).capacity
    assert found.mid is None
    assert "running requests" in found.reason


def test_the_same_server_after_a_restart_is_predicted_alike(restarted):
    steps = engine_steps(restarted, time_range=restarted.extent)
    (fit,) = engine_fits(steps)
    assert fit.capacity.low < HELD < fit.capacity.high
    assert fit.left_out == steps.filter(steps["is_gap"] | steps["is_restart"]).height > 0


def test_a_fleet_adds_up_and_says_so(two_replicas):
    steps = engine_steps(two_replicas, time_range=two_replicas.extent)
    fits = engine_fits(steps)
    found = saturation(steps, fits=fits).capacity
    assert found.mid == pytest.approx(sum(fit.capacity.mid for fit in fits))
    assert found.sources.startswith("sum over 2 engines, each under its own load")


def test_a_fleet_with_an_unknown_engine_is_at_least_what_the_others_are():
    parts = {"a/0": Estimate.known(90, 100, 110, "held"), "b/0": Estimate.unknown("idle")}
    found = fleet_sum(parts)
    assert (found.low, found.mid, found.high) == (90, None, None)
    assert found.reason == "capacity was not reached on 1 of 2 engines (b/0): idle"


@pytest.mark.parametrize(
    ("presence", "expected"),
    [
        pytest.param({}, 200, id="both there throughout"),
        pytest.param({"a/0": 0.5, "b/0": 0.5}, 100, id="one replaced by the other half way"),
        pytest.param({"b/0": 0.25}, 125, id="one scaled up for a quarter of the time"),
    ],
)
def test_engines_count_for_as_long_as_they_were_there(presence, expected):
    each = Estimate.known(90, 100, 110, "held")
    assert fleet_sum({"a/0": each, "b/0": each}, presence=presence).mid == pytest.approx(expected)


@pytest.mark.parametrize(
    ("rate", "capacity", "expected"),
    [
        pytest.param(60.0, Estimate.known(90, 100, 120, "held"), 0.6, id="room left"),
        pytest.param(110.0, Estimate.known(90, 100, 120, "held"), 1.0, id="above what was held"),
        pytest.param(60.0, Estimate.unknown("no bend"), None, id="unknown capacity"),
        pytest.param(
            60.0, Estimate.at_least(100, "seen", reason="steady"), None, id="a lower bound"
        ),
        pytest.param(None, Estimate.exact(100, "held"), None, id="no rate"),
        pytest.param(0.0, Estimate.unknown("no bend"), 0.0, id="nothing generated"),
    ],
)
def test_headroom_and_utilization_are_complements(rate, capacity, expected):
    used = utilization(rate, capacity)
    assert used.mid == (None if expected is None else pytest.approx(expected))
    left = headroom(used)
    known = [(left.low, used.high), (left.mid, used.mid), (left.high, used.low)]
    assert all(one == (None if other is None else 1 - other) for one, other in known)


def test_headroom_under_a_lower_bound_is_at_least():
    found = headroom(utilization(60.0, Estimate.at_least(100, "seen", reason="steady")))
    assert (found.low, found.mid) == (pytest.approx(0.4), None)


def test_headroom_takes_the_utilization_it_is_given():
    steps = made_steps(*[queued(8, 200, 4)] * 6)
    found = saturation(steps, used=Estimate.exact(0.25, "of the bill"))
    assert found.headroom_ratio.mid == 0.75


def test_a_short_limit_is_no_plateau():
    found = saturation(made_steps(*[steady(4, 100)] * 4, queued(8, 150, 9))).capacity
    assert found.mid is None
    assert "the server was at its limit for 20 s" in found.reason


def test_two_minutes_of_long_steps_are_a_plateau():
    found = saturation(made_steps(steady(4, 100), *[queued(8, 150, 9)] * 4, seconds=60)).capacity
    assert found.sources.startswith("mean of 2 steps (120 s)")
    assert found.low < 150 < found.high


def test_the_step_in_which_a_limit_sets_in_is_left_out_whatever_it_is_called():
    setting_in = queued(4, 60, 9, at_ceiling_share=0.1)
    full = {"kv_cache_ratio_mean": 0.96, "kv_cache_ratio_max": 1.0}
    held = [queued(8, 150, 9, preemptions=3.0, **full)] * 3
    (fit,) = engine_fits(made_steps(steady(4, 60), setting_in, *held, seconds=60))
    assert [BY_SEVERITY[each] for each in fit.steps.severity] == [
        "client-bound",
        "prefill-bound",
        *["kv-bound"] * 3,
    ]
    assert fit.capacity.mid == 150


def test_a_step_at_an_end_of_a_stretch_is_not_at_the_limit_throughout():
    spell = [queued(8, 150, 9), *[queued(8, 200, 9)] * 4, queued(8, 150, 9)]
    (fit,) = engine_fits(made_steps(*[steady(4, 60), *spell] * 2, steady(4, 60)))
    assert fit.capacity.mid == pytest.approx(200)
    assert fit.capacity.sources.startswith("mean of 8 steps")


def test_a_queue_in_part_of_the_scrapes_is_no_plateau():
    half = [queued(8, 150, 9, waiting_share=0.6)] * 12
    (fit,) = engine_fits(made_steps(*[steady(4, 60)] * 3, *half))
    assert (fit.kind, fit.capacity.mid) == ("bounded", None)


def with_prompts(step, prompt_tokens_per_second):
    return {**step, "prompt_tokens_per_second": prompt_tokens_per_second}


def test_of_one_minute_at_the_limit_the_best_is_taken_not_the_mean_with_its_ends():
    spell = [with_prompts(queued(8, x, 9), 2 * x) for x in (150, 200, 150)]
    (fit,) = engine_fits(
        made_steps(*[with_prompts(steady(4, 60), 120)] * 3, *spell, steady(4, 60), seconds=30)
    )
    assert fit.capacity.sources.startswith("the best minute of 90 s in which the server")
    assert fit.capacity.low < 200 < fit.capacity.high


def test_a_minute_counts_at_most_the_output_its_prompts_explain():
    mixed = [with_prompts(queued(8, 200, 9), 400.0)] * 12
    drain = [with_prompts(queued(8, 300, 1), 40.0)] * 3
    (fit,) = engine_fits(made_steps(*mixed, *drain))
    assert fit.best.output < 250


BELOW, AT_LIMIT = 0.15 / math.sqrt(60), math.hypot(0.3 / math.sqrt(60), 0.06)
LIGHTER = [with_prompts(steady(1, 26, requests_per_second=0.25), 52)] * 6


@pytest.mark.parametrize(
    ("changes", "lighter", "luck"),
    [
        pytest.param({}, LIGHTER, 0.0, id="tokens as fast as under a lighter load: far from it"),
        pytest.param({}, [], BELOW, id="no lighter load to compare with"),
        pytest.param({"waiting_max": 1.0}, LIGHTER, AT_LIMIT, id="requests waited"),
        pytest.param({"kv_cache_ratio_max": 0.8}, LIGHTER, AT_LIMIT, id="the cache nearly full"),
    ],
)
def test_a_bound_is_the_best_minute_minus_luck(changes, lighter, luck):
    steps = [with_prompts(steady(4, 104, **changes), 208)] * 3
    (fit,) = engine_fits(made_steps(*lighter, *steps))
    one_of_one = NormalDist().inv_cdf(0.95)
    assert fit.capacity.low == pytest.approx(104 * (1 - luck * one_of_one))
    assert ("that may be chance" in fit.capacity.sources) == (luck > 0)


@pytest.mark.parametrize(
    "lighter",
    [
        pytest.param([], id="no lighter load to compare with"),
        pytest.param(
            [with_prompts(steady(30, 60), 700)] * 6, id="fewer run while prompts are read"
        ),
    ],
)
def test_answers_that_go_on_while_prompts_do_not_come_are_no_capacity(lighter):
    """Nothing waits: the server takes its time for prompts, and then has none to read."""
    busy, drain = with_prompts(steady(40, 80), 800), with_prompts(steady(60, 130), 500)
    (fit,) = engine_fits(made_steps(*lighter, *[busy] * 12, *[drain] * 3))
    assert fit.kind == "bounded"
    assert 70 < fit.capacity.low < 90


def saturated_minutes(
    minutes: int, spread: float, prompt_share: float, rng: np.random.Generator
) -> list[dict]:
    """Minutes of a server that works all the time, by a law of its own: a renewal of requests.

    Lengths are log-normal with that coefficient of variation; prompts take that share of its time.
    With about 60 requests per minute it does 100 output tokens/s in the long run, and over all of
    these minutes what their requests allow.
    """
    sigma = math.sqrt(math.log1p(spread**2))
    found = []
    for count in rng.poisson(60, minutes):
        prompts, outputs = rng.lognormal(-(sigma**2) / 2, sigma, (2, max(1, count))).sum(1)
        work = prompt_share * prompts + (1 - prompt_share) * outputs
        pace = 100 / work * rng.normal(1, 0.03)
        step = queued(4, pace * outputs, 1, waiting_share=0.4, requests_per_second=count / 60)
        found += [with_prompts(step, 2 * pace * prompts)] * 3
    return found


@pytest.mark.parametrize("prompt_share", [0.1, 0.5, 0.8])
@pytest.mark.parametrize("spread", [0.3, 1.0, 2.0])
def test_the_best_of_many_minutes_bounds_what_they_hold(spread, prompt_share):
    rng = np.random.default_rng(17)
    shares = []
    for minutes in (2, 5, 20, 60, 200) * 8:
        steps = saturated_minutes(minutes, spread, prompt_share, rng)
        (fit,) = engine_fits(made_steps(*steps))
        assert fit.kind == "bounded"
        held = fmean(step["output_tokens_per_second"] for step in steps)
        shares.append(fit.capacity.low / held)
    assert np.mean(np.array(shares) <= 1) >= 0.97
    assert np.median(shares) > 0.9


def test_longer_than_a_minute_counts_where_it_has_less_luck():
    held = [with_prompts(steady(4, 100, waiting_max=1.0), 200)] * 200
    (fit,) = engine_fits(made_steps(*held))
    assert fit.capacity.low > 98
    assert fit.capacity.sources.startswith("the best 64 minutes observed")


def test_a_minute_that_gave_as_much_as_the_limit_is_at_the_limit_too():
    waiting = [with_prompts(queued(8, 200, 2, waiting_share=0.6), 400)] * 6
    lucky = [with_prompts(steady(8, 215), 430)] * 3
    (fit,) = engine_fits(made_steps(*waiting, *lucky))
    assert (fit.kind, fit.best.is_limited) == ("bounded", True)
    assert fit.capacity.low < 200


def test_no_peak_lies_past_the_load_at_which_the_server_held_requests_back():
    rng = np.random.default_rng(0)
    loads = [n for n in np.linspace(1, 12, 40) for _ in range(3)]
    rising = [
        steady(n, 30 * n / (1 + n / 16) * rng.normal(1, 0.02), requests_per_second=n / 4)
        for n in loads
    ]
    (free,) = engine_fits(made_steps(*rising))
    (held,) = engine_fits(made_steps(*rising, queued(13, 215, 9, requests_per_second=3.0)))
    assert (free.kind, held.kind) == ("extrapolated", "extrapolated")
    assert held.capacity.high < 0.85 * free.capacity.high


def test_a_long_step_alone_is_a_load():
    steps = made_steps(*[steady(n, 30 * n / (1 + n / 8)) for n in (1, 4, 16, 16)], seconds=60)
    (fit,) = engine_fits(steps)
    assert fit.levels.loads.running.tolist() == [1, 4, 16]


def test_one_scrape_per_step_is_a_load_only_if_its_neighbors_agree():
    single = {"scrapes": 1}
    held = [steady(n, 30 * n / (1 + n / 8), **single) for n in (8, 8, 8, 8)]
    chance = [steady(n, 50, **single) for n in (1, 3, 2, 5, 1)]
    (fit,) = engine_fits(made_steps(*held, *chance, seconds=60))
    assert fit.levels.loads.running.tolist() == [8]


def test_load_between_scrapes_is_noted():
    unseen = {"running_mean": 0.0, "running_max": 0.0, "output_tokens_per_second": 1072.0}
    found = saturation(made_steps(*[unseen] * 4)).capacity
    assert "although up to 1,072 output tokens/s were produced" in found.reason
    assert "nothing ran" not in found.reason


@pytest.mark.parametrize("flaw", ["is_gap", "is_restart"])
def test_flawed_steps_are_left_out_and_counted(flaw):
    held = [queued(8, 200 + k % 3, 4) for k in range(8)]
    held[3] = {**held[3], "output_tokens_per_second": 9000.0, flaw: True}
    (fit,) = engine_fits(made_steps(*held))
    assert fit.capacity.high < 300
    assert fit.left_out == 1


def test_without_steps_everything_is_unknown():
    found = saturation(made_steps())
    assert (found.regime, found.bottleneck, found.regimes) == ("unknown", None, ())
    assert found.capacity.reason


def test_the_same_steps_give_the_same_numbers(sweep):
    steps = engine_steps(sweep, time_range=sweep.extent)
    assert saturation(steps, seed=3) == saturation(steps, seed=3)


def test_the_curve_has_a_band_around_it(sweep):
    (fit,) = engine_fits(engine_steps(sweep, time_range=sweep.extent, step_seconds=30.0))
    curve = fit.curve_frame()
    assert (curve["low"] <= curve["mid"]).all()
    assert (curve["mid"] <= curve["high"]).all()
    at_16 = np.interp(15.6, curve["running_requests"], curve["mid"])
    assert at_16 == pytest.approx(264, rel=0.08)


def test_nothing_to_fit_is_an_empty_curve():
    (fit,) = engine_fits(made_steps({"running_mean": None, "scrapes": 0}))
    assert fit.curve_frame().is_empty()


# Coverage: how often the interval from some minutes at saturation (or the lower bound, where less
# than a minute is left) contains the mean over all of them.
@pytest.mark.parametrize(
    ("name", "engine", "seconds"),
    [
        pytest.param("two_replicas", "r1/0", 60, id="a server held back, a minute"),
        pytest.param("two_replicas", "r1/0", 100, id="a server held back, 100 s"),
        pytest.param("sweep", "vllm/0", 120, id="the sweep, two minutes"),
        pytest.param("sweep", "vllm/0", 240, id="the sweep, four minutes"),
    ],
)
def test_plateau_interval_covers_the_whole_stretch(request, name, engine, seconds):
    window = request.getfixturevalue(name)
    steps = engine_steps(window, time_range=window.extent)
    (fit,) = (f for f in engine_fits(steps) if f.engine == engine)
    own = engine_frames(steps)[engine].filter(fit.steps.is_in("kv-bound"))[1:-1]
    whole, length, hits = fit.capacity.mid, seconds // 10, []
    for k in range(0, own.height - length + 1):
        found = saturation(own.slice(k, length))
        low, high = found.capacity.low, found.capacity.high
        hits.append(low <= whole <= (math.inf if high is None else high))
    assert np.mean(hits) >= 0.85


def test_a_bound_is_labelled_as_one_even_next_to_an_idle_engine():
    idle = {"running_mean": 0.0, "running_max": 0.0, "output_tokens_per_second": 0.0}
    steps = pl.concat(
        [
            made_steps(*[steady(4, 100)] * 6),
            made_steps(*[{**idle, "instance": "idle"}] * 6),
        ]
    )
    found = saturation(steps)
    assert found.capacity_kind == "bounded"
    assert 97 < found.capacity.low < 100


def test_evidence_is_made_when_it_is_read_and_once():
    asked = []

    def tell():
        asked.append(1)
        return "why"

    start, end = START, START + timedelta(minutes=1)
    stretch, given = Stretch(start, end, "a", "idle", tell), Stretch(start, end, "a", "idle", "why")
    assert (stretch.seconds, asked) == (60, [])
    assert (stretch.evidence, stretch.as_dict()) == ("why", given.as_dict())
    assert (stretch, asked) == (given, [1])


def test_stretches_are_made_when_they_are_read_and_once(sweep, monkeypatch):
    steps = engine_steps(sweep, time_range=sweep.extent)
    made, stretches = [], fit._stretches
    monkeypatch.setattr(fit, "_stretches", lambda judged: made.append(1) or stretches(judged))
    found = saturation(steps)
    assert made == []
    assert [one.regime for one in found.regimes] == regimes(steps)["regime"].to_list()
    assert found.regimes is found.regimes
    assert made == [1]


def test_rows_of_stretches_are_those_with_evidence(two_replicas):
    steps = engine_steps(two_replicas, time_range=two_replicas.extent)
    judged = {fit.engine: fit.steps for fit in engine_fits(steps)}
    assert_frame_equal(stretch_frame(judged), regimes(steps).drop("evidence"))
    assert_frame_equal(stretch_frame({}), regimes(steps).drop("evidence").clear())


@pytest.mark.parametrize(("count", "block"), [(2_100, 1), (10_080, 1), (43_200, 4)])
def test_longer_blocks_of_a_long_time_are_as_wide_as_what_they_are_of(count, block):
    """Of values that go on for `block` steps, the width is that of the mean of independent ones."""
    rng = np.random.default_rng(count)
    values = np.repeat(rng.normal(100, 10, -(-count // block)), block)[:count]
    ((low, high),) = block_bootstrap([values], np.full(count, 60.0), block=block)
    width = 2 * 1.645 * 10 / math.sqrt(count / block)
    assert low < values.mean() < high
    assert high - low == pytest.approx(width, rel=0.1)
