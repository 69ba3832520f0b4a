"""The price of a model at an API: two numbers that the user gives."""

from __future__ import annotations

import math

from msgspec import Struct

from vllm_capacity.errors import InputError


class ApiPrice(Struct, frozen=True):
    """An API's price of a model, in USD per million input and output tokens."""

    usd_per_million_input: float
    usd_per_million_output: float

    def __post_init__(self) -> None:
        """Raise InputError for rates that are negative, not finite, or both 0."""
        rates = (self.usd_per_million_input, self.usd_per_million_output)
        if not all(math.isfinite(rate) and rate >= 0 for rate in rates) or not any(rates):
            raise InputError(
                f"API prices must be 0 or more, and not both 0; found {rates[0]} and {rates[1]}."
            )

    @property
    def basis(self) -> str:
        """The price in words."""
        rates = f"${self.usd_per_million_input:g}/${self.usd_per_million_output:g}"
        return f"API {rates} per M in/out (given)"

    def usd_per_request(self, *, input_tokens: float, output_tokens: float) -> float:
        """The API's charge in USD for one request with these token counts."""
        return (
            input_tokens * self.usd_per_million_input + output_tokens * self.usd_per_million_output
        ) / 1e6


def given_api_price(usd_per_million_input: float, usd_per_million_output: float) -> ApiPrice:
    """A price given as two numbers; raises InputError if they are not valid rates."""
    return ApiPrice(usd_per_million_input, usd_per_million_output)
