"""How the constants of verdicts/saturation/curve.py were chosen, and how well they work.

Run it from the repository root: `python bench/saturation_tuning.py [--search N] [--write]`. With
--write the tables that notebook 07 reads are written to data/tuning/: `saturation_loads.csv`,
`saturation_cuts.csv`, `saturation_tuning.csv`. Each sweep is cut where its load first reached
1/8, 1/4, 1/2 and 3/4 of the load of its peak, and where its throughput first reached half of its
peak; the peak is predicted from the rest. The sweeps that the constants were chosen with are
those of data/published_throughput.csv (arXiv 2606.11690) and of bench/saturation_sweeps.csv. Those
of data/silicon_vllm.csv are listed separately: nearly all of them still rise where they end, so
the highest measured throughput stands for a peak that may be higher.

The constants in use were chosen by hand with all of them in sight. With --search N, N neighbours
are tried, and each source is predicted with the best of those on all other sources: that shows what
choosing constants so gives on a source it has not seen.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import polars as pl
from msgspec.structs import replace

from vllm_capacity.resources import shipped
from vllm_capacity.verdicts.saturation.curve import (
    PRIOR,
    LoadPoints,
    PeakEstimate,
    Prior,
    extrapolated_peak,
)

MIN_LOADS_KEPT = 3
MIN_SWEEP = 4
LOAD, OUTPUT = "load", "throughput"
_SHARES = {"1/8 load": 1 / 8, "1/4 load": 1 / 4, LOAD: 1 / 2, "3/4 load": 3 / 4}
"""The cuts by load, as shares of the load of the peak; `LOAD` is half of it."""
CUTS = (*_SHARES, OUTPUT)
_RESAMPLES = 2000
NEIGHBORS: Mapping[str, tuple[float, ...]] = {
    "near_error": (0.005, 0.01, 0.02, 0.03, 0.05),
    "error_per_e": (0.1, 0.15, 0.2, 0.25, 0.3),
    "farthest": (2.0, 3.0, 4.0, 5.0, 6.0, 8.0),
    "thinning": (0.0, -0.35, -0.7, -1.0, -1.4),
    "scatter": (0.02, 0.035, 0.05, 0.07, 0.1),
    "widest": (1.8, 2.0, 2.5, 3.0, 4.0),
}
"""The values tried for each constant, with the others as in use."""


@dataclass(frozen=True)
class Case:
    """A sweep cut to its lighter loads, the peak they predict, and the actual peak."""

    sweep: str
    peak_estimate: PeakEstimate
    peak: float

    @property
    def error(self) -> float:
        """How far the middle lies from the peak, as a share of it."""
        return abs(self.peak_estimate.mid / self.peak - 1)

    @property
    def is_inside(self) -> bool:
        """Whether the interval contains the peak."""
        return self.peak_estimate.low <= self.peak <= self.peak_estimate.high


def published_sweeps() -> dict[str, LoadPoints]:
    """The sweeps of arXiv 2606.11690: N by Little's law, requests/s × (TTFT + TPOT × tokens)."""
    table = pl.read_csv(shipped("data/published_throughput.csv"), infer_schema_length=None)
    sweeps = table.filter(pl.col("source").str.contains("2606.11690")).with_columns(
        sweep=pl.col("source").str.extract(r"config (\w+)"),
    )
    latency = pl.col("mean_ttft_ms") + pl.col("median_tpot_ms") * pl.col("output_tokens")
    sweeps = sweeps.with_columns(running=pl.col("requests_per_second") * latency / 1000)
    return {
        str(name): LoadPoints.of(
            rows["running"].to_numpy(), rows["output_tokens_per_second"].to_numpy()
        )
        for (name,), rows in sweeps.group_by("sweep", maintain_order=True)
    }


def other_sweeps() -> dict[str, LoadPoints]:
    """The sweeps of bench/saturation_sweeps.csv: N is the clients' concurrency."""
    table = pl.read_csv(Path(__file__).parent / "saturation_sweeps.csv")
    return {
        str(name): LoadPoints.of(
            rows["running_requests"].to_numpy(), rows["output_tokens_per_second"].to_numpy()
        )
        for (name,), rows in table.group_by("sweep", maintain_order=True)
    }


