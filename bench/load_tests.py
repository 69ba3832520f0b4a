"""How near `fit` comes on load tests: at a given limit, at a named load, with fewer loads.

Run it from the repository root: `python bench/load_tests.py`. It prints

- whole sweeps whose waiting requests or offered load are given (bench/load_tests_with_limits.csv,
  stages of inference-perf): the capacity against the highest output. Nothing was fitted to them.
- the throughput at a load that was left out, of all sweeps of bench/saturation_tuning.py: between
  two others, and one or two loads beyond those seen. The constants have seen these sweeps.
- the loads it takes until the interval of the capacity is 1.4 × wide or less, for sweeps of six
  loads or more: `next_loads` against a doubling grid from one client. Both begin at one client and
  end at the heaviest load of the sweep; what a load gives is read off the sweep, by straight lines
  of logarithms. The constants have seen these sweeps.
- straight lines, which must be refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import polars as pl
from saturation_tuning import all_sweeps, silicon_sweeps

from vllm_capacity.verdicts.saturation.curve import LoadPoints, expected_output
from vllm_capacity.verdicts.saturation.load_test import LIMIT_COLUMNS, fit_points
from vllm_capacity.verdicts.saturation.next_load import next_loads

NARROW = 1.4
MIN_LOADS = 6
_MAX_TESTS = 12
_BEGINNING = 1.0


def told_limits() -> dict[str, pl.DataFrame]:
    """The sweeps whose rows show whether they were at the limit."""
    table = pl.read_csv(Path(__file__).parent / "load_tests_with_limits.csv")
    return {str(name): rows for (name,), rows in table.group_by("sweep", maintain_order=True)}


def at_the_limit(columns: Sequence[str]) -> str:
    """Errors and widths of the capacity if only these columns show the limit."""
    errors, widths, inside = [], [], []
    others = [name for name in LIMIT_COLUMNS if name not in columns]
    for rows in told_limits().values():
        capacity = fit_points(rows.drop(others, strict=False)).capacity
        peak = float(rows["output_tokens_per_second"].max())  # type: ignore[arg-type]
        if capacity.low is None or capacity.mid is None or capacity.high is None:
            continue
        errors.append(abs(capacity.mid / peak - 1))
        widths.append(capacity.high / capacity.low)
        inside.append(capacity.low <= peak <= capacity.high)
    return (
        f"{len(errors)} sweeps, median error {np.median(errors):.1%}, highest "
        f"{max(errors):.1%}, inside {np.mean(inside):.0%}, high / low {np.median(widths):.2f}"
    )


def at_a_load(sweeps: dict[str, LoadPoints], ahead: int) -> str:
    """Errors of the throughput at a load left out: between others, or a number of loads beyond."""
    found = []
    for loads in sweeps.values():
        first, last = (2 + ahead, len(loads)) if ahead else (1, len(loads) - 1)
        for at in range(first, last):
            kept = [k for k in range(len(loads)) if (k <= at - ahead if ahead else k != at)]
            seen = LoadPoints(loads.running[kept], loads.output[kept], loads.error[kept])
            result = expected_output(seen, float(loads.running[at]))
            if result is not None:
                found.append((*result, float(loads.output[at])))
    low, mid, high, truth = np.asarray(found).T
    error = np.abs(mid / truth - 1)
    inside = (low <= truth) & (truth <= high)
    return (
        f"{len(found)} loads, median error {np.median(error):.1%}, mean {error.mean():.1%}, inside "
        f"{inside.mean():.0%}, high / low {np.median(high / low):.2f}"
    )


def output_at(sweep: LoadPoints, clients: float) -> float:
    """A sweep's throughput at a load, log-log interpolated; below it, at most proportional."""
    n, x = np.log(sweep.running), np.log(sweep.output)
    at = float(np.log(clients))
    if at < n[0]:
        return float(np.exp(x[0] + min(1.0, (x[1] - x[0]) / (n[1] - n[0])) * (at - n[0])))
    return float(np.exp(np.interp(at, n, x)))


