"""OTLP/JSON into Parseable's rows: one row a data point or span, as a recorded 2.9.5 keeps them.

Where a key comes twice, the later one wins: point attributes, point fields, metric fields and
metadata, then resource and scope. What the real one loses in silence (numbers sent as strings, NaN)
is lost here, too.
"""

import json
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime

_FLAGS = {0: "DO_NOT_USE", 1: "NO_RECORDED_VALUE_MASK"}
_TEMPORALITY = {0: "UNSPECIFIED", 1: "DELTA", 2: "CUMULATIVE"}
_KINDS = {
    "gauge": "gauge",
    "sum": "sum",
    "histogram": "histogram",
    "exponentialHistogram": "exponential_histogram",
    "summary": "summary",
}
_SPAN_KINDS = ("UNSPECIFIED", "INTERNAL", "SERVER", "CLIENT", "PRODUCER", "CONSUMER")
_SPAN_FLAGS = {256: "CONTEXT_HAS_IS_REMOTE_MASK"}
_SPAN_STATUS = ("UNSET", "OK", "ERROR")


def parse(text: str | bytes) -> dict:
    """The JSON, its numbers read as the real one reads them: the last digit may be off by one.

    It takes the digits as one integer, rounds that to a double, and scales it by a power of ten.
    """
    return json.loads(text, parse_float=_scaled_float)


def _scaled_float(text: str) -> float:
    digits, _, power = text.lower().partition("e")
    whole, _, fraction = digits.partition(".")
    significand, exponent = int(whole + fraction), int(power or 0) - len(fraction)
    if abs(significand) >= 2**64 or abs(exponent) > 308:
        return float(text)
    scaled = float(significand)
    return scaled / 10.0**-exponent if exponent < 0 else scaled * 10.0**exponent


def metric_rows(body: Mapping) -> Iterator[dict]:
    """The rows of an export of metrics."""
    for around, metric in _leaves(body, "resourceMetrics", "scopeMetrics", "metrics"):
        about = {
            "metric_name": metric.get("name", ""),
            "metric_description": metric.get("description", ""),
            "metric_unit": metric.get("unit", ""),
            **_attributes(metric.get("metadata")),
        }
        for key, kind in _KINDS.items():
            for point in metric.get(key, {}).get("dataPoints", []):
                yield {
                    **_attributes(point.get("attributes")),
                    **_point(kind, metric[key], point),
                    **about,
                    "metric_type": kind,
                    **around,
                }


def trace_rows(body: Mapping) -> Iterator[dict]:
    """The rows of an export of spans."""
    for around, span in _leaves(body, "resourceSpans", "scopeSpans", "spans"):
        begun, ended = int(span["startTimeUnixNano"]), int(span["endTimeUnixNano"])
        status = span.get("status", {})
        yield {
            **_attributes(span.get("attributes")),
            "span_name": span["name"],
            "span_trace_id": span["traceId"],
            "span_span_id": span["spanId"],
            "span_parent_span_id": span.get("parentSpanId", ""),
            "span_trace_state": span.get("traceState", ""),
            "span_kind": float(span.get("kind", 0)),
            "span_kind_description": _SPAN_KINDS[span.get("kind", 0)],
            "span_flags": float(span.get("flags", 0)),
            "span_flags_description": _SPAN_FLAGS.get(span.get("flags", 0), ""),
            "span_dropped_attributes_count": float(span.get("droppedAttributesCount", 0)),
            "span_dropped_events_count": float(span.get("droppedEventsCount", 0)),
            "span_dropped_links_count": float(span.get("droppedLinksCount", 0)),
            "span_start_time_unix_nano": _time(begun),
            "span_end_time_unix_nano": _time(ended),
            "span_start_time_unix_nano_epoch": float(begun),
            "span_end_time_unix_nano_epoch": float(ended),
            "span_duration_ns": float(ended - begun),
            "span_status_code": float(status.get("code", 0)),
            "span_status_description": _SPAN_STATUS[status.get("code", 0)],
            "span_status_message": status.get("message", ""),
            **around,
        }


