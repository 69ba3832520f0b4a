"""Telemetry quality: scrapes, interruptions, losses and findings of a window."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import datetime

from msgspec.structs import replace

from vllm_capacity.analysis import Analysis
from vllm_capacity.estimate import listed
from vllm_capacity.figures.scrapes import Interruption
from vllm_capacity.render.numbers import NOT_KNOWN, count, number, percent, plural, seconds
from vllm_capacity.render.prose import verdict as prose
from vllm_capacity.render.tables import Cell, Column, Table, Text, Value, table, text, written
from vllm_capacity.verdicts.quality.evidence import Finding

_VERDICTS = {
    "good": "The window is complete",
    "usable": "The window is mostly complete, and what is missing is bounded",
    "poor": "The window is incomplete: totals are exact for what was counted, but means over time "
    "are uncertain",
}
_SPELLS_SHOWN = 2
_SHARED = 3  # a finding of this many targets or more is shown once
_NUMBERS = re.compile(r"\d[\d.,:]*")


def quality_table(analysis: Analysis) -> Table:
    """The problems found in the telemetry: severity, count, times, effect.

    A finding shared by three or more targets is one row, of the target with the highest count.
    """
    word, why = prose.quality_word(analysis.answer)
    columns = (
        Column("severity", "severity"),
        Column("finding", "finding"),
        Column("count", "count", count, is_numeric=True),
        Column("when (UTC)", "when"),
        Column("effect on figures", "effect", is_note=True),
    )
    rows = [
        (
            Cell(f"{_shape(each.severity)} {each.severity}", each.severity),
            each.check,
            each.count,
            Cell(_when(each.when), each.when),
            each.effect,
        )
        for each in _shown(analysis)
    ]
    return table(
        columns,
        rows,
        caption=f"{prose.SHAPES[word]} {word}: {why}",
        empty="Nothing was found: no gap, no restart, no missing series.",
    )


def _shown(analysis: Analysis) -> Sequence[Finding]:
    findings = analysis.answer.quality
    return findings if len(findings) < _SHARED else shared_once(findings, analysis.instances)


def shared_once(findings: Sequence[Finding], instances: Sequence[str]) -> list[Finding]:
    """The findings, with those that differ only in target and numbers merged into one.

    Only three or more are merged. The merged finding is the one with the highest count, in the
    place of the first, and names the other targets.
    """
    targets = re.compile("|".join(map(re.escape, sorted(instances, key=len, reverse=True))) or "$^")
    groups: dict[tuple[str, str, str], list[Finding]] = {}
    for each in findings:
        masked = _NUMBERS.sub("#", targets.sub("@", each.effect))
        groups.setdefault((each.severity, each.check, masked), []).append(each)
    shown: list[Finding] = []
    for own in groups.values():
        most = max(own, key=lambda each: each.count)
        found = (targets.search(each.effect) for each in own if each is not most)
        others = [match[0] for match in found if match]
        is_shared = len(own) >= _SHARED and len(others) == len(own) - 1
        shown += [_with_others(most, others)] if is_shared else own
    return shown


def _with_others(finding: Finding, others: Sequence[str]) -> Finding:
    """The finding with the names of the other targets that share it."""
    same = f"The same for {plural(len(others), 'other')}: {listed(others)}."
    return replace(finding, effect=f"{finding.effect.rstrip('.')}. {same}")


def scrape_table(analysis: Analysis) -> Table:
    """One row per target: scrapes expected on an even grid, answered, failed and missed."""
    columns = (
        Column("target", "instance"),
        Column("scraped every", "usual_seconds", seconds, is_numeric=True),
        Column("expected", "expected", count, is_numeric=True),
        Column("answered", "answered", count, is_numeric=True),
        Column("failed", "failed", count, is_numeric=True),
        Column("missed", "missed", count, is_numeric=True),
        Column("share answered", "answered_ratio", percent, is_numeric=True),
    )
    rows = [
        (
            each.instance,
            each.median_seconds,
            each.expected,
            each.good,
            each.failed,
            each.missed,
            each.good_ratio,
        )
        for each in analysis.scrape_counts
    ]
    empty = "No target was scraped in this time range."
    return table(columns, rows, caption="Scrapes of each target.", empty=empty)


def interruption_table(analysis: Analysis) -> Table:
    """Gaps and restarts by target and time, each from the last good scrape to the next.

    A gap without scrape attempts is the scraper's fault; one with unanswered scrapes is the
    server's or the network's.
    """
    columns = (
        Column("target", "instance"),
        Column("last good scrape", "start", _clock),
        Column("next good scrape", "end", _clock),
        Column("length", "length_seconds", seconds, is_numeric=True),
        Column("what happened", "event"),
        Column("process started", "process_started", _clock),
    )
    rows = [
        (each.instance, each.start, each.end, each.seconds, _event(each), each.started)
        for each in analysis.interruptions
    ]
    empty = "No gap and no restart: every scrape followed the one before it."
    return table(columns, rows, caption="Times are UTC.", empty=empty)


def loss_table(analysis: Analysis) -> Table:
    """The exact counts, and the maximum that may be missing from each."""
    requests, tokens = analysis.answer.requests, analysis.answer.tokens
    columns = (
        Column("quantity", "quantity"),
        Column("counted", "counted", count, is_numeric=True),
        Column("missing, at least", "missing_low", count, is_numeric=True),
        Column("missing, at most", "missing_high", count, is_numeric=True),
        Column("share of the counted, at most", "missing_ratio", percent, is_numeric=True),
    )
    found = (
        ("finished requests", requests.finished, requests),
        ("tokens, prompt and output", tokens.total, tokens),
    )
    rows = [
        (
            name,
            Cell("not counted") if counted is None else counted,
            each.lost.low,
            written(each.lost.high, count),
            written(each.lost_ratio, percent),
        )
        for name, counted, each in found
    ]
    reasons = {each.lost.reason for _, _, each in found if each.lost.reason}
    return table(columns, rows, caption="; ".join(sorted(reasons)))


def captures_compared(analysis: Analysis, other: Analysis) -> Table:
    """Two windows side by side: how complete they are, and how much gaps can change a figure."""
    columns = (
        Column("quantity", "quantity"),
        Column(analysis.window.name, "first", is_numeric=True),
        Column(other.window.name, "second", is_numeric=True),
    )
    pairs = zip(_completeness(analysis), _completeness(other), strict=True)
    return table(columns, [(name, one, two) for (name, one), (_, two) in pairs])


def capture_verdict(analysis: Analysis) -> Text:
    """Whether the window is complete, in one sentence."""
    requests = analysis.answer.requests
    word, _ = prose.quality_word(analysis.answer)
    scrapes = analysis.all_scrapes
    share = written(scrapes.good_ratio, percent).text
    parts = [f"{count(scrapes.good)} of {count(scrapes.expected)} scrapes were answered ({share})"]
    if requests.finished is not None:
        parts.append(f"{count(requests.finished)} requests were counted")
    if requests.lost.high is None:
        parts.append(f"how many more were lost is not known ({requests.lost.reason})")
    elif requests.lost.high and requests.lost_ratio:
        parts.append(
            f"up to {count(requests.lost.high)} more ({percent(requests.lost_ratio)}) may have "
            f"been lost in {_endings(analysis)}"
        )
    else:
        parts.append("none can have been lost in a restart")
    return text(f"{_VERDICTS[word]}: {', '.join(parts)}.")


def _completeness(analysis: Analysis) -> list[tuple[str, Value | Cell]]:
    answer = analysis.answer
    word, _ = prose.quality_word(answer)
    return [
        ("telemetry", word),
        ("scrapes answered", written(analysis.all_scrapes.good_ratio, percent)),
        ("gaps", written(answer.findings("gap"), count)),
        ("restarts", written(answer.findings("restart"), count)),
        ("requests counted", written(answer.requests.finished, count)),
        ("requests missing, at most", written(answer.requests.lost.high, count)),
        ("running requests, mean", _mean_running(analysis)),
    ]


def _mean_running(analysis: Analysis) -> Cell:
    """The mean, with the maximum effect of missing scrapes."""
    mean = analysis.answer.running.mean
    if mean is None:
        return Cell(NOT_KNOWN)
    off = analysis.answer.max_effect("running.mean")
    return Cell(f"{number(mean)}, off by at most {number(off, like=mean)}", mean)


def _endings(analysis: Analysis) -> str:
    """Restarts and servers that stopped responding, or else late first scrapes, in words."""
    restarts = analysis.answer.findings("restart")
    outages = sum(each.check == "outage" for each in analysis.answer.quality)
    parts = [plural(restarts, "restart")] if restarts else []
    if outages:
        parts.append(f"{plural(outages, 'server')} that stopped answering")
    return " and ".join(parts) or "targets that were first scraped late"


def _event(each: Interruption) -> str:
    if not each.is_gap:
        return "restarted, no scrape missed"
    scraped = f"scraped {plural(each.failed, 'time')}, no answer" if each.failed else "not scraped"
    return f"{scraped}; the server restarted" if each.is_restart else scraped


def _clock(at: datetime) -> str:
    return f"{at:%-d %b %H:%M:%S}"


def _shape(severity: str) -> str:
    """The shape that marks the quality of telemetry with a finding of this severity."""
    labels = (("poor", prose.POOR), ("usable", prose.USABLE))
    return prose.SHAPES[next((word for word, levels in labels if severity in levels), "good")]


def _when(times: str | None) -> str:
    """The times of a finding, at most two, without date markers and fractions."""
    readable = re.sub(r"(?<=\d)T(?=\d)", " ", re.sub(r"\.\d+(?=Z)", "", times or ""))
    spells, unlisted = readable.split("; "), 0
    if found := re.fullmatch(r"and ([\d,]+) more", spells[-1]):
        spells, unlisted = spells[:-1], int(found[1].replace(",", ""))
    shown = "; ".join(spells[:_SPELLS_SHOWN])
    more = len(spells) - _SPELLS_SHOWN + unlisted
    return f"{shown} and {more:,} more" if more > 0 else shown