def loads_of(sweep: LoadPoints, clients: Sequence[float]) -> pl.DataFrame:
    """A table of a sweep at those loads."""
    return pl.DataFrame(
        {
            "running_requests": [float(n) for n in clients],
            "output_tokens_per_second": [output_at(sweep, n) for n in clients],
        }
    )


def is_narrow(sweep: LoadPoints, clients: Sequence[float]) -> bool:
    """Whether the loads determine the capacity within `NARROW`."""
    capacity = fit_points(loads_of(sweep, clients)).capacity
    if capacity.low is None or capacity.high is None:
        return False
    return capacity.high / capacity.low <= NARROW


def by_doubling(sweep: LoadPoints) -> int | None:
    """How many loads of a doubling grid are needed; None if the whole grid is not enough."""
    tested: list[float] = []
    while (clients := 2.0 ** len(tested)) <= sweep.heaviest:
        tested.append(clients)
        if is_narrow(sweep, tested):
            return len(tested)
    tested.append(sweep.heaviest)
    return len(tested) if is_narrow(sweep, tested) else None


def by_next_loads(sweep: LoadPoints) -> int | None:
    """How many loads are needed by `next_loads`; None if it proposes no more."""
    tested = [_BEGINNING]
    while len(tested) < _MAX_TESTS:
        proposed = next_loads(loads_of(sweep, tested), most_clients=sweep.heaviest, count=1)
        if not proposed:
            return None
        tested = sorted([*tested, min(float(proposed[0].clients), sweep.heaviest)])
        if is_narrow(sweep, tested):
            return len(tested)
    return None


def saved_loads(sweeps: dict[str, LoadPoints]) -> str:
    """How many loads `next_loads` saves."""
    long = [loads for loads in sweeps.values() if len(loads) >= MIN_LOADS]
    counts = [(by_doubling(loads), by_next_loads(loads)) for loads in long]
    both = [(grid, own) for grid, own in counts if grid is not None and own is not None]
    grid, own = (np.mean(each) for each in zip(*both, strict=True))
    alone = [sum(each is not None for each in column) for column in zip(*counts, strict=True)]
    return (
        f"{len(long)} sweeps; narrow enough by the grid {alone[0]}, by the next load {alone[1]}; "
        f"of the {len(both)} by both: {grid:.1f} loads and {own:.1f}, {1 - own / grid:.0%} fewer"
    )


def refused_lines() -> str:
    """How many straight lines are refused."""
    lines = [
        LoadPoints.of(n, rate * np.asarray(n))
        for n in ([1, 2, 4], [1, 2, 4, 8], [4, 8, 16, 32, 64], [1, 3, 10, 30])
        for rate in (5.0, 80.0)
    ]
    refused = [
        fit_points(loads_of(line, list(line.running))).capacity.mid is None for line in lines
    ]
    return f"{sum(refused)} of {len(refused)} refused"


def main() -> None:
    """Print them."""
    sweeps, silicon = all_sweeps(), silicon_sweeps()
    others = {name: loads for name, loads in sweeps.items() if name not in silicon}
    print("whole sweeps, waiting given:", at_the_limit(["waiting_requests"]))
    print("whole sweeps, offered load given:", at_the_limit(["offered_requests_per_second"]))
    print("whole sweeps, neither given:", at_the_limit([]))
    for ahead, words in enumerate(("between two loads", "one load ahead", "two loads ahead")):
        for kind, own in (("silicon", silicon), ("others", others)):
            print(f"throughput {words}, {kind}:", at_a_load(own, ahead))
    for kind, own in (("silicon", silicon), ("others", others)):
        print(f"loads until high / low <= {NARROW}, {kind}:", saved_loads(own))
    print("straight lines:", refused_lines())


if __name__ == "__main__":
    main()
