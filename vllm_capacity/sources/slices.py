"""Reads a long range of a source in slices, each of which another process may read.

A slice is an hour of the range, or less if many samples are expected. What is read of it has the
series as they are on the wire, and their rows. They are identified when all slices are there,
because that depends on all of them: which labels a scraper added to every series of a target, and
whether several jobs scrape it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from functools import partial
from typing import Any, TypeVar

import msgspec
import polars as pl
from msgspec import Struct, field

from vllm_capacity.errors import NoTelemetryError
from vllm_capacity.sources.answers import AnswerCache, Step, packed
from vllm_capacity.sources.otlp import Child, Wire, of_job
from vllm_capacity.telemetry.parts import Held, RowsInParts, Spool, Tables
from vllm_capacity.telemetry.rows import HISTOGRAMS_SCHEMA, SAMPLES_SCHEMA
from vllm_capacity.timerange import TimeRange, iso

Labels = tuple[tuple[str, str], ...]


class Slice(Struct, frozen=True):
    """What one task reads: the text that identifies it, and when its data arrive at the source."""

    question: str
    arrivals: TimeRange


_Slice = TypeVar("_Slice", bound=Slice)
Read = Callable[[Sequence[_Slice]], Iterable[tuple[int, bytes]]]
"""Reads slices in any order: the position of each, and its `SlicePart` as bytes."""


class WireSeries(Struct, frozen=True):
    """A series as it is on the wire; `labels` are sorted, without instance and job.

    `kind` is counter, gauge or histogram, or empty if it is not declared.
    """

    exposed: str
    kind: str
    instance: str
    job: str
    labels: Labels
    bounds: tuple[float, ...] | None = None


class Times(Struct, frozen=True):
    """The times (naive UTC) of a series' first point and of its start; None if unknown."""

    first: datetime | None = None
    started: datetime | None = None

    def joined(self, other: Times) -> Times:
        """The earlier of both times."""
        return Times(_least(self.first, other.first), _least(self.started, other.started))


class SliceSeries(Struct, frozen=True):
    """The series of a slice, with their times if the source knows any."""

    series: list[WireSeries]
    times: list[Times] = field(default_factory=list)


class SlicePart(SliceSeries, frozen=True):
    """What was read of a slice: its series, and frames as bytes (`packed`).

    `samples` and `histograms` have the canonical columns, but `child`, the position in `series`,
    instead of series_id and alias_priority. `findings` is what the source noticed on the way.
    """

    samples: bytes = b""
    histograms: bytes = b""
    findings: bytes = b""


def _by_child(schema: Mapping[str, Any]) -> dict[str, Any]:
    own = {
        name: kind for name, kind in schema.items() if name not in ("series_id", "alias_priority")
    }
    return {"child": pl.UInt32, **own}


SAMPLES, HISTOGRAMS = _by_child(SAMPLES_SCHEMA), _by_child(HISTOGRAMS_SCHEMA)


def slice_part(
    series: SliceSeries, samples: pl.DataFrame, histograms: pl.DataFrame, findings: pl.DataFrame
) -> bytes:
    """What was read of a slice, as bytes; frames in the schemas above."""
    frames = (packed(frame) for frame in (samples, histograms, findings))
    return msgspec.msgpack.encode(SlicePart(series.series, series.times, *frames))


def gathered(
    slices: Sequence[_Slice],
    read: Read[_Slice],
    *,
    cache: AnswerCache,
    progress: Callable[[Step], None] = lambda step: None,
) -> list[Callable[[], bytes]]:
    """What reads the part of each slice; only parts that are not in the cache are read now."""
    parts = {n: kept for n, own in enumerate(slices) if (kept := cache.find(own.question))}
    left = [n for n in range(len(slices)) if n not in parts]
    for position, content in read([slices[n] for n in left]):
        own = slices[left[position]]
        parts[left[position]] = cache.keep(own.question, own.arrivals, content)
        progress(Step(len(parts), len(slices), 0))
    return [parts[n] for n in range(len(slices))]


def one_by_one(read: Callable[[_Slice], bytes]) -> Read[_Slice]:
    """Reads slices in this process, in order."""
    return lambda slices: ((n, read(own)) for n, own in enumerate(slices))


def series_in(parts: Sequence[Callable[[], bytes]]) -> dict[WireSeries, Times]:
    """All series in these parts, with their earliest times."""
    decoder = msgspec.msgpack.Decoder(SliceSeries)
    found: dict[WireSeries, Times] = {}
    for part in parts:
        own = decoder.decode(part())
        if not own.times:
            found.update(dict.fromkeys(own.series, Times()))
        for one, times in zip(own.series, own.times):  # noqa: B905  no times if there are none
            found[one] = found.get(one, times).joined(times)
    return found


