"""The simulated fleet: each replica is what it is said to be, and the example is what it gives."""

import polars as pl
import pytest
from msgspec.structs import replace
from polars.testing import assert_frame_equal

from vllm_capacity.figures.makes import target_labels
from vllm_capacity.telemetry.window import open_window
from vllm_simulator.fleets import FLEETS, provenance, run_fleet

(FLEET,) = FLEETS
SHORT = replace(FLEET, seconds=3600)


@pytest.fixture(scope="module")
def short():
    return run_fleet(SHORT)


@pytest.fixture(scope="module")
def example():
    return open_window("fleet-two-models")


def test_requests_go_to_those_that_are_used_by_turns(short):
    served = dict(short.requests.group_by("replica").len().iter_rows())
    names = {FLEET.targets[place]: count for place, count in served.items()}
    used = {
        one.target
        for deployment in FLEET.deployments
        for one in deployment.replicas
        if one.is_used and one.start_seconds <= 0
    }
    assert set(names) == used
    for deployment in FLEET.deployments:
        own = [names[one.target] for one in deployment.replicas if one.target in used]
        assert max(own) - min(own) <= 3  # some had not ended


def test_a_slow_replica_takes_so_much_longer(short):
    mean = dict(
        short.requests.group_by("replica").agg(pl.col("itl_mean_seconds").mean()).iter_rows()
    )
    slow, usual = (mean[FLEET.targets.index(f"code-{n}:8000")] for n in (2, 0))
    assert slow / usual == pytest.approx(1.8, rel=0.1)


def test_the_example_begins_as_the_scenario_does(short, example):
    counted = """
        select instance, metric, ts, value from samples join series using (series_id)
        where metric = 'vllm:generation_tokens_total' and ts <= $end order by all
    """
    end = FLEET.start.timestamp() + SHORT.seconds
    shipped = example.sql(counted.replace("$end", f"to_timestamp({end})"))
    made = (
        short.rows.samples.join(short.rows.series, on="series_id")
        .filter(pl.col("metric") == "vllm:generation_tokens_total")
        .select("instance", "metric", "ts", "value")
        .sort("instance", "metric", "ts")
    )
    assert_frame_equal(pl.DataFrame(shipped), made)


def test_the_example_says_that_it_is_simulated_and_whose_each_replica_is(example):
    assert example.is_simulated
    assert example.provenance["assumptions"] == provenance(FLEET)["assumptions"]
    labels = target_labels(example)
    assert set(labels) == set(FLEET.targets)
    assert {each["team"] for each in labels.values()} == {"assistant", "developers"}
    assert labels["chat-5:8000"]["pod"] == "chat-5"
