"""Converts the values of a target's scrapes to rows, a whole scrape at a time."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Final

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from vllm_capacity.sources.exposition_layout import Floats, Histogram, Layout, Scalar
from vllm_capacity.telemetry.rows import RowBuffer, SeriesKey

_PROCESS_START: Final = "process_start_time_seconds"
_UNUSABLE: Final = "histogram without a usable +Inf bucket or count"
_Integers = NDArray[np.int64]
Complain = Callable[[str, str], None]
"""Reports an unusable part of a scrape: the family, and what is wrong."""


def is_time(seconds: float) -> bool:
    """Whether it can be a time in Unix seconds; milliseconds and NaN cannot."""
    return 0 < seconds < 1e11


class TargetRows(Struct):
    """Adds the rows of one target's scrapes with the same layout to a buffer.

    `created_us` is the time of the oldest scrape that had the creation times of all series; later
    scrapes add nothing to that.
    """

    layout: Layout
    _buffer: RowBuffer
    _scalars: _Scalars
    _histograms: _Histograms
    created_us: float = math.inf

    @classmethod
    def of(cls, target: str, layout: Layout, buffer: RowBuffer) -> TargetRows:
        """Rows for scrapes of this target; its scalars are registered as series at once."""
        return cls(
            layout,
            buffer,
            _Scalars.of(target, layout.scalars, buffer),
            _Histograms.of(target, layout.histograms, buffer),
        )

    def add(self, ts_us: int, values: Floats, complain: Complain) -> None:
        """Add the rows of one scrape; unusable values are reported to `complain`."""
        self._scalars.add(ts_us, values, complain)
        self._histograms.add(ts_us, values, complain)
        if ts_us < self.created_us:
            self._add_created(ts_us, values)

    def _add_created(self, ts_us: int, values: Floats) -> None:
        is_complete = True
        children: list[tuple[Scalar | Histogram, int | None]] = [
            *self._scalars.series(),
            *self._histograms.series(values),
        ]
        for child, series_id in children:
            if child.created_at is None:
                continue
            seconds = float(values[child.created_at])
            if series_id is None or not math.isfinite(seconds):
                is_complete = False
            else:
                self._buffer.created(series_id, ts_us, round(seconds * 1e6))
        if is_complete:
            self.created_us = ts_us


class _Scalars(Struct, frozen=True):
    """The scalars of a layout in columns; `starts` are the indexes of process start times."""

    buffer: RowBuffer
    scalars: Sequence[Scalar]
    ids: _Integers
    alias_priorities: NDArray[np.int8]
    at: _Integers
    scale: Floats
    starts: list[int]

    @classmethod
    def of(cls, target: str, scalars: Sequence[Scalar], buffer: RowBuffer) -> _Scalars:
        ids = [
            buffer.series(
                each.wire.key(target, dict(each.labels)),
                exposed=each.wire.exposed,
                alias_priority=each.wire.alias_priority,
            )
            for each in scalars
        ]
        return cls(
            buffer,
            scalars,
            np.array(ids, np.int64),
            np.array([each.wire.alias_priority for each in scalars], np.int8),
            np.array([each.at for each in scalars], np.int64),
            np.array([each.wire.scale for each in scalars], np.float64),
            [i for i, each in enumerate(scalars) if each.wire.exposed == _PROCESS_START],
        )

    def add(self, ts_us: int, values: Floats, complain: Complain) -> None:
        own = values[self.at] * self.scale
        is_kept = np.ones(own.size, np.bool_)
        for index in self.starts:
            if not is_time(own[index]):
                complain(
                    _PROCESS_START, (f"{own[index]:g} is not a plausible start time of a process")
                )
                is_kept[index] = False
        if is_kept.all():
            self.buffer.samples(self.ids, ts_us, own, self.alias_priorities)
        else:
            self.buffer.samples(
                self.ids[is_kept], ts_us, own[is_kept], self.alias_priorities[is_kept]
            )

    def series(self) -> Iterator[tuple[Scalar, int | None]]:
        yield from zip(self.scalars, self.ids.tolist(), strict=True)


class _Histograms(Struct):
    """The histograms of a layout, with their cumulative buckets concatenated.

    `can_be_together`: whether all buckets form histograms and none occurs twice. A histogram
    becomes a series with its first usable state.
    """

    buffer: RowBuffer
    histograms: Sequence[Histogram]
    keys: list[SeriesKey]
    can_be_together: bool
    buckets_at: _Integers
    begins: _Integers
    ends: list[int]
    sums_at: _Integers
    alias_priorities: NDArray[np.int8]
    ids: _Integers | None = None

    @classmethod
    def of(cls, target: str, histograms: Sequence[Histogram], buffer: RowBuffer) -> _Histograms:
        ends = np.cumsum([len(each.buckets_at) for each in histograms], dtype=np.int64)
        places = [at for each in histograms for at in each.buckets_at]
        return cls(
            buffer,
            histograms,
            [each.wire.key(target, dict(each.labels), each.bounds) for each in histograms],
            all(each.bounds is not None and not each.twins for each in histograms),
            np.array(places, np.int64),
            np.concatenate([[0], ends[:-1]]).astype(np.int64),
            ends.tolist(),
            np.array([each.sum_at for each in histograms], np.int64),
            np.array([each.wire.alias_priority for each in histograms], np.int8),
        )

    def add(self, ts_us: int, values: Floats, complain: Complain) -> None:
        if not self.histograms:
            return
        counts = self._counts(values) if self.can_be_together else None
        if counts is None:
            self._add_each(ts_us, values, complain)
            return
        if self.ids is None:
            self.ids = np.array([self._registered(i) for i in range(len(self.keys))], np.int64)
        spans = zip(self.begins.tolist(), self.ends, strict=True)
        self.buffer.histograms(
            self.ids,
            ts_us,
            count=[sum(counts[begin:end]) for begin, end in spans],
            total=np.append(values, math.nan)[self.sums_at],
            counts=counts,
            ends=self.ends,
            alias_priorities=self.alias_priorities,
        )

    def _counts(self, values: Floats) -> list[float] | None:
        """All counts per bucket, as in `Histogram.counts`; None if a bucket needs a closer look.

        That is the case if it is not a count, or is below the previous one.
        """
        cumulative = values[self.buckets_at]
        counts = np.diff(cumulative, prepend=0.0)
        counts[self.begins] = cumulative[self.begins]
        is_plain = counts.min() >= 0 and cumulative.max() < math.inf  # False for NaN, too
        return counts.tolist() if is_plain else None

    def _add_each(self, ts_us: int, values: Floats, complain: Complain) -> None:
        for index, histogram in enumerate(self.histograms):
            counts = histogram.counts(values)
            if counts is None:
                complain(histogram.wire.exposed, _UNUSABLE)
                continue
            self.buffer.histogram(
                self._registered(index),
                ts_us,
                count=sum(counts),
                total=float(values[histogram.sum_at]) if histogram.sum_at >= 0 else math.nan,
                counts=counts,
                alias_priority=histogram.wire.alias_priority,
            )

    def _registered(self, index: int) -> int:
        wire = self.histograms[index].wire
        return self.buffer.series(
            self.keys[index], exposed=wire.exposed, alias_priority=wire.alias_priority
        )

    def series(self, values: Floats) -> Iterator[tuple[Histogram, int | None]]:
        """The histograms with their series ids; None for one without a usable state."""
        for index, each in enumerate(self.histograms):
            yield each, None if each.counts(values) is None else self._registered(index)
