"""How throughput grows and bends with load, and the peak that can be extrapolated from that.

Extrapolating the peak from lighter load:

1. Candidate curves are X ∝ N / (1 + (sN)^p)^(1/p): p = 1 is the scalability law (`fitted_usls`)
   without κ; p < 1 bends slowly, like mixtures of experts; p > 1 bends sharply, like a ceiling.
2. Each candidate (p, s) is weighted by how well it follows the measured loads, above all those near
   the heaviest: the assumed error is 2 % at the heaviest load, and 20 % more for every factor e
   below it.
3. The load of the peak is unknown: between the heaviest load seen and 5 × that, farther ones being
   less likely (uniform in the logarithm × load^-0.7: half as likely at 2.7 × it; for windows
   load^-0.3). If the KV usage per request shows at which load the cache is full, it lies there
   (95 % sure, minus 12 % for every further multiple of the heaviest load: another limit may come
   first), and throughput is 6 ± 4 % lower because of preemptions.
4. The weighted spread of X at those loads, plus 5 % for the scatter of a sweep (11 % with three
   loads, 8 with five: few loads fit any curve), gives the interval; its median is the middle. A
   peak is at least the highest output seen, minus its error, which bounds the whole interval; the
   error of loads measured once is their scatter about the likeliest curve. The low end is never
   above that bound minus the error of a measurement (3 %): a ceiling of the scheduler only shows
   when it is reached. Since almost nothing lies below the low end, the high end is the 93 %
   quantile (90 % for windows), and at least 6 % above that bound.
5. If high and low are more than 2.5 × apart (2.2 × for windows), that is not an answer: the curve
   has not bent. The load at which it would bend is then reported.

For load tests one candidate bends more slowly (p = 0.5): without it, predictions for sweeps of
mixtures of experts were too low. They are still too low for a peak 4 × the heaviest load away or
more, on a curve that keeps rising.

The throughput at a given load (`expected_output`) comes from curves of the same form, which follow
the loads near it more closely: an error of 0.7 % at the nearest, 5 % more for every factor e away.

The constants of 2–5 were chosen by hand with `bench/saturation_tuning.py`, for errors, coverage and
share of answers on data cut by load; it prints the results for each sweep, also for a search
without that source. `tests/verdicts/test_saturation_published.py` enforces them. Those for windows
were chosen with simulated servers whose load varied up to 8–110 % of their capacity
(`bench/capacity_truth.py`, kinds varied and waves, seeds 101 to 104).

The curve that is drawn is the scalability law through measured loads:

X(N) = λN / (1 + σ(N-1) + κN(N-1)), with σ in 0..1 and κ in 0..0.1, by least squares of the
logarithms. Its λ/σ is never a capacity: published sweeps stop far below it.

Why not scipy's `least_squares`: a bootstrap needs sixty fits of a dozen loads, which took a second;
all at once they take a few hundredths, without importing scipy.optimize.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from msgspec import Struct
from msgspec.structs import replace

from vllm_capacity.verdicts.saturation.arrays import Floats, Mask

KV_FULL_RATIO = 0.96
"""Mean KV usage of a server limited by the cache: it fluctuates below 1 as requests leave."""
MIN_LOADS = 3
"""The number of different loads needed to see a bend."""
MIN_SPAN = 1.5
"""The minimum ratio of the heaviest to the lightest load."""
NEAR_KV_LIMIT = 2.0
"""Any loads suffice if the KV cache is full within this multiple of the heaviest: a near bound."""
SAME_LOAD = 1.08
"""Loads within 8 % may be the same load, measured again."""
FARTHEST_LOAD = 5.0
"""The farthest possible peak, as a multiple of the heaviest load seen."""

_BENDS = np.logspace(-1.5, 2.0, 71)
_KV_LOAD_ERROR = 0.08
_FEW_LOADS = 4.0
_SEEN_ERROR = 0.03
_KV_DOUBT = 0.12
_AT_SCATTER, _AT_ERROR_PER_E = 0.05, 0.1
"""The scatter of a load about its neighbors' curve, and the addition per factor e beyond them."""
_NORMAL = np.linspace(-2.4, 2.4, 9)
_NORMAL_WEIGHTS = np.exp(-(_NORMAL**2) / 2) / np.exp(-(_NORMAL**2) / 2).sum()


