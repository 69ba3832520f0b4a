"""Figures derived from an answer, an analysis or a plan, compared with the JSON."""

from datetime import UTC, datetime, timedelta

import polars as pl
import pytest
from msgspec.structs import replace

from vllm_capacity.analysis import Analysis
from vllm_capacity.answer import Amount, Requests, Throughput, Tokens
from vllm_capacity.assumptions import Assumptions, Pricing, pricing
from vllm_capacity.errors import InputError
from vllm_capacity.estimate import Estimate
from vllm_capacity.facts.fleet import Rule
from vllm_capacity.figures.losses import Lost
from vllm_capacity.plan import PlanRequest, plan
from vllm_capacity.verdicts.hardware.compare import Option
from vllm_capacity.verdicts.hardware.other_gpus import gpu_options
from vllm_capacity.verdicts.saturation.fit import RegimeTime, Saturation, Stretch, imbalance

START = datetime(2026, 11, 24, tzinfo=UTC)
UNKNOWN = Estimate.unknown("not asked for")


@pytest.fixture(scope="module")
def swept(sweep):
    return Analysis.of(sweep, assumptions=Assumptions(pricing(0.5)))


def test_tokens_per_request_are_counts_over_finished_requests(swept):
    found = swept.answer
    each = found.prompt_tokens_per_request, found.output_tokens_per_request
    assert [one.mid * found.requests.finished for one in each] == pytest.approx(
        [found.tokens.prompt, found.tokens.generation]
    )
    assert found.traffic["prompt tokens"] == Amount(
        found.tokens.prompt, each[0].mid * found.throughput.requests_per_second, each[0].mid
    )


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"requests": Requests(0, 0, {}, Lost(0, 0))}, id="none finished"),
        pytest.param({"requests": Requests(None, None, {}, Lost(0, 0))}, id="not counted"),
        pytest.param({"tokens": Tokens(None, None, None, Lost(0, 0))}, id="no tokens counted"),
    ],
)
def test_tokens_per_request_are_unknown_where_none_finished(swept, changes):
    found = replace(swept.answer, **changes)
    assert found.output_tokens_per_request.is_unknown
    assert found.traffic["output tokens"].per_request is None


@pytest.mark.parametrize(
    ("counted", "ratio"),
    [
        pytest.param(Requests(200, 200, {}, Lost(0, 50)), 0.25, id="of finished requests"),
        pytest.param(Requests(0, 0, {}, Lost(0, 50)), None, id="of none"),
        pytest.param(Tokens(300, 300, 100, Lost(0, 40)), 0.1, id="of prompt and output tokens"),
        pytest.param(Tokens(300, 300, None, Lost(0, 40)), None, id="of what is not counted"),
    ],
)
def test_most_that_is_lost_is_a_share_of_the_counted(counted, ratio):
    assert counted.lost_ratio == ratio


def test_rates_per_hour_and_day():
    found = Throughput(200.0, 2.0)
    assert (found.requests_per_hour, found.requests_per_day.mid) == (7200.0, 172_800.0)
    assert (
        Throughput(None, None).requests_per_hour,
        Throughput(None, None).requests_per_day.mid,
    ) == (
        None,
        None,
    )


def test_idle_share_and_utilization_add_up_to_the_bill(swept):
    cost = swept.answer.cost
    assert cost.idle_ratio.mid + cost.utilization.mid == pytest.approx(1)
    assert cost.idle_ratio.low + cost.utilization.high == pytest.approx(1)


def test_findings_and_their_effects_are_added(restarted):
    found = Analysis.of(restarted).answer
    assert (found.findings("gap"), found.findings("nonsense")) == (2, 0)
    assert found.max_effect("running.mean") == pytest.approx(
        sum(each.max_effect.get("running.mean", 0.0) for each in found.quality)
    )


def stretch(start, end, regime, engine="r0/0"):
    at = [START + timedelta(minutes=minute) for minute in (start, end)]
    return Stretch(at[0], at[1], engine, regime, f"{regime} from {start}")


@pytest.mark.parametrize(
    ("stretches", "times"),
    [
        pytest.param((), (), id="no step was judged"),
        pytest.param(
            (stretch(0, 10, "idle"), stretch(10, 40, "kv-bound"), stretch(40, 60, "idle")),
            (
                RegimeTime("r0/0", "idle", 1800.0, 0.5, "idle from 40"),
                RegimeTime("r0/0", "kv-bound", 1800.0, 0.5, "kv-bound from 10"),
            ),
            id="of one regime added, named by its longest stretch",
        ),
        pytest.param(
            (stretch(0, 10, "idle", "r1/0"), stretch(0, 10, "kv-bound")),
            (
                RegimeTime("r0/0", "kv-bound", 600.0, 1.0, "kv-bound from 0"),
                RegimeTime("r1/0", "idle", 600.0, 1.0, "idle from 0"),
            ),
            id="engine by engine",
        ),
    ],
)
def test_time_in_each_regime(stretches, times):
    found = Saturation("idle", None, stretches, "unknown", UNKNOWN, UNKNOWN, UNKNOWN)
    assert found.regime_times == times


FULL = stretch(10, 40, "kv-bound", "full/0")


