"""Prometheus, and what speaks its API (Thanos, Mimir, VictoriaMetrics): raw samples, not rates.

An instant query on a range selector, `x[1h]`, answers with the samples as they were scraped; a
range query would evaluate at steps, at most 11,000 of them. Families are asked for by the hour.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Generic, Literal, TypeVar

import httpx
import msgspec

from vllm_capacity.errors import SourceError
from vllm_capacity.sources.http import (
    BUSY,
    TransientError,
    address,
    decoded,
    transport_errors,
    with_retries,
)
from vllm_capacity.sources.parquet import LOOKBACK, cut
from vllm_capacity.sources.prometheus_rows import (
    HISTOGRAM_PARTS,
    Families,
    Series,
    SeriesReader,
    families,
)
from vllm_capacity.telemetry.rows import Rows, microseconds
from vllm_capacity.timerange import TimeRange

_SLICE = timedelta(hours=1)
_TOGETHER = 8  # scalar families asked for in one query
_QUESTION_SECONDS = 60.0  # for what is asked about the server; a query has the client's own time
_Data = TypeVar("_Data")
_Answer = TypeVar("_Answer")


class _Success(msgspec.Struct, Generic[_Data]):
    """A good answer. `warnings`: what is in it may not be all there is (Thanos, Mimir)."""

    status: Literal["success"]
    data: _Data
    warnings: list[str] | None = None


class _Refusal(msgspec.Struct):
    """What else it says."""

    error: str = ""


class _Declared(msgspec.Struct):
    """What a family was declared as."""

    type: str


class _Matrix(msgspec.Struct, rename="camel"):
    """The raw samples of a range."""

    result_type: Literal["matrix"]
    result: list[Series]


@dataclass(frozen=True)
class Samples:
    """Raw samples, and the server's warnings that there may be more than these."""

    series: list[Series]
    warnings: list[str]


@dataclass(frozen=True)
class Prometheus:
    """One server. `pause` waits between attempts, so that tests need not."""

    client: httpx.Client
    pause: Callable[[float], None] = time.sleep

    @property
    def address(self) -> str:
        """Where it is, for messages and notes: without credentials."""
        return address(self.client)

    def names(self, time_range: TimeRange) -> list[str]:
        """The metric names with samples in the range."""
        found = self._get(
            "/api/v1/label/__name__/values",
            {"start": _seconds(time_range.start), "end": _seconds(time_range.end)},
            list[str],
        )
        return sorted(found)

    def kinds(self) -> dict[str, str]:
        """What each family was declared as; empty for a server that does not keep it."""
        try:
            found = self._get("/api/v1/metadata", {}, dict[str, list[_Declared]])
        except SourceError:
            return {}  # Thanos and Mimir may not have it; names and the catalogue must do
        return {name: entries[0].type for name, entries in found.items() if entries}

    def samples(self, names: Sequence[str], time_range: TimeRange) -> Samples:
        """The raw samples of these metrics in [start, end): Prometheus' `matrix`.

        Ranges are open at the left in Prometheus 3 and closed before: there, the last sample of the
        hour before may come twice.
        """
        escaped = "|".join(re.escape(name).replace("\\", "\\\\") for name in names)
        length_ms = int(time_range.seconds * 1000)
        question = {
            "query": f'{{__name__=~"{escaped}"}}[{length_ms}ms]',
            "time": _seconds(time_range.end - timedelta(milliseconds=1)),
        }
        found = self._asked(
            lambda: self.client.post("/api/v1/query", data=question), _Success[_Matrix]
        )
        return Samples(found.data.result, found.warnings or [])

    def _get(self, path: str, params: Mapping[str, str], data: type[_Data]) -> _Data:
        def ask() -> httpx.Response:
            return self.client.get(path, params=params, timeout=_QUESTION_SECONDS)

        return self._asked(ask, _Success[data]).data  # type: ignore[valid-type]

    def _asked(self, ask: Callable[[], httpx.Response], shape: type[_Answer]) -> _Answer:
        def answered() -> _Answer:
            with transport_errors(self.address):
                response = ask()
            _require_success(response, self.address)
            return decoded(response.content, shape, at=self.address, dialect="Prometheus")

        return with_retries(answered, self.pause)


def _require_success(response: httpx.Response, at: str) -> None:
    """Every status but 200 as an error that says what to do."""
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


def read_prometheus(
    server: Prometheus,
    time_range: TimeRange,
    *,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Rows:
    """The canonical rows of a range, and the last sample before it of every series in it.

    SourceError where the server has no vLLM series then.
    """
    wide = TimeRange(time_range.start - LOOKBACK, time_range.end)
    found = families(server.names(wide), server.kinds())
    questions = list(_questions(found, wide))
    reader = SeriesReader(found)
    for done, (names, time_range) in enumerate(questions, start=1):
        found_samples = server.samples(names, time_range)
        reader.add(found_samples.series)
        reader.warn(found_samples.warnings)
        progress(done, len(questions))
    return cut(reader.rows(), time_range)


def _questions(found: Families, wide: TimeRange) -> Iterator[tuple[list[str], TimeRange]]:
    together = [
        list(found.scalars[at : at + _TOGETHER]) for at in range(0, len(found.scalars), _TOGETHER)
    ]
    together += [[base + suffix for suffix in HISTOGRAM_PARTS] for base in found.histograms]
    start = wide.start
    while start < wide.end:
        time_range = TimeRange(start, min(start + _SLICE, wide.end))
        yield from ((names, time_range) for names in together)
        start = time_range.end


def _seconds(moment: datetime) -> str:
    return f"{microseconds(moment) / 1e6:.3f}"
