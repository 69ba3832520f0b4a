"""The machine interface of an earlier release: its keys, and their present names.

`--json` prints version 2. For one release, `--schema-version 1` prints the earlier object: old
keys, `basis` as one line, and nothing that was added later.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

RENAMED: Mapping[str, str] = {
    "slo.capacity_output_tokens_per_second": "slo.throughput_output_tokens_per_second",
    "saturation.first_limit": "saturation.bottleneck",
    "cost.utilisation": "cost.utilization",
    "whole.utilisation": "whole.utilization",
    "parts.*.utilisation": "parts.*.utilization",
    "quality.*.moves": "quality.*.max_effect",
    "queue_check.utilisation_ratio": "queue_check.utilization_ratio",
    "first_limit": "bottleneck",
}
"""Version 1 to version 2, by the end of the path; `*` is any one key or index."""

RENAMED_PARAMETERS: Mapping[str, str] = {
    "usd_per_hour": "price",
    "fleet": "price_rules",
    "ttft_slo_seconds": "ttft_p95_seconds",
    "itl_slo_seconds": "itl_p95_seconds",
}
"""Earlier names of notebook parameters, and of terms in pages, to present ones."""

_NEW_IN_2 = (
    "schema_version",
    "surplus",
    "by_arithmetic",
    "capacity_by_arithmetic_output_tokens_per_second",
    "choices",
    "gpu",
    "interactivity",
    "options_basis",
)
_NEW_IN_ESTIMATES = ("kind", "confidence", "unit")
_NEW_IN_LOST = ("reason",)
_NEW_IN_OPTIONS = ("throughput_ratio", "label")
_OLD = {new: old for old, new in RENAMED.items()}


def version_1(body: Mapping[str, Any]) -> dict[str, Any]:
    """A JSON object of version 2 in the form of version 1."""
    return {key: each for key, each in _old(body, ()).items() if key not in _NEW_IN_2}


def _old(value: Any, path: tuple[str, ...]) -> Any:  # noqa: ANN401  what JSON has
    if isinstance(value, list):
        return [_old(each, (*path, "*")) for each in value]
    if not isinstance(value, Mapping):
        return value
    if {"low", "mid", "high", "basis"} <= value.keys():
        kept = {key: each for key, each in value.items() if key not in _NEW_IN_ESTIMATES}
        return {**kept, "basis": "; ".join(value["basis"])}
    if path == ("options", "*"):
        value = {key: each for key, each in value.items() if key not in _NEW_IN_OPTIONS}
    if path[-1:] == ("lost",):
        return {key: each for key, each in value.items() if key not in _NEW_IN_LOST}
    return {_old_key((*path, key)): _old(each, (*path, key)) for key, each in value.items()}


def _old_key(path: tuple[str, ...]) -> str:
    for new, old in _OLD.items():
        names = new.split(".")
        tail = path[-len(names) :]
        if len(tail) == len(names) and all(
            name in ("*", key) for name, key in zip(names, tail, strict=True)
        ):
            return old.split(".")[-1]
    return path[-1]
