"""The faults of a Collector's configuration that lose data silently, found before they do."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

from vllm_capacity.errors import InputError
from vllm_capacity.live.finding import CheckResult, broken, fine
from vllm_capacity.timerange import parse_duration_seconds

# Where a configuration is not known: an export each 10 s (the project's own) falls into the look.
_LEAST_WAIT_SECONDS: Final = 15.0
_MARGIN: Final = 1.25
_INTERVALS: Final = ("scrape_interval", "flush_timeout")
_VARIABLE: Final = re.compile(r"\$\{(?:env:)?(\w+)(?::-([^}]*))?\}")


def configuration(config: Mapping[str, Any]) -> CheckResult:
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


def longest_wait_seconds(config: Mapping[str, Any], environment: Mapping[str, str]) -> float:
    """How long to look so that a scrape and an export fall in between: what is set, and a margin.

    A shorter look finds a Collector now well, now broken, as an export falls into it or not.
    """
    texts = (text for name in _INTERVALS for text in _values(config, name))
    seconds = [found for text in texts if (found := _seconds(text, environment)) is not None]
    return max(_LEAST_WAIT_SECONDS, _MARGIN * max(seconds, default=0.0))


def _values(config: object, name: str) -> Iterator[str]:
    """What is set under a name, anywhere in the configuration; each part looked at once."""
    parts, seen = [config], set[int]()
    while parts:
        time_range = parts.pop()
        if id(time_range) in seen:
            continue  # what YAML's aliases repeat, they may repeat a billion times
        seen.add(id(time_range))
        if isinstance(time_range, list):
            parts += time_range
        elif isinstance(time_range, Mapping):
            parts += time_range.values()
            if name in time_range:
                yield _text(time_range[name])


def _seconds(text: str, environment: Mapping[str, str]) -> float | None:
    """The seconds of a duration in which variables may stand; None where it is none."""
    whole = _VARIABLE.sub(lambda found: environment.get(found[1]) or found[2] or "", text)
    try:
        return parse_duration_seconds(whole)
    except InputError:
        return None


def _pipelines(config: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    pipelines = _mapping(_mapping(config.get("service")).get("pipelines"))
    return [(str(name).partition("/")[0], _mapping(parts)) for name, parts in pipelines.items()]


def _pipeline(config: Mapping[str, Any], signal: str, parts: Mapping[str, Any]) -> list[str]:
    """The faults of one pipeline's exporters and processors."""
    faults = [
        f"the {signal} pipeline has a `batch` processor: what it holds is lost when it is killed"
        for processor in _texts(parts.get("processors"))
        if processor.partition("/")[0] == "batch"
    ]
    for name in _texts(parts.get("exporters")):
        if name.partition("/")[0] in ("otlphttp", "otlp_http"):
            exporter = _mapping(_mapping(config.get("exporters")).get(name))
            faults += [f"{name}: {fault}" for fault in _exporter(exporter, signal)]
    return faults


def _exporter(exporter: Mapping[str, Any], signal: str) -> list[str]:
    headers = {str(k).lower(): _text(v) for k, v in _mapping(exporter.get("headers")).items()}
    queue = _mapping(exporter.get("sending_queue"))
    retry = _mapping(exporter.get("retry_on_failure"))
    authorization = headers.get("authorization", "")
    checks = {
        "no `encoding: json`; Parseable refuses protobuf": exporter.get("encoding") != "json",
        "no header X-P-Stream": "x-p-stream" not in headers,
        f"header X-P-Log-Source is not otel-{signal}": headers.get("x-p-log-source")
        != f"otel-{signal}",
        "no persistent queue (`sending_queue: storage:`)": not queue.get("storage"),
        "no batching inside the queue (`sending_queue: batch:`)": "batch" not in queue,
        "it gives up retrying (`max_elapsed_time: 0s`)": _text(
            retry.get("max_elapsed_time", "300s")
        )
        not in ("0", "0s"),
        "a password is written in the file": authorization.lower().startswith("basic ")
        and "${" not in authorization,
    }
    return [fault for fault, is_there in checks.items() if is_there]


def _mapping(time_range: object) -> Mapping[str, Any]:
    """The part where it is a mapping; a file of another shape holds nothing there."""
    return time_range if isinstance(time_range, Mapping) else {}


def _texts(time_range: object) -> list[str]:
    return [_text(each) for each in time_range] if isinstance(time_range, list) else []


def _text(time_range: object) -> str:
    return str(time_range) if isinstance(time_range, str | int | float) else ""
