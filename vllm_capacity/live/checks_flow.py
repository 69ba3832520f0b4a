"""Checks of the path from vLLM to the Collector's exporter, using only the collected evidence.

They also find faults in a Collector's configuration that would silently lose data.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

from prometheus_client import Metric

from vllm_capacity.errors import InputError, ParseError
from vllm_capacity.live.probes import ChainEvidence, CheckResult, Reply, broken, fine, unknown
from vllm_capacity.sources.exposition import parse_families
from vllm_capacity.sources.parseable_shapes import Instance
from vllm_capacity.timerange import parse_duration_seconds

# If the configuration is unknown: long enough to see an export every 10 s, as in our own.
_MIN_WAIT_SECONDS: Final = 15.0
_MARGIN: Final = 1.25
_INTERVALS: Final = ("scrape_interval", "flush_timeout")
_VARIABLE: Final = re.compile(r"\$\{(?:env:)?(\w+)(?::-([^}]*))?\}")


def configuration(config: Mapping[str, Any]) -> CheckResult:
    """Check that the Collector's configuration suits Parseable and loses nothing in a crash."""
    faults = [fault for pipeline in _pipelines(config) for fault in _pipeline(config, *pipeline)]
    if faults:
        return broken(
            "Collector",
            "configuration",
            "; ".join(dict.fromkeys(faults)),
            "Compare with the project's otel-config.yaml, which explains each line.",
        )
    return fine(
        "Collector",
        "configuration",
        "Parseable accepts what it sends, and its queue survives a crash",
    )


def longest_wait_seconds(config: Mapping[str, Any], environment: Mapping[str, str]) -> float:
    """Seconds between two looks: the longest configured interval plus a margin, at least 15 s.

    With a shorter wait, a healthy Collector looks broken if no scrape or export falls into it.
    """
    texts = (text for name in _INTERVALS for text in _values(config, name))
    seconds = [found for text in texts if (found := _seconds(text, environment)) is not None]
    return max(_MIN_WAIT_SECONDS, _MARGIN * max(seconds, default=0.0))


def _values(config: object, name: str) -> Iterator[str]:
    """Every value set under a name, anywhere in the configuration; each part is visited once."""
    parts, seen = [config], set[int]()
    while parts:
        part = parts.pop()
        if id(part) in seen:
            continue  # YAML aliases may repeat a part a billion times
        seen.add(id(part))
        if isinstance(part, list):
            parts += part
        elif isinstance(part, Mapping):
            parts += part.values()
            if name in part:
                yield _text(part[name])


def _seconds(text: str, environment: Mapping[str, str]) -> float | None:
    """A duration, which may contain variables, in seconds; None if it is not a duration."""
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
        f"the {signal} pipeline has a `batch` processor: its contents are lost in a crash"
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


def _mapping(value: object) -> Mapping[str, Any]:
    """The value if it is a mapping, else an empty one."""
    return value if isinstance(value, Mapping) else {}


def _texts(value: object) -> list[str]:
    return [_text(each) for each in value] if isinstance(value, list) else []


def _text(value: object) -> str:
    return str(value) if isinstance(value, str | int | float) else ""


_FILLING_RATIO: Final = 0.5
_SAMPLE = re.compile(r"^(?:ray_)?vllm[:_]", re.MULTILINE)
_PART = re.compile(r"_(bucket|sum|count|total|created)$")
_PERMANENT: Final = (
    "The exporter drops what Parseable refuses for good (400, 401, 403, 413, 500). Its log has "
    "the status. 400: `encoding: json` is missing, or a header is wrong; 403: its password is "
    "wrong; 413: the batch is over 10 MiB."
)


def vllm_checks(evidence: ChainEvidence) -> list[CheckResult]:
    """Check that each server answers with vLLM's metrics, whose types match their names."""
    return [finding for reply in evidence.vllm for finding in _vllm(reply)]


def _vllm(reply: Reply) -> list[CheckResult]:
    if not reply.is_ok:
        remedy = (
            "Is `vllm serve` running on that host and port (--host, --port)? Inside a container, "
            "localhost is the container itself: use host.docker.internal."
        )
        if reply.status == 404:
            remedy = "Something else than vLLM listens there, or vLLM under a --root-path."
        return [broken("vLLM", "no-metrics", reply.summary, remedy)]
    if not _SAMPLE.search(reply.text):
        return [
            broken(
                "vLLM",
                "no-metrics",
                f"{reply.url} answers, but has no vllm: metric",
                "Is that vLLM, or its API behind another path? Was it started with "
                "--disable-log-stats? Then it exports nothing.",
            )
        ]
    answers = fine("vLLM", "no-metrics", f"{reply.url} serves vLLM's metrics")
    return [answers, _types(reply)]


