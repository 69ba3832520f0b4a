"""Capacities of servers whose truth is known: right, or unknown.

The servers are made by tests/truth_server, whose laws are not the package's; many more of them are
judged by `python -m bench.capacity_truth`. A one-sided answer is right where the truth is on its
side, a two-sided one where its interval holds the truth.
"""

from collections.abc import Callable

import pytest

from tests.truth_server.cases import case
from tests.truth_server.judging import Row, answers, row, written

STEADY = (
    *("constant-001", "constant-004", "constant-007", "constant-014", "light-002"),
    *("users-007", "users-009"),
)
UNEVEN = ("bursty-001", "heavy-000")
VARIED = ("varied-001", "varied-003", "varied-008", "varied-014")
SATURATED = ("saturated-002", "saturated-011", "saturated-014")
SPELLS = ("spells-000", "spells-002", "spells-009")
NEIGHBOR = ("neighbor-001", "neighbor-010")
FLEETS = ("fleets-003", "fleets-005", "fleets-009")
ALL = (*STEADY, *UNEVEN, *VARIED, *SATURATED, *SPELLS, *NEIGHBOR, *FLEETS)

Judge = Callable[[str], Row]


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory) -> Judge:
    """A case by name: its truth, the answers and whether they are right; each made once."""
    folder = tmp_path_factory.mktemp("truth")
    known: dict[str, Row] = {}

    def judge(name: str) -> Row:
        if name not in known:
            kind, number = name.rsplit("-", 1)
            made = case(kind, int(number))
            path, served = written(made, folder)
            known[name] = row(made, served, answers(path, made.targets))
        return known[name]

    return judge


@pytest.mark.parametrize("name", ALL)
def test_a_capacity_is_right_or_unknown(judged: Judge, name: str):
    one = judged(name)
    assert one["capacity_right"] is not False, result(one, "capacity")


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("figure", ["headroom", "utilization", "idle_usd", "replicas"])
def test_figures_based_on_a_capacity_are_right_or_unknown(judged: Judge, name: str, figure: str):
    one = judged(name)
    assert one[f"{figure}_right"] is not False, result(one, figure)


@pytest.mark.parametrize("name", ALL)
def test_a_window_does_not_contradict_its_own_capacity(judged: Judge, name: str):
    assert judged(name)["contradicted"] == ""


@pytest.mark.parametrize("name", STEADY)
def test_a_steady_light_load_still_shows_what_the_server_did(judged: Judge, name: str):
    """Never less than nine tenths of the best minute."""
    one = judged(name)
    assert one["capacity_low"] is not None
    assert one["capacity_low"] >= 0.9 * one["held"]


@pytest.mark.parametrize("name", SATURATED)
def test_a_saturated_server_is_measured_within_three_percent(judged: Judge, name: str):
    one = judged(name)
    assert one["capacity_mid"] == pytest.approx(one["capacity_truth"], rel=0.03)


def test_load_that_varies_is_answered_from_both_sides(judged: Judge):
    forms = [judged(name)["capacity_form"] for name in VARIED]
    assert forms.count("two-sided") >= 3


def result(one: Row, figure: str) -> str:
    """The answer beside its truth."""
    low, mid, high = (one[f"{figure}_{end}"] for end in ("low", "mid", "high"))
    truth = one[f"{figure}_truth"]
    return (
        f"{one['name']}, {one['server']} with {one['mix']}, {one['shape']}: {figure} is {truth}, "
        f"said {low} to {high} (mid {mid})"
    )
