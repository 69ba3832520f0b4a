"""Quality checks on the series: what was ingested, under which name, and what figures depend on."""

from __future__ import annotations

import json
from datetime import datetime, timedelta

import polars as pl
from msgspec.structs import asdict

from vllm_capacity.facts import metrics as catalog
from vllm_capacity.facts.metrics import REQUESTS
from vllm_capacity.figures import losses
from vllm_capacity.figures.latency import Latency, Quantile
from vllm_capacity.telemetry.processes import BOOKKEEPING
from vllm_capacity.telemetry.relabelled import SURE
from vllm_capacity.timerange import iso
from vllm_capacity.verdicts.quality.evidence import Evidence, Finding, amounts

_EXACT_UP_TO = 2.0**53
_UNEVEN = 0.75  # engines below this part of their fair share are reported

_INGEST_EFFECTS = {
    "duplicate": "counted once: no figure is affected",
    "late": "put back in order of sample time: no figure is affected",
    "clock": "rates and charts may be distorted around that time",
    "coverage": "left out as unreadable",
    "failed": "counted among the scrapes that are missing",
    "renamed": (
        "older names of a metric next to the newest; only the newest is counted, so no figure is "
        "affected"
    ),
}


def ingest_notes(evidence: Evidence) -> list[Finding]:
    """What ingestion dropped, reordered or could not read."""
    found = []
    for (check,), rows in evidence.ingest_notes.group_by("check", maintain_order=True):
        subjects = rows.get_column("subject").unique().sort().to_list()
        named = ", ".join(subjects[:3]) + (" …" if len(subjects) > 3 else "")
        details = "; ".join(rows.get_column("detail").unique().sort().to_list()[:2])
        effect = f"{named}: {details}; {_INGEST_EFFECTS.get(str(check), 'see table intake')}."
        is_doubt = check in ("coverage", "clock") or "different values" in details
        count = int(rows.get_column("count").sum())
        first = rows.get_column("first_ts").min()
        when = iso(first) if isinstance(first, datetime) else None
        found.append(Finding(str(check), "warning" if is_doubt else "info", count, effect, when))
    return found


def relabelled(evidence: Evidence) -> list[Finding]:
    """Series that continued under other labels: info if the old labels came back, else warning."""
    found = []
    groups = evidence.relabelled.group_by("instance", "check", maintain_order=True)
    for (instance, check), rows in groups:
        details = rows.get_column("detail").unique().sort().to_list()
        max_effect = {} if check == SURE else _moved_if_new(rows)
        effect = (
            f"{instance}: {_some(rows.get_column('metric'))} vanished, and series with other "
            f"labels appeared in the same scrape ({'; '.join(details[:3])}). "
        )
        effect += (
            _ONE_SERIES if check == SURE else f"{_LIKELY_ONE}{amounts(max_effect) or 'unknown'}."
        )
        first = rows.get_column("first_ts").min()
        when = iso(first) if isinstance(first, datetime) else None
        severity = "info" if check == SURE else "warning"
        found.append(Finding("series", severity, rows.height, effect, when, max_effect))
    return found


_ONE_SERIES = "The old labels came back, so both are one series: no figure is affected."
_LIKELY_ONE = (
    "They are counted as one continuing series, or from their first value if it is unclear which "
    "series continues which. If they were new series that count from 0, these would be higher: "
)


def _moved_if_new(rows: pl.DataFrame) -> dict[str, float]:
    """How much higher figures would be if relabelled series were new ones."""
    most = dict(rows.group_by("metric").agg(pl.col("at_most").max()).drop_nulls().iter_rows())
    figures = {"requests.finished": (REQUESTS,), "tokens": losses.TOKENS}
    max_effect = {name: sum(most.get(m, 0.0) for m in metrics) for name, metrics in figures.items()}
    return {name: amount for name, amount in max_effect.items() if amount}


