"""Catalog of the metric families we read: one name for each, and every spelling of it.

The families are rows of `data/vllm_metrics.csv`; other servers' names for them are rows of
`data/metric_equivalents.csv`. vLLM's prefix `vllm:` arrives as `vllm_` through some proxies and
stores, and as `ray_vllm_` through Ray; `prometheus_client` and some collectors drop `_total` from a
counter's name. All of these spellings are one family.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from enum import StrEnum
from functools import cache
from typing import NamedTuple

from msgspec import Struct

from vllm_capacity.errors import InputError
from vllm_capacity.facts.tables import Count, Positive, Text, read_rows, suggest
from vllm_capacity.resources import shipped

# The families that figures are based on; a test compares them with the table.
RUNNING = "vllm:num_requests_running"
WAITING = "vllm:num_requests_waiting"
KV_CACHE = "vllm:kv_cache_usage_perc"
PREEMPTIONS = "vllm:num_preemptions_total"
PROMPT_TOKENS = "vllm:prompt_tokens_total"
PROMPT_TOKENS_BY_SOURCE = "vllm:prompt_tokens_by_source_total"
PROMPT_TOKENS_CACHED = "vllm:prompt_tokens_cached_total"
CACHE_CONFIG = "vllm:cache_config_info"
LORA_REQUESTS = "vllm:lora_requests_info"
DRAFT_TOKENS = "vllm:spec_decode_num_draft_tokens_total"
GENERATION_TOKENS = "vllm:generation_tokens_total"
PREFIX_QUERIES = "vllm:prefix_cache_queries_total"
PREFIX_HITS = "vllm:prefix_cache_hits_total"
# Counted in blocks before 0.9.2: never add them to the newer pair; their ratio is just as valid.
OLD_PREFIX_QUERIES = "vllm:gpu_prefix_cache_queries_total"
OLD_PREFIX_HITS = "vllm:gpu_prefix_cache_hits_total"
REQUESTS = "vllm:request_success_total"
REJECTIONS = "vllm:admission_rejections_total"
HTTP_REQUESTS = "http_requests_total"
TTFT = "vllm:time_to_first_token_seconds"
ITL = "vllm:inter_token_latency_seconds"
E2E = "vllm:e2e_request_latency_seconds"
QUEUE = "vllm:request_queue_time_seconds"
PREFILL = "vllm:request_prefill_time_seconds"
DECODE = "vllm:request_decode_time_seconds"
PROMPT_LENGTH = "vllm:request_prompt_tokens"
OUTPUT_LENGTH = "vllm:request_generation_tokens"
FLOPS = "vllm:estimated_flops_per_gpu_total"
READ_BYTES = "vllm:estimated_read_bytes_per_gpu_total"
WRITE_BYTES = "vllm:estimated_write_bytes_per_gpu_total"

CORE: tuple[str, ...] = (
    RUNNING,
    WAITING,
    KV_CACHE,
    PREEMPTIONS,
    PROMPT_TOKENS,
    GENERATION_TOKENS,
    REQUESTS,
    TTFT,
    ITL,
    E2E,
)
"""Families that every vLLM since 0.4.3 exposes, whatever its engine, frontend and flags."""

_VLLM = re.compile(r"^(?:ray_)?vllm[:_]")


class Kind(StrEnum):
    """How a family's values behave; taken from `# TYPE` or the OTLP kind, never from a suffix.

    `INFO` families are exposed as gauges; their information is in their labels.
    """

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"
    INFO = "info"


class Across(StrEnum):
    """How a family's values may be combined over several engines."""

    SUM = "sum"
    MEAN_MAX = "mean and max"  # a ratio or a per-GPU figure: never summed
    EACH = "each"  # means something for one engine or process only
    FIRST = "first"  # the same on every engine, or repeated by every process