def silicon_sweeps() -> dict[str, LoadPoints]:
    """The sweeps of data/silicon_vllm.csv with four loads or more: N is the clients kept busy.

    One sweep a model, weight type, GPU, split over GPUs, lengths and version of vLLM.
    """
    table = pl.read_csv(shipped("data/silicon_vllm.csv"), infer_schema_length=None)
    keys = ("model", "dtype", "gpu", "tp", "attention_dp", "moe_tp", "moe_ep", "isl", "osl")
    found = {}
    usable = table.filter(pl.col("flag").is_null())
    for key, rows in usable.group_by(*keys, "engine_version", maintain_order=True):
        loads = rows.group_by("concurrency").agg(pl.col("output_tok_per_s").mean())
        loads = loads.sort("concurrency")
        if len(loads) >= MIN_SWEEP:
            name = "-".join(str(part).rsplit("/", 1)[-1] for part in key)
            running = loads["concurrency"].cast(pl.Float64).to_numpy()
            found[f"silicon-{name}"] = LoadPoints.of(running, loads["output_tok_per_s"].to_numpy())
    return found


def ended_sweeps() -> dict[str, LoadPoints]:
    """The sweeps that the constants were chosen with: most were continued to a plateau."""
    return published_sweeps() | other_sweeps()


def source(sweep: str) -> str:
    """Whose measurement a sweep is: those of one source (or silicon model) resemble each other."""
    return "paper" if len(sweep) == len("C1") else "-".join(sweep.split("-")[:2]).split(".")[0]


def cuts(loads: LoadPoints, by: Sequence[str] = (LOAD, OUTPUT)) -> list[int]:
    """How many of the lightest loads are kept, by each of those cuts (`CUTS`)."""
    top = int(np.argmax(loads.output))
    kept = {
        name: int(np.argmax(loads.running >= share * loads.running[top])) + 1
        for name, share in _SHARES.items()
    }
    kept[OUTPUT] = int(np.argmax(loads.output >= loads.output[top] / 2)) + 1
    return sorted({kept[name] for name in by if MIN_LOADS_KEPT <= kept[name] < len(loads)})


def cases(
    sweeps: Mapping[str, LoadPoints], prior: Prior = PRIOR, *, by: Sequence[str] = (LOAD,)
) -> Iterable[Case]:
    """What every cut of every sweep predicts, and the actual peak."""
    for name, loads in sweeps.items():
        for kept in cuts(loads, by):
            seen_loads = LoadPoints(loads.running[:kept], loads.output[:kept], loads.error[:kept])
            peak_estimate = extrapolated_peak(seen_loads, prior=prior)
            if peak_estimate is not None:
                seen = float(seen_loads.output.max())
                yield Case(name, peak_estimate.no_less_than(seen), float(loads.output.max()))


def summary(found: Sequence[Case]) -> dict[str, float]:
    """Cases, answered, errors with a 90 % bootstrap interval of their mean, coverage, width."""
    answered = [case for case in found if case.peak_estimate.is_answer]
    errors = np.asarray([case.error for case in answered])
    picks = np.random.default_rng(0).integers(0, len(errors), (_RESAMPLES, len(errors)))
    low, high = np.quantile(errors[picks].mean(1), [0.05, 0.95])
    return {
        "cases": len(found),
        "answered": len(answered) / len(found),
        "median error": float(np.median(errors)),
        "mean error": float(errors.mean()),
        "from": float(low),
        "to": float(high),
        "coverage": float(np.mean([case.is_inside for case in answered])),
        "high / low": float(
            np.median([c.peak_estimate.high / c.peak_estimate.low for c in answered])
        ),
    }


def score(found: Sequence[Case]) -> float:
    """Smaller is better: errors, missing coverage under 92 %, missing answers under 80 %."""
    result = summary(found)
    missed = max(0.0, 0.92 - result["coverage"]) / 2 + max(0.0, 0.8 - result["answered"]) / 2
    wide = max(0.0, result["high / low"] - 1.7) / 5
    return result["median error"] + result["mean error"] + missed + wide


def variant(rng: random.Random) -> Prior:
    """A random neighbour of the constants in use."""
    shapes = rng.choice(
        [PRIOR.shapes, ((0.8, 1.0), (1.2, 1.0), (2.0, 0.5)), ((0.4, 1.0), (1.0, 1.0), (2.0, 0.6))]
    )
    return replace(
        PRIOR,
        shapes=shapes,
        near_error=rng.choice([0.015, 0.02, 0.03]),
        error_per_e=rng.choice([0.1, 0.15, 0.2, 0.25]),
        farthest=rng.choice([4.0, 5.0, 6.0]),
        scatter=rng.choice([0.04, 0.05, 0.07]),
    )


