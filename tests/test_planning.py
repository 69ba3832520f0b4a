"""The plan of a recorded window: what it needs, what it costs, and what it cannot know."""

import json
from datetime import UTC, datetime

import pytest
from click.testing import CliRunner

from vllm_capacity.bills import Terms
from vllm_capacity.cli import cli
from vllm_capacity.errors import InputError
from vllm_capacity.facts.prices import given_price
from vllm_capacity.planning import Ask, plan
from vllm_capacity.verdicts.sizing import Policy

SLO = Terms(usd_per_gpu_hour=given_price(0.1), ttft_slo_seconds=2.0)
BARE = Policy(headroom_ratio=0.0, spare_replicas=0)


@pytest.fixture(scope="module")
def modest(sweep):
    return plan(sweep, Ask(demand_requests_per_second=8, policy=BARE), terms=SLO)


def test_replicas_are_the_demand_over_the_capacity_under_the_targets(modest):
    demand = modest["demand_output_tokens_per_second"]["mid"]
    capacity = modest["capacity_output_tokens_per_second"]
    assert capacity["mid"] < 297  # the targets cost capacity
    assert modest["replicas"]["mid"] == -(-demand // capacity["mid"])
    assert modest["replicas"]["low"] <= modest["replicas"]["mid"] <= modest["replicas"]["high"]


def test_the_month_costs_what_the_gpus_cost(modest):
    paid = modest["replicas"]["mid"] * 0.1 * 730.5
    assert modest["usd_per_month"]["mid"] == pytest.approx(paid)


def test_the_demand_that_is_not_given_is_the_one_that_was_seen(sweep):
    seen = plan(sweep, Ask(policy=BARE))["demand_requests_per_second"]
    assert 2.5 < seen["mid"] < 4
    assert "p95" in seen["basis"]


def test_twice_the_demand_needs_more(modest):
    cases = modest["sensitivity"]
    assert cases["demand doubles"]["mid"] > cases["now"]["mid"]


def test_half_an_hour_is_too_short_to_forecast(modest):
    assert modest["forecast"]["forecast"] is None
    assert "short" in modest["forecast"]["reason"]


def test_without_the_gpu_no_other_can_be_compared(modest):
    assert modest["options"] == []
    assert "--gpu" in modest["options_reason"]


def test_other_gpus_are_rows_and_rejected_ones_have_their_reason(sweep):
    asked = Ask(from_gpu="A100-80GB-PCIe", model="openai/gpt-oss-120b", to_gpus=("A10G", "L40S"))
    rows = {row["gpu"]: row for row in plan(sweep, asked)["options"]}
    assert len(rows) == 3
    assert any(row["reason"] for row in rows.values())
    known = [row for row in rows.values() if not row["reason"]]
    assert all(row["usd_per_month"]["low"] <= row["usd_per_month"]["high"] for row in known)
    # The window's capacity is no light load, however far under the arithmetic it lies.
    assert not any("light" in row["slo_output_tokens_per_second"]["basis"] for row in known)


def test_nothing_served_is_unknown_with_its_reason(sweep):
    end = datetime(2026, 11, 24, 4, 0, tzinfo=UTC)
    told = plan(sweep, Ask(policy=BARE), end=end, terms=SLO)
    assert told["replicas"]["mid"] is None
    assert told["replicas"]["reason"]


def test_a_demand_of_nothing_is_an_error():
    with pytest.raises(InputError, match="above 0"):
        Ask(demand_requests_per_second=0)


def test_the_command_prints_one_object():
    asked = ["plan", "--window", "vllm-sweep", "--demand", "3", "--json"]
    result = CliRunner().invoke(cli, asked, catch_exceptions=False)
    assert result.exit_code == 0
    assert json.loads(result.stdout)["replicas"]["mid"] >= 2
