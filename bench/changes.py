"""How often `compare` raises false alarms and finds planted changes, on simulated servers.

    python -m bench.changes [--times N] [--seed S] [--figure itl_seconds|ttft_seconds]
                            [--planted 0.05] [--law TEXT]

Each pair of sides of `tests/verdicts/made_days.py` is made so many times: unchanged, slower and
faster. A false alarm is an unchanged pair whose interval leaves out "no change". A change counts as
found where its interval does; those are also counted among the pairs alone whose own statement
is that a change as large as the planted one would be found.
"""

from __future__ import annotations

import argparse
import statistics
import zlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from tests.verdicts.made_days import PAIRS, made_steps
from vllm_capacity.verdicts.changes import Change, change, comparable_steps


@dataclass(frozen=True)
class Judged:
    """Results of the repetitions of one pair of sides."""

    unchanged: tuple[Change, ...]
    changed: tuple[Change, ...]
    held: int

    @property
    def alarms(self) -> int:
        """How often an unchanged server was called changed."""
        return sum(bool(each.is_more_than_noise) for each in self.unchanged)

    @property
    def found(self) -> int:
        """How often the planted change was called one."""
        return sum(bool(each.is_more_than_noise) for each in self.changed)

    def promised(self, planted: float) -> list[Change]:
        """The changed pairs whose detectable change is at most that."""
        return [
            each
            for each in self.changed
            if (least := each.detectable_change_ratio) is not None and least <= planted
        ]

    @property
    def detectable(self) -> float:
        """The median of the smallest detectable changes."""
        sizes = [each.detectable_change_ratio for each in (*self.unchanged, *self.changed)]
        known = [each for each in sizes if each is not None]
        return statistics.median(known) if known else float("nan")


def judged(law: str, *, times: int, seed: int, figure: str, planted: float) -> Judged:
    """The pair of sides of that name, made `times` times; every second change is for the worse."""
    before, after = PAIRS[law]
    unchanged, changed, held = [], [], 0
    for number in range(times):
        for speed in (1.0, (1 + planted) ** (-1 if number % 2 else 1)):
            rng = np.random.default_rng([zlib.crc32(law.encode()), seed, number])
            found = change(
                comparable_steps(_made(rng, before, 1.0)),
                comparable_steps(_made(rng, after, speed)),
                figure,
            )
            (unchanged if speed == 1.0 else changed).append(found)
            low, high = found.ratio.low, found.ratio.high
            held += low is None or high is None or low <= 1 / speed <= high
    return Judged(tuple(unchanged), tuple(changed), held)


def _made(rng: np.random.Generator, side: Mapping[str, object], speed: float) -> object:
    return made_steps(rng, **{"engines": 1, **side}, speed=speed)


def main() -> None:
    """Judge all pairs, or those with a text in their names, and print the results."""
    parser = argparse.ArgumentParser(prog="python -m bench.changes", description=__doc__)
    parser.add_argument("--times", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--figure", default="itl_seconds")
    parser.add_argument("--planted", type=float, default=0.05)
    parser.add_argument("--law", default="")
    asked = parser.parse_args()
    alarms = pairs = found = promised = 0
    print("| sides | false alarms | found | says it finds | found of those | held | pairs |")
    for law in (each for each in PAIRS if asked.law in each):
        one = judged(
            law, times=asked.times, seed=asked.seed, figure=asked.figure, planted=asked.planted
        )
        own = one.promised(asked.planted)
        kept = sum(bool(each.is_more_than_noise) for each in own)
        alarms, pairs = alarms + one.alarms, pairs + asked.times
        found, promised = found + kept, promised + len(own)
        print(
            f"| {law} | {one.alarms / asked.times:.1%} | {one.found / asked.times:.0%} "
            f"| {one.detectable:.1%} | {kept} of {len(own)} "
            f"| {one.held / 2 / asked.times:.1%} | {asked.times} |",
            flush=True,
        )
    print(f"{alarms} false alarms in {pairs} pairs; {found} of {promised} promised changes found")


if __name__ == "__main__":
    main()