def lifetimes(evidence: Evidence) -> list[Finding]:
    """Counters that predate the capture, appeared or vanished in it, or exceeded 2^53."""
    life = evidence.lifetimes.filter(pl.col("kind").is_in(["counter", "histogram"]))
    result = evidence.lifetimes.filter(~pl.col("metric").is_in(BOOKKEEPING))
    ends = result.group_by("instance").agg(last_seen=pl.col("last_ts").max())
    life = life.join(ends, on="instance")
    found = []
    inside = pl.col("first_ts") >= evidence.time_range.start
    born = life.filter(inside & pl.col("starts_at_zero"))
    if born.height:
        effect = (
            "appeared inside the capture, after a scrape without them or with a process that "
            "started in it: counted from 0, so their first value is in the figures."
        )
        found.append(_about("series", "info", born, effect))
    older = life.filter(inside & ~pl.col("starts_at_zero") & (pl.col("first_value") > 0))
    if older.height:
        effect = (
            "were already counting at their first scrape: counted from that value; what came "
            "before is missing from all figures."
        )
        found.append(_about("series", "info", older, effect))
    gone = life.filter(pl.col("last_ts") < pl.col("last_seen") - timedelta(seconds=120))
    gone = gone.filter(pl.col("last_ts") >= evidence.time_range.start)
    gone = gone.join(_ended_with_process(gone, evidence), on="series_id", how="anti")
    if gone.height:
        effect = (
            "vanished while their target was still scraped: what they counted after that is "
            "unknown."
        )
        found.append(_about("series", "warning", gone, effect))
    huge = life.filter(pl.col("last_value") > _EXACT_UP_TO)
    if huge.height:
        effect = "passed 2^53, above which floats cannot represent every integer."
        found.append(_about("series", "error", huge, effect))
    return found


def _ended_with_process(life: pl.DataFrame, evidence: Evidence) -> pl.DataFrame:
    """The series last seen in the last scrapes of a process, which ended with it."""
    ends = pl.DataFrame(
        [(restart.instance, restart.before, restart.after) for restart in evidence.restarts],
        schema={
            "instance": pl.String,
            "before": pl.Datetime("us", "UTC"),
            "after": pl.Datetime("us", "UTC"),
        },
        orient="row",
    )
    since = pl.col("before") - timedelta(seconds=120)
    is_last = pl.col("last_ts").is_between(since, pl.col("after"), closed="left")
    return life.join(ends, on="instance").filter(is_last).select("series_id").unique()


def jobs(evidence: Evidence) -> list[Finding]:
    """Targets that several jobs scrape."""
    up = evidence.lifetimes.filter(
        (pl.col("metric") == "up") & (pl.col("last_ts") >= evidence.time_range.start)
    )
    found = []
    for (instance,), own in up.group_by("instance", maintain_order=True):
        if own.height > 1:
            names = sorted(json.loads(text).get("job", "?") for text in own.get_column("labels"))
            effect = (
                f"{instance} is scraped by {len(names)} jobs ({', '.join(names)}): one process, "
                "counted once; coverage is judged by the scrapes of one job. No figure is "
                "affected."
            )
            found.append(Finding("duplicate", "info", len(names), effect))
    return found


def _about(check: str, severity: str, life: pl.DataFrame, effect: str) -> Finding:
    named = _some(life.get_column("metric"))
    first = life.get_column("first_ts").min()
    when = iso(first) if isinstance(first, datetime) else None
    return Finding(check, severity, life.height, f"{named} {effect}", when)


def _some(metrics: pl.Series) -> str:
    """The names of the first few of these metrics, and how many more there are."""
    names = metrics.unique().sort().to_list()
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def features(evidence: Evidence) -> list[Finding]:
    """Optional features of vLLM that are in use and change the meaning of figures."""
    found: dict[str, Finding] = {}
    columns = evidence.lifetimes.select("metric", "labels", "last_value")
    for metric, labels, value in columns.iter_rows():
        feature = catalog.feature(metric, json.loads(labels))
        if feature and value and feature.name not in found:
            effect = f"{feature.name} is in use: {feature.effect} ({', '.join(feature.touches)})."
            found[feature.name] = Finding("series", "info", 1, effect)
    return list(found.values())


def renamed(evidence: Evidence) -> list[Finding]:
    """Metric families that were read under a name other than vLLM's newest."""
    life = evidence.lifetimes
    old = life.filter(
        pl.col("metric") != pl.col("exposed").str.replace("^(ray_)?vllm[:_]", "vllm:")
    )
    if old.is_empty():
        return []
    pairs = old.select("exposed", "metric").unique().sort("exposed").rows()
    named = ", ".join(f"{exposed} is {metric}" for exposed, metric in pairs[:4])
    more = f" and {len(pairs) - 4} more" if len(pairs) > 4 else ""
    return [
        Finding(
            "renamed",
            "info",
            len(pairs),
            f"read under older names: {named}{more}; no figure is affected.",
        )
    ]


def missing(evidence: Evidence) -> list[Finding]:
    """Metric families that every vLLM exposes but a target lacks."""
    found = []
    life = evidence.lifetimes
    for (instance,), own in life.group_by("instance", maintain_order=True):
        there = set(own.get_column("metric"))
        missed = [name for name in catalog.CORE if name not in there]
        if missed:
            effect = (
                f"{instance} has no {', '.join(missed)}: the figures from them are unknown there."
            )
            found.append(Finding("missing", "warning", len(missed), effect))
    return found


