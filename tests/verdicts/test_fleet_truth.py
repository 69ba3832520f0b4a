"""Removable replicas: tested on the requests of the window, by servers of other laws.

The full trial, with fleets of all sizes and lengths, is `python -m bench.fleet_truth`.
"""

from collections.abc import Callable
from pathlib import Path

import pytest
from made_fleet import lopsided, made_fleet

from tests.truth_server.fleet_judging import FIGURES, Replay, Row, Trial, judged, trials
from tests.truth_server.fleets import growing_fleet, serve
from vllm_capacity.analysis import Analysis
from vllm_capacity.assumptions import Assumptions, pricing
from vllm_capacity.plan import Plan, PlanRequest, plan
from vllm_capacity.render.sections.plan import queue_check
from vllm_capacity.telemetry.window import open_window
from vllm_capacity.verdicts.sizing import Policy

MADE = {
    **{f"lopsided-{seed}": lopsided(seed) for seed in range(3)},
    **{f"balanced-{seed}": made_fleet(seed) for seed in (3, 5)},
}
LOPSIDED = [name for name in MADE if name.startswith("lopsided")]
Judge = Callable[[str], tuple[Row, list[Replay]]]


@pytest.fixture(scope="module")
def judge(tmp_path_factory: pytest.TempPathFactory) -> Judge:
    folder, known = tmp_path_factory.mktemp("fleets"), dict[str, tuple[Row, list[Replay]]]()

    def of(name: str) -> tuple[Row, list[Replay]]:
        if name not in known:
            known[name] = judged(MADE[name], Path(folder) / name)
        return known[name]

    return of


@pytest.mark.parametrize("name", LOPSIDED)
def test_unneeded_replicas_can_be_removed_and_the_others_keep_up(judge: Judge, name: str):
    _, replays = judge(name)
    (replay,) = replays
    assert replay.removed >= 1
    assert replay.is_right
    assert not replay.after.fell_behind


@pytest.mark.parametrize("name", LOPSIDED)
def test_the_replay_of_the_package_says_what_happened(judge: Judge, name: str):
    row, _ = judge(name)
    assert (row["simulated"], row["simulated_right"]) == (1, 1)


@pytest.mark.parametrize("figure", FIGURES)
@pytest.mark.parametrize("name", MADE)
def test_intervals_of_a_fleet_contain_the_truth(judge: Judge, name: str, figure: str):
    row, _ = judge(name)
    assert row[f"{figure}_right"] is not False


def test_a_replay_on_too_few_replicas_falls_behind():
    made = lopsided(0)
    (service,) = made.services
    assert serve(service.on(1), made.seconds).fell_behind


@pytest.fixture(scope="module")
def grown(tmp_path_factory: pytest.TempPathFactory) -> tuple[Analysis, list[Trial]]:
    """A fleet of two models that was one replica of each in an overload, and then two."""
    path = tmp_path_factory.mktemp("grown") / "fleet"
    tried = trials(growing_fleet(3, 501), path)
    return Analysis.of(open_window(path), assumptions=Assumptions(pricing(2.0))), tried


def test_a_replay_on_one_too_few_or_under_twice_the_load_says_that_they_do_not_keep_up(grown):
    _, tried = grown
    assert {one.model for one in tried if one.said is False} == {"model-a", "model-b"}
    assert {one.scale for one in tried if one.said is False} == {1.0, 2.0}
    assert all(one.kept_up is one.said for one in tried if one.said is not None)


def planned(grown: tuple[Analysis, list[Trial]], **asked: float) -> Plan:
    bare = Policy(headroom_ratio=0.0, spare_replicas=0)
    return plan(grown[0], PlanRequest(policy=bare, **asked))


def test_each_model_of_a_plan_is_replayed_on_its_own_replicas(grown):
    found = planned(grown)
    assert set(found.by_model) == {"model-a", "model-b"}
    assert (found.replays, found.queue_check) == ((), None)
    for name in ("low", "mid", "high"):
        ends = [getattr(part.replicas, name) for part in found.by_model.values()]
        assert getattr(found.replicas, name) == sum(ends)
    for part in found.by_model.values():
        assert part.replays
        assert part.replicas.high >= part.replays[-1].replicas


def test_a_plan_for_twice_the_demand_of_two_models_counts_what_kept_up(grown):
    seen = planned(grown)
    twice = planned(grown, demand_requests_per_second=2 * seen.demand_requests_per_second.mid)
    for name, part in twice.by_model.items():
        assert part.demand_output_tokens_per_second.mid == pytest.approx(
            2 * seen.by_model[name].demand_output_tokens_per_second.mid
        )
        assert part.replicas.mid > seen.by_model[name].replicas.mid


def test_the_queue_of_each_of_two_models_is_checked_alone(grown):
    found = planned(grown)
    for part in found.by_model.values():
        demand, each = part.demand_output_tokens_per_second, part.capacity_output_tokens_per_second
        busy = demand.mid / each.mid / part.replicas.mid
        assert part.queue_check.utilization_ratio == pytest.approx(busy)
    said = repr(queue_check(found)).replace("\xa0", " ")
    for name in found.by_model:
        assert f"For {name}: " in said
    assert said.count("busy") == 2
