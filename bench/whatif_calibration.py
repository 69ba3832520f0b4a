"""Fit of the what-if's usable shares to published runs, and what it predicts of models left out.

Run it as `python bench/whatif_calibration.py`. It prints the fitted `Calibration` (to be written
into `vllm_capacity/verdicts/roofline.py` by hand, rounded), the error of every published pair when
its model is left out of the fit, and the half-width that would have held 85 % of them.
"""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from dataclasses import asdict, replace

import numpy as np
from scipy.optimize import least_squares

from vllm_capacity.facts.gpus import find_gpu
from vllm_capacity.facts.llms import find_llm
from vllm_capacity.facts.throughput import Measurement, measurements
from vllm_capacity.verdicts.roofline import (
    Calibration,
    Job,
    Machine,
    request_times,
    saturated_batch,
)

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


def saturated_runs() -> list[Measurement]:
    """One run for each model, type, GPU count and workload: the burst, or the sweep's peak."""
    groups: dict[tuple[object, ...], list[Measurement]] = defaultdict(list)
    for run in measurements():
        if run.clients is None:
            groups[run.model, run.dtype, run.gpu, run.gpus, run.workload].append(run)
    peaks = []
    for runs in groups.values():
        if runs[0].is_burst:
            rate = statistics.median(run.output_tokens_per_second for run in runs)
        else:
            rate = max(run.output_tokens_per_second for run in runs)
        peaks.append(replace(runs[0], output_tokens_per_second=rate))
    return peaks


def predicted(run: Measurement, calibration: Calibration) -> float:
    span = find_gpu(run.gpu)
    gpu = next((row for row in span.rows if row.form_factor == "SXM"), span.rows[0])
    machine = Machine(gpu, gpu.tensor_tflops)
    job = Job(find_llm(run.model), run.dtype, run.gpus, run.input_tokens, run.output_tokens)
    batch = saturated_batch(job, machine, offered=650 if run.is_burst else 400)
    return (
        run.output_tokens / request_times(job, machine, batch=batch, calibration=calibration).total
    )


def pairs(runs: list[Measurement]) -> list[tuple[Measurement, Measurement]]:
    return [
        (one, other)
        for one in runs
        for other in runs
        if one.gpu.startswith("A100")
        and other.gpu.startswith("H100")
        and (one.model, one.gpus) == (other.model, other.gpus)
        and one.workload[:12] == other.workload[:12]
    ]


def fit(runs: list[Measurement]) -> Calibration:
    names = list(asdict(PRIOR))
    start = np.log([asdict(PRIOR)[name] for name in names])
    spread = np.array([SPREAD[name] for name in names])

    def residuals(logs: np.ndarray) -> np.ndarray:
        calibration = Calibration(**dict(zip(names, map(float, np.exp(logs)), strict=True)))
        errors = [
            2 * math.log(predicted(run, calibration) / run.output_tokens_per_second) for run in runs
        ]
        errors += [error(pair, calibration) / 0.12 for pair in pairs(runs)]
        robust = [
            math.copysign(math.sqrt(2 * (math.sqrt(1 + value**2) - 1)), value) for value in errors
        ]
        return np.array([*robust, *((logs - start) / spread)])

    found = np.exp(least_squares(residuals, start).x)
    return Calibration(**{name: float(f"{x:.3g}") for name, x in zip(names, found, strict=True)})


def error(pair: tuple[Measurement, Measurement], calibration: Calibration) -> float:
    one, other = pair
    measured = math.log(other.output_tokens_per_second / one.output_tokens_per_second)
    return math.log(predicted(other, calibration) / predicted(one, calibration)) - measured


def main() -> None:
    runs = saturated_runs()
    print(fit(runs))
    errors = []
    for model in sorted({run.model for run in runs}):
        calibration = fit([run for run in runs if run.model != model])
        for pair in pairs([run for run in runs if run.model == model]):
            errors.append(error(pair, calibration))
            one, other = pair
            print(
                f"{model} x{one.gpus} {one.dtype}->{other.dtype} {one.workload[:24]:24} "
                f"{math.exp(errors[-1]) - 1:+.0%}"
            )
    size = [abs(value) for value in errors]
    print(
        f"{len(size)} pairs, model left out: median error {math.expm1(statistics.median(size)):.1%}"
        f", 85 % within a factor of {math.exp(float(np.quantile(size, 0.85))):.2f}"
    )


if __name__ == "__main__":
    main()