def bounds(evidence: Evidence) -> list[Finding]:
    """Metrics whose histograms have different bucket bounds."""
    histograms = evidence.lifetimes.filter(
        (pl.col("kind") == "histogram") & (pl.col("last_ts") >= evidence.time_range.start)
    )
    found = []
    for (metric,), own in histograms.group_by("metric", maintain_order=True):
        kinds = {tuple(bounds) for bounds in own.get_column("bounds").to_list()}
        if len(kinds) < 2:
            continue
        common = set.intersection(*(set(bounds) for bounds in kinds))
        how = (
            f"merged on the {len(common)} edges they share, which is exact but coarser"
            if common
            else "they share no edge, so they are not merged and the quantiles over all are unknown"
        )
        effect = f"{metric} has {len(kinds)} sets of bucket bounds: {how}."
        found.append(Finding("bounds", "warning", len(kinds), effect))
    return found


def edge_buckets(latency: Latency) -> list[Finding]:
    """Quantiles in the first bucket (a bound, not a measurement) or in the overflow bucket."""
    found = []
    for name in latency.__struct_fields__:
        quantiles: dict[str, Quantile] = asdict(getattr(latency, name))
        known = {q: v for q, v in quantiles.items() if v.lower is not None}
        over = [q for q, v in known.items() if v.upper is None]
        first = [q for q, v in known.items() if v.upper is not None and (v.lower or 0.0) <= 0]
        if over:
            edge = quantiles[over[0]].lower
            effect = (
                f"latency.{name} {', '.join(over)}: above the last edge, {edge:g} s; no value "
                "known."
            )
            found.append(Finding("edge-bucket", "warning", len(over), effect))
        if first:
            edge = quantiles[first[0]].upper or 0.0
            effect = (
                f"latency.{name} {', '.join(first)}: in the first bucket, so only an upper bound "
                f"is known: {edge:g} s."
            )
            max_effect = {f"latency.{name}.{q}.value": edge for q in first}
            found.append(Finding("edge-bucket", "info", len(first), effect, None, max_effect))
    return found


def imbalance(evidence: Evidence) -> list[Finding]:
    """Engines with much less than their share of a model's output while they were paid for."""
    rows = (
        evidence.engines.filter(pl.col("hours") > 0)
        .with_columns(pl.col("output_tokens").fill_null(0.0))
        .with_columns(
            engines=pl.len().over("model_name"),
            models=pl.col("model_name").n_unique(),
            fair=pl.col("hours") / pl.col("hours").sum().over("model_name"),
            share=pl.col("output_tokens") / pl.col("output_tokens").sum().over("model_name"),
        )
        .filter((pl.col("engines") > 1) & (pl.col("share") < _UNEVEN * pl.col("fair")))
    )
    found = []
    for row in rows.iter_rows(named=True):
        unused = row["hours"] * (1.0 - row["share"] / row["fair"])
        is_idle = row["share"] == 0
        own = " of its model" if row["models"] > 1 else ""
        effect = (
            f"{row['instance']}/{row['engine']} produced {row['share'] * 100:.0f} % of the output "
            f"tokens{own} in {row['fair'] * 100:.0f} % of the billed hours: {unused:.3g} "
            f"engine-hours were paid beyond its share{', because it was idle' if is_idle else ''}. "
            "No figure is affected; cost includes it."
        )
        # Only info, however idle the engine: no figure is wrong, and the verdict reports the waste.
        found.append(Finding("series", "info", 1, effect))
    return found


def servers(evidence: Evidence) -> list[Finding]:
    """Servers other than vLLM, and counters that count the same requests twice."""
    exposed = evidence.lifetimes.get_column("exposed").unique().sort().to_list()
    found = {name for text in exposed if (name := catalog.framework(text)) is not None}
    findings = []
    if found - {"vllm"}:
        effect = (
            f"read from {', '.join(sorted(found))}: only figures of metrics that correspond to "
            "vLLM's are known; the others are unknown."
        )
        findings.append(Finding("renamed", "info", len(found), effect))
    if "dynamo" in found and len(found) > 1:
        effect = (
            "a Dynamo frontend beside its workers: both count the same requests and tokens, so "
            "requests, tokens, throughput and cost are up to twice too high; scrape one of them."
        )
        findings.append(Finding("duplicate", "error", 1, effect))
    ranks = evidence.lifetimes.filter(pl.col("labels").str.contains('"tp_rank": "[1-9]'))
    if ranks.height:
        effect = (
            "series of tensor-parallel ranks beside rank 0: they repeat it, so sums over them are "
            "too high; export rank 0 only."
        )
        findings.append(_about("duplicate", "error", ranks, effect))
    return findings
