"""Every way to share out a bill adds up to the same whole, on recorded telemetry."""

from datetime import UTC, datetime

import pytest

from tests.answering import assumed, cost_by
from vllm_capacity.bills import unlabelled
from vllm_capacity.errors import InputError
from vllm_capacity.facts.fleet import load_fleet
from vllm_capacity.facts.prices import given_price
from vllm_capacity.telemetry.window import open_window

PRICE = assumed(usd_per_gpu_hour=given_price(1.64))
ADDED = ("allocation_usd", "idle_usd")


@pytest.mark.parametrize("by", ["engine", "instance", "model", "finished_reason"])
@pytest.mark.parametrize("name", ["two_replicas", "sweep"])
def test_the_parts_add_up_to_the_whole(request, name, by):
    result = cost_by(request.getfixturevalue(name), by=by, terms=PRICE)
    for figure in ADDED:
        parts = [part[figure]["mid"] for part in result["parts"].values()]
        if None not in parts:
            assert sum(parts) == pytest.approx(result["whole"][figure]["mid"], rel=1e-12)


@pytest.mark.parametrize("by", ["engine", "instance", "model", "finished_reason"])
def test_every_grouping_has_the_same_whole(two_replicas, answer_of, by):
    whole = answer_of("vllm-two-replicas", PRICE)["cost"]["allocation_usd"]["mid"]
    result = cost_by(two_replicas, by=by, terms=PRICE)
    assert result["whole"]["allocation_usd"]["mid"] == pytest.approx(whole, rel=1e-12)


def test_a_replica_with_less_load_costs_more_per_request(two_replicas):
    parts = cost_by(two_replicas, by="instance", terms=PRICE)["parts"]
    assert parts["r0"]["usd_per_request"]["mid"] > 2 * parts["r1"]["usd_per_request"]["mid"]
    assert parts["r0"]["idle_usd"]["mid"] > parts["r1"]["idle_usd"]["mid"]


def test_a_label_that_no_counter_has_is_an_error(two_replicas):
    with pytest.raises(InputError, match="neither a counter nor a target"):
        cost_by(two_replicas, by="team", terms=PRICE)


@pytest.mark.parametrize(
    ("by", "without"),
    [
        pytest.param("engine", [], id="engines are no label"),
        pytest.param("model", [], id="all have the model"),
        pytest.param(
            "finished_reason",
            ["vllm:generation_tokens_total", "vllm:prompt_tokens_total"],
            id="tokens have no reason",
        ),
    ],
)
def test_counters_without_the_label_are_named(two_replicas, by, without):
    assert unlabelled(two_replicas, by=by, time_range=two_replicas.extent) == without


def test_a_mapping_file_prices_each_replica_and_a_change_within_the_window(two_replicas, tmp_path):
    mapping = tmp_path / "fleet.csv"
    middle = "2026-11-24T06:01:00Z"
    mapping.write_text(
        "instance,gpus_per_engine,usd_per_hour,from,until\n"
        f"r0,1,2,,{middle}\n"
        f"r0,1,4,{middle},\n"
        "r1,2,3,,\n"
    )
    result = cost_by(two_replicas, by="instance", terms=assumed(fleet=load_fleet(mapping)))
    paid = {name: part["allocation_usd"]["mid"] for name, part in result["parts"].items()}
    before = (datetime(2026, 11, 24, 6, 1, tzinfo=UTC) - two_replicas.extent.start).total_seconds()
    assert paid["r1"] == pytest.approx(320 / 3600 * 2 * 3, rel=1e-3)
    assert paid["r0"] == pytest.approx((before * 2 + (320 - before) * 4) / 3600, rel=1e-3)


def test_a_mapping_file_prices_pods_by_their_labels(examples, tmp_path):
    mapping = tmp_path / "fleet.yaml"
    mapping.write_text(
        """
        - {match: '{team="assistant"}', usd_per_hour: 2}
        - {match: '{team!="assistant"}', usd_per_hour: 1}
        """
    )
    window = open_window(examples / "fleet-two-models")
    at_one = cost_by(window, by="team", terms=assumed(usd_per_gpu_hour=given_price(1.0)))["parts"]
    mapped = cost_by(window, by="team", terms=assumed(fleet=load_fleet(mapping)))["parts"]
    times = {
        team: part["allocation_usd"]["mid"] / at_one[team]["allocation_usd"]["mid"]
        for team, part in mapped.items()
    }
    assert times == pytest.approx({"assistant": 2.0, "developers": 1.0})


def test_a_target_without_labels_has_none(two_replicas, tmp_path):
    mapping = tmp_path / "fleet.yaml"
    mapping.write_text(
        """
        - {match: '{team!="search",instance="r0"}', usd_per_hour: 2}
        - {match: '{team=""}', usd_per_hour: 4}
        """
    )
    parts = cost_by(two_replicas, by="instance", terms=assumed(fleet=load_fleet(mapping)))["parts"]
    paid = {name: part["allocation_usd"]["mid"] for name, part in parts.items()}
    assert paid["r1"] == pytest.approx(2 * paid["r0"], rel=0.01)


def test_hours_that_no_rule_covers_leave_the_money_unknown(two_replicas, tmp_path):
    mapping = tmp_path / "fleet.csv"
    mapping.write_text("instance,gpus_per_engine,usd_per_hour\nr0,1,2\n")
    result = cost_by(two_replicas, by="instance", terms=assumed(fleet=load_fleet(mapping)))
    assert "no rule for r1" in result["whole"]["allocation_usd"]["reason"]