def _leaves(body: Mapping, *levels: str) -> Iterator[tuple[dict, dict]]:
    """Every metric or span, with the fields of what is around it: its resource and scope."""
    outer, inner, leaf = levels
    for group in body.get(outer, []):
        resource = {**group.get("resource", {}), "schemaUrl": group.get("schemaUrl", "")}
        for scoped in group.get(inner, []):
            scope = {**scoped.get("scope", {}), "schemaUrl": scoped.get("schemaUrl", "")}
            around = _around(resource, scope)
            yield from ((around, item) for item in scoped.get(leaf, []))


def _around(resource: Mapping, scope: Mapping) -> dict:
    return {
        **_attributes(resource.get("attributes")),
        "resource_schema_url": resource["schemaUrl"],
        "resource_dropped_attributes_count": float(resource.get("droppedAttributesCount", 0)),
        **_attributes(scope.get("attributes")),
        "scope_name": scope.get("name", ""),
        "scope_version": scope.get("version", ""),
        "scope_schema_url": scope["schemaUrl"],
        "scope_dropped_attributes_count": float(scope.get("droppedAttributesCount", 0)),
    }


def _attributes(attributes: list | None) -> dict:
    found = {}
    for attribute in attributes or []:
        value, key = attribute["value"], attribute["key"]
        if "kvlistValue" in value:
            found |= _attributes(value["kvlistValue"].get("values"))
        else:
            found[key] = _value(value)
    return found


def _value(value: Mapping) -> object:
    if "arrayValue" in value:
        return json.dumps([_value(item) for item in value["arrayValue"].get("values", [])])
    if "intValue" in value:
        return str(value["intValue"])
    if "doubleValue" in value:
        return float(value["doubleValue"])
    return value.get("stringValue", value.get("boolValue", ""))


def _number(value: object) -> float | None:
    return None if value is None or isinstance(value, str | bool) else float(value)


def _point(kind: str, data: Mapping, point: Mapping) -> dict:
    """The fixed fields of a point. A number in quotes has no value, unless it is a count."""
    row = {
        "time_unix_nano": _time(int(point.get("timeUnixNano", 0))),
        "start_time_unix_nano": _time(int(point.get("startTimeUnixNano", 0))),
    }
    if kind in ("gauge", "sum"):
        row["data_point_value"] = _number(point.get("asDouble", point.get("asInt")))
    else:
        row["data_point_count"] = float(point.get("count", 0))
        row["data_point_sum"] = _number(point.get("sum"))
    if kind == "summary":
        row["data_point_quantile_values"] = []
    if kind == "histogram":
        row["data_point_bucket_counts"] = [int(n) for n in point.get("bucketCounts", [])]
        row["data_point_explicit_bounds"] = [float(b) for b in point.get("explicitBounds", [])]
        row["data_point_min"] = _number(point.get("min"))
        row["data_point_max"] = _number(point.get("max"))
    if kind == "sum":
        row["is_monotonic"] = bool(data.get("isMonotonic", False))
    if kind != "gauge" and kind != "summary":
        temporality = data.get("aggregationTemporality", 0)
        row["aggregation_temporality"] = float(temporality)
        row["aggregation_temporality_description"] = _TEMPORALITY[temporality]
    if kind != "summary":
        flags = int(point.get("flags", 0))
        row["data_point_flags"] = float(flags)
        row["data_point_flags_description"] = _FLAGS[flags]
    return row


def _time(nanoseconds: int) -> datetime:
    """Cut to milliseconds and without a zone, as the real one keeps it."""
    whole, rest = divmod(nanoseconds // 1_000_000, 1000)
    moment = datetime.fromtimestamp(whole, UTC).replace(microsecond=rest * 1000)
    return moment.replace(tzinfo=None)