class Metric(Struct, frozen=True, kw_only=True):
    """One metric family, under the name we use for it; a row of `data/vllm_metrics.csv`.

    The name is vLLM's newest, as in `/metrics`: counters end in `_total`, histograms have no
    suffix. `aliases` are older vLLM names of the same concept, newest first, only if unit and
    meaning agree. `feature` names the `Feature` it belongs to. `has_engine` says whether its series
    belong to one engine or to the whole server. `since` and `until` are the first and last of the
    sampled vLLM releases (0.2.7 … 0.33.0) that have the name; an empty `until` means it still
    exists. `needs` is the flag or feature that registers the family; empty if it always is.
    """

    name: Text
    kind: Kind
    unit: Text
    across: Across
    asks: Text
    has_engine: bool
    aliases: tuple[str, ...] = ()
    feature: str = ""
    since: str = ""
    until: str = ""
    needs: str = ""
    source: Text
    note: str = ""


class Equivalent(Struct, frozen=True, kw_only=True):
    """Another framework's family, and the vLLM family it corresponds to.

    A row of `data/metric_equivalents.csv`, which holds only what a published scrape confirms.
    `alias_priority` 0 is the framework's current name, 1 an older one. `scale` converts its unit to
    vLLM's (0.001 for milliseconds to seconds). `differs` says how its meaning differs from vLLM's.
    """

    framework: Text
    exposed: Text
    metric: Text
    alias_priority: Count = 0
    scale: Positive = 1.0
    differs: str = ""
    source: Text
    note: str = ""


class Feature(Struct, frozen=True):
    """An optional part of vLLM whose presence changes what other figures mean.

    Any vLLM family whose bare name starts with one of `prefixes` belongs to it, whether or not the
    catalog has it; the first match counts. `effect` says what happens to the figures in `touches`.
    A series with a label in `off` shows that the feature is not in use.
    """

    name: str
    prefixes: tuple[str, ...]
    touches: tuple[str, ...]
    effect: str
    off: tuple[tuple[str, str], ...] = ()


FEATURES: tuple[Feature, ...] = (
    Feature(
        "speculative decoding",
        ("spec_decode_", "diffusion_"),
        (
            "latency.itl_seconds",
            "slo.itl_attainment",
            "saturation.capacity_output_tokens_per_second",
        ),
        "one inter-token sample covers several tokens, so time per token is overstated; capacity "
        "depends on the acceptance rate of this traffic",
    ),
    Feature(
        "KV offload",
        ("kv_offload_", "simple_kv_offload_", "hf3fs_", "hisparse_", "mooncake_store_"),
        ("kv_cache_ratio", "tokens.prompt_computed", "prefix_cache_hit_ratio", "saturation.regime"),
        "KV memory extends beyond the GPU: usage near 1 need not mean saturation, and hits come "
        "from slower tiers",
    ),
    Feature(
        "prefill/decode disaggregation",
        ("nixl_", "mooncake_", "umbp_transfer_", "num_requests_kv_fetch_"),
        (
            "requests.finished",
            "tokens.prompt",
            "tokens.prompt_computed",
            "latency.ttft_seconds",
            "cost.usd_per_request",
            "saturation.regime",
        ),
        "one user request finishes once on a prefill and once on a decode engine, so sums over "
        "both count it twice; time to first token spans two engines",
    ),
    Feature(
        "LoRA",
        ("lora_",),
        ("waiting", "latency.ttft_seconds", "saturation.regime"),
        "requests may wait for an adapter slot rather than for compute or KV memory",
        off=(("max_lora", "0"),),  # engine V0 exposes the family without LoRA too
    ),
    Feature(
        "sleep mode",
        ("sleep_mode_", "rl_weight_update_"),
        ("throughput", "kv_cache_ratio", "saturation.regime", "cost.utilization"),
        "a sleeping or reloading engine is billed and serves nothing; its gauges stand still",
    ),
)


class Match(Struct, frozen=True):
    """The family that an exposed name refers to.

    `alias_priority` 0 is the newest name of the concept, 1 and up older ones: if one scrape holds
    several, the lowest counts. `scale` converts the exposed unit to the family's.
    """

    metric: Metric
    alias_priority: int
    scale: float = 1.0


@cache
def metrics() -> tuple[Metric, ...]:
    """Every row of `data/vllm_metrics.csv`, in file order."""
    return read_rows(Metric, shipped("data/vllm_metrics.csv"))


