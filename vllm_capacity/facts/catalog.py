"""Every metric family we read, under one name, and every spelling it comes in.

The entries are in `vllm_core` (load, tokens, caches), `vllm_requests` (requests, latencies,
server), `vllm_features` (optional features) and `frameworks` (other servers); here they are looked
up. vLLM's `vllm:` arrives as `vllm_` through some proxies and stores, as `ray_vllm_` through Ray;
`prometheus_client` and some collectors cut `_total` off a counter's name. All are one family.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches

from vllm_capacity.errors import MetricError
from vllm_capacity.facts.frameworks import EQUIVALENTS, Equivalent, spellings
from vllm_capacity.facts.metric import FEATURES, Across, Feature, Kind, Metric
from vllm_capacity.facts.vllm_core import LOAD, TOKENS
from vllm_capacity.facts.vllm_features import (
    ALWAYS_THERE,
    OFFLOADING,
    OPTIONAL,
    SPECULATIVE_DECODING,
    TRANSFERS,
)
from vllm_capacity.facts.vllm_requests import LATENCIES, REQUESTS, SCRAPER, SERVER

__all__ = [
    "CORE",
    "FEATURES",
    "METRICS",
    "Across",
    "Feature",
    "Kind",
    "Match",
    "Metric",
    "canonical_name",
    "feature",
    "framework",
    "keeps",
    "match",
    "metric",
]

METRICS: tuple[Metric, ...] = (
    *LOAD,
    *TOKENS,
    *LATENCIES,
    *REQUESTS,
    *SERVER,
    *SCRAPER,
    *SPECULATIVE_DECODING,
    *TRANSFERS,
    *OFFLOADING,
    *ALWAYS_THERE,
    *OPTIONAL,
)

# What every vLLM from 0.4.3 on exposes, whatever its engine, frontend and flags.
CORE: tuple[str, ...] = (
    "vllm:num_requests_running",
    "vllm:num_requests_waiting",
    "vllm:kv_cache_usage_perc",
    "vllm:num_preemptions_total",
    "vllm:prompt_tokens_total",
    "vllm:generation_tokens_total",
    "vllm:request_success_total",
    "vllm:time_to_first_token_seconds",
    "vllm:inter_token_latency_seconds",
    "vllm:e2e_request_latency_seconds",
)

_VLLM = re.compile(r"^(?:ray_)?vllm[:_]")


@dataclass(frozen=True)
class Match:
    """The family an exposed name stands for.

    `rank` 0 is the newest name of the concept, 1 and up older ones: where one scrape holds several,
    the lowest rank counts. `scale` turns the exposed unit into the family's.
    """

    metric: Metric
    rank: int
    scale: float = 1.0


def _wire_names(name: str, kind: Kind) -> Iterator[str]:
    """A vLLM name without prefix, as exposed and as parsers and collectors cut it."""
    bare = _VLLM.sub("", name)
    yield bare
    if kind is Kind.COUNTER:
        yield bare.removesuffix("_total")
    if kind is Kind.INFO:
        yield bare.removesuffix("_info")


def _vllm_table() -> tuple[dict[str, Match], dict[str, Match]]:
    """Matches by bare name: of the families with a vllm prefix, and of those without any."""
    prefixed: dict[str, Match] = {}
    plain: dict[str, Match] = {}
    for entry in METRICS:
        for rank, name in enumerate((entry.name, *entry.aliases)):
            table = prefixed if _VLLM.match(name) else plain
            for spelling in _wire_names(name, entry.kind):
                table[spelling] = Match(entry, rank)
    return prefixed, plain


_PREFIXED, _PLAIN = _vllm_table()
_BY_NAME = {entry.name: entry for entry in METRICS}
_FOREIGN: dict[str, Equivalent] = {
    spelling: entry for entry in EQUIVALENTS for spelling in spellings(entry.exposed)
}


def match(exposed: str) -> Match | None:
    """The catalogue's family behind an exposed family name; None if the catalogue has none.

    Takes `vllm:`, `vllm_`, `ray_vllm_` and `ray_vllm:` spellings, counters with and without
    `_total`, older vLLM names, and other frameworks' families.
    """
    prefix = _VLLM.match(exposed)
    if prefix:
        return _PREFIXED.get(exposed[prefix.end() :])
    if exposed in _PLAIN:
        return _PLAIN[exposed]
    foreign = _FOREIGN.get(exposed)
    return Match(_BY_NAME[foreign.metric], foreign.rank, foreign.scale) if foreign else None


def metric(name: str) -> Metric:
    """The family of that name, in any spelling, the `vllm:` prefix optional."""
    found = match(name) or match(f"vllm:{name}")
    if found:
        return found.metric
    bare = _VLLM.sub("", name)
    near = get_close_matches(bare, [*_PREFIXED, *_PLAIN], n=6, cutoff=0.5)
    names = dict.fromkeys(
        (_PREFIXED.get(near_by) or _PLAIN[near_by]).metric.name for near_by in near
    )
    hint = ", ".join([*names][:3]) or "none (see METRICS in facts/catalog.py for all)"
    raise MetricError(f"No metric {name!r} in the catalogue; nearest: {hint}.")


def canonical_name(exposed: str) -> str:
    """The one name we use for an exposed family.

    The catalogue's where it knows the family, `vllm:…` for any other family with a vllm prefix,
    and the name as it came for the rest.
    """
    found = match(exposed)
    return found.metric.name if found else _VLLM.sub("vllm:", exposed)


def keeps(exposed: str) -> bool:
    """Whether border 1 keeps the family: all of the catalogue, and whatever else vLLM exposes.

    `…_created` never: a creation time is no measurement, and its name ends like a family's own.
    """
    if exposed.endswith("_created"):
        return False
    return _VLLM.match(exposed) is not None or match(exposed) is not None


def feature(exposed: str, labels: Mapping[str, str] | None = None) -> Feature | None:
    """The optional feature a series of a vLLM family says is in use; None for the rest.

    Presence is enough: these families exist only where the feature is configured. Those vLLM always
    registers (external prefix cache, sleep state) belong to none: they matter when they move.
    """
    bare = canonical_name(exposed).removeprefix("vllm:")
    found = next((item for item in FEATURES if bare.startswith(item.prefixes)), None)
    if found and any((labels or {}).get(name) == value for name, value in found.off):
        return None
    return found


def framework(exposed: str) -> str | None:
    """The server an exposed family comes from: `vllm`, `sglang`, `dynamo` …; None if unknown.

    A Dynamo frontend and its workers count the same requests: they must not be added.
    """
    if _VLLM.match(exposed):
        return "vllm"
    foreign = _FOREIGN.get(exposed)
    return foreign.framework if foreign else None