@pytest.mark.parametrize(
    ("others", "expected"),
    [
        pytest.param([stretch(0, 20, "idle", "free/0")], (("full/0",), ("free/0",)), id="at once"),
        pytest.param([stretch(0, 10, "idle", "free/0")], None, id="one after the other"),
        pytest.param([stretch(20, 30, "idle", "code/0")], None, id="of another model"),
        pytest.param(
            [stretch(20, 30, "idle", "free/0"), stretch(50, 60, "kv-bound", "free/0")],
            None,
            id="itself full at another time",
        ),
    ],
)
def test_load_is_balanced_between_engines_of_one_model(others, expected):
    models = {"full/0": "chat", "free/0": "chat", "code/0": "code"}
    rows = [(one.start, one.end, one.engine, one.regime) for one in (FULL, *others)]
    stretches = pl.DataFrame(rows, schema=["start", "end", "engine", "regime"], orient="row")
    found = imbalance(stretches, models)
    assert (found and (found.limited, found.free)) == expected


def test_bill_at_another_price_is_in_proportion(swept):
    dearer = swept.bill_at(Estimate.exact(1.5, "three times as much")).whole
    assert dearer.usd_per_request.mid == pytest.approx(3 * swept.bill.whole.usd_per_request.mid)
    assert dearer.utilization == swept.bill.whole.utilization


def test_rates_are_those_of_each_engine_under_a_mapping_file(two_replicas):
    instances = Analysis.of(two_replicas).instances
    rules = tuple(
        Rule(name, float(gpus), Estimate.exact(1.0 * gpus), None, None)
        for name, gpus in zip(instances, (1, 2), strict=True)
    )
    found = Analysis.of(two_replicas, assumptions=Assumptions(Pricing(rules=rules)))
    assert sorted((gpus, price.mid) for gpus, price in found.rates) == [(1.0, 1.0), (2.0, 2.0)]


def test_api_breaks_even_at_the_price_that_it_is_given(swept):
    found = swept.break_even(0.05, 0.2)
    again = Analysis.of(
        swept.window, assumptions=Assumptions(pricing(found.usd_per_gpu_hour.mid))
    ).break_even(0.05, 0.2)
    assert again.own_usd_per_request.mid == pytest.approx(found.api_usd_per_request)


def test_nothing_served_has_no_break_even(sweep):
    start = Analysis.of(sweep, end=sweep.extent.start + timedelta(seconds=10))
    assert start.break_even(0.05, 0.2) is None


def test_published_run_takes_a_row_of_the_price_list(swept):
    assert (swept.published_bound, swept.full_use) == (None, None)


def test_lighter_half_never_sees_the_heaviest_load(swept):
    for fit in swept.fits:
        assert swept.light_fits[fit.engine].heaviest_running < fit.heaviest_running


def test_longer_wait_for_a_first_token_is_a_share_of_queue_and_prefill(swept):
    means = [swept.phases[name].mean_seconds for name in ("queue", "prefill")]
    name, share = swept.first_token_phase
    assert (name, share) == ("queue", pytest.approx(means[0] / sum(means)))


@pytest.fixture(scope="module")
def planned(swept):
    return plan(swept, PlanRequest(from_gpu="A100-80GB-PCIe", model="openai/gpt-oss-20b"))


def test_runways_go_two_replicas_beyond_the_plan(planned):
    found = planned.runways(0.1)
    assert [each.replicas for each in found] == list(range(2, round(planned.replicas.mid) + 3))


def test_runways_are_not_known_where_the_replicas_are_not(planned):
    assert replace(planned, replicas=UNKNOWN).runways(0.1) == ()


def test_working_replicas_are_those_without_spares(planned):
    assert planned.working_replicas == planned.replicas.mid - planned.policy.spare_replicas


def test_options_of_a_plan_and_of_a_measured_rate_are_made_alike(planned, swept):
    """The same rate, lengths, demand and policy give the same options, own price aside."""
    found = swept.answer
    alone = gpu_options(
        model="openai/gpt-oss-20b",
        gpu="A100-80GB-PCIe",
        output_tokens_per_second=planned.capacity_output_tokens_per_second.mid,
        input_tokens=found.prompt_tokens_per_request.mid,
        output_tokens=found.output_tokens_per_request.mid,
        measured_by="this window",
        requests_per_second=planned.demand_requests_per_second.mid,
    )
    by_gpu = {each.gpu: each for each in alone}
    for each in planned.comparable:
        if "0.5" not in each.price_row:
            assert by_gpu[each.gpu].replicas.mid == each.replicas.mid


def test_options_of_an_unknown_model_are_refused():
    with pytest.raises(InputError, match="No model"):
        gpu_options(
            model="gpt-5",
            gpu="A100-80GB-SXM",
            output_tokens_per_second=1.0,
            input_tokens=1.0,
            output_tokens=1.0,
            measured_by="nobody",
            requests_per_second=1.0,
        )


def option(low, high):
    worth = Estimate.unknown("no price") if low is None else Estimate.between(low, low, high)
    return Option("L4", "bf16", "row", *[worth] * 7, "")


@pytest.mark.parametrize(
    ("one", "other", "may_equal"),
    [
        pytest.param((1, 3), (2, 4), True, id="overlapping"),
        pytest.param((2, 4), (1, 3), True, id="whichever is named first"),
        pytest.param((1, 2), (3, 4), False, id="apart"),
        pytest.param((1, 2), (None, None), False, id="nothing known of one"),
    ],
)
def test_options_may_be_equal_where_their_intervals_overlap(one, other, may_equal):
    assert option(*one).may_equal(option(*other)) == may_equal
