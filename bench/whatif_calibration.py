"""Fit of the what-if's usable shares to published runs, and what it predicts of models left out.

Run it as `python bench/whatif_calibration.py`. It prints the fitted `Calibration` (to be written
into `vllm_capacity/verdicts/roofline.py` by hand) and, for each pair of GPUs, how far the ratio is
off when its model is left out of the fit. Runs weigh in by their rate, at a spread of a factor of
1.6 (2024: 4), and pairs by their ratio, at 12 % (2024: 20 %): the ratio is what is asked.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from dataclasses import asdict

import numpy as np
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
from vllm_capacity.verdicts.roofline import Calibration

PRIOR = Calibration(
    dense_ampere=0.75,
    dense_hopper=0.58,
    moe_ampere=0.55,
    moe_hopper=0.45,
    mxfp4_ampere=0.55,
    mxfp4_hopper=0.32,
    widened=0.8,
    native_fp8=0.8,
    bandwidth=0.75,
    attention=0.45,
    attention_sinks=0.12,
    step_seconds_per_layer=0.004 / 32,
    token_seconds=30e-6,
    request_seconds=0.0015,
    link=0.5,
)
"""What is known before any of these runs: kernels' usual shares of peak, MBU 0.6-0.8."""
SPREAD = dict.fromkeys(asdict(PRIOR), 0.3) | {
    "dense_ampere": 0.15,
    "dense_hopper": 0.15,
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
    names = list(asdict(PRIOR))
    start = np.log([*(asdict(PRIOR)[name] for name in names), OLD_HOST])
    spread = np.array([*(SPREAD[name] for name in names), OLD_HOST_SPREAD])

    def residuals(logs: np.ndarray) -> np.ndarray:
        calibration, host = _calibration(logs)
        errors = [2.0 * _off(run, calibration, 1.0) for run in runs]
        errors += [error(pair, calibration) / 0.12 for pair in saturated_pairs(runs)]
        errors += [0.7 * _off(run, calibration, host) for pair in old for run in pair]
        errors += [error(pair, calibration, host) / 0.2 for pair in old]
        robust = [
            math.copysign(math.sqrt(2 * (math.sqrt(1 + value**2) - 1)), value) for value in errors
        ]
        return np.array([*robust, *((logs - start) / spread)])

    calibration, host = _calibration(least_squares(residuals, start).x)
    rounded = {name: float(f"{share:.3g}") for name, share in asdict(calibration).items()}
    return Calibration(**rounded), host


def error(pair: Pair, calibration: Calibration, old_host: float = 1.0) -> float:
    """How far the arithmetic's ratio of a pair is off, in logarithms."""
    one, other = pair
    return _off(other, calibration, old_host) - _off(one, calibration, old_host)


def _off(run: Measurement, calibration: Calibration, old_host: float) -> float:
    return math.log(predicted(run, calibration, old_host) / run.output_tokens_per_second)


def _calibration(logs: np.ndarray) -> tuple[Calibration, float]:
    *shares, host = map(float, np.exp(logs))
    return Calibration(**dict(zip(asdict(PRIOR), shares, strict=True))), host


def main() -> None:
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