def _types(reply: Reply) -> CheckResult:
    """Check that sample names and TYPE lines match; if not, every type is lost on the way."""
    declared = set(re.findall(r"^# TYPE (\S+) ", reply.text, re.MULTILINE))
    found = set(re.findall(r"^((?:ray_)?vllm[:_]\w+)[ {]", reply.text, re.MULTILINE))
    without = sorted(name for name in found if not {name, _PART.sub("", name)} & declared)
    if without:
        return broken(
            "vLLM",
            "types-lost",
            f"{reply.url}: {len(without)} metrics have no TYPE line, such as {without[0]}",
            "A proxy, or OpenMetrics negotiation with /metrics/ and a slash, changed the names of "
            "the samples but not of their types. Scrape vLLM's /metrics itself, or `vllm-capacity "
            "proxy`, which renames both.",
        )
    return fine("vLLM", "types-lost", f"{reply.url}: every metric has its type")


def proxy_checks(evidence: ChainEvidence) -> list[CheckResult]:
    """Check that the proxy runs and reports that it reaches vLLM."""
    reply = evidence.proxy
    if reply is None:
        return []
    if reply.is_ok:
        return [fine("proxy", "proxy-silent", reply.summary)]
    remedy = (
        "Start `vllm-capacity proxy`, or leave it out: the Collector needs no proxy."
        if reply.status is None
        else "The proxy is running but gets no metrics from vLLM: check VLLM_METRICS_URL."
    )
    return [broken("proxy", "proxy-silent", reply.summary, remedy)]


def collector_checks(evidence: ChainEvidence) -> list[CheckResult]:
    """Check that the Collector runs, is configured correctly, and scrapes."""
    config = evidence.collector_config
    found = [configuration(config)] if config is not None else []
    health, after = evidence.collector_health, evidence.collector_after
    for reply in (health, after):
        if reply is not None and not reply.is_ok:
            return [
                *found,
                broken(
                    "Collector",
                    "collector-down",
                    reply.summary,
                    "Is it running with otel-config.yaml? `otelcol-contrib validate --config "
                    "otel-config.yaml` lists errors in the file; its log has the rest.",
                ),
            ]
    if health is not None:
        found.append(fine("Collector", "collector-down", health.summary))
    if after is not None and evidence.collector_before is not None:
        looks = _looks(evidence)
        found.append(_scrapes(*looks) if looks else _no_metrics(after))
    return found


def _no_metrics(reply: Reply) -> CheckResult:
    return broken(
        "Collector",
        "collector-down",
        f"{reply.url} answers, but not with metrics",
        "Is that the Collector's own metrics port (--collector-metrics-port)?",
    )


class _Counts:
    """The Collector's own metrics, summed over all labels except the given ones."""

    def __init__(self, families: list[Metric]) -> None:
        self._samples = [
            (sample.name.removesuffix("_total"), sample.labels, sample.value)
            for family in families
            for sample in family.samples
        ]

    def of(self, name: str, **labels: str) -> float | None:
        """The sum of the samples with that name and those labels; None if there are none."""
        values = [
            value
            for found, has, value in self._samples
            if found == name and labels.items() <= has.items()
        ]
        return sum(values) if values else None

    def queues(self) -> dict[str, tuple[float, float]]:
        """(size, capacity) by exporter."""
        return {
            has.get("exporter", ""): (
                value,
                self.of("otelcol_exporter_queue_capacity", **has) or 0.0,
            )
            for name, has, value in self._samples
            if name == "otelcol_exporter_queue_size"
        }


def _looks(evidence: ChainEvidence) -> tuple[_Counts, _Counts] | None:
    """The Collector's metrics at both looks; None if either look has none."""
    before, after = evidence.collector_before, evidence.collector_after
    if before is None or after is None or not (before.is_ok and after.is_ok):
        return None
    try:
        return _Counts(parse_families(before.text)), _Counts(parse_families(after.text))
    except ParseError:
        return None


def _scrapes(before: _Counts, after: _Counts) -> CheckResult:
    name = "otelcol_receiver_accepted_metric_points"
    earlier, later = before.of(name) or 0.0, after.of(name) or 0.0
    refused = (after.of("otelcol_receiver_refused_metric_points") or 0.0) - (
        before.of("otelcol_receiver_refused_metric_points") or 0.0
    )
    if refused > 0:
        return broken(
            "Collector",
            "collector-refuses",
            f"it just refused {refused:,.0f} scraped points",
            "Its memory limit is reached or its queue is full: raise OTELCOL_MEMORY_MIB or "
            "OTELCOL_QUEUE_ITEMS, or find out why Parseable does not accept the data.",
        )
    if later <= earlier:
        return broken(
            "Collector",
            "not-scraping",
            f"it accepts no new points: the count stays at {later:,.0f}",
            "It has no target, or has not scraped yet: VLLM_TARGETS must be a list "
            "such as [vllm:8000], or OTELCOL_TARGETS_DIR must contain a file vllm*.yaml.",
        )
    return fine("Collector", "not-scraping", f"{later - earlier:,.0f} points accepted just now")


