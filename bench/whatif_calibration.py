"""Fit of the what-if to published runs: factors on the kernel tables, and seconds of the host.

`python bench/whatif_calibration.py [--write]` prints them; with --write they go into
`data/gpu_kernel_factors.csv` (the host's seconds into `verdicts/hardware/serving.py`, by hand).
Tables come first (`data/gpu_kernels.csv`): a factor moves from 1 only so far as runs say, by a
prior of its own. What is fitted is what is asked: runs weigh in by their own rate, pairs of GPUs by
the answer that the what-if gives of them, what the GPU does not explain carried over. Runs of other
vLLM versions, of other laboratories and of 2024 have hosts of their own in the fit, which the
product does not use.
"""

from __future__ import annotations

import argparse
import csv
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from step_constants import stacked
from whatif_runs import Run, every_run

from vllm_capacity.facts.kernels import KernelFactor
from vllm_capacity.resources import shipped
from vllm_capacity.verdicts.hardware.serving import SINKS, Calibration, Host, cycle, rates
from vllm_capacity.verdicts.hardware.step_time import Kernels, Roof, dense_dtype

NAMES = Kernels.__struct_fields__
FLOPS, BYTES, SECONDS = 0, 1, 2
FAMILIES = ("Ampere", "Hopper", "Blackwell")
FACTORS = {
    ("dense", FLOPS): 0.08,
    ("dense", BYTES): 0.06,
    ("experts", FLOPS): 0.15,
    ("experts", BYTES): 0.1,
    ("prefill_attention", FLOPS): 0.1,
    ("decode_attention", BYTES): 0.06,
    ("reduce", BYTES): 0.15,
    ("reduce", SECONDS): 0.1,
    ("elementwise", BYTES): 0.15,
    ("dense", SECONDS): 0.1,
    ("experts", SECONDS): 0.1,
}
"""How far, in logarithms, a factor may lie from 1 on every architecture (a standard deviation).

Twice as far fits the runs better and models left out worse (9.6 % for 8.1 % of silicon pairs).
"""
OF_FAMILY = 0.6
"""Of that, how far an architecture may lie from the others."""
OF_TYPE = {FLOPS: 0.2, BYTES: 0.1}
"""How far experts of one weight type may lie from those of others, on one architecture."""
HOST = {"step": 3e-4, "sequence": 1e-5, "request": 1e-3}
HOST_SPREAD = 0.7
ERAS = {"2025": (0.7, 0.5), "2024": (1.2, 0.6)}
"""How many times slower, in logarithms, the hosts of those runs are, and how well that is known."""
VERSION_SPREAD = 0.12
RUN_SPREAD = {"silicon": 0.1, "2025": 0.4, "2024": 0.4}
PAIR_SPREAD = {"silicon": 0.06, "2025": 0.12, "2024": 0.2}
DIFFERENCE = 0.02
"""Of a parameter's spread, how far it is moved to see the slope."""
MAX_RUNS, MAX_PAIRS = 8, 16
"""What the runs and pairs of one model and weight type weigh at most: they resemble each other."""


@dataclass
class Parameters:
    """The logarithms that are fitted: a prior for each, and which rate of which runs it moves."""

    names: list[object] = field(default_factory=list)
    prior: list[float] = field(default_factory=list)
    spread: list[float] = field(default_factory=list)
    moved: dict[tuple[str, int], list[tuple[int, np.ndarray]]] = field(
        default_factory=lambda: defaultdict(list)
    )

    def add(self, name: object, prior: float, spread: float) -> int:
        self.names.append(name)
        self.prior.append(prior)
        self.spread.append(spread)
        return len(self.names) - 1

    def factor(self, name, spread: float, what: tuple[str, int], mask: np.ndarray, prior=0.0):
        if mask.any():
            index = self.add((*name, what), prior, spread)
            self.moved[what].append((index, mask.astype(float)))


