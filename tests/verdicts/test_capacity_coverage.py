"""How often a capacity contains the truth, on servers and loads not used for tuning.

The cases are those of their kind that take the fewest requests, of a seed that no constant of the
package was chosen with; of loads that vary every third by requests, since the shortest of them tell
least, and waves far below the limit besides. `python -m bench.capacity_truth --seed S` judges any
other.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from statistics import fmean, median

import pytest

from tests.truth_server.cases import Case, case
from tests.truth_server.judging import is_right, written
from vllm_capacity.assumptions import Slo
from vllm_capacity.estimate import Estimate
from vllm_capacity.figures.steps import engine_steps
from vllm_capacity.telemetry.window import open_window
from vllm_capacity.verdicts.saturation.fit import engine_fits
from vllm_capacity.verdicts.saturation.slo import slo_throughput

SEED = 11
NUMBERS = {
    "constant": (15, 28, 31, 34),
    "heavy": (17, 16),
    "bursty": (30, 39, 14, 4),
    "varied": (34, 4, 37, 33, 8, 38, 39, 28, 10, 23),
    "waves": (38, 4, 19, 5, 15, 30, 36),
    "saturated": (39, 16, 28, 3, 17),
    "spells": (13, 5, 30, 6),
}
CASES = [(kind, number) for kind, numbers in NUMBERS.items() for number in numbers]


@dataclass(frozen=True)
class Judged:
    """One case, its best minute at most the capacity, and what is said of it; output tokens/s."""

    made: Case
    held: float
    capacity: Estimate
    within: Estimate

    @property
    def truths(self) -> tuple[float, float]:
        """The capacity, and what an overload gets."""
        most = self.made.truth.capacity
        return most, min(most, self.made.truth.saturated_output)

    @property
    def ratio(self) -> float:
        """The middle by the nearer truth."""
        most, least = self.truths
        mid = self.capacity.mid or math.nan
        return mid / min(most, max(least, mid))

    @property
    def is_right(self) -> bool | None:
        return is_right(self.capacity.low, self.capacity.high, *self.truths)


Judge = Callable[[str, int], Judged]


@pytest.fixture(scope="module")
def judge(tmp_path_factory: pytest.TempPathFactory) -> Judge:
    """A case by kind and number, judged once."""
    folder = tmp_path_factory.mktemp("coverage")
    known: dict[tuple[str, int], Judged] = {}

    def judged(kind: str, number: int) -> Judged:
        if (kind, number) not in known:
            made = case(kind, number, SEED)
            path, served = written(made, folder)
            window = open_window(path)
            fits = engine_fits(engine_steps(window, time_range=window.extent))
            slo = Slo(made.targets.ttft_seconds, made.targets.itl_seconds)
            held = min(served.best_minute, made.truth.capacity)
            known[kind, number] = Judged(made, held, fits[0].capacity, slo_throughput(fits, slo))
        return known[kind, number]

    return judged


@pytest.mark.parametrize(("kind", "number"), CASES)
def test_bounds_hold_and_no_minute_contradicts_a_capacity(judge: Judge, kind: str, number: int):
    one = judge(kind, number)
    if one.capacity.is_bound:
        assert one.is_right
    if one.capacity.high is not None:
        assert min(one.held, one.truths[1]) <= 1.02 * one.capacity.high


def of(judge: Judge, *kinds: str) -> list[Judged]:
    return [judge(kind, number) for kind in kinds for number in NUMBERS[kind]]


def two_sided(judged: list[Judged]) -> list[Judged]:
    return [one for one in judged if one.capacity.is_known]


def test_intervals_contain_the_truth(judge: Judge):
    assert fmean(bool(one.is_right) for one in two_sided(of(judge, *NUMBERS))) >= 0.88


def test_a_steady_light_load_gives_at_least_the_observed_output(judge: Judge):
    for one in of(judge, "constant"):
        assert one.capacity.low is not None
        assert one.capacity.low >= 0.9 * one.held


def test_a_varying_load_gives_a_nearly_unbiased_estimate(judge: Judge):
    varied = of(judge, "varied")
    answered = two_sided(varied)
    assert len(answered) >= 0.7 * len(varied)
    assert fmean(bool(one.is_right) for one in answered) >= 0.88
    assert median(one.ratio for one in answered) == pytest.approx(1, abs=0.05)
    assert median(one.capacity.high / one.capacity.low for one in answered) <= 1.6


def test_a_load_that_varies_far_below_the_limit_is_right_or_a_bound(judge: Judge):
    waves = of(judge, "waves")
    assert all(one.is_right for one in waves)
    assert all(one.capacity.low >= 0.85 * one.held for one in waves)


@pytest.mark.parametrize("kind", ["saturated", "spells"])
def test_a_server_at_its_limit_is_measured_within_three_percent(judge: Judge, kind: str):
    assert median(one.ratio for one in of(judge, kind)) == pytest.approx(1, abs=0.03)


def test_throughput_within_the_targets_is_right(judge: Judge):
    right = []
    for one in of(judge, *NUMBERS):
        opened, closed = (one.made.fleet_within(is_closed=is_closed) for is_closed in (False, True))
        ends = one.within.low, one.within.high
        is_held = is_right(*ends, min(opened, one.truths[1]), closed, slack_ratio=0.1)
        right.append(is_held is not False)
    assert fmean(right) >= 0.88
