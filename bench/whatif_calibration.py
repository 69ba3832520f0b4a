"""Fit of the what-if's usable shares to published runs, and what it predicts of models left out.

Run it as `python bench/whatif_calibration.py [--write]`. It prints the fitted `Calibration` (its
`kernel_shares` go into `data/gpu_architectures.csv` and the rest into
`vllm_capacity/verdicts/hardware/roofline.py`, by hand) and, for each pair of GPUs, how far the
ratio is off when its model is left out of the fit. With --write it writes
`data/tuning/whatif_shares.csv`, which notebook 08 reads, and stops. Runs weigh in by their rate,
at a spread of a factor of 1.6 (2024: 4), and pairs by their ratio, at 12 % (2024: 20 %): the ratio
is what is asked.
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Callable, Mapping

import numpy as np
import polars as pl
from scipy.optimize import least_squares
from whatif_runs import (
    PAIRS_2024,
    Pair,
    is_2024,
    predicted,
    saturated_pairs,
    saturated_runs,
    source,
    table_pairs,
)

from vllm_capacity.facts.throughput import Measurement
from vllm_capacity.resources import shipped
from vllm_capacity.verdicts.hardware.roofline import Calibration

KINDS = ("dense", "moe", "mxfp4")
PRIOR = {
    "dense Ampere": 0.75,
    "dense Hopper": 0.58,
    "moe Ampere": 0.55,
    "moe Hopper": 0.45,
    "mxfp4 Ampere": 0.55,
    "mxfp4 Hopper": 0.32,
    "widened": 0.8,
    "native_fp8": 0.8,
    "bandwidth": 0.75,
    "attention": 0.45,
    "attention_sinks": 0.12,
    "step_seconds_per_layer": 0.004 / 32,
    "token_seconds": 30e-6,
    "request_seconds": 0.0015,
    "link": 0.5,
}
"""What is known before any of these runs: kernels' usual shares of peak, MBU 0.6-0.8."""
SPREAD = dict.fromkeys(PRIOR, 0.3) | {
    "dense Ampere": 0.15,
    "dense Hopper": 0.15,
    "widened": 0.15,
    "native_fp8": 0.15,
    "bandwidth": 0.1,
    "attention_sinks": 0.6,
    "step_seconds_per_layer": 0.5,
    "token_seconds": 0.5,
    "request_seconds": 0.4,
    "link": 0.5,
}
"""How far, in logarithms, a share may lie from its prior (one standard deviation)."""
OLD_HOST, OLD_HOST_SPREAD = 3.0, 0.7
"""How many times as long the host of vLLM 0.5 took, before any run is looked at."""


def fit(leave_out: Callable[[Measurement], bool] = lambda run: False) -> tuple[Calibration, float]:
    """The calibration that fits best to what is not left out, and the host factor of 2024."""
    runs = [run for run in saturated_runs() if not leave_out(run)]
    old = [pair for pair in table_pairs(PAIRS_2024) if not leave_out(pair[0])]
    start = np.log([*PRIOR.values(), OLD_HOST])
    spread = np.array([*(SPREAD[name] for name in PRIOR), OLD_HOST_SPREAD])

    def residuals(logs: np.ndarray) -> np.ndarray:
        shares, host = _shares(logs)
        calibration = calibration_of(shares)
        errors = [2.0 * _off(run, calibration, 1.0) for run in runs]
        errors += [error(pair, calibration) / 0.12 for pair in saturated_pairs(runs)]
        errors += [0.7 * _off(run, calibration, host) for pair in old for run in pair]
        errors += [error(pair, calibration, host) / 0.2 for pair in old]
        robust = [
            math.copysign(math.sqrt(2 * (math.sqrt(1 + value**2) - 1)), value) for value in errors
        ]
        return np.array([*robust, *((logs - start) / spread)])

    shares, host = _shares(least_squares(residuals, start).x)
    return calibration_of({name: float(f"{share:.3g}") for name, share in shares.items()}), host


def error(pair: Pair, calibration: Calibration, old_host: float = 1.0) -> float:
    """How far the arithmetic's ratio of a pair is off, in logarithms."""
    one, other = pair
    return _off(other, calibration, old_host) - _off(one, calibration, old_host)


def _off(run: Measurement, calibration: Calibration, old_host: float) -> float:
    return math.log(predicted(run, calibration, old_host) / run.output_tokens_per_second)


def calibration_of(shares: Mapping[str, float]) -> Calibration:
    """The calibration of shares that are named as in `PRIOR`."""
    by_kernel = {name for name in shares if " " in name}
    fitted = {name.split()[1] for name in by_kernel}
    return Calibration(
        kernel_shares={
            architecture: tuple(shares[f"{kind} {architecture}"] for kind in KINDS)
            for architecture in sorted(fitted)
        },
        **{name: share for name, share in shares.items() if name not in by_kernel},
    )


def _shares(logs: np.ndarray) -> tuple[dict[str, float], float]:
    *shares, host = map(float, np.exp(logs))
    return dict(zip(PRIOR, shares, strict=True)), host


def shares_of(calibration: Calibration) -> dict[str, float]:
    """The shares of a calibration, named as in `PRIOR`."""
    kernels = {
        f"{kind} {architecture}": share
        for architecture, shares in calibration.kernel_shares.items()
        for kind, share in zip(KINDS, shares, strict=True)
    }
    return {name: kernels.get(name) or getattr(calibration, name) for name in PRIOR}


def share_rows() -> pl.DataFrame:
    """One row per share and model left out of the fit, or "none": prior, spread, fitted value.

    `spread_log` is the standard deviation of the prior, in logarithms.
    """
    pairs = [*saturated_pairs(saturated_runs()), *table_pairs(PAIRS_2024)]
    models = sorted({one.model for one, _ in pairs})
    fits = {"none": fit()[0]} | {
        left: fit(lambda run, left=left: run.model == left)[0] for left in models
    }
    rows = [
        {
            "model_left_out": left,
            "share": name,
            "prior": PRIOR[name],
            "spread_log": SPREAD[name],
            "fitted": value,
        }
        for left, calibration in fits.items()
        for name, value in shares_of(calibration).items()
    ]
    return pl.DataFrame(rows)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--write", action="store_true", help="write the table of notebook 08")
    if parser.parse_args().write:
        share_rows().write_csv(shipped("data/tuning") / "whatif_shares.csv")
        return
    print(*fit())
    pairs = [*saturated_pairs(saturated_runs()), *table_pairs(PAIRS_2024)]
    for name, of in (("model", lambda run: run.model), ("source", source)):
        errors: dict[bool, list[float]] = {False: [], True: []}
        for left in sorted({of(one) for one, _ in pairs}):
            calibration, host = fit(lambda run, of=of, left=left: of(run) == left)
            for one, other in pairs:
                if of(one) != left:
                    continue
                off = error((one, other), calibration, host)
                errors[is_2024(one)].append(off)
                print(
                    f"{name} left out: {one.model} x{one.gpus} {one.dtype}->{other.dtype} "
                    f"{one.workload[:24]:24} {math.expm1(off):+.0%}"
                )
        for old, found in errors.items():
            size = [abs(value) for value in found]
            print(
                f"{len(size)} pairs {'of 2024' if old else 'saturated'}, {name} left out: median "
                f"error {math.expm1(statistics.median(size)):.1%}, 85 % within a factor of "
                f"{math.exp(float(np.quantile(size, 0.85))):.2f}"
            )


if __name__ == "__main__":
    main()
