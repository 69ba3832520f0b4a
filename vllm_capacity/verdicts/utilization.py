"""The share of a capacity in use (utilization), and the share left over (headroom)."""

from __future__ import annotations

from vllm_capacity.estimate import Estimate

NOT_REACHED = "capacity was not reached on {}"
"""The start of the reason if not every engine's capacity is known."""


def utilization(output_tokens_per_second: float | None, capacity: Estimate) -> Estimate:
    """Output rate ÷ capacity, 0..1.

    Capped at 1: a rate above the extrapolated capacity means that the capacity is at least that
    rate. Exactly 0 if nothing was generated, whatever the capacity; an upper bound if the capacity
    is a lower bound. Unknown if the rate is None: generated tokens were not counted, or not by this
    label.
    """
    if output_tokens_per_second == 0:
        return Estimate.exact(0.0, "nothing was generated")
    if output_tokens_per_second is None:
        return Estimate.unknown(
            "the output rate is not known: generated tokens were not counted, or not by this label"
        )
    basis = f"{output_tokens_per_second:.4g} output tokens/s measured"
    ratio = Estimate.exact(output_tokens_per_second, basis).divided_by(capacity)
    return ratio.map(lambda value: min(value, 1.0))


def headroom(used: Estimate) -> Estimate:
    """The unused share of the capacity: 1 − utilization, so exactly 1 for an idle window."""
    return used.map(lambda share: 1 - share, is_decreasing=True)