class LoadPoints(Struct, frozen=True):
    """Measured loads, lightest first: running requests, output tokens/s, and its relative error."""

    running: Floats
    output: Floats
    error: Floats

    @classmethod
    def of(
        cls,
        running: Sequence[float] | Floats,
        output: Sequence[float] | Floats,
        error: Sequence[float] | Floats | None = None,
    ) -> LoadPoints:
        """The loads sorted; without an error each counts as measured exactly."""
        n, x = np.asarray(running, float), np.asarray(output, float)
        e = np.zeros_like(n) if error is None else np.asarray(error, float)
        order = np.argsort(n, kind="stable")
        return cls(n[order], x[order], e[order])

    def up_to(self, last: int) -> LoadPoints:
        """The loads up to and including that one."""
        columns = (self.running, self.output, self.error)
        return LoadPoints(*(column[: last + 1] for column in columns))

    def __len__(self) -> int:
        return len(self.running)

    @property
    def heaviest(self) -> float:
        """Running requests at the heaviest load."""
        return float(self.running[-1])


class Prior(Struct, frozen=True):
    """Assumptions before any load is seen: the constants of points 1 to 4 of the module.

    `shapes` are (p, weight); `kv_loss` is the throughput lost to preemptions; `thinning` is the
    power of load by which a farther peak is less likely; `widest` is the largest interval, high ÷
    low, that still counts as an answer; `high` is the quantile of the high end. All but `farthest`,
    `thinning` and `high` are relative.
    """

    shapes: tuple[tuple[float, float], ...] = ((0.8, 1.0), (1.2, 1.0), (2.0, 0.5))
    near_error: float = 0.02
    error_per_e: float = 0.2
    farthest: float = FARTHEST_LOAD
    thinning: float = -0.7
    widest: float = 2.5
    high: float = 0.93
    scatter: float = 0.05
    kv_loss: float = 0.06
    kv_loss_error: float = 0.04


PRIOR = Prior(shapes=((0.5, 1.0), (0.8, 1.0), (1.2, 1.0), (2.0, 0.5)))
"""For load tests: a few loads, some of them far from the peak."""
WINDOW_PRIOR = Prior(thinning=-0.3, widest=2.2, scatter=0.02, high=0.9)
"""For windows: many loads, exactly known, of a server that may be far larger than its traffic."""
_AT_PRIOR = Prior(shapes=((0.5, 1.0), (1.0, 1.0), (2.0, 0.5)), near_error=0.007, error_per_e=0.05)
"""For the throughput at a given load, which the loads near it determine."""


class PeakEstimate(Struct, frozen=True):
    """The predicted peak, tokens/s: its interval, its median, and the load needed to see it.

    `bend_running` is the load at which the curve would have lost half of its growth; `is_answer` is
    whether it has bent enough for the interval to count as an answer.
    """

    low: float
    mid: float
    high: float
    bend_running: float
    is_answer: bool

    def no_less_than(self, output: float) -> PeakEstimate:
        """The same with no end below a measured output; unchanged if it is not an answer."""
        if not self.is_answer:
            return self
        low, mid, high = (max(output, end) for end in (self.low, self.mid, self.high))
        return replace(self, low=low, mid=mid, high=high)


def kv_limit_running(running: Floats, kv_ratio: Floats) -> float | None:
    """The running requests at which the KV cache is full: 0.96 ÷ KV ratio per running request.

    Uses the heavier half of the loads: light ones occupy whole blocks for few tokens. None if KV
    usage was not observed or is zero.
    """
    is_seen = np.isfinite(kv_ratio) & (running > 0)
    if not is_seen.any():
        return None
    n, kv = running[is_seen], kv_ratio[is_seen]
    heavy = n >= np.median(n)
    per_request = float(kv[heavy].sum() / n[heavy].sum())
    return KV_FULL_RATIO / per_request if per_request > 0 else None


def extrapolated_peak(
    loads: LoadPoints, kv_limit: float | None = None, *, prior: Prior = PRIOR
) -> PeakEstimate | None:
    """The peak throughput that the loads predict; None if they are too few (`MIN_LOADS`)."""
    if not _is_enough(loads, kv_limit):
        return None
    loads = replace(loads, error=_known_errors(loads, prior))
    weights, levels, bends, shapes = _candidates(loads, prior)
    reaches, reach_weights, losses = _reaches(loads.heaviest, kv_limit, prior)
    growth = _growth(bends[:, None], shapes[:, None], reaches[None, :])
    error = np.sqrt(
        _scatter(loads, prior) ** 2
        + _level_error(loads, prior) ** 2
        + np.where(losses, prior.kv_loss_error, 0) ** 2
    )
    logs = levels[:, None] + growth - np.where(losses, prior.kv_loss, 0.0)[None, :]
    seen = float((np.log(loads.output) - loads.error).max())
    spread = np.maximum(logs[:, :, None] + error[None, :, None] * _NORMAL, seen)
    mass = weights[:, None, None] * reach_weights[None, :, None] * _NORMAL_WEIGHTS
    low, mid, high = _quantiles(spread.ravel(), mass.ravel(), (0.05, 0.5, prior.high))
    low, high = min(low, seen - _SEEN_ERROR), max(high, seen + 2 * _SEEN_ERROR)
    (bend,) = _quantiles(np.log(bends), weights, (0.5,))
    return PeakEstimate(
        float(np.exp(low)),
        float(np.exp(mid)),
        float(np.exp(high)),
        float(loads.heaviest / np.exp(bend)),
        bool(high - low <= np.log(prior.widest)),
    )


