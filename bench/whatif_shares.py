"""Fit of the data sheets' usable shares to published runs and pairs.

`python bench/whatif_shares.py` prints the fitted `Shares`: its `kernel_shares` go into
`data/gpu_architectures.csv` and the rest into `vllm_capacity/verdicts/hardware/data_sheet.py`, by
hand. Runs weigh in by their rate, at a spread of a factor of 1.6 (2024: 4), and pairs by their
ratio, at 12 % (2024: 20 %): the ratio is what is asked. `python -m bench.whatif` fits it without a
model or a source.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np
from msgspec.structs import replace
from scipy.optimize import least_squares
from whatif_runs import (
    PAIRS_2024,
    Pair,
    batch_of,
    is_2024,
    machine_of,
    saturated_pairs,
    saturated_runs,
    table_pairs,
)

from vllm_capacity.facts.llms import find_llm
from vllm_capacity.facts.throughput import Measurement
from vllm_capacity.verdicts.hardware.data_sheet import Shares, request_times
from vllm_capacity.verdicts.hardware.serving import Job

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


def fit(leave_out: Callable[[Measurement], bool] = lambda run: False) -> tuple[Shares, float]:
    """The shares that fit best to what is not left out, and the host factor of 2024."""
    runs = [run for run in saturated_runs() if not leave_out(run)]
    old = [pair for pair in table_pairs(PAIRS_2024) if not leave_out(pair[0])]
    start = np.log([*PRIOR.values(), OLD_HOST])
    spread = np.array([*(SPREAD[name] for name in PRIOR), OLD_HOST_SPREAD])

    def residuals(logs: np.ndarray) -> np.ndarray:
        shares, host = _shares(logs)
        found = shares_of(shares)
        errors = [2.0 * _off(run, found, 1.0) for run in runs]
        errors += [error(pair, found) / 0.12 for pair in saturated_pairs(runs)]
        errors += [0.7 * _off(run, found, host) for pair in old for run in pair]
        errors += [error(pair, found, host) / 0.2 for pair in old]
        robust = [
            math.copysign(math.sqrt(2 * (math.sqrt(1 + value**2) - 1)), value) for value in errors
        ]
        return np.array([*robust, *((logs - start) / spread)])

    shares, host = _shares(least_squares(residuals, start).x)
    return shares_of({name: float(f"{share:.3g}") for name, share in shares.items()}), host


def error(pair: Pair, shares: Shares, old_host: float = 1.0) -> float:
    """How far the arithmetic's ratio of a pair is off, in logarithms."""
    one, other = pair
    return _off(other, shares, old_host) - _off(one, shares, old_host)


def _off(run: Measurement, shares: Shares, old_host: float) -> float:
    return math.log(predicted(run, shares, old_host) / run.output_tokens_per_second)


def shares_of(shares: Mapping[str, float]) -> Shares:
    """The `Shares` of values that are named as in `PRIOR`."""
    by_kernel = {name for name in shares if " " in name}
    fitted = {name.split()[1] for name in by_kernel}
    return Shares(
        kernel_shares={
            architecture: tuple(shares[f"{kind} {architecture}"] for kind in KINDS)
            for architecture in sorted(fitted)
        },
        **{name: share for name, share in shares.items() if name not in by_kernel},
    )


def _shares(logs: np.ndarray) -> tuple[dict[str, float], float]:
    *shares, host = map(float, np.exp(logs))
    return dict(zip(PRIOR, shares, strict=True)), host


def predicted(run: Measurement, shares: Shares, old_host: float = 1.0) -> float:
    """Output tokens per second by data sheets alone, at the batch that the run's load allows."""
    machine = machine_of(run)
    job = Job(find_llm(run.model), run.dtype, run.gpus, run.input_tokens, run.output_tokens)
    if is_2024(run):
        shares = replace(
            shares,
            step_seconds_per_layer=shares.step_seconds_per_layer * old_host,
            token_seconds=shares.token_seconds * old_host,
            request_seconds=shares.request_seconds * old_host,
        )
    offered = 650.0 if run.is_burst else 400.0
    batch = batch_of(run, job, machine, offered=offered)
    return run.output_tokens / request_times(job, machine, batch=batch, shares=shares).total


if __name__ == "__main__":
    print(*fit())
