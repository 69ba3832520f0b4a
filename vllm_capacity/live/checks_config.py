"""The faults of a Collector's configuration that lose data silently, found before they do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vllm_capacity.live.finding import Finding, broken, fine


def configuration(config: Mapping[str, Any]) -> Finding:
    """The Collector's configuration: what Parseable takes, and what loses nothing in a crash."""
    faults = [fault for pipeline in _pipelines(config) for fault in _pipeline(config, *pipeline)]
    if faults:
        return broken(
            "Collector",
            "configuration",
            "; ".join(dict.fromkeys(faults)),
            "Compare with the project's otel-config.yaml, which says why each line is there.",
        )
    return fine(
        "Collector",
        "configuration",
        "Parseable takes what it sends, and its queue outlives a crash",
    )


def _pipelines(config: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    pipelines = (config.get("service") or {}).get("pipelines") or {}
    return [(name.partition("/")[0], parts or {}) for name, parts in pipelines.items()]


def _pipeline(config: Mapping[str, Any], signal: str, parts: Mapping[str, Any]) -> list[str]:
    """The faults of one pipeline's exporters and processors."""
    faults = [
        f"the {signal} pipeline has a `batch` processor: what it holds is lost when it is killed"
        for processor in parts.get("processors") or []
        if processor.partition("/")[0] == "batch"
    ]
    for name in parts.get("exporters") or []:
        if name.partition("/")[0] in ("otlphttp", "otlp_http"):
            exporter = (config.get("exporters") or {}).get(name) or {}
            faults += [f"{name}: {fault}" for fault in _exporter(exporter, signal)]
    return faults


def _exporter(exporter: Mapping[str, Any], signal: str) -> list[str]:
    headers = {k.lower(): str(v) for k, v in (exporter.get("headers") or {}).items()}
    queue = exporter.get("sending_queue") or {}
    retry = exporter.get("retry_on_failure") or {}
    authorization = headers.get("authorization", "")
    checks = {
        "no `encoding: json`; Parseable refuses protobuf": exporter.get("encoding") != "json",
        "no header X-P-Stream": "x-p-stream" not in headers,
        f"header X-P-Log-Source is not otel-{signal}": headers.get("x-p-log-source")
        != f"otel-{signal}",
        "no persistent queue (`sending_queue: storage:`)": not queue.get("storage"),
        "no batching inside the queue (`sending_queue: batch:`)": "batch" not in queue,
        "it gives up retrying (`max_elapsed_time: 0s`)": str(retry.get("max_elapsed_time", "300s"))
        not in ("0", "0s"),
        "a password is written in the file": authorization.lower().startswith("basic ")
        and "${" not in authorization,
    }
    return [fault for fault, is_there in checks.items() if is_there]
