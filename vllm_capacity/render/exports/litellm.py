"""A price file for LiteLLM, which otherwise prices a self-hosted model at $0.

Its fields: https://docs.litellm.ai/docs/proxy/custom_pricing. `litellm.register_model` takes the
file's content, and so does a proxy's `model_info`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime

from msgspec import Struct

from vllm_capacity.analysis import Analysis
from vllm_capacity.errors import InputError
from vllm_capacity.estimate import Estimate
from vllm_capacity.render.exports.currency import Currency
from vllm_capacity.verdicts.cost.bill import Costs

_PROVIDER = "hosted_vllm"


def to_litellm(analysis: Analysis, currency: Currency) -> str:
    """The price of each served model, per token, as JSON under `hosted_vllm/MODEL`.

    The bill is split between input and output (`_split`), so that the window's tokens at these
    prices add up to its bill. A token from the prefix cache costs the same as any other input
    token, because the count that splits the bill includes both. A model whose price is unknown, or
    only "at least", is left out. InputError if that leaves none, or for a currency other than
    LiteLLM's, USD.
    """
    span = analysis.answer.window
    measured = Measured(analysis.window.name, span.start, span.end)
    parts = {model: (costs, measured) for model, costs in analysis.bill_by("model").parts.items()}
    return litellm_json(parts, currency, of=analysis.window.name)


class Measured(Struct, frozen=True):
    """The window in which a price was measured."""

    window: str
    start: datetime
    end: datetime


def litellm_json(
    parts: Mapping[str, tuple[Costs, Measured]], currency: Currency, *, of: str
) -> str:
    """The prices by served model, each with its window; `of` names the whole in errors."""
    if currency.code != "USD":
        raise InputError(
            f"LiteLLM calculates in US dollars, so a price file in {currency.code} would be "
            "misread; remove --currency."
        )
    found, why = {}, "no engine was billed"
    for model, (costs, measured) in parts.items():
        inputs = costs.usd_per_million_input_tokens_split
        outputs = costs.usd_per_million_output_tokens_split
        if inputs.mid is None or outputs.mid is None:
            why = (inputs if inputs.mid is None else outputs).reason
            continue
        found[f"{_PROVIDER}/{model}"] = _entry(inputs.mid, outputs.mid, measured, inputs)
    if not found:
        raise InputError(f"No model of {of} has a price per token: {why}.")
    return json.dumps(found, allow_nan=False, indent=2) + "\n"


def _entry(
    usd_per_million_input: float,
    usd_per_million_output: float,
    measured: Measured,
    found: Estimate,
) -> dict[str, str | float | dict[str, str]]:
    return {
        "litellm_provider": _PROVIDER,
        "mode": "chat",
        "input_cost_per_token": usd_per_million_input / 1e6,
        "cache_read_input_token_cost": usd_per_million_input / 1e6,
        "output_cost_per_token": usd_per_million_output / 1e6,
        "metadata": {
            "window": measured.window,
            "measured": f"{measured.start:%Y-%m-%d} to {measured.end:%Y-%m-%d}",
            "basis": found.sources,
        },
    }
