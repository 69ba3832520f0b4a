"""Trends of a few figures over consecutive reports: the small charts of the index.

A report belongs to the series of the report that it is compared with (previous.py). A point stands
at the end of its window, at its middle value or its only bound, with its interval as a line. Points
are connected only if the terms that the figure depends on did not change: across a new price, a
line would suggest a change of the server.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import datetime

from msgspec import Struct

from vllm_capacity.render.numbers import days, plural
from vllm_capacity.render.report.metadata import Metadata, Tile
from vllm_capacity.render.report.previous import series_of_reports

FIGURES = ("usd_per_request", "tokens_per_usd", "utilization", "ttft_attainment")
"""The figures with a small chart, in order."""

WIDTH, HEIGHT = 200, 56  # of a chart, in SVG units
_MARGIN = 5  # around it, so that no point is cut off


class Point(Struct, frozen=True):
    """One report in a small chart: its position, its interval, its text, and its page."""

    x: float
    y: float
    low_y: float
    high_y: float
    words: str
    page: str


class Trend(Struct, frozen=True):
    """One figure over the reports of a series: lines (points in SVG's format) and points.

    `first` and `last` are its values as shown by the first and the last report.
    """

    label: str
    unit: str
    first: str
    last: str
    lines: tuple[str, ...]
    points: tuple[Point, ...]


class Series(Struct, frozen=True):
    """Consecutive reports: their models, their time, and the trends of their figures."""

    heading: str
    when: str
    trends: tuple[Trend, ...]


class _Seen(Struct, frozen=True):
    """A figure of one report: its value with both ends, its time, and its terms."""

    at: datetime
    low: float
    mid: float
    high: float
    terms: object
    tile: Tile
    page: str


def series_trends(reports: Sequence[tuple[str, Metadata]]) -> tuple[Series, ...]:
    """The series of at least two reports, the one with the latest report first.

    `reports` are (file name, metadata). A figure known to fewer than two reports of a series has no
    trend, and a series without trends is left out.
    """
    found = [_series(each) for each in series_of_reports(dict(reports)) if len(each) > 1]
    return tuple(each for each in found if each.trends)


def _series(reports: Sequence[tuple[str, Metadata]]) -> Series:
    line = reports[-1][1].line
    ranges = [found for _, each in reports if (found := each.line.time_range) is not None]
    named = ", ".join(line.models or ()) or "no model named"
    trends = (_trend(_seen(reports, name)) for name in FIGURES)
    return Series(
        heading=f"{named} on {line.engines}",
        when=f"{plural(len(reports), 'report')}, {days(ranges[0].start, ranges[-1].end)}",
        trends=tuple(each for each in trends if each is not None),
    )


def _seen(reports: Sequence[tuple[str, Metadata]], figure: str) -> list[_Seen]:
    """The reports in which the figure is known, oldest first."""
    seen = []
    for page, report in reports:
        tile, time_range = report.by_figure.get(figure), report.line.time_range
        if tile is None or time_range is None:
            continue
        middle = next((end for end in (tile.mid, tile.low, tile.high) if end is not None), None)
        if middle is None:
            continue
        low = middle if tile.low is None else tile.low
        high = middle if tile.high is None else tile.high
        terms = report.line.term(tile.hangs_on) if tile.hangs_on else None
        seen.append(_Seen(time_range.end, low, middle, high, terms, tile, page))
    return seen


def _trend(seen: Sequence[_Seen]) -> Trend | None:
    """The figure over these reports, on an axis from 0; None for fewer than two reports."""
    if len(seen) < 2:
        return None
    start, end = seen[0].at, seen[-1].at
    length = (end - start).total_seconds() or 1.0
    top = max(max(each.high for each in seen), 0.0) or 1.0

    def x(at: datetime) -> float:
        return _MARGIN + (WIDTH - 2 * _MARGIN) * (at - start).total_seconds() / length

    def y(value: float) -> float:
        return round(HEIGHT - _MARGIN - (HEIGHT - 2 * _MARGIN) * max(0.0, value) / top, 1)

    points = tuple(
        Point(round(x(each.at), 1), y(each.mid), y(each.low), y(each.high), _words(each), each.page)
        for each in seen
    )
    first, last = seen[0].tile, seen[-1].tile
    return Trend(last.label, last.unit, first.value, last.value, _lines(seen, points), points)


def _words(seen: _Seen) -> str:
    interval = f", {seen.tile.between}" if seen.tile.between else ""
    return f"{seen.tile.value} {seen.tile.unit}{interval}, to {seen.at:%-d %b %Y %H:%M} UTC"


def _lines(seen: Sequence[_Seen], points: Sequence[Point]) -> tuple[str, ...]:
    """A line through each run of points with the same terms."""
    runs: list[list[str]] = []
    before: object = math.nan  # not equal to anything
    for each, point in zip(seen, points, strict=True):
        if each.terms != before:
            runs.append([])
        runs[-1].append(f"{point.x},{point.y}")
        before = each.terms
    return tuple(" ".join(run) for run in runs if len(run) > 1)
