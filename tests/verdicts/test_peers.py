"""Figures of a fleet from what is known of some of its engines, compared with known truths.

The fleets are made by tests/truth_server, whose laws are not the package's. An engine that is so
many times slower takes so much longer for every step, so its capacity is that much less.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from statistics import fmean, median
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest

from tests.truth_server import loads
from tests.truth_server.judging import is_right
from tests.truth_server.model import Arrivals, Slow
from tests.truth_server.servers import MIXES, SERVERS
from tests.truth_server.truth import Truth, truths
from tests.truth_server.windows import Life, Scraping, write
from vllm_capacity.analysis import Analysis
from vllm_capacity.assumptions import Assumptions, pricing
from vllm_capacity.estimate import Estimate, Kind
from vllm_capacity.figures.makes import Make
from vllm_capacity.plan import plan
from vllm_capacity.telemetry.window import open_window
from vllm_capacity.verdicts.saturation.curve import LoadPoints
from vllm_capacity.verdicts.saturation.fit import SaturationFit
from vllm_capacity.verdicts.saturation.peers import are_as_fast, completed, lenders
from vllm_capacity.verdicts.sizing import Policy

MEASURED = Estimate.known(95, 100, 105, "held")
FORESEEN = Estimate.known(80, 120, 160, "bent", kind=Kind.EXTRAPOLATED)
IDLE = Estimate.unknown("nothing ran")
SEEN = Estimate.at_least(60, "the best minute", reason="light load")
MISSED = Estimate.unknown("missed at every load")
AT_MOST = Estimate.at_most(50, "missed", reason="steady")
Ends = tuple[float | None, float | None, float | None]


@pytest.mark.parametrize(
    ("own", "peers", "ends"),
    [
        pytest.param(IDLE, {"b": MEASURED}, (85.5, 100, 115.5), id="an idle engine borrows"),
        pytest.param(SEEN, {"b": MEASURED}, (85.5, 100, 115.5), id="so does a lightly used one"),
        pytest.param(IDLE, {}, (None, None, None), id="no peer to borrow from"),
        pytest.param(IDLE, {"b": IDLE}, (None, None, None), id="peers that know nothing"),
        pytest.param(
            IDLE, {"b": MEASURED, "c": FORESEEN}, (85.5, 100, 115.5), id="the surest peers lend"
        ),
        pytest.param(
            IDLE,
            {"b": MEASURED, "c": Estimate.known(76, 80, 84, "held")},
            (68.4, 90, 115.5),
            id="peers that differ make it wider",
        ),
        pytest.param(
            Estimate.at_least(110, "the best minute", reason="light load"),
            {"b": MEASURED},
            (110, 110, 115.5),
            id="no less than it did itself",
        ),
        pytest.param(
            Estimate.at_least(130, "the best minute", reason="light load"),
            {"b": MEASURED},
            (130, None, None),
            id="an engine that did more than its peers can is none of them",
        ),
        pytest.param(IDLE, {"b": SEEN}, (54, None, None), id="a bound is lent as a bound"),
        pytest.param(
            SEEN,
            {"b": Estimate.at_least(100, "the best minute", reason="light load")},
            (90, None, None),
            id="the best minute of the best peer",
        ),
        pytest.param(
            MISSED, {"b": MEASURED}, (None, None, None), id="a load that missed is marked"
        ),
        pytest.param(AT_MOST, {"b": MEASURED}, (None, None, 50), id="an upper bound stays"),
        pytest.param(FORESEEN, {"b": MEASURED}, (80, 120, 160), id="its own capacity comes first"),
    ],
)
def test_an_engine_has_its_own_capacity_or_that_of_its_peers(
    own: Estimate, peers: dict[str, Estimate], ends: Ends
):
    idle = frozenset({"a"} if own is IDLE else ())
    found = completed({"a": own, **peers}, {"a": tuple(peers)}, idle=idle)["a"]
    for mine, expected in zip((found.low, found.mid, found.high), ends, strict=True):
        assert mine == (None if expected is None else pytest.approx(expected))


def test_a_borrowed_capacity_names_its_peers_and_is_no_measurement():
    peers = {name: MEASURED for name in "bcdef"}
    found = completed({"a": IDLE, **peers}, {"a": tuple(peers)}, idle=frozenset("a"))["a"]
    assert found.sources == "as for b, c, d and 2 more, which serve the same model, ± 10 %"
    assert found.kind is Kind.ASSUMED


@pytest.mark.parametrize(
    ("other", "expected"),
    [
        pytest.param(Make("m"), True, id="the same model"),
        pytest.param(Make("n"), False, id="another model"),
        pytest.param(Make("m", 1040.0), True, id="a few blocks more"),
        pytest.param(Make("m", 2000.0), False, id="a KV cache of twice the size"),
        pytest.param(Make("m", None, {"gpu_name": "H100"}), False, id="another GPU, by a label"),
        pytest.param(Make("m", None, {"block_size": "16"}), True, id="known of one of them only"),
        pytest.param(Make("m", None, {}, (2.0, 3.0)), False, id="other GPUs, by a mapping file"),
    ],
)
def test_labels_determine_which_engines_are_replicas(other: Make, expected: bool):
    own = Make("m", 1000.0, {"gpu_name": "A100"})
    assert own.is_like(other) is expected


def fleet(count: int) -> list[SaturationFit]:
    """Engines of one make: every hundredth has a known capacity, every other one is twice as fast.

    A fit has only what decides who lends to whom.
    """
    running = np.array([1.0, 2, 4, 8])
    found = []
    for number in range(count):
        fit = SimpleNamespace(
            engine=f"{number:04}",
            capacity=MEASURED if number % 100 == 99 else SEEN,
            slowed=np.zeros(4, bool),
            levels=SimpleNamespace(loads=LoadPoints.of(running, running * (1 + number % 2))),
        )
        found.append(cast(SaturationFit, fit))
    return found


@pytest.mark.parametrize(("count", "peers"), [(300, 149), (1200, 204)])
def test_of_many_engines_some_are_compared_and_first_those_with_a_capacity(count: int, peers: int):
    fits = fleet(count)
    found = lenders(fits, {fit.engine: Make("m") for fit in fits})
    known = {fit.engine for fit in fits if fit.capacity is MEASURED}
    assert len(found) == count - len(known)
    assert len(found["0001"]) == peers
    assert known <= set(found["0001"])  # all are as fast as it
    assert not known & set(found["0000"])
    assert all(own == tuple(sorted(own)) for own in found.values())


@pytest.mark.parametrize(
    ("faster", "expected"),
    [
        pytest.param(1.0, True, id="as fast"),
        pytest.param(1.08, True, id="as replicas differ"),
        pytest.param(1.6, False, id="another GPU"),
        pytest.param(0.6, False, id="a slow one"),
    ],
)
def test_load_shows_whether_two_engines_are_alike(faster: float, expected: bool):
    running = np.array([1.0, 2, 4, 8])
    output = 1000 * running / (running + 20)
    error = np.full(4, 0.01)
    full = LoadPoints.of(running, output, error)
    light = LoadPoints.of(running[:2], faster * output[:2], error[:2])
    assert are_as_fast(light, full) is expected


def test_engines_without_a_common_load_are_not_distinguished():
    light, heavy = (LoadPoints.of([n], [100.0 * n]) for n in (1.0, 9.0))
    assert are_as_fast(light, heavy)
    assert are_as_fast(LoadPoints.of([], []), heavy)


SECONDS, LEAD = 900.0, -120.0
FULL, SPARSE, NOTHING = 1.4, 0.2, 0.0
FLEETS = [
    (("cpu-small", "tiny"), (FULL, NOTHING)),
    (("cpu-small", "tiny-fixed"), (FULL, FULL, SPARSE, NOTHING)),
    (("l4-8b", "chat"), (FULL, SPARSE, NOTHING)),
    (("l4-8b", "fixed"), (FULL, SPARSE, SPARSE)),
    (("retrograde", "chat"), (FULL, NOTHING, NOTHING)),
    (("a100-8b", "rag"), (FULL, SPARSE)),
    (("a100-tight-kv", "long"), (FULL, FULL, NOTHING)),
    (("cpu-small", "tiny"), (SPARSE, SPARSE, NOTHING)),
    (("l4-8b", "chat"), (SPARSE, NOTHING)),
    (("host-bound", "chat"), (SPARSE, SPARSE, NOTHING)),
]
"""A server and its mix, and the load of each replica, as a share of what it can answer."""


@dataclass(frozen=True)
class Fleet:
    """What was said of a fleet, the truth of each engine, and its output tokens/s."""

    found: Analysis
    truth: Truth
    speeds: tuple[float, ...]
    rate: float

    def right(self, said: Estimate, most: float, least: float) -> bool:
        return is_right(said.low, said.high, most, least, slack_ratio=0.005) is not False

    @property
    def capacities(self) -> tuple[float, float]:
        """All engines', and what overloads get of them."""
        truth = self.truth
        least = min(truth.capacity, truth.saturated_output)
        return truth.capacity * sum(self.speeds), least * sum(self.speeds)