def unseen(sweeps: Mapping[str, LoadPoints], tried: Sequence[Prior]) -> list[Case]:
    """Each source predicted with the best of the constants tried on all the others."""
    found = [list(cases(sweeps, prior)) for prior in tried]
    result: list[Case] = []
    for left_out in sorted({source(name) for name in sweeps}):
        others = [[case for case in own if source(case.sweep) != left_out] for own in found]
        best = min(range(len(tried)), key=lambda k: score(others[k]))
        result += [case for case in found[best] if source(case.sweep) == left_out]
    return result


def load_rows(sweeps: Mapping[str, LoadPoints]) -> pl.DataFrame:
    """One row per sweep and load: sweep, source, running_requests, output_tokens_per_second."""
    return pl.concat(
        pl.DataFrame(
            {"running_requests": loads.running, "output_tokens_per_second": loads.output}
        ).select(pl.lit(name).alias("sweep"), pl.lit(source(name)).alias("source"), pl.all())
        for name, loads in sweeps.items()
    )


def cut_rows(sweeps: Mapping[str, LoadPoints]) -> pl.DataFrame:
    """One row per cut of a sweep: the loads kept, the predicted peak, and the actual peak.

    `low`, `mid`, `high` and `peak` are output tokens/s; `cut` is where it was cut (`CUTS`).
    """
    rows = [
        {
            "sweep": name,
            "source": source(name),
            "cut": by,
            "loads_kept": kept,
            "low": case.peak_estimate.low,
            "mid": case.peak_estimate.mid,
            "high": case.peak_estimate.high,
            "is_answer": case.peak_estimate.is_answer,
            "peak": case.peak,
        }
        for name, loads in sweeps.items()
        for by in CUTS
        for kept in cuts(loads, (by,))
        for case in cases({name: loads}, by=(by,))
    ]
    return pl.DataFrame(rows)


def tuning_rows(sweeps: Mapping[str, LoadPoints]) -> pl.DataFrame:
    """One row per constant, value and cut: what that value gives (`summary`), others as in use."""

    @cache
    def figures(prior: Prior, by: str) -> dict[str, float]:
        """What these constants give; those in use are a row of each constant."""
        return summary(list(cases(sweeps, prior, by=(by,))))

    rows = [
        {"constant": name, "value": value, "is_in_use": value == getattr(PRIOR, name), "cut": by}
        | {
            key.replace(" / ", "_over_").replace(" ", "_"): figure
            for key, figure in figures(replace(PRIOR, **{name: value}), by).items()
        }
        for name, values in NEIGHBORS.items()
        for value in values
        for by in (LOAD, OUTPUT)
    ]
    return pl.DataFrame(rows).rename({"from": "mean_error_low", "to": "mean_error_high"})


def write_tables(sweeps: Mapping[str, LoadPoints], folder: Path) -> None:
    """The tables of notebook 07, as CSV."""
    tables = {
        "saturation_loads": load_rows(sweeps),
        "saturation_cuts": cut_rows(sweeps),
        "saturation_tuning": tuning_rows(sweeps),
    }
    for name, table in tables.items():
        table.write_csv(folder / f"{name}.csv", float_precision=6)


def main() -> None:
    """Print how well the constants in use work; with --search, a search on unseen sources."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--search", type=int, default=20, metavar="N")
    parser.add_argument("--write", action="store_true", help="write the tables of notebook 07")
    asked = parser.parse_args()
    attempts = asked.search
    sweeps = ended_sweeps()
    if asked.write:
        write_tables(sweeps, shipped("data/tuning"))
    print("in use", PRIOR)
    kinds = {"ended": sweeps, "silicon": silicon_sweeps()}
    for by in CUTS:
        for kind, own in kinds.items():
            if found := list(cases(own, by=(by,))):
                _print_summary(f"in use, cut by {by}, {kind}", found)
    if attempts:
        rng = random.Random(0)
        tried = [PRIOR, *(variant(rng) for _ in range(attempts))]
        _print_summary("each source left out of the search, cut by load", unseen(sweeps, tried))


def _print_summary(label: str, found: Sequence[Case]) -> None:
    print(f"  {label}:", ", ".join(f"{k} {v:.3g}" for k, v in summary(found).items()))


if __name__ == "__main__":
    main()
