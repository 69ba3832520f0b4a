"""How many replicas can go: carried out on the requests of the window, by servers of other laws.

The full trial, with fleets of all sizes and lengths, is `python -m bench.fleet_truth`.
"""

from collections.abc import Callable
from pathlib import Path

import pytest
from made_fleet import lopsided, made_fleet

from tests.truth_server.fleet_judging import FIGURES, Replay, Row, judged
from tests.truth_server.fleets import serve

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
def test_replicas_that_nobody_needed_can_go_and_the_others_keep_up(judge: Judge, name: str):
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
def test_what_is_said_of_a_fleet_holds_the_truth(judge: Judge, name: str, figure: str):
    row, _ = judge(name)
    assert row[f"{figure}_right"] is not False


def test_a_replay_on_too_few_replicas_falls_behind():
    made = lopsided(0)
    (service,) = made.services
    assert serve(service.on(1), made.seconds).fell_behind
