"""What would flip the choice between two GPUs: the price, or the error, at which the order changes.

Tokens per dollar are throughput ÷ price. To compare two GPUs, only the *ratio* of their throughputs
matters, so the error of the measurement affects neither. The band of a ratio to the measured GPU
combines the errors of two GPUs, its own and the measured one's, about equal. Between two GPUs that
were both scaled from a third, the third's error cancels: their band is the root mean square of
both, in logarithms. It holds 94 % of 267 triples of silicon rows (which the fit of the step times
has seen).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

from vllm_capacity.estimate import Estimate, Figures, Kind

CLEAR, CLOSE, PRICE = "clear", "too close to call", "a matter of price"
"""How certain the order is.

Clear: over the whole band and at all of these prices. Too close to call: not even at their middles,
because the error that flips it lies within the band. A matter of price: at their middles, but not
at every price.
"""

_SHARE = math.sqrt(0.5)
"""Turns the root of the sum of squares into the root of their mean."""


class Offered(Protocol):
    """An available GPU: its price, and its throughput relative to that of the measured GPU."""

    @property
    def gpu(self) -> str:
        """Its label."""

    @property
    def usd_per_gpu_hour(self) -> Estimate:
        """Its price per GPU-hour."""

    @property
    def throughput_ratio(self) -> Estimate:
        """Its output tokens/s over those of the measured GPU, each for one engine."""

    @property
    def is_comparable(self) -> bool:
        """Whether both are known, and neither is 0."""


class Choice(Figures, frozen=True):
    """Which of two GPUs gives more tokens per dollar, and what would change that.

    `throughput_ratio` and `tokens_per_usd_ratio` are those of `gpu` over those of `rival`. At
    `flip_usd_per_gpu_hour` for `gpu`, both give the same tokens per dollar, with the rival at its
    own price; `rival_flip_usd_per_gpu_hour` is the reverse. `flip_error_ratio` is the overestimate
    of the throughput ratio at which the order flips (0.18: 18 %), at the middles of both prices,
    and `band_error_ratio` how much of that its 90 % band allows for. `verdict` is `CLEAR`, `CLOSE`
    or `PRICE`.
    """

    gpu: str
    rival: str
    usd_per_gpu_hour: Estimate
    rival_usd_per_gpu_hour: Estimate
    throughput_ratio: Estimate
    tokens_per_usd_ratio: Estimate
    flip_usd_per_gpu_hour: Estimate
    rival_flip_usd_per_gpu_hour: Estimate
    flip_error_ratio: float
    band_error_ratio: float
    verdict: str


def choice(one: Offered, other: Offered, *, gpus: int = 1, other_gpus: int = 1) -> Choice | None:
    """What would change which of the two gives more tokens per dollar; None if either is unknown.

    `gpus` and `other_gpus` are the GPUs per engine of each. In a tie `one` is named first.
    """
    if not (one.is_comparable and other.is_comparable):
        return None
    if _worth(one, gpus) < _worth(other, other_gpus):
        one, other, gpus, other_gpus = other, one, other_gpus, gpus
    count = gpus / other_gpus
    ratio = _over(one.throughput_ratio, other.throughput_ratio)
    worth = ratio.divided_by(one.usd_per_gpu_hour.scaled(count)).times(other.usd_per_gpu_hour)
    if worth.mid is None or ratio.low is None or ratio.mid is None:
        return None
    flip_error, band_error = max(worth.mid - 1, 0.0), ratio.mid / ratio.low - 1
    verdict = CLEAR
    if flip_error <= band_error:
        verdict = CLOSE
    elif (worth.low or 0.0) <= 1:
        verdict = PRICE
    return Choice(
        gpu=one.gpu,
        rival=other.gpu,
        usd_per_gpu_hour=one.usd_per_gpu_hour,
        rival_usd_per_gpu_hour=other.usd_per_gpu_hour,
        throughput_ratio=ratio,
        tokens_per_usd_ratio=worth,
        flip_usd_per_gpu_hour=other.usd_per_gpu_hour.times(ratio.scaled(1 / count)),
        rival_flip_usd_per_gpu_hour=one.usd_per_gpu_hour.scaled(count).divided_by(ratio),
        flip_error_ratio=flip_error,
        band_error_ratio=band_error,
        verdict=verdict,
    )


def choices(options: Sequence[Offered], *, here: str = "") -> tuple[Choice, ...]:
    """What would change the order of the best options: `here` and the best other, and the best two.

    `options` must be for engines of equal GPU count, best tokens per dollar first; `here` is the
    GPU in use, empty if not given. Empty if fewer than two can be compared.
    """
    known = [each for each in options if each.is_comparable]
    own = [each for each in known if each.gpu == here]
    others = [each for each in known if each.gpu != here]
    pairs = [pair for pair in (own[:1] + others[:1], known[:2]) if len(pair) == 2]
    found = {frozenset((one.gpu, other.gpu)): choice(one, other) for one, other in pairs}
    return tuple(each for each in found.values() if each is not None)


def _worth(offered: Offered, gpus: int) -> float:
    """Throughput per dollar at the middle of both; 0 if either is unknown."""
    ratio, price = offered.throughput_ratio.mid, offered.usd_per_gpu_hour.mid
    return ratio / (price * gpus) if ratio and price else 0.0


def _over(one: Estimate, other: Estimate) -> Estimate:
    """The ratio of two ratios to one measurement; either may be exact (the measured GPU)."""
    both = (one.low, one.mid, one.high, other.low, other.mid, other.high)
    numbers = [math.log(end) for end in both if end is not None and end > 0]
    if len(numbers) < len(both):
        return Estimate.unknown(one.reason or other.reason or "one has no throughput")
    low, mid, high, least, middle, most = numbers
    share = 1.0 if low == high or least == most else _SHARE
    down = share * math.hypot(mid - low, most - middle)
    up = share * math.hypot(high - mid, middle - least)
    basis = dict.fromkeys((*one.basis, *other.basis))
    ends = tuple(math.exp(mid - middle + shift) for shift in (-down, 0.0, up))
    return Estimate.known(ends[0], ends[1], ends[2], *basis, kind=Kind.EXTRAPOLATED)