def children_of(
    series: Mapping[WireSeries, Times], *, added: Mapping[str, set[tuple[str, str]]]
) -> dict[WireSeries, Child]:
    """The identity of each series; `added` has labels to leave out, by instance."""
    jobs: dict[str, set[str]] = {}
    for one in series:
        if one.exposed == "up":
            jobs.setdefault(one.instance, set()).add(one.job)
    children = {}
    for one, times in series.items():
        without = added.get(one.instance, set())
        labels = {name: value for name, value in one.labels if (name, value) not in without}
        wire = Wire.of(one.exposed, one.kind)
        key = of_job(
            wire.key(one.instance, labels, one.bounds), one.job, jobs.get(one.instance, ())
        )
        children[one] = Child(wire, key, one.job, times.first, times.started)
    return children


def add_rows(
    spool: Held | Spool,
    parts: Sequence[Callable[[], bytes]],
    children: Mapping[WireSeries, Child],
    also: Callable[[pl.DataFrame], pl.DataFrame] = pl.DataFrame.clear,
) -> pl.DataFrame:
    """Add the canonical rows of these series, part by part; returns the findings of all parts.

    Rows of other series are left out. `also` returns samples to add to those of a part.
    """
    names = {one: (own.key.series_id, own.wire.alias_priority) for one, own in children.items()}
    decoder, findings = msgspec.msgpack.Decoder(SlicePart), []
    for each in parts:
        part = decoder.decode(each())
        own = [names.get(one, (None, None)) for one in part.series]
        named = pl.DataFrame(
            own, schema={"series_id": pl.Int64, "alias_priority": pl.Int8}, orient="row"
        )
        samples = _identified(part.samples, named, SAMPLES_SCHEMA)
        samples = pl.concat([samples, also(samples)])
        spool.add(samples, _identified(part.histograms, named, HISTOGRAMS_SCHEMA))
        findings.append(pl.read_ipc(part.findings))
    return pl.concat(findings)


def cut_in_parts(rows: RowsInParts, time_range: TimeRange) -> RowsInParts:
    """The rows in the range, and the last row before it of each series in the range.

    The rows before the range are the first part. NoTelemetryError if nothing was sampled in it.
    """
    inside, before, parts = [], [rows.parts[0]()], []
    before[0] = (before[0][0].clear(), before[0][1].clear())
    for part in rows.parts:
        tables = part()
        within = [_within(frame, time_range) for frame in tables]
        inside += [frame["series_id"].unique() for frame in within]
        earlier = [frame.filter(pl.col("ts") < time_range.start) for frame in tables]
        before.append((_newest(earlier[0]), _newest(earlier[1])))
        is_whole = [frame.height for frame in within] == [frame.height for frame in tables]
        parts.append(part if is_whole else partial(_part_within, part, time_range))
    ids = pl.concat(inside).unique().implode()
    if ids.explode().is_empty():
        raise NoTelemetryError(f"Nothing was sampled{during(time_range)}.")
    is_kept = pl.col("series_id").is_in(ids)
    samples, histograms = (
        pl.concat(frames).filter(is_kept) for frames in zip(*before, strict=True)
    )
    carried = (_newest(samples), _newest(histograms))
    return RowsInParts(
        rows.series.filter(is_kept),
        [lambda: carried, *parts],
        rows.ingest_notes,
        time_range.start,
    )


def _part_within(part: Callable[[], Tables], time_range: TimeRange) -> Tables:
    samples, histograms = part()
    return _within(samples, time_range), _within(histograms, time_range)


def _within(frame: pl.DataFrame, time_range: TimeRange) -> pl.DataFrame:
    return frame.filter(pl.col("ts").is_between(time_range.start, time_range.end, closed="left"))


def _newest(frame: pl.DataFrame) -> pl.DataFrame:
    return frame.filter(pl.col("ts") == pl.col("ts").max().over("series_id"))


def during(time_range: TimeRange | None) -> str:
    """The range in the words of a message; empty if there is none."""
    return "" if time_range is None else f" from {iso(time_range.start)} to {iso(time_range.end)}"


def _identified(content: bytes, named: pl.DataFrame, schema: Mapping[str, Any]) -> pl.DataFrame:
    rows = pl.read_ipc(content)
    own = named[rows["child"]]
    identified = pl.concat([rows, own], how="horizontal").select(list(schema))
    return identified.filter(pl.col("series_id").is_not_null())


def _least(one: datetime | None, other: datetime | None) -> datetime | None:
    return min((each for each in (one, other) if each is not None), default=None)