Judge = Callable[[int], Fleet]


@pytest.fixture(scope="module")
def judge(tmp_path_factory: pytest.TempPathFactory) -> Judge:
    """A fleet by number, whose replicas differ by up to 10 % in speed, judged once."""
    folder, known = tmp_path_factory.mktemp("fleets"), dict[int, Fleet]()

    def judged(number: int) -> Fleet:
        if number not in known:
            known[number] = _judged(number, folder / str(number))
        return known[number]

    return judged


def _judged(number, path) -> Fleet:
    (server, mix), shares = FLEETS[number]
    truth, rng = truths()[server, mix], np.random.default_rng((29, number))
    seconds = min(SECONDS, 6000 / truth.requests_per_second)
    speeds = tuple(rng.uniform(0.95, 1.05, len(shares)).tolist())
    lives = []
    for pod, (share, speed) in enumerate(zip(shares, speeds, strict=True)):
        load = Arrivals(np.array([]))
        if share:
            load = loads.poisson(rng, share * truth.requests_per_second, LEAD, seconds)
        slow = (Slow(-np.inf, np.inf, 1 / speed),)
        own = (SERVERS[server], MIXES[mix], (load,))
        lives.append(Life(f"pod-{pod}:8000", *own, 100 * number + pod, LEAD, None, slow))
    served = write(path, lives, seconds=seconds, scraping=Scraping(15.0, seed=number))
    found = Analysis.of(open_window(path), assumptions=Assumptions(pricing(2.0)))
    return Fleet(found, truth, speeds, served.output_tokens / seconds)


