"""The plan of a recorded window: what it needs, what it costs, and what it cannot know."""

import json
from datetime import UTC, datetime

import pytest
from click.testing import CliRunner

from tests.answering import assumed, plan
from vllm_capacity.analysis import Analysis
from vllm_capacity.cli import cli
from vllm_capacity.errors import InputError
from vllm_capacity.estimate import Estimate
from vllm_capacity.facts.fleet import load_fleet
from vllm_capacity.facts.prices import given_price
from vllm_capacity.figures.makes import Make
from vllm_capacity.plan import PlanRequest
from vllm_capacity.telemetry.window import open_window
from vllm_capacity.verdicts.sizing import Policy

SLO = assumed(usd_per_gpu_hour=given_price(0.1), ttft_slo_seconds=2.0)
BARE = Policy(headroom_ratio=0.0, spare_replicas=0)


@pytest.fixture(scope="module")
def modest(sweep):
    return plan(sweep, PlanRequest(demand_requests_per_second=8, policy=BARE), terms=SLO)


def test_replicas_are_the_demand_over_the_capacity_under_the_targets(modest):
    demand = modest["demand_output_tokens_per_second"]["mid"]
    capacity = modest["capacity_output_tokens_per_second"]
    assert capacity["mid"] < 297  # lower than without the targets
    assert modest["replicas"]["mid"] == -(-demand // capacity["mid"])
    assert modest["replicas"]["low"] <= modest["replicas"]["mid"] <= modest["replicas"]["high"]


def test_replicas_of_several_models_are_added_up(examples):
    """No replica serves another's model: each needs what it was asked for, and its own spare."""
    fleet = open_window(examples / "fleet-two-models")
    asked = plan(fleet, PlanRequest())
    assert len(asked["surplus"]["by_model"]) == 2
    assert asked["replicas"]["high"] >= 2 * (1 + asked["policy"]["spare_replicas"])
    assert asked["sensitivity"]["now"] == asked["replicas"]
    given = PlanRequest(demand_requests_per_second=2 * asked["demand_requests_per_second"]["mid"])
    assert asked["sensitivity"]["demand doubles"]["high"] == plan(fleet, given)["replicas"]["high"]


def test_the_month_costs_what_the_gpus_cost(modest):
    paid = modest["replicas"]["mid"] * 0.1 * 730.5
    assert modest["usd_per_month"]["mid"] == pytest.approx(paid)


def test_the_demand_that_is_not_given_is_the_one_that_was_seen(sweep):
    seen = plan(sweep, PlanRequest(policy=BARE))["demand_requests_per_second"]
    assert 2.5 < seen["mid"] < 4
    assert "p95" in "; ".join(seen["basis"])


def test_demand_of_a_window_that_queued_is_called_what_was_served(sweep):
    seen = plan(sweep, PlanRequest(policy=BARE))["demand_requests_per_second"]
    assert "7 of the 8 busiest, requests waited" in "; ".join(seen["basis"])


@pytest.mark.parametrize(
    ("terms", "output"),
    [
        pytest.param(assumed(), "no latency target applied", id="none given"),
        pytest.param(SLO, "p95 TTFT ≤ 2 s", id="the target that was applied"),
    ],
)
def test_capacity_says_whether_a_target_was_applied(sweep, terms, output):
    answered = plan(sweep, PlanRequest(policy=BARE), terms=terms)
    assert output in "; ".join(answered["capacity_output_tokens_per_second"]["basis"])
    assert ("no latency" in "; ".join(answered["replicas"]["basis"])) is (terms is not SLO)


def test_queue_is_asked_with_the_places_that_the_targets_leave(sweep):
    """Ten requests ran at the capacity within the targets; the 27 of the knee would wait little."""
    asked = PlanRequest(demand_requests_per_second=1.25, policy=BARE)
    terms = assumed(ttft_slo_seconds=2.0, itl_slo_seconds=0.1)
    check = plan(sweep, asked, terms=terms)["queue_check"]
    assert (round(check["utilization_ratio"], 1), check["is_within_limit"]) == (0.6, False)


def test_longer_prompts_need_more_where_the_kv_cache_is_the_limit(modest):
    cases = modest["sensitivity"]
    assert cases["prompts double"]["mid"] > cases["now"]["mid"]
    assert "capacity × 0.547: KV tokens per request" in "; ".join(cases["prompts double"]["basis"])


def test_twice_the_demand_needs_more(modest):
    cases = modest["sensitivity"]
    assert cases["demand doubles"]["mid"] > cases["now"]["mid"]


def test_half_an_hour_is_too_short_to_forecast(modest):
    assert modest["forecast"]["forecast"] is None
    assert "at least 24 h are needed" in modest["forecast"]["reason"]


def test_without_the_gpu_no_other_can_be_compared(modest):
    assert modest["options"] == []
    assert "name it (gpu)" in modest["options_reason"]


def test_other_gpus_are_rows_and_rejected_ones_have_their_reason(sweep):
    asked = PlanRequest(
        from_gpu="A100-80GB-PCIe", model="openai/gpt-oss-120b", to_gpus=("A10G", "L40S")
    )
    rows = {row["gpu"]: row for row in plan(sweep, asked)["options"]}
    assert len(rows) == 3
    assert any(row["reason"] for row in rows.values())
    known = [row for row in rows.values() if not row["reason"]]
    assert all(row["usd_per_month"]["low"] <= row["usd_per_month"]["high"] for row in known)
    # A measured capacity is not treated as a light load, however far below the calculated one.
    assert not any(
        "light" in "; ".join(row["slo_output_tokens_per_second"]["basis"]) for row in known
    )


def compared(window, monkeypatch, *kv_dtypes):
    """The plan of the window, as if its engines had reported KV caches of these types."""
    makes = [Make("m", settings={"cache_dtype": each}) for each in kv_dtypes]
    own = property(lambda _: {str(n): make for n, make in enumerate(makes)})
    monkeypatch.setattr(Analysis, "makes", own)
    model = "meta-llama/Llama-3.1-70B-Instruct"
    asked = PlanRequest(from_gpu="H100-80GB-SXM", model=model, to_gpus=("H200-141GB-SXM",))
    return plan(window, asked, terms=assumed(gpus_per_engine=4))


def test_other_gpus_hold_a_kv_cache_of_the_type_that_the_engine_reports(examples, monkeypatch):
    """In FP8 twice the requests fit, so less is gained by the memory of an H200."""
    found = {}
    for kv_dtype in ("auto", "fp8_e4m3"):
        window = open_window(examples / "vllm-sweep")
        options = compared(window, monkeypatch, kv_dtype)["options"]
        found[kv_dtype] = options[-1]["slo_output_tokens_per_second"]["mid"]
    assert found["auto"] > found["fp8_e4m3"]


@pytest.mark.parametrize(
    ("kv_dtypes", "reason"),
    [
        (["int3"], "the size of a KV cache of type 'int3' is unknown"),
        (["auto", "fp8"], "(auto, fp8)"),
    ],
)
def test_a_kv_cache_of_an_unknown_type_is_not_compared(sweep, monkeypatch, kv_dtypes, reason):
    found = compared(sweep, monkeypatch, *kv_dtypes)
    assert found["options"] == []
    assert reason in found["options_reason"]


def test_a_mapping_file_gives_the_gpus_and_the_price_of_more_replicas(sweep, tmp_path):
    mapping = tmp_path / "fleet.csv"
    mapping.write_text("instance,gpus_per_engine,usd_per_hour\n*,2,1.64\n")
    answered = plan(sweep, PlanRequest(), terms=assumed(fleet=load_fleet(mapping)))
    replicas = answered["replicas"]["mid"]
    assert answered["gpus"]["mid"] == 2 * replicas
    assert answered["usd_per_month"]["mid"] == pytest.approx(2 * replicas * 1.64 * 730.5)


def test_a_mapping_file_with_two_prices_leaves_the_month_unknown(two_replicas, tmp_path):
    mapping = tmp_path / "fleet.csv"
    names = two_replicas.sql("select distinct instance from series order by all").to_series()
    rows = [f"{name},1,{1 + place}.0" for place, name in enumerate(names)]
    mapping.write_text("\n".join(["instance,gpus_per_engine,usd_per_hour", *rows, ""]))
    answered = plan(two_replicas, PlanRequest(), terms=assumed(fleet=load_fleet(mapping)))
    assert answered["gpus"]["mid"] == answered["replicas"]["mid"]
    assert "2 prices in force" in answered["usd_per_month"]["reason"]


def test_the_windows_own_gpu_costs_what_the_window_costs(sweep):
    own = Estimate.exact(1.64, "asked")
    asked = PlanRequest(
        from_gpu="a100-80gb-sxm", model="openai/gpt-oss-20b", to_gpus=("A100-80GB-SXM",)
    )
    answered = plan(sweep, asked, terms=assumed(usd_per_gpu_hour=own))
    (row,) = answered["options"]
    assert row["usd_per_gpu_hour"]["mid"] == 1.64
    assert row["usd_per_month"]["mid"] == answered["usd_per_month"]["mid"]


def test_nothing_served_is_unknown_with_its_reason(sweep):
    end = datetime(2026, 11, 24, 4, 0, tzinfo=UTC)
    answered = plan(sweep, PlanRequest(policy=BARE), end=end, terms=SLO)
    assert answered["replicas"]["mid"] is None
    assert answered["replicas"]["reason"]


def test_a_demand_of_0_is_an_error():
    with pytest.raises(InputError, match="above 0"):
        PlanRequest(demand_requests_per_second=0)


def test_the_command_prints_one_object():
    asked = ["plan", "--window", "vllm-sweep", "--demand", "3", "--json"]
    result = CliRunner().invoke(cli, asked, catch_exceptions=False)
    assert result.exit_code == 0
    assert json.loads(result.stdout)["replicas"]["mid"] >= 2