def export_checks(evidence: ChainEvidence) -> list[CheckResult]:
    """Check that Parseable accepts what the Collector scrapes, and the queue does not fill up."""
    looks = _looks(evidence)
    if looks is None:
        return []
    earlier, later = looks
    return [_failures(earlier, later), *_queues(earlier, later)]


def _failures(before: _Counts, after: _Counts) -> CheckResult:
    failed = after.of("otelcol_exporter_send_failed_metric_points") or 0.0
    sent = after.of("otelcol_exporter_sent_metric_points") or 0.0
    lately = failed - (before.of("otelcol_exporter_send_failed_metric_points") or 0.0)
    if failed and (lately > 0 or not sent):
        return broken(
            "Collector",
            "export-refused",
            f"{failed:,.0f} points were dropped, {sent:,.0f} sent",
            _PERMANENT,
        )
    dropped = after.of("otelcol_exporter_enqueue_failed_metric_points") or 0.0
    if dropped > (before.of("otelcol_exporter_enqueue_failed_metric_points") or 0.0):
        return broken(
            "Collector",
            "queue-full",
            f"{dropped:,.0f} points did not fit into the queue",
            "Bring Parseable back; then raise OTELCOL_QUEUE_ITEMS and OTELCOL_QUEUE_BYTES, or see "
            "whether the disk is full.",
        )
    note = f", {failed:,.0f} were dropped earlier" if failed else ""
    return fine("Collector", "export-refused", f"{sent:,.0f} points sent{note}")


def _queues(before: _Counts, after: _Counts) -> list[CheckResult]:
    return [
        _queue(exporter, before.queues().get(exporter, (0.0, 0.0))[0], size, capacity)
        for exporter, (size, capacity) in after.queues().items()
    ]


def _queue(exporter: str, earlier: float, size: float, capacity: float) -> CheckResult:
    ratio = size / capacity if capacity else 0.0
    found = f"{exporter}: {size:,.0f} of {capacity:,.0f} are waiting ({ratio * 100:.0f} %)"
    if ratio < _FILLING_RATIO:
        return fine("Collector", "queue-filling", found)
    trend = "and it grows" if size > earlier else "but shrinking"
    return broken(
        "Collector",
        "queue-filling",
        f"{found}, {trend}",
        "Parseable is down, unreachable from the Collector, or too slow: see its own findings. "
        "Once the queue is full, data is lost.",
    )


def unscraped(evidence: ChainEvidence) -> list[CheckResult]:
    """Check that every server that answers has a recent successful scrape in the stream."""
    reply = evidence.instances
    if reply is None or not evidence.vllm:
        return []
    if not reply.is_ok:
        sentence = "nothing is in the stream" if "No field named" in reply.text else reply.summary
        return [unknown("Collector", "replica-unscraped", sentence)]
    result = reply.body(list[Instance])
    if result is None:
        return [unknown("Collector", "replica-unscraped", f"unexpected rows: {reply.summary}")]
    rows = {str(row.instance): row for row in result}
    scraped = {name for name, row in rows.items() if row.scraped}
    missing = [t for t in map(_target, evidence.vllm) if not _is_among(t, scraped)]
    failing = sorted(set(rows) - scraped)
    if not missing and not failing:
        return [fine("Collector", "replica-unscraped", f"scraped: {', '.join(sorted(scraped))}")]
    named = ", ".join([*missing, *(f"{name} (every scrape failed)" for name in failing)])
    return [
        broken(
            "Collector",
            "replica-unscraped",
            f"not scraped: {named}; scraped: {', '.join(sorted(scraped)) or 'none'}",
            "Add it to VLLM_TARGETS or to a file vllm*.yaml in OTELCOL_TARGETS_DIR; if it is "
            "there, the Collector cannot reach it from where it runs.",
        )
    ]


def _target(reply: Reply) -> str:
    return reply.url.partition("://")[2].partition("/")[0]


def _is_among(target: str, scraped: set[str]) -> bool:
    """Whether a target is scraped: same host and port, or same port if both hosts are local."""
    host, _, port = target.rpartition(":")
    here = {"localhost", "127.0.0.1", "host.docker.internal", "[::1]"}
    return target in scraped or any(
        name.rpartition(":")[2] == port and (host in here and name.rpartition(":")[0] in here)
        for name in scraped
    )