def expected_output(loads: LoadPoints, running: float) -> tuple[float, float, float] | None:
    """Expected output tokens/s at a load: low, middle, high (5, 50, 95 %); None under two loads.

    Between the loads seen, and beyond them as far as the curve continues; limits of the server are
    not considered.
    """
    if len(np.unique(loads.running)) < 2:
        return None
    anchor = min(max(running, float(loads.running[0])), loads.heaviest)
    weights, levels, bends, shapes = _candidates(loads, _AT_PRIOR, anchor)
    away = abs(float(np.log(running / anchor)))
    level = _level_error(loads, _AT_PRIOR, anchor)
    error = float(np.sqrt(_AT_SCATTER**2 + level**2 + (_AT_ERROR_PER_E * away) ** 2))
    logs = levels + _growth(bends, shapes, np.asarray(running / anchor))
    spread = logs[:, None] + error * _NORMAL
    found = _quantiles(
        spread.ravel(), (weights[:, None] * _NORMAL_WEIGHTS).ravel(), (0.05, 0.5, 0.95)
    )
    low, mid, high = (float(np.exp(each)) for each in found)
    return low, mid, high


def _is_enough(loads: LoadPoints, kv_limit: float | None) -> bool:
    is_bounded = kv_limit is not None and kv_limit <= NEAR_KV_LIMIT * loads.heaviest
    spans = loads.heaviest / float(loads.running[0])
    return is_bounded or (len(np.unique(loads.running)) >= MIN_LOADS and spans >= MIN_SPAN)


def _known_errors(loads: LoadPoints, prior: Prior) -> Floats:
    """The loads' errors; for loads measured once, the scatter of loads about the likeliest curve.

    Only up to the highest output: no candidate falls, and a fall is not an error.
    """
    rising = loads.up_to(int(np.argmax(loads.output)))
    if len(rising) <= MIN_LOADS or (loads.error > 0).all():
        return loads.error
    weights, levels, bends, shapes = _candidates(rising, prior)
    best = int(np.argmax(weights))
    growth = _growth(bends[best], shapes[best], rising.running / rising.heaviest)
    off = np.log(rising.output) - levels[best] - growth
    precision = 1 / _errors(rising, prior) ** 2
    spread = (off**2 * precision).sum() / precision.sum()
    scatter = np.sqrt(spread * len(rising) / (len(rising) - 2))
    return np.where(loads.error > 0, loads.error, scatter)


def _candidates(
    loads: LoadPoints, prior: Prior, anchor: float | None = None
) -> tuple[Floats, Floats, Floats, Floats]:
    """Every candidate curve: its weight, log throughput at the anchor, bend there, shape.

    The anchor is a load, by default the heaviest: loads near it have the most weight.
    """
    anchor = loads.heaviest if anchor is None else anchor
    relative = loads.running / anchor
    weights, levels, bends, shapes = [], [], [], []
    precision = 1 / _errors(loads, prior, anchor) ** 2
    for shape, weight in prior.shapes:
        drag = np.log1p((_BENDS[:, None] * relative[None, :]) ** shape) / shape
        offsets = np.log(loads.output)[None, :] - (np.log(relative)[None, :] - drag)
        centre = (offsets * precision).sum(1) / precision.sum()
        misfit = (((offsets - centre[:, None]) ** 2) * precision).sum(1)
        share = _BENDS / (1 + _BENDS)
        weights.append(-misfit / 2 + np.log(weight) + np.log(share * (1 - share)))
        levels.append(centre - np.log1p(_BENDS**shape) / shape)
        bends.append(_BENDS)
        shapes.append(np.full(len(_BENDS), shape))
    logs = np.concatenate(weights)
    mass = np.exp(logs - logs.max())
    return mass / mass.sum(), np.concatenate(levels), np.concatenate(bends), np.concatenate(shapes)


def _errors(loads: LoadPoints, prior: Prior, anchor: float | None = None) -> Floats:
    anchor = loads.heaviest if anchor is None else anchor
    away = np.abs(np.log(anchor / loads.running))
    return np.asarray(np.hypot(prior.near_error + prior.error_per_e * away, loads.error))