def is_full(number: int) -> bool:
    return FULL in FLEETS[number][1]


WITH_PEERS = [number for number in range(len(FLEETS)) if is_full(number)]
WITHOUT = [number for number in range(len(FLEETS)) if not is_full(number)]


@pytest.mark.parametrize("number", range(len(FLEETS)))
def test_every_engine_adds_to_what_is_idle(judge: Judge, number: int):
    cost = judge(number).found.bill
    lows = [part.idle_usd.low for part in cost.parts.values()]
    assert None not in lows
    assert cost.whole.idle_usd.low == pytest.approx(sum(low or 0.0 for low in lows))


def test_a_replica_at_its_limit_determines_the_fleets_capacity(judge: Judge):
    right, widths = [], []
    for one in map(judge, WITH_PEERS):
        capacity, used = one.found.saturation.capacity, one.found.cost.utilization
        shares = [min(1.0, one.rate / most) for most in one.capacities]
        right += [one.right(capacity, *one.capacities), one.right(used, *shares)]
        assert capacity.high is not None
        widths.append(capacity.high / (capacity.low or 0.0))
    assert fmean(right) >= 0.88
    assert median(widths) <= 1.6


def test_a_borrowed_capacity_contains_the_truth(judge: Judge):
    right = []
    for one in map(judge, WITH_PEERS):
        most, least = one.truth.capacity, min(one.truth.capacity, one.truth.saturated_output)
        for pod, speed in enumerate(one.speeds):
            said = one.found.capacities[f"pod-{pod}:8000/0"]
            right += [one.right(said, most * speed, least * speed)]
    assert fmean(right) >= 0.88


@pytest.mark.parametrize("number", WITHOUT)
def test_a_lightly_loaded_fleet_gets_bounds_that_hold(judge: Judge, number: int):
    one = judge(number)
    capacity, cost = one.found.saturation.capacity, one.found.cost
    assert all(each.is_bound for each in (capacity, cost.utilization, cost.idle_usd))
    assert one.right(capacity, *one.capacities)
    assert one.right(cost.utilization, *(one.rate / most for most in one.capacities))
    assert (capacity.low or 0.0) >= one.rate


@pytest.mark.parametrize("number", range(len(FLEETS)))
def test_no_more_replicas_go_than_the_true_capacity_allows(judge: Judge, number: int):
    """Of the slowest replicas, at the busiest time that was seen."""
    one, policy = judge(number), Policy()
    found = one.found.surplus(policy)
    least = min(one.truth.capacity, one.truth.saturated_output) * sum(one.speeds) / len(one.speeds)
    busiest = found.busiest_output_tokens_per_second.high or 0.0
    needed = math.ceil(busiest / (least * (1 - policy.headroom_ratio))) + policy.spare_replicas
    assert (found.removable_replicas.low or 0.0) <= max(0, len(one.speeds) - needed)


@pytest.mark.parametrize("number", range(len(FLEETS)))
def test_all_figures_of_a_fleet_come_from_one_computation(judge: Judge, number: int):
    found = judge(number).found
    answer, planned, bill = found.answer, plan(found), found.bill_by("engine")
    assert bill.whole == answer.cost
    assert answer.saturation.headroom_ratio.low == answer.cost.idle_ratio.low
    assert planned.surplus == found.surplus(Policy())
    each = planned.capacity_output_tokens_per_second
    assert planned.surplus.replica_output_tokens_per_second.low == pytest.approx(each.low)
