"""How the constants of `verdicts/curve.py` were chosen, and how they do on sweeps held back.

Run it from the repository root: `python bench/saturation_tuning.py [--search N]`. Each sweep is cut
where its load first reached half of the load of its peak, and where its throughput first reached
half of its peak; the peak is foreseen from what is left. Tuned on: the dense-model sweeps of
data/published_throughput.csv (arXiv 2606.11690: C1, C2, A1, A2) and bench/saturation_sweeps.csv.
Held back: C3, C4, A3, A4.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl

from vllm_capacity.resources import shipped
from vllm_capacity.verdicts.curve import PRIOR, Foresight, Loads, Prior, foreseen_peak

TUNED_ON = ("C1", "C2", "A1", "A2")
MIN_LOADS_KEPT = 3


def published_sweeps() -> dict[str, Loads]:
    """The sweeps of arXiv 2606.11690: N by Little's law, requests/s × (TTFT + TPOT × tokens)."""
    table = pl.read_csv(shipped("data/published_throughput.csv"), infer_schema_length=None)
    sweeps = table.filter(pl.col("source").str.contains("2606.11690")).with_columns(
        sweep=pl.col("source").str.extract(r"config (\w+)"),
        tpot_ms=pl.col("note").str.extract(r"TPOT ([\d.]+) ms").cast(pl.Float64),
    )
    latency = pl.col("mean_ttft_ms") + pl.col("tpot_ms") * pl.col("mean_output_tokens")
    sweeps = sweeps.with_columns(running=pl.col("requests_per_s") * latency / 1000)
    return {
        str(name): Loads.of(rows["running"].to_numpy(), rows["output_tok_per_s"].to_numpy())
        for (name,), rows in sweeps.group_by("sweep", maintain_order=True)
    }


def other_sweeps() -> dict[str, Loads]:
    """The sweeps of bench/saturation_sweeps.csv: N is the clients' concurrency."""
    table = pl.read_csv(Path(__file__).parent / "saturation_sweeps.csv")
    return {
        str(name): Loads.of(
            rows["running_requests"].to_numpy(), rows["output_tokens_per_second"].to_numpy()
        )
        for (name,), rows in table.group_by("sweep", maintain_order=True)
    }


def cuts(loads: Loads) -> list[int]:
    """How many of the lightest loads are kept: by half of the peak's load, by half of the peak."""
    top = int(np.argmax(loads.output))
    by_load = int(np.argmax(loads.running >= loads.running[top] / 2)) + 1
    by_output = int(np.argmax(loads.output >= loads.output[top] / 2)) + 1
    return sorted({k for k in (by_load, by_output) if MIN_LOADS_KEPT <= k < len(loads)})


def foreseen(sweeps: dict[str, Loads], prior: Prior) -> Iterable[tuple[Foresight, float]]:
    """What every cut of every sweep lets foresee, and the peak that was."""
    for loads in sweeps.values():
        for kept in cuts(loads):
            part = Loads(loads.running[:kept], loads.output[:kept], loads.error[:kept])
            sight = foreseen_peak(part, prior=prior)
            if sight is not None:
                yield sight, float(loads.output.max())


def summary(sweeps: dict[str, Loads], prior: Prior) -> dict[str, float]:
    """Cases, answered, median and mean error, coverage, median width of the answered ones."""
    cases = list(foreseen(sweeps, prior))
    answered = [(sight, peak) for sight, peak in cases if sight.is_answer]
    errors = [abs(sight.mid / peak - 1) for sight, peak in answered]
    return {
        "cases": len(cases),
        "answered": len(answered) / len(cases),
        "median error": float(np.median(errors)),
        "mean error": float(np.mean(errors)),
        "coverage": float(np.mean([s.low <= peak <= s.high for s, peak in answered])),
        "high / low": float(np.median([s.high / s.low for s, _ in answered])),
    }


def score(found: dict[str, float]) -> float:
    """Smaller is better: errors, missing coverage under 92 %, missing answers under 75 %."""
    missed = max(0.0, 0.92 - found["coverage"]) / 2 + max(0.0, 0.75 - found["answered"]) / 10
    return found["median error"] + found["mean error"] + missed


def variant(rng: random.Random) -> Prior:
    """A random neighbour of the constants in use."""
    shapes = rng.choice(
        [((1.0, 1.0),), ((0.8, 1.0), (1.2, 1.0), (2.0, 0.5)), ((1.0, 1.0), (2.0, 0.6))]
    )
    return replace(
        PRIOR,
        shapes=shapes,
        near_error=rng.choice([0.015, 0.02, 0.03]),
        error_per_e=rng.choice([0.06, 0.1, 0.15, 0.2]),
        farthest=rng.choice([4.0, 6.0, 8.0]),
        scatter=rng.choice([0.04, 0.05, 0.07]),
    )


def main() -> None:
    """Print the constants in use, tuned and held back; with --search, the best of N variants."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--search", type=int, default=0, metavar="N")
    tries = parser.parse_args().search
    published = published_sweeps()
    tuned = {k: v for k, v in published.items() if k in TUNED_ON} | other_sweeps()
    held_back = {k: v for k, v in published.items() if k not in TUNED_ON}
    rng = random.Random(0)
    best = min(
        (variant(rng) for _ in range(tries)), key=lambda p: score(summary(tuned, p)), default=None
    )
    for name, prior in (("in use", PRIOR), ("best of the search", best)):
        if prior is None:
            continue
        print(name, prior)
        for label, sweeps in (("tuned on", tuned), ("held back", held_back)):
            found = summary(sweeps, prior)
            print(f"  {label}:", ", ".join(f"{k} {v:.3g}" for k, v in found.items()))


if __name__ == "__main__":
    main()
