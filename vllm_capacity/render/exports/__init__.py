"""An analysis in other tools' formats: spreadsheets, FOCUS, Prometheus, LiteLLM, chat messages.

Each module writes figures of the one answer and its bill; none computes another.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING

from vllm_capacity.errors import InputError
from vllm_capacity.render.exports.currency import USD, Currency
from vllm_capacity.render.exports.figures import to_csv, to_json, to_parquet
from vllm_capacity.render.exports.focus import to_focus
from vllm_capacity.render.exports.litellm import to_litellm
from vllm_capacity.render.exports.prometheus import to_prometheus
from vllm_capacity.render.exports.summary import to_markdown

if TYPE_CHECKING:
    from vllm_capacity.analysis import Analysis

FORMATS: Mapping[str, Callable[[Analysis, Currency], str | bytes]] = {
    "csv": to_csv,
    "parquet": to_parquet,
    "json": to_json,
    "markdown": to_markdown,
    "focus": to_focus,
    "focus-1.2": partial(to_focus, version="1.2"),
    "prometheus": to_prometheus,
    "litellm": to_litellm,
}


def export(analysis: Analysis, to: str, currency: Currency = USD) -> str | bytes:
    """The analysis in one of `FORMATS`: bytes for Parquet, else text.

    InputError for an unknown format, and if a format cannot express an unknown figure.
    """
    if to not in FORMATS:
        raise InputError(f"No format {to!r} to export to; there are {', '.join(FORMATS)}.")
    return FORMATS[to](analysis, currency)
