"""What there is to know of one metric family: name, kind, unit, aggregation, history."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Kind(StrEnum):
    """How a family's values behave. From `# TYPE` or the OTLP kind, never from a suffix.

    `INFO` families are exposed as gauges; what they say is in their labels.
    """

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"
    INFO = "info"


class Across(StrEnum):
    """What may be done with a family's values over several engines."""

    SUM = "sum"
    MEAN_MAX = "mean and max"  # a ratio or a per-GPU figure: never summed
    EACH = "each"  # means something for one engine or process only
    FIRST = "first"  # the same on every engine, or repeated by every process


@dataclass(frozen=True)
class Metric:
    """One metric family, under the name we use for it: vLLM's newest, as `/metrics` spells it.

    Counters end in `_total`, histograms carry no suffix. `aliases` are older vLLM names of the same
    concept, newest first, only where unit and meaning agree. `touches` names figures of the machine
    interface that a feature's presence affects. `since` and `until` are the first and last of the
    sampled vLLM releases (0.2.7 … 0.33.0) that have the canonical name; `until` empty: still there.
    `needs` is the flag or feature without which the family is absent; empty: always registered.
    """

    name: str
    kind: Kind
    unit: str
    across: Across
    asks: str
    has_engine: bool = True
    aliases: tuple[str, ...] = ()
    touches: tuple[str, ...] = ()
    since: str = ""
    until: str = ""
    needs: str = ""


@dataclass(frozen=True)
class Feature:
    """An optional part of vLLM whose families, once there, change what other figures mean.

    Any vLLM family whose bare name starts with one of `prefixes` belongs to it, known to the
    catalogue or not; the first feature that fits counts. `effect` says what happens to the figures
    in `touches`. A series with a label in `off` says that the feature is not in use.
    """

    name: str
    prefixes: tuple[str, ...]
    touches: tuple[str, ...]
    effect: str
    off: tuple[tuple[str, str], ...] = ()


SPECULATIVE = Feature(
    "speculative decoding",
    ("spec_decode_", "diffusion_"),
    (
        "latency.itl_seconds",
        "slo.itl_attainment",
        "saturation.capacity_output_tokens_per_second",
    ),
    "one inter-token sample covers several tokens, so time per token is overstated; capacity "
    "depends on the acceptance rate of this traffic",
)
DISAGGREGATED = Feature(
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
    "one user request finishes once on a prefill and once on a decode engine, so sums over both "
    "count it twice; time to first token spans two engines",
)
LORA = Feature(
    "LoRA",
    ("lora_",),
    ("waiting", "latency.ttft_seconds", "saturation.regime"),
    "requests may wait for an adapter slot rather than for compute or KV memory",
    off=(("max_lora", "0"),),  # engine V0 exposes the family without LoRA too
)
OFFLOAD = Feature(
    "KV offload",
    ("kv_offload_", "simple_kv_offload_", "hf3fs_", "hisparse_", "mooncake_store_"),
    ("kv_cache_ratio", "tokens.prompt_computed", "prefix_cache_hit_ratio", "saturation.regime"),
    "KV memory extends beyond the GPU: usage near 1 need not mean saturation, and hits come from "
    "slower tiers",
)
SLEEP = Feature(
    "sleep mode",
    ("sleep_mode_", "rl_weight_update_"),
    ("throughput", "kv_cache_ratio", "saturation.regime", "cost.utilisation"),
    "a sleeping or reloading engine is billed and serves nothing; its gauges stand still",
)
FEATURES: tuple[Feature, ...] = (SPECULATIVE, OFFLOAD, DISAGGREGATED, LORA, SLEEP)
