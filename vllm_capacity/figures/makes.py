"""How each engine is set up, as far as labels show: its model, its KV cache, its GPU.

vLLM does not export the GPU. It does export the number of blocks in its KV cache, which depends on
the GPU's memory and the settings; and targets often carry a label with the GPU's name. Engines that
agree in everything known of both are treated as peers.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence

import polars as pl
from msgspec import Struct, field

from vllm_capacity.facts.gpus import GpuSpan, labelled_gpu
from vllm_capacity.facts.metrics import CACHE_CONFIG, DRAFT_TOKENS, GENERATION_TOKENS
from vllm_capacity.telemetry.processes import TARGET_INFO
from vllm_capacity.telemetry.window import Window

_GPU_LABELS = frozenset(
    ("accelerator", "gpu", "gpu_model", "gpu_name", "gpu_product", "gpu_type", "instance_type")
)
_SETTINGS = ("block_size", "cache_dtype", "gpu_memory_utilization", "enable_prefix_caching")
_ALIKE_BLOCKS = 0.1  # start-up profiling leaves replicas a few blocks apart


class Make(Struct, frozen=True):
    """What is known of how one engine is set up; None or empty if nothing is.

    `rate` is its GPUs and their price, if a mapping file gives them.
    """

    model_name: str | None
    kv_blocks: float | None = None
    settings: Mapping[str, str] = field(default_factory=dict)
    rate: tuple[float, float] | None = None

    @property
    def gpu(self) -> GpuSpan | None:
        """The GPU that its labels name; None if they name none, or several."""
        labelled = (
            labelled_gpu(self.settings[name]) for name in sorted(_GPU_LABELS & self.settings.keys())
        )
        spans = {span.name: span for span in labelled if span is not None}
        return next(iter(spans.values())) if len(spans) == 1 else None

    @property
    def kv_dtype(self) -> str:
        """The type of its KV cache as reported; auto if not reported."""
        return self.settings.get("cache_dtype", "auto")

    @property
    def kv_tokens(self) -> float | None:
        """The size of its KV cache in tokens as reported; None if not reported."""
        block = _number(self.settings.get("block_size"))
        return None if self.kv_blocks is None or block is None else self.kv_blocks * block

    def is_like(self, other: Make) -> bool:
        """Whether both can be replicas of each other: nothing that is known of both differs."""
        both = self.settings.keys() & other.settings.keys()
        return (
            self.model_name == other.model_name
            and self.rate == other.rate
            and all(self.settings[name] == other.settings[name] for name in both)
            and _are_alike(self.kv_blocks, other.kv_blocks)
        )


def engine_makes(
    window: Window,
    engines: pl.DataFrame,
    *,
    rates: Mapping[str, tuple[float, float]] | None = None,
) -> dict[str, Make]:
    """The make of each engine of `engines` (figures/scrapes.py), by name (`instance/engine`).

    `rates` are GPUs and USD per GPU-hour by instance, from a mapping file.
    """
    labels = _labels(window, [TARGET_INFO, CACHE_CONFIG, GENERATION_TOKENS])
    found = {}
    for row in engines.iter_rows(named=True):
        whole = labels.get((row["instance"], None), {})
        own = {**whole, **labels.get((row["instance"], row["engine"]), {})}
        settings = {name: own[name] for name in (*_SETTINGS, *sorted(_GPU_LABELS)) if own.get(name)}
        found[f"{row['instance']}/{row['engine']}"] = Make(
            row["model_name"],
            _number(own.get("num_gpu_blocks")),
            settings,
            (rates or {}).get(row["instance"]),
        )
    return found


ENGINE_NAME = pl.concat_str("instance", "engine", separator="/")
"""The engine's name, as used everywhere, as a column."""


def of_engines(rows: pl.DataFrame, names: Collection[str]) -> pl.DataFrame:
    """The rows, with instance and engine, of the named engines."""
    return rows.filter(ENGINE_NAME.is_in(list(names)))


def alike(engines: Sequence[str], makes: Mapping[str, Make]) -> list[list[str]]:
    """The engines grouped by make, in order; each is like the first of its group."""
    groups: list[list[str]] = []
    for engine in engines:
        group = next((own for own in groups if makes[own[0]].is_like(makes[engine])), None)
        if group is None:
            groups.append([engine])
        else:
            group.append(engine)
    return groups


def target_labels(window: Window) -> dict[str, dict[str, str]]:
    """Service discovery's labels of each target (team, namespace, pod …), by instance.

    Only from sources that keep them apart from the labels of series, such as Prometheus. Empty if
    there are none.
    """
    found = _labels(window, [TARGET_INFO])
    return {instance: labels for (instance, _), labels in found.items()}


def speculating(window: Window) -> frozenset[tuple[str, str | None]]:
    """The engines with speculative decoding, as (instance, engine): only they count drafts."""
    rows = window.named_sql("figures", "makes", metrics=[DRAFT_TOKENS])
    return frozenset((instance, engine) for instance, engine, _ in rows.iter_rows())


def _labels(window: Window, metrics: Sequence[str]) -> dict[tuple[str, str | None], dict[str, str]]:
    """The labels of these families by (instance, engine); engine None for server-wide labels."""
    rows = window.named_sql("figures", "makes", metrics=list(metrics))
    labels: dict[tuple[str, str | None], dict[str, str]] = {}
    for instance, engine, text in rows.iter_rows():
        labels.setdefault((instance, engine), {}).update(json.loads(text))
    return labels


def _are_alike(one: float | None, other: float | None) -> bool:
    if one is None or other is None:
        return True
    return abs(one - other) <= _ALIKE_BLOCKS * max(one, other)


def _number(text: str | None) -> float | None:
    try:
        return float(text) if text else None
    except ValueError:  # "None": not set on the server, so the engine chose it
        return None