@cache
def equivalents() -> tuple[Equivalent, ...]:
    """Every row of `data/metric_equivalents.csv`, in file order.

    Raises InputError if a row names a family that `data/vllm_metrics.csv` does not have.
    """
    rows = read_rows(Equivalent, shipped("data/metric_equivalents.csv"))
    known = [entry.name for entry in metrics()]
    for row in rows:
        if row.metric not in known:
            raise InputError(
                f"metric_equivalents.csv says that {row.exposed} is {row.metric}, which "
                f"vllm_metrics.csv does not have{suggest(row.metric, known)}."
            )
    return rows


def match(exposed: str) -> Match | None:
    """The catalog's family for an exposed family name; None if the catalog has none.

    Accepts the prefixes `vllm:`, `vllm_`, `ray_vllm_` and `ray_vllm:`, counters with and without
    `_total`, older vLLM names, and other frameworks' families.
    """
    known = _spellings()
    prefix = _VLLM.match(exposed)
    if prefix:
        return known.prefixed.get(exposed[prefix.end() :])
    return known.plain.get(exposed) or known.foreign.get(exposed)


def canonical_name(exposed: str) -> str:
    """The one name we use for an exposed family.

    The catalog's name if it has the family, `vllm:…` for any other family with a vllm prefix,
    and the exposed name itself for the rest.
    """
    found = match(exposed)
    return found.metric.name if found else _VLLM.sub("vllm:", exposed)


def keeps(exposed: str) -> bool:
    """Whether ingestion keeps a family: those of the catalog, and all others of vLLM.

    Never `…_created`: a creation time is not a measurement, although it looks like a family.
    """
    if exposed.endswith("_created"):
        return False
    return _VLLM.match(exposed) is not None or match(exposed) is not None


def feature(exposed: str, labels: Mapping[str, str] | None = None) -> Feature | None:
    """The optional feature that a series of a vLLM family shows to be in use; None for the rest.

    Presence is enough: these families exist only if the feature is configured. Families that vLLM
    always registers (external prefix cache, sleep state) belong to none; only their changes matter.
    """
    bare = canonical_name(exposed).removeprefix("vllm:")
    found = next((item for item in FEATURES if bare.startswith(item.prefixes)), None)
    if found and any((labels or {}).get(name) == value for name, value in found.off):
        return None
    return found


def framework(exposed: str) -> str | None:
    """The server that exposes a family: `vllm`, `sglang`, `dynamo` …; None if unknown.

    A Dynamo frontend and its workers count the same requests, so they must not be added.
    """
    return "vllm" if _VLLM.match(exposed) else _spellings().servers.get(exposed)


class _Spellings(NamedTuple):
    """Matches by spelling: vLLM's names without prefix, names that have none, other frameworks'.

    `servers` maps the last to their frameworks.
    """

    prefixed: Mapping[str, Match]
    plain: Mapping[str, Match]
    foreign: Mapping[str, Match]
    servers: Mapping[str, str]


@cache
def _spellings() -> _Spellings:
    prefixed: dict[str, Match] = {}
    plain: dict[str, Match] = {}
    for entry in metrics():
        for alias_priority, name in enumerate((entry.name, *entry.aliases)):
            table = prefixed if _VLLM.match(name) else plain
            for spelling in _wire_names(name, entry.kind):
                table[spelling] = Match(entry, alias_priority)
    by_name = {entry.name: entry for entry in metrics()}
    foreign = [(spelling, row) for row in equivalents() for spelling in _foreign_names(row.exposed)]
    return _Spellings(
        prefixed,
        plain,
        {name: Match(by_name[row.metric], row.alias_priority, row.scale) for name, row in foreign},
        {name: row.framework for name, row in foreign},
    )


def _wire_names(name: str, kind: Kind) -> Iterator[str]:
    """A vLLM name without prefix, as exposed and as parsers and collectors shorten it."""
    bare = _VLLM.sub("", name)
    yield bare
    if kind is Kind.COUNTER:
        yield bare.removesuffix("_total")
    if kind is Kind.INFO:
        yield bare.removesuffix("_info")


def _foreign_names(exposed: str) -> Iterator[str]:
    """The spellings of another framework's family: `_` for `:`, with and without `_total`."""
    bare = exposed.removesuffix("_total")
    for name in dict.fromkeys((exposed, bare, f"{bare}_total")):
        yield name
        if ":" in name:
            yield name.replace(":", "_")
