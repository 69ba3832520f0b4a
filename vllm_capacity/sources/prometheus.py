"""A client for Prometheus, Thanos, Mimir or VictoriaMetrics that reads raw samples, not rates.

An instant query on a range selector, `x[1h]`, returns the samples as they were scraped; a range
query would evaluate at steps, at most 11,000 of them. Families are queried by the hour.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta
from itertools import chain
from typing import Annotated, Any, Generic, Literal, TypeVar

import httpx
import msgspec
import numpy as np
import polars as pl
from msgspec import Struct
from numpy.typing import NDArray

from vllm_capacity.errors import SourceError
from vllm_capacity.selector import Selector
from vllm_capacity.sources.http import (
    BUSY,
    TransientError,
    address,
    decoded,
    transport_errors,
    with_retries,
)
from vllm_capacity.telemetry.rows import microseconds
from vllm_capacity.timerange import TimeRange

ANSWER: dict[str, Any] = {
    "metric": pl.String,  # the labels as a JSON object; null for a warning
    "ms": pl.List(pl.Int64),
    "value": pl.List(pl.Float64),
    "warning": pl.String,
}
_MAX_UNIX_SECONDS = 1e11
_UnixSeconds = Annotated[float, msgspec.Meta(ge=-_MAX_UNIX_SECONDS, le=_MAX_UNIX_SECONDS)]
_EMPTY = b"[]"
_NO_VALUES = msgspec.Raw(_EMPTY)
_OF_NUMBERS = b"0123456789+-.eENa"
_QUESTION_SECONDS = 60.0  # for requests about the server; queries use the client's timeout
_Data = TypeVar("_Data")
_Answer = TypeVar("_Answer")


class _Series(msgspec.Struct):
    """One series in an answer: its labels, and its samples as they are on the wire."""

    metric: dict[str, str]
    values: msgspec.Raw = _NO_VALUES


class _TypedSeries(msgspec.Struct):
    """The same, with samples as (Unix seconds, number as text)."""

    metric: dict[str, str]
    values: list[tuple[_UnixSeconds, str]] = []


class _Success(msgspec.Struct, Generic[_Data]):
    """A successful answer; `warnings` say that it may be incomplete (Thanos, Mimir)."""

    status: Literal["success"]
    data: _Data
    warnings: list[str] | None = None


class _Refusal(msgspec.Struct):
    """An error answer."""

    error: str = ""


class _Declared(msgspec.Struct):
    """The declared type of a family."""

    type: str


class _Matrix(msgspec.Struct, Generic[_Data], rename="camel"):
    """The raw samples of a range."""

    result_type: Literal["matrix"]
    result: list[_Data]


class Samples(Struct, frozen=True):
    """Raw samples of some series, concatenated, and the server's warnings of incomplete answers.

    `lengths` has the number of samples of each series.
    """

    metrics: list[dict[str, str]]
    lengths: list[int]
    seconds: NDArray[np.float64]
    values: NDArray[np.float64]
    warnings: list[str]


def _read_matrix(content: bytes, at: str) -> Samples:
    """The samples in an answer; SourceError if it is not an answer of Prometheus.

    An object per sample would take most of the reading time, so numbers are read as one list. If
    one is not valid in JSON (infinity), samples are read as objects after all.
    """
    found = decoded(content, _Success[_Matrix[_Series]], at=at, dialect="Prometheus")
    series = found.data.result
    texts = [bytes(each.values) for each in series]
    lengths = [max(0, text.count(b"[") - 1) for text in texts]
    numbers = _flat_numbers(texts, lengths)
    if numbers is None:
        typed = decoded(content, _Success[_Matrix[_TypedSeries]], at=at, dialect="Prometheus")
        lengths = [len(each.values) for each in typed.data.result]
        pairs = chain.from_iterable(each.values for each in typed.data.result)
        flat = [number for moment, text in pairs for number in (moment, _number(text))]
        numbers = np.array(flat, np.float64)
    metrics, warnings = [each.metric for each in series], found.warnings or []
    return Samples(metrics, lengths, numbers[::2].copy(), numbers[1::2].copy(), warnings)


def _flat_numbers(texts: Sequence[bytes], lengths: Sequence[int]) -> NDArray[np.float64] | None:
    """All numbers of lists of `[seconds,"value"]`, in order; None if they have another form."""
    joined = b",".join(text for text in texts if text != _EMPTY)
    lists = (b"[" + b",".join([b'[,""]'] * length) + b"]" for length in lengths if length)
    if joined.translate(None, _OF_NUMBERS) != b",".join(lists):
        return None
    bare = joined.translate(None, b"[]")
    try:
        flat = msgspec.json.decode(b"[" + bare + b"]", type=list[float], strict=False)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None
    numbers = np.array(flat, np.float64)
    is_sound = numbers.size == 2 * sum(lengths) and np.all(abs(numbers[::2]) <= _MAX_UNIX_SECONDS)
    return numbers if is_sound else None


def _answer_frame(found: Samples) -> pl.DataFrame:
    """An answer as a frame: one row per series with samples, and one row per warning."""
    own = [(metric, n) for metric, n in zip(found.metrics, found.lengths, strict=True) if n]
    ends = np.cumsum([0, *(n for _, n in own)])
    rows = len(found.warnings)
    return pl.DataFrame(
        {
            "metric": [_as_text(metric) for metric, _ in own] + [None] * rows,
            "ms": _lists(np.rint(found.seconds * 1000).astype(np.int64), ends, rows),
            "value": _lists(found.values, ends, rows),
            "warning": [None] * len(own) + found.warnings,
        },
        schema=ANSWER,
    )


def _as_text(labels: Mapping[str, str]) -> str:
    """Labels as a JSON object; the same labels always give the same text."""
    return msgspec.json.encode(labels, order="sorted").decode()


def _lists(flat: NDArray[Any], ends: NDArray[np.int64], nulls: int) -> pl.Series:
    """Rows of lists from their concatenated items, followed by `nulls` nulls."""
    import pyarrow as pa  # slow to import, and most commands query no server

    return pl.concat(
        [
            pl.Series(pa.LargeListArray.from_arrays(pa.array(ends), pa.array(flat))),
            pl.Series(
                [None] * nulls, dtype=pl.List(pl.Float64 if flat.dtype == float else pl.Int64)
            ),
        ]
    )


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise SourceError(f"Prometheus returned a value that is not a number: {error}.") from None


class Prometheus(Struct, frozen=True):
    """A Prometheus server; `only` selects the series to query (None: all).

    `pause` waits between attempts (tests replace it).
    """

    client: httpx.Client
    pause: Callable[[float], None] = time.sleep
    only: Selector | None = None

    @property
    def address(self) -> str:
        """The server's address for messages and notes, without credentials."""
        return address(self.client)

    def names(self, time_range: TimeRange) -> list[str]:
        """The metric names with samples in the range."""
        return self._values("__name__", time_range, None if self.only is None else ".+")

    def targets(self, time_range: TimeRange) -> list[str]:
        """The instances that were scraped in the range; some servers add those of the whole day."""
        return self._values("instance", time_range, "up")

    def _values(self, label: str, time_range: TimeRange, of: str | None) -> list[str]:
        """The values of a label; `of` is a pattern of names, None for every series."""
        asked = {"start": _seconds(time_range.start), "end": _seconds(time_range.end)}
        if of is not None:
            asked["match[]"] = self._selector(of)
        return sorted(self._get(f"/api/v1/label/{label}/values", asked, list[str]))

    def _selector(self, names: str, *more: str) -> str:
        """The selector for series with matching names within `only`; `more` are matchers."""
        among = [] if self.only is None else [self.only.bare]
        matchers = ",".join([f'__name__=~"{names}"', *among, *more])
        return f"{{{matchers}}}"

    def kinds(self) -> dict[str, str]:
        """The declared type of each family; empty if the server does not keep it."""
        try:
            found = self._get("/api/v1/metadata", {}, dict[str, list[_Declared]])
        except SourceError:
            return {}  # Thanos and Mimir may lack it; names and the catalogue are used instead
        return {name: entries[0].type for name, entries in found.items() if entries}

    def samples(
        self, names: Sequence[str], time_range: TimeRange, *, instances: Sequence[str] = ()
    ) -> Samples:
        """The raw samples of these metrics in [start, end), as Prometheus' `matrix`.

        `instances` limits the targets; empty: all. Ranges are left-open in Prometheus 3 but closed
        in earlier versions, which may return the last sample of the previous hour again.
        """
        length_ms = int(time_range.seconds * 1000)
        of = (f'instance=~"{_pattern(instances)}"',) if instances else ()
        question = {
            "query": f"{self._selector(_pattern(names), *of)}[{length_ms}ms]",
            "time": _seconds(time_range.end - timedelta(milliseconds=1)),
        }
        return self._matrix("/api/v1/query", question)

    def answer(
        self, names: Sequence[str], time_range: TimeRange, *, instances: Sequence[str] = ()
    ) -> pl.DataFrame:
        """The same as `samples`, as a frame, with the server's warnings."""
        return _answer_frame(self.samples(names, time_range, instances=instances))

    def minute_ends(self, names: Sequence[str], minutes: TimeRange) -> pl.DataFrame:
        """The last value per minute of these metrics' series, in the columns of `answer`.

        `ms` is the last millisecond of the minute, whenever in it the value was sampled. Minutes
        without a value are left out.
        """
        return self._by_minute(f"last_over_time({self._selector(_pattern(names))}[1m])", minutes)

    def resets(self, names: Sequence[str], minutes: TimeRange) -> pl.DataFrame:
        """The targets (instance, job) and minutes in which a series of these metrics decreased.

        The decrease may also be in the previous minute, or between the two. Columns as in `answer`.
        """
        fell = (
            f"max by (instance, job) (resets({self._selector(_pattern([name]))}[2m])) > 0"
            for name in names
        )
        return self._by_minute(" or ".join(fell), minutes)

    def _by_minute(self, query: str, minutes: TimeRange) -> pl.DataFrame:
        step, last = timedelta(minutes=1), timedelta(milliseconds=1)
        question = {
            "query": query,
            "start": _seconds(minutes.start + step - last),
            "end": _seconds(minutes.end - last),
            "step": "60",
            "nocache": "1",  # else VictoriaMetrics rounds the times to whole steps
        }
        return _answer_frame(self._matrix("/api/v1/query_range", question))

    def _matrix(self, path: str, question: Mapping[str, str]) -> Samples:
        return self._asked(lambda: self.client.post(path, data=question), _read_matrix)

    def _get(self, path: str, params: Mapping[str, str], data: type[_Data]) -> _Data:
        def ask() -> httpx.Response:
            return self.client.get(path, params=params, timeout=_QUESTION_SECONDS)

        def read(content: bytes, at: str) -> _Success[_Data]:
            return decoded(content, _Success[data], at=at, dialect="Prometheus")  # type: ignore[valid-type]

        return self._asked(ask, read).data

    def _asked(
        self, ask: Callable[[], httpx.Response], read: Callable[[bytes, str], _Answer]
    ) -> _Answer:
        def answered() -> _Answer:
            with transport_errors(self.address):
                response = ask()
            _require_success(response, self.address)
            return read(response.content, self.address)

        return with_retries(answered, self.pause)


def _pattern(words: Sequence[str]) -> str:
    """A PromQL regular expression that matches these words."""
    return "|".join(re.escape(word).replace("\\", "\\\\") for word in words)


def _seconds(moment: datetime) -> str:
    return f"{microseconds(moment) / 1e6:.3f}"


def _require_success(response: httpx.Response, at: str) -> None:
    """Raise an error that says what to do for every status except 200."""
    status = response.status_code
    if status == 200:
        return
    if status in (401, 403):
        raise SourceError(
            f"{at} refused the credentials ({status}). Set PROMETHEUS_USER and "
            "PROMETHEUS_PASSWORD, or PROMETHEUS_TOKEN."
        )
    text = " ".join(_reason(response).split())[:300]
    if status in BUSY:
        raise TransientError(f"{at} is not ready ({status}): {text}")
    if status == 422:
        raise SourceError(f"{at} could not run the query: {text}. Ask for a shorter range.")
    raise SourceError(f"{at} does not answer as Prometheus does ({status}): {text}")


def _reason(response: httpx.Response) -> str:
    try:
        sentence = msgspec.json.decode(response.content, type=_Refusal).error
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        sentence = ""
    return sentence or response.text
