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
from typing import Any

import httpx

from vllm_capacity.errors import SourceError
from vllm_capacity.sources.asking import BUSY, TransientError, accidents, address, again
from vllm_capacity.sources.parquet import LOOKBACK, cut
from vllm_capacity.sources.prometheus_rows import (
    HISTOGRAM_PARTS,
    Families,
    SeriesReader,
    families,
)
from vllm_capacity.telemetry.rows import Rows, microseconds
from vllm_capacity.timerange import TimeRange

_SLICE = timedelta(hours=1)
_TOGETHER = 8  # scalar families asked for in one query


@dataclass(frozen=True)
class Prometheus:
    """One server. `pause` waits between attempts, so that tests need not."""

    client: httpx.Client
    pause: Callable[[float], None] = time.sleep

    @property
    def address(self) -> str:
        """Where it is, for messages and notes: without credentials."""
        return address(self.client)

    def names(self, part: TimeRange) -> list[str]:
        """The metric names with samples in the range."""
        found = self._data(
            "/api/v1/label/__name__/values",
            {"start": _seconds(part.start), "end": _seconds(part.end)},
        )
        return sorted(found)

    def kinds(self) -> dict[str, str]:
        """What each family was declared as; empty for a server that does not keep it."""
        try:
            found = self._data("/api/v1/metadata", {})
        except SourceError:
            return {}  # Thanos and Mimir may not have it; names and the catalogue must do
        return {name: entries[0]["type"] for name, entries in found.items() if entries}

    def samples(self, names: Sequence[str], part: TimeRange) -> list[dict[str, Any]]:
        """The raw samples of these metrics in [start, end): Prometheus' `matrix`.

        Ranges are open at the left in Prometheus 3 and closed before: there, the last sample of the
        hour before may come twice.
        """
        escaped = "|".join(re.escape(name).replace("\\", "\\\\") for name in names)
        length_ms = int(part.seconds * 1000)
        found = self._data(
            "/api/v1/query",
            {
                "query": f'{{__name__=~"{escaped}"}}[{length_ms}ms]',
                "time": _seconds(part.end - timedelta(milliseconds=1)),
            },
        )
        return list(found["result"])

    def _data(self, path: str, params: Mapping[str, str]) -> Any:  # noqa: ANN401  JSON
        def ask() -> Any:  # noqa: ANN401
            with accidents(self.address):
                if path.endswith("/query"):
                    response = self.client.post(path, data=dict(params))
                else:
                    response = self.client.get(path, params=params)
            return _content(response, self.address)

        return again(ask, self.pause)


def _content(response: httpx.Response, at: str) -> Any:  # noqa: ANN401
    """What a good answer holds; everything else as an error that says what to do."""
    status = response.status_code
    if status in (401, 403):
        raise SourceError(
            f"{at} refused the credentials ({status}). Set PROMETHEUS_USER and "
            "PROMETHEUS_PASSWORD, or PROMETHEUS_TOKEN."
        )
    try:
        answer = response.json()
    except ValueError:
        answer = {}
    text = " ".join(str(answer.get("error") or response.text).split())[:300]
    if status in BUSY:
        raise TransientError(f"{at} is not ready ({status}): {text}")
    if status == 422:
        raise SourceError(f"{at} could not run the query: {text}. Ask for a shorter range.")
    if status != 200 or answer.get("status") != "success":
        raise SourceError(f"{at} does not answer as Prometheus does ({status}): {text}")
    return answer["data"]


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
    for done, (names, part) in enumerate(questions, start=1):
        reader.add(server.samples(names, part))
        progress(done, len(questions))
    return cut(reader.rows(), time_range)


def _questions(found: Families, wide: TimeRange) -> Iterator[tuple[list[str], TimeRange]]:
    together = [
        list(found.scalars[at : at + _TOGETHER]) for at in range(0, len(found.scalars), _TOGETHER)
    ]
    together += [[base + suffix for suffix in HISTOGRAM_PARTS] for base in found.histograms]
    start = wide.start
    while start < wide.end:
        part = TimeRange(start, min(start + _SLICE, wide.end))
        yield from ((names, part) for names in together)
        start = part.end


def _seconds(moment: datetime) -> str:
    return f"{microseconds(moment) / 1e6:.3f}"