def _level_error(loads: LoadPoints, prior: Prior, anchor: float | None = None) -> float:
    return float(1 / np.sqrt((1 / _errors(loads, prior, anchor) ** 2).sum()))


def _scatter(loads: LoadPoints, prior: Prior) -> float:
    """The scatter of a sweep about its curve; more with few loads, which fit any curve."""
    return prior.scatter * float(np.sqrt(1 + _FEW_LOADS / max(1, len(loads) - 2)))


def _growth(bend: Floats, shape: Floats, reach: Floats) -> Floats:
    """Log throughput at `reach` × the heaviest load, over that at the heaviest."""
    drag = np.log1p((bend * reach) ** shape) - np.log1p(bend**shape)
    return np.asarray(np.log(reach) - drag / shape)


def _reaches(heaviest: float, kv_limit: float | None, prior: Prior) -> tuple[Floats, Floats, Mask]:
    """Possible peak loads: × the heaviest load, weight, and whether the KV cache sets it."""
    if kv_limit is None or kv_limit >= prior.farthest * heaviest:
        free = np.exp(np.linspace(0, np.log(prior.farthest), 13))
        likely = free**prior.thinning
        return free, likely / likely.sum(), np.zeros(13, bool)
    reach = max(1.0, kv_limit / heaviest)
    free = np.exp(np.linspace(0, np.log(reach), 5))
    kv = np.maximum(1.0, reach * np.exp(_KV_LOAD_ERROR * _NORMAL))
    trust = max(0.0, 0.95 - _KV_DOUBT * (reach - 1))
    weights = np.concatenate([np.full(5, (1 - trust) / 5), trust * _NORMAL_WEIGHTS])
    return np.concatenate([free, kv]), weights, np.arange(5 + len(kv)) >= 5


def _quantiles(values: Floats, weights: Floats, at: Sequence[float]) -> list[float]:
    order = np.argsort(values, kind="stable")
    mass = np.cumsum(weights[order])
    where = np.searchsorted(mass, np.asarray(at) * mass[-1])
    return [float(values[order[min(int(i), len(order) - 1)]]) for i in where]


_MIN, _MAX = np.array([0.0, 0.0]), np.array([1.0, 0.1])
_STEPS = 60


class Usl(Struct, frozen=True):
    """A fitted scalability law: `rate` (tokens/s of one request), contention σ, coherency κ."""

    rate: float
    sigma: float
    kappa: float

    def output(self, running: Floats) -> Floats:
        """Output tokens/s at each load."""
        n = np.asarray(running, float)
        drag = 1 + self.sigma * (n - 1) + self.kappa * n * (n - 1)
        return np.asarray(self.rate * n / np.maximum(drag, 1e-9))


def fitted_usls(sets: Sequence[LoadPoints]) -> list[Usl | None]:
    """The scalability law through each set of loads, by least squares of logarithms.

    None for a set of fewer than two different loads. All are fitted at once, because a bootstrap
    needs dozens.
    """
    can = [len(loads) >= 2 and loads.running[-1] > loads.running[0] for loads in sets]
    laws = iter(_least_squares([loads for loads, is_fit in zip(sets, can, strict=True) if is_fit]))
    return [next(laws) if is_fit else None for is_fit in can]


def _least_squares(sets: Sequence[LoadPoints]) -> list[Usl]:
    """Bounded Levenberg–Marquardt over all sets at once; a shorter set is padded with weight 0.

    λ is eliminated: for any σ and κ, the best log λ is the weighted mean of the remainder.
    """
    if not sets:
        return []
    n, logs, weights = _padded(sets)
    theta = np.tile(np.array([0.01, 1e-5]), (len(sets), 1))
    damping = np.full(len(sets), 1e-3)
    levels, rest, slopes = _misfit(theta, n, logs, weights)
    for _ in range(_STEPS):
        moved = np.clip(theta + _step(theta, rest, slopes, damping), _MIN, _MAX)
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
    """Running, log output and weight, one row per set; weights add up to 1."""
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
    """The damped step in σ and κ; a parameter held back by a bound stays, the other is free."""
    pull = np.einsum("slk,sl->sk", slopes, rest)
    is_at_bound = ((theta <= _MIN) & (pull > 0)) | ((theta >= _MAX) & (pull < 0))
    free = np.where(is_at_bound[:, None, :], 0.0, slopes)
    normal = np.einsum("slk,slm->skm", free, free)
    own = np.einsum("skk->sk", normal)
    lift = damping[:, None] * own + np.where(own <= 0, 1.0, 0.0)
    normal = normal + lift[:, :, None] * np.eye(2)
    down = np.where(is_at_bound, 0.0, -pull)
    return np.asarray(np.linalg.solve(normal, down[:, :, None])[:, :, 0])
