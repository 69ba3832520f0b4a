"""How each engine was made, as far as labels tell: its model, its KV cache, its GPU.

vLLM exports no GPU. What it does export is how many blocks its KV cache has, which follows from the
memory of the GPU and the settings; and targets often carry a label with the name of the GPU.
Engines that agree in all that is told of both may be taken for peers.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import polars as pl

from vllm_capacity.facts.gpus import GpuSpan, labelled_gpu
from vllm_capacity.facts.metrics import CACHE_CONFIG, DRAFT_TOKENS, GENERATION_TOKENS
from vllm_capacity.telemetry.processes import TARGET_INFO
from vllm_capacity.telemetry.window import Window

_GPU_LABELS = frozenset(
    ("accelerator", "gpu", "gpu_model", "gpu_name", "gpu_product", "gpu_type", "instance_type")
)
_SETTINGS = ("block_size", "cache_dtype", "gpu_memory_utilization", "enable_prefix_caching")
_ALIKE_BLOCKS = 0.1  # profiling at the start leaves replicas a few blocks apart


@dataclass(frozen=True)
class Make:
    """What is told of how one engine was made; None or empty where nothing is.

    `rate` is its GPUs and their price, where a mapping file says so.
    """

    model_name: str | None
    kv_blocks: float | None = None
    settings: Mapping[str, str] = field(default_factory=dict)
    rate: tuple[float, float] | None = None

    @property
    def gpu(self) -> GpuSpan | None:
        """The GPU that its labels name; None where they name none, or several."""
        labelled = (
            labelled_gpu(self.settings[name]) for name in sorted(_GPU_LABELS & self.settings.keys())
        )
        spans = {span.name: span for span in labelled if span is not None}
        return next(iter(spans.values())) if len(spans) == 1 else None

    @property
    def kv_tokens(self) -> float | None:
        """How many tokens its KV cache holds, as it says itself; None where it does not."""
        block = _number(self.settings.get("block_size"))
        return None if self.kv_blocks is None or block is None else self.kv_blocks * block

    def is_like(self, other: Make) -> bool:
        """Whether no setting of both contradicts that they are replicas of one another."""
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

    `rates` are GPUs and USD per GPU-hour by instance, of a mapping file.
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
"""What an engine is called wherever one is named, as a column."""


def of_engines(rows: pl.DataFrame, names: Collection[str]) -> pl.DataFrame:
    """The rows, by instance and engine, of the engines of these names."""
    return rows.filter(ENGINE_NAME.is_in(list(names)))


def alike(engines: Sequence[str], makes: Mapping[str, Make]) -> list[list[str]]:
    """The engines in groups of one make each, in order; each is like the first of its group."""
    groups: list[list[str]] = []
    for engine in engines:
        group = next((own for own in groups if makes[own[0]].is_like(makes[engine])), None)
        if group is None:
            groups.append([engine])
        else:
            group.append(engine)
    return groups


def target_labels(window: Window) -> dict[str, dict[str, str]]:
    """What service discovery says of each target (team, namespace, pod …), by instance.

    Only what sources keep apart from the labels of series: those of a Prometheus. Empty where
    nothing was said.
    """
    found = _labels(window, [TARGET_INFO])
    return {instance: labels for (instance, _), labels in found.items()}


def speculating(window: Window) -> frozenset[tuple[str, str | None]]:
    """The engines that draft tokens, by instance and engine: only they have such counters."""
    rows = window.named_sql("figures", "makes", metrics=[DRAFT_TOKENS])
    return frozenset((instance, engine) for instance, engine, _ in rows.iter_rows())


def _labels(window: Window, metrics: Sequence[str]) -> dict[tuple[str, str | None], dict[str, str]]:
    """The labels of these families by instance and engine, None for what is a whole server's."""
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
    except ValueError:  # "None": the server left it to the engine
        return None
