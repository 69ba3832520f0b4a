"""The scalability law through measured loads: the curve that is drawn.

X(N) = λN / (1 + σ(N-1) + κN(N-1)), with σ in 0..1 and κ in 0..0.1, by least squares of the
logarithms. Its λ/σ is never a capacity: published sweeps stop far below.

Why not scipy's `least_squares`: a bootstrap asks for sixty fits of a dozen loads, which took it a
second; all at once they take some hundredths, and scipy.optimize need not be imported for them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vllm_capacity.verdicts.saturation.curve import PRIOR, Floats, LoadPoints

_LEAST, _MOST = np.array([0.0, 0.0]), np.array([1.0, 0.1])
_STEPS = 60


@dataclass(frozen=True)
class Usl:
    """A fitted scalability law: `rate` tokens/s of one request, contention σ, coherency κ."""

    rate: float
    sigma: float
    kappa: float

    def output(self, running: Floats) -> Floats:
        """Output tokens/s at each load."""
        n = np.asarray(running, float)
        drag = 1 + self.sigma * (n - 1) + self.kappa * n * (n - 1)
        return np.asarray(self.rate * n / np.maximum(drag, 1e-9))


def fitted_usl(loads: LoadPoints) -> Usl | None:
    """The scalability law through the loads, least squares of logarithms; None under two loads."""
    (found,) = fitted_usls([loads])
    return found


def fitted_usls(sets: Sequence[LoadPoints]) -> list[Usl | None]:
    """`fitted_usl` of each set of loads, all at once: a bootstrap asks for dozens."""
    can = [len(loads) >= 2 and loads.running[-1] > loads.running[0] for loads in sets]
    laws = iter(_least_squares([loads for loads, is_fit in zip(sets, can, strict=True) if is_fit]))
    return [next(laws) if is_fit else None for is_fit in can]


def _least_squares(sets: Sequence[LoadPoints]) -> list[Usl]:
    """Bounded Levenberg–Marquardt over all sets at once; a shorter set is padded with weight 0.

    λ is eliminated: whatever σ and κ are, the best log λ is the weighted mean of what is left.
    """
    if not sets:
        return []
    n, logs, weights = _padded(sets)
    theta = np.tile(np.array([0.01, 1e-5]), (len(sets), 1))
    damping = np.full(len(sets), 1e-3)
    levels, rest, slopes = _misfit(theta, n, logs, weights)
    for _ in range(_STEPS):
        moved = np.clip(theta + _step(theta, rest, slopes, damping), _LEAST, _MOST)
        new_levels, new_rest, new_slopes = _misfit(moved, n, logs, weights)
        better = (new_rest**2).sum(1) <= (rest**2).sum(1)
        theta = np.where(better[:, None], moved, theta)
        levels = np.where(better, new_levels, levels)
        rest = np.where(better[:, None], new_rest, rest)
        slopes = np.where(better[:, None, None], new_slopes, slopes)
        damping = np.clip(np.where(better, damping / 4, damping * 8), 1e-9, 1e9)
    return [
        Usl(float(np.exp(level)), float(sigma), float(kappa))
        for level, (sigma, kappa) in zip(levels, theta, strict=True)
    ]


def _padded(sets: Sequence[LoadPoints]) -> tuple[Floats, Floats, Floats]:
    """Running, log output and weight of every set, a row each; weights add to 1."""
    shape = (len(sets), max(len(loads) for loads in sets))
    n, logs, weights = np.ones(shape), np.zeros(shape), np.zeros(shape)
    for row, loads in enumerate(sets):
        n[row, : len(loads)] = loads.running
        logs[row, : len(loads)] = np.log(loads.output)
        weights[row, : len(loads)] = 1 / np.hypot(PRIOR.near_error, loads.error) ** 2
    return n, logs, weights / weights.sum(1, keepdims=True)


def _misfit(
    theta: Floats, n: Floats, logs: Floats, weights: Floats
) -> tuple[Floats, Floats, Floats]:
    """The best log λ, the weighted residuals then, and their slopes in σ and κ."""
    squares = n * (n - 1)
    drag = np.maximum(1 + theta[:, :1] * (n - 1) + theta[:, 1:] * squares, 1e-9)
    rests = logs - np.log(n) + np.log(drag)
    slopes = np.stack([(n - 1) / drag, squares / drag], axis=-1)
    level = (weights * rests).sum(1)
    root = np.sqrt(weights)
    mean_slope = (weights[:, :, None] * slopes).sum(1)[:, None, :]
    return level, root * (rests - level[:, None]), root[:, :, None] * (slopes - mean_slope)


def _step(theta: Floats, rest: Floats, slopes: Floats, damping: Floats) -> Floats:
    """The damped step in σ and κ; what a bound holds back stays, and leaves the other free."""
    pull = np.einsum("slk,sl->sk", slopes, rest)
    is_at_bound = ((theta <= _LEAST) & (pull > 0)) | ((theta >= _MOST) & (pull < 0))
    free = np.where(is_at_bound[:, None, :], 0.0, slopes)
    normal = np.einsum("slk,slm->skm", free, free)
    own = np.einsum("skk->sk", normal)
    lift = damping[:, None] * own + np.where(own <= 0, 1.0, 0.0)
    normal = normal + lift[:, :, None] * np.eye(2)
    down = np.where(is_at_bound, 0.0, -pull)
    return np.asarray(np.linalg.solve(normal, down[:, :, None])[:, :, 0])
