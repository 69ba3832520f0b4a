"""How wide the band of a scaled answer is: half widths by class, and how far they reach.

Measured on models left out of the fit (`python -m bench.whatif`), in logarithms throughout. The
class is whether both architectures have kernel tables, whether the GPU explains the measured time,
and whether the load is given; anything never measured widens the band.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from msgspec.structs import replace

from vllm_capacity.estimate import Estimate
from vllm_capacity.verdicts.hardware.question import Question
from vllm_capacity.verdicts.hardware.side import Side, have_tables

EXPLAINED = 0.3
"""The GPU explains the measured time if the rest is at most this share of the calculated one."""
BANDS = {
    # (tables, explained, clients given): half the band, in logarithms; its growth with the ratio.
    # tables: both GPUs have an architecture with tables, see UNTIMED_SHEET_SHARE
    (True, True, True): (0.215, 0.20),
    (True, False, True): (0.30, 0.25),
    (True, True, False): (0.33, 0.28),
    (True, False, False): (0.29, 0.25),
    (False, True, True): (0.22, 0.20),
    (False, False, True): (0.21, 0.20),
    (False, True, False): (0.30, 0.28),
    (False, False, False): (0.27, 0.25),
}
"""An error has a constant part and one that grows with the ratio: the root of the squares' sum.

Chosen so that about nine in ten published pairs lie inside, by class, with their model left out;
`python -m bench.whatif` prints the actual shares.
"""
FAR_FACTOR = 1.3
"""How much wider the band is if no published case is near, or a chip's kernels were not timed.

A missing case does not matter if both GPUs have an architecture with tables and clients are given:
far silicon rows were then off no more than near ones (nine in ten within 0.20 and 0.22, models left
out).
"""
ANOTHER_LOAD = 0.075
"""Half the band of another load per factor e of running requests, in logarithms.

From the lightest silicon rows to heavier ones, models left out. Beyond `MAX_GROWN` twice as much.
"""
ANOTHER_COUNT = 0.13
"""What another GPU count adds to half a band, in logarithms per factor e of the count.

From silicon rows of one setup at 2 and 4 times the GPUs, models left out.
"""
LATENT_HALF_WIDTH, LATENT_PER_LOAD = 0.12, 0.17
"""What multi-head latent attention (DeepSeek, Kimi) adds to half a band, in logarithms.

Between two GPUs, and per factor e of running requests. Its decoding kernel was timed on Hopper and
Blackwell. Compared with the tables' decoding steps of Kimi-K2.5 (INT4 experts, 16-bit KV cache) on
8 GPUs, nine in ten ratios of two GPUs are within 0.2 (of one architecture 0.08), and nine in ten
growths within 0.14 per factor e. No end-to-end run of such a model validates either.
"""
MAX_GROWN = math.log(16)
"""The largest range of running requests in those rows."""
SAME_SETUP_HALF_WIDTH = 0.1
"""What another load of the measured setup adds to that."""
LIGHT_HALF_WIDTH = 0.22
"""Half the band under a light load; the band then also reaches the same rate."""
SAME_RATE, SAME_RATE_UNDER_CLIENTS = 0.05, 0.2
"""How far past the same rate the band of a light load reaches, in logarithms.

The second if that many clients should have given more, so something else is the limit: nine in ten
of 56 pairs of versions of one silicon setup, on one GPU, differ by no more than that.
"""
FULLY_LIGHT = 0.08
"""The lightness from which the band is that of a light load; from 0 it fades into it."""
OTHER_VENDOR_HALF_WIDTH = 0.60
"""Half the band with another vendor's kernels, for any load."""
FITTED_VENDOR = "NVIDIA"
SPAN_SHARE = 0.5
"""The share of a span's distance that the band adopts: its ends are no likelier than its middle."""


def half_width(question: Question, one: Side, other: Side, gain: float) -> float:
    """Half the band of a gain: by class, and for another load."""
    if question.at is None:
        return _class_half_width(question, one, other, gain)
    apart = abs(math.log(other.batch / one.batch))
    beyond = max(apart - MAX_GROWN, 0.0)
    of_load = ANOTHER_LOAD * (apart + beyond)
    if is_latent(question):
        of_load = math.hypot(of_load, LATENT_PER_LOAD * apart)
    if question.is_same_setup:
        return math.hypot(of_load, SAME_SETUP_HALF_WIDTH)
    gain -= math.log(other.batch / one.batch)
    return math.hypot(of_load, _class_half_width(question, one, other, gain))


def _class_half_width(question: Question, one: Side, other: Side, gain: float) -> float:
    """Half the band of a gain under one load, by class."""
    rest = 1 / question.output_tokens_per_second / one.seconds_per_token - 1
    is_load_known = question.load.clients is not None
    own, of_ratio = BANDS[have_tables(one, other), rest <= EXPLAINED, is_load_known]
    of_count = ANOTHER_COUNT * math.log(question.gpus_there / question.gpus)
    latent = LATENT_HALF_WIDTH if is_latent(question) else 0.0
    return math.hypot(own, of_ratio * gain, of_count, latent)


def is_latent(question: Question) -> bool:
    """Whether the model has latent attention, of which no published run was at hand."""
    return question.llm.attention == "mla"


def widened(
    half: float, question: Question, one: Side, other: Side, *, is_near: bool, is_timed: bool
) -> float:
    """Half a band, wider if nothing near was measured."""
    architectures = [each.machine.gpu.architecture for each in (one, other)]
    if any(row.vendor != FITTED_VENDOR for row in architectures):
        return max(half, OTHER_VENDOR_HALF_WIDTH)
    is_load_known = question.load.clients is not None
    is_sure = is_timed and is_load_known and have_tables(one, other)
    return half if is_near or is_sure else half * FAR_FACTOR


def wider(found: Estimate, more: float, *basis: str, share: float = 1.0) -> Estimate:
    """`share` of an estimate, with `more` added to both halves of its band, in logarithms.

    `basis` says why. The numbers of bounds, of a low end of 0 and with nothing to add stay.
    """
    found = replace(found, basis=(*found.basis, *basis))
    if not more or not found.low or found.mid is None or found.high is None:
        return found
    down, up = (
        math.hypot(math.log(ratio), more)
        for ratio in (found.mid / found.low, found.high / found.mid)
    )
    mid = share * found.mid
    return replace(found, low=mid * math.exp(-down), mid=mid, high=mid * math.exp(up))


def reach(
    half: float, gains: Sequence[float], *, gain: float, fade: float, past: float = SAME_RATE
) -> tuple[float, float]:
    """How far the band extends below and above a gain, in logarithms.

    It adopts part of a span (the first of `gains` is its middle) and includes both its ends, and it
    extends towards the same rate, and `past` it, as far as the load is light.
    """
    below, above = gains[0] - min(gains), max(gains) - gains[0]
    down = max(math.hypot(half, SPAN_SHARE * below), below)
    up = max(math.hypot(half, SPAN_SHARE * above), above)
    return down + fade * max(gain + past - down, 0.0), up + fade * max(past - gain - up, 0.0)
