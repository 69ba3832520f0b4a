"""What would change the choice of a GPU, as sentences."""

from __future__ import annotations

from collections.abc import Sequence

from vllm_capacity.estimate import Estimate
from vllm_capacity.plan import Plan
from vllm_capacity.render.numbers import between, number, percent, sure, usd, value
from vllm_capacity.render.tables import Text, text
from vllm_capacity.verdicts.hardware.choice import CLEAR, PRICE, Choice, choices
from vllm_capacity.verdicts.hardware.compare import Option


def choice_text(plan: Plan | Sequence[Option], here: str = "") -> Text:
    """The price or error at which the order of the best GPUs flips; empty for fewer than two.

    It takes a plan, or options alone; `here` is then the label of the GPU in use.
    """
    if isinstance(plan, Plan):
        basis = [f"Throughput of the GPUs: {plan.options_basis}."] if plan.options_basis else []
        return text(*basis, *map(choice_sentences, plan.choices))
    return text(*map(choice_sentences, choices(plan, here=here)))


def choice_sentences(found: Choice) -> str:
    """Which of two GPUs gives more tokens per dollar, up to what prices, and how certainly."""
    gpu, rival = (name.partition(" (")[0] for name in (found.gpu, found.rival))
    now, other = found.usd_per_gpu_hour, found.rival_usd_per_gpu_hour
    return (
        f"{gpu} gives {sure(found.tokens_per_usd_ratio, number)} times as many tokens per dollar "
        f"as {rival}. It stays ahead until its price passes "
        f"{value(found.flip_usd_per_gpu_hour, usd)} per GPU-hour (now {_price(now)}), or that of "
        f"{rival} falls below {value(found.rival_flip_usd_per_gpu_hour, usd)} (now "
        f"{_price(other)}). {_error(found)}"
    )


def _price(price: Estimate) -> str:
    """A price with the range of its offers, if any."""
    spread = between(price, usd)
    return f"{value(price, usd)}, offers {spread}" if spread else value(price, usd)


def _error(found: Choice) -> str:
    """The estimate error at which the order flips, compared with the error the band allows for."""
    error = f"An error of {percent(found.flip_error_ratio)} in the estimate would flip the order"
    band = f"the band allows for {percent(found.band_error_ratio)}"
    if found.verdict == CLEAR:
        return f"{error}; {band}: the order is clear."
    if found.verdict == PRICE:
        return f"{error}; {band}, but prices differ by more: the one that you get decides."
    return f"{error}; {band}: too close to call."