class Fit:
    """Every run as arrays, and the fit of the parameters to any part of them."""

    def __init__(self, runs: Sequence[Run]) -> None:
        self.runs = runs
        bare = [rates(run.machine, run.job.llm, run.job.dtype, Calibration()) for run in runs]
        self.base = {
            name: [
                np.array([getattr(getattr(found.kernels, name), f) for found in bare])
                for f in Roof.__struct_fields__
            ]
            for name in NAMES
        }
        self.work = stacked([run.job.work for run in runs])
        self.batch = np.array([run.batch for run in runs])
        self.prompt = np.array([run.job.input_tokens for run in runs])
        self.output = np.array([run.job.output_tokens for run in runs])
        self.limit = np.array([run.tokens_per_step for run in runs])
        self.truth = 1 / np.array([run.output_tokens_per_second for run in runs])
        self.kind = np.array([run.kind for run in runs])
        self.version = np.array([f"{run.kind} {run.version}" for run in runs])
        self.family = np.array([run.machine.gpu.family for run in runs])
        self.group = np.array([f"{run.job.llm.model} {run.job.dtype} {run.kind}" for run in runs])
        together = defaultdict(list)
        for index, run in enumerate(runs):
            together[run.pair].append(index)
        self.pairs = np.array(
            [
                (one, other)
                for found in together.values()
                for one in found
                for other in found
                if one != other and runs[one].setup != runs[other].setup
            ]
        ).T
        self.parameters = self._parameters()

    def _parameters(self) -> Parameters:
        runs, found = self.runs, Parameters()
        experts = np.array([run.job.dtype if run.job.llm.is_moe else "" for run in runs])
        dense = np.array([dense_dtype(run.job.llm, run.job.dtype) for run in runs])
        for (kernel, which), spread in FACTORS.items():
            found.factor(("", ""), spread, (kernel, which), np.ones(len(runs), bool))
            for family in FAMILIES:
                mask = self.family == family
                found.factor((family, ""), spread * OF_FAMILY, (kernel, which), mask)
        for family in FAMILIES:
            for dtype in sorted({*experts} - {""}):
                mask = (self.family == family) & (experts == dtype)
                for which, spread in OF_TYPE.items():
                    found.factor((family, dtype), spread, ("experts", which), mask)
            mask = (self.family == family) & (dense == "fp8")
            found.factor((family, "fp8"), 0.1, ("dense", FLOPS), mask)
        slow = np.array(
            [
                run.job.llm.attention_sinks
                and not run.machine.gpu.architecture.has_fast_attention_sinks
                for run in runs
            ]
        )
        found.factor(("", SINKS), 0.3, ("prefill_attention", FLOPS), slow, -1.0)
        self.host = {
            name: found.add(("host", name), np.log(value), HOST_SPREAD)
            for name, value in HOST.items()
        }
        self.era = {era: found.add(("era", era), *known) for era, known in ERAS.items()}
        self.versions = {
            version: found.add(("version", version), 0.0, VERSION_SPREAD)
            for version in sorted({*self.version[self.kind == "silicon"]})
        }
        return found

    def seconds(self, logs: np.ndarray, *, is_own_host: bool = False) -> np.ndarray:
        """Seconds per output token of every run: by the product, or with the runs' own hosts.

        `logs` may be several sets of parameters, a row each: then so are the seconds.
        """
        logs = np.asarray(logs)
        roofs = {}
        for name in NAMES:
            parts = []
            for which, base in enumerate(self.base[name]):
                total = sum(logs[..., [i]] * m for i, m in self.parameters.moved[name, which])
                parts.append(base * np.exp(total))
            roofs[name] = Roof(*parts)
        slower = 1.0
        if is_own_host:
            eras = ((logs[..., [i]], self.kind == era) for era, i in self.era.items())
            slower = np.exp(sum(log * is_of for log, is_of in eras))
        host = Host(*(np.exp(logs[..., [index]]) * slower for index in self.host.values()))
        found = cycle(
            self.work,
            Kernels(**roofs),
            host,
            batch=self.batch,
            input_tokens=self.prompt,
            output_tokens=self.output,
            tokens_per_step=self.limit,
        )
        return found.seconds_per_token / self.batch

    def answered(self, logs: np.ndarray, pairs: np.ndarray) -> np.ndarray:
        """The logarithm of each pair's answer over the truth."""
        one, other = pairs
        seconds = self.seconds(logs)
        found = carried(seconds[..., one], seconds[..., other], self.truth[one])
        return np.log(self.truth[other] / found)

    def fit(self, keep: np.ndarray, start: np.ndarray | None = None, steps: int = 4) -> np.ndarray:
        """The parameters nearest to the runs that are kept, by that many steps of Gauss-Newton.

        All derivatives are taken at once, as one more row of parameters each; a step that leads
        uphill is shortened, and the last where none leads down.
        """
        spread = np.array(self.parameters.spread)
        residuals = self._residuals(keep)
        found = np.array(self.parameters.prior) if start is None else start
        for _ in range(steps):
            moved = residuals(np.vstack([found, found + np.diag(DIFFERENCE * spread)]))
            slopes = (moved[1:] - moved[0]).T / (DIFFERENCE * spread)
            step = np.clip(-np.linalg.lstsq(slopes, moved[0], rcond=None)[0], -spread, spread)
            tried = np.vstack([found + share * step for share in (1.0, 0.5, 0.2)])
            costs = (residuals(tried) ** 2).sum(axis=1)
            if costs.min() >= (moved[0] ** 2).sum():
                break
            found = tried[costs.argmin()]
        return found

    def _residuals(self, keep: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
        """What a fit makes small: runs, pairs and the distance from the prior, by their spreads."""
        prior, spread = np.array(self.parameters.prior), np.array(self.parameters.spread)
        pairs = self.pairs[:, keep[self.pairs[0]] & keep[self.pairs[1]]]
        run_weight, pair_weight = self._weights(keep, pairs)
        own = np.zeros((len(prior), len(self.runs)))
        for version, index in self.versions.items():
            own[index, self.version == version] = 1.0

        def residuals(logs: np.ndarray) -> np.ndarray:
            of_version = logs @ own
            off = np.log(self.seconds(logs, is_own_host=True) / self.truth) + of_version
            result = self.answered(logs, pairs)
            result = result + of_version[:, pairs[0]] - of_version[:, pairs[1]]
            parts = [
                _robust(off[:, keep] * run_weight[keep]),
                _robust(result * pair_weight),
                (logs - prior) / spread,
            ]
            return np.concatenate(parts, axis=1)

        return residuals

    def _weights(self, keep: np.ndarray, pairs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        runs, found = np.zeros(len(self.runs)), np.zeros(pairs.shape[1])
        spreads = np.array([PAIR_SPREAD[kind] for kind in self.kind[pairs[0]]])
        for group in set(self.group[keep]):
            some = (self.group == group) & keep
            kind = self.kind[some][0]
            runs[some] = np.sqrt(min(MAX_RUNS, some.sum()) / some.sum()) / RUN_SPREAD[kind]
            some = self.group[pairs[0]] == group
            if some.any():
                found[some] = np.sqrt(min(MAX_PAIRS, some.sum()) / some.sum()) / spreads[some]
        return runs, found

    def calibration(self, logs: np.ndarray) -> Calibration:
        """What the product takes of the parameters."""
        factors: dict[tuple[str, str, str], list[float]] = defaultdict(lambda: [0.0, 0.0, 0.0])
        for name, log in zip(self.parameters.names, logs, strict=True):
            if len(name) == 3:
                family, dtype, (kernel, which) = name
                factors[family, kernel, dtype][which] += log
        host = Host(*(float(f"{np.exp(logs[index]):.3g}") for index in self.host.values()))
        rounded = {
            key: tuple(float(f"{np.exp(log):.3g}") for log in logs) for key, logs in factors.items()
        }
        return Calibration(
            {key: found for key, found in rounded.items() if found != (1.0,) * 3}, host
        )


def carried(here: np.ndarray, there: np.ndarray, measured: np.ndarray) -> np.ndarray:
    """`what_if.carried` on arrays."""
    rest = np.maximum(measured - here, 0)
    capped = np.minimum(rest, np.maximum(here, there))
    return there * (np.minimum(measured, here) + rest - capped) / here + capped


def _robust(errors: np.ndarray) -> np.ndarray:
    return np.sign(errors) * np.sqrt(2 * (np.sqrt(1 + errors**2) - 1))


def left_out(
    fit: Fit, of: Callable[[Run], object], start: np.ndarray
) -> Iterator[tuple[object, np.ndarray, np.ndarray]]:
    """Each of what `of` gives, left out once: its name, its runs, the parameters without it."""
    named = np.array([str(of(run)) for run in fit.runs])
    for name in sorted({*named}):
        out = named == name
        yield name, out, fit.fit(~out, start)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--write", action="store_true", help="write data/gpu_kernel_factors.csv")
    asked = parser.parse_args()
    fit = Fit(list(every_run()))
    logs = fit.fit(np.ones(len(fit.runs), bool), steps=12)
    found = fit.calibration(logs)
    print(found.host)
    for name, index in {**fit.era, **fit.versions}.items():
        print(f"hosts of {name}: {np.exp(logs[index]):.3g} ×")
    for key, factors in sorted(found.factors.items()):
        print(*key, *factors)
    if asked.write:
        path = shipped("data") / "gpu_kernel_factors.csv"
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(KernelFactor.__struct_fields__)
            source = (
                "fit of bench/whatif_calibration.py to published_throughput.csv, silicon_vllm.csv "
                "and bench/whatif_pairs_2024.csv"
            )
            for key, factors in sorted(found.factors.items()):
                writer.writerow([*key, *factors, source, "2026-11-28"])


if __name__ == "__main__":
    main()
