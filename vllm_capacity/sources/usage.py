"""Reads gateway logs: key, time and tokens of requests, one row per request or per several.

LiteLLM's spend logs (the table LiteLLM_SpendLogs as CSV, JSON, JSON lines or Parquet), access logs
of the Envoy AI gateway (JSON lines) and of nginx (JSON, or text in a given `log_format`), and any
CSV or Parquet. Column names come from `columns` or are found among common names.

Unreadable rows are counted and skipped, with line and reason. Keys are hashed here, so that none
is passed on, unless requested.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
from msgspec import Struct

from vllm_capacity.errors import InputError
from vllm_capacity.record import Record
from vllm_capacity.sources.records import (
    Sources,
    found,
    given_columns,
    instant,
    raw_rows,
    sources,
)

USAGE_SCHEMA: dict[str, Any] = {
    "key": pl.String,
    "model": pl.String,
    "start": pl.Datetime("us", "UTC"),
    "end": pl.Datetime("us", "UTC"),
    "prompt_tokens": pl.Float64,
    "cached_tokens": pl.Float64,
    "output_tokens": pl.Float64,
    "requests": pl.Float64,
}
"""A row of a log: `cached_tokens` and `model` are null if not logged; `start` equals `end` if the
log has only one time; `requests` is the number of requests that the row covers."""

FIELDS: Mapping[str, tuple[str, ...]] = {
    "key": ("api_key", "key", "tenant", "tenant_id", "team", "team_id", "user"),
    "start": ("startTime", "start_time", "start"),
    "end": ("endTime", "end_time", "end", "time", "ts", "timestamp", "time_iso8601", "msec",
            "time_local"),
    "seconds": ("request_time", "duration_seconds"),
    "milliseconds": ("duration", "duration_ms"),
    "model": ("model", "gen_ai.response.model", "gen_ai.request.model", "genai_model_name",
              "model_group"),
    "prompt": ("prompt_tokens", "input_tokens", "gen_ai.usage.input_tokens", "genai_tokens_input",
               "llm_input_token", "prompt"),
    "cached": ("metadata.usage_object.prompt_tokens_details.cached_tokens",
               "metadata.additional_usage_values.prompt_tokens_details.cached_tokens",
               "cached_tokens", "gen_ai.usage.cache_read.input_tokens",
               "gen_ai.usage.cached_input_tokens", "llm_cached_input_token", "cached"),
    "output": ("completion_tokens", "output_tokens", "gen_ai.usage.output_tokens",
               "genai_tokens_output", "llm_output_token", "output"),
    "requests": ("requests", "api_requests"),
}  # fmt: skip
"""The fields that are read, with their names in common logs; a dot reaches into an object.

LiteLLM's cache_read_input_tokens is not used, because it is 0 when unknown."""

KEYS_SECRET = "VLLM_CAPACITY_KEYS_SECRET"
"""The environment variable with the secret for hashing keys."""
_ANSWERED_BY_GATEWAY = "cache_hit"  # LiteLLM's: tokens are those of an earlier answer
_MAX_TOKENS = 1e12
_EXAMPLES, _SHOWN = 5, 12
_HASHED = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Keys:
    """How keys are shown: as the first digits of a keyed hash, or unchanged.

    Without a `secret`, anyone who guesses a key can verify the guess. LiteLLM's keys are already
    hashed and keep their first digits, by which they can be found in LiteLLM.
    """

    secret: str = ""
    are_shown: bool = False
    _known: dict[str, str] = field(default_factory=dict, repr=False, compare=False)
    _taken: set[str] = field(default_factory=set, repr=False, compare=False)

    def written(self, key: str) -> str:
        """The key as shown; different keys are shown differently."""
        if self.are_shown:
            return key
        if key not in self._known:
            digest = self._digest(key)
            shown = digest[:_SHOWN]
            self._known[key] = digest if shown in self._taken else shown
            self._taken.add(shown)
        return self._known[key]

    def _digest(self, key: str) -> str:
        if _HASHED.fullmatch(key) and not self.secret:
            return key
        return hmac.new(self.secret.encode(), key.encode(), hashlib.sha256).hexdigest()


class LogFile(Record, frozen=True):
    """The contents of one log: the number of rows read, and of rows left out, by kind.

    `malformed` rows could not be read; `examples` has the first reasons. `without_tokens` rows are
    not a model's answers, or failed; `from_gateway_cache` rows never reached a server.
    """

    name: str
    rows: int
    malformed: int
    examples: tuple[str, ...]
    without_tokens: int
    from_gateway_cache: int


class UsageLog(Struct, frozen=True):
    """The rows of one or more logs (`USAGE_SCHEMA`), and what was left out of each."""

    frame: pl.DataFrame
    files: tuple[LogFile, ...]


def read_usage(
    paths: Sequence[Path],
    *,
    columns: str | Mapping[str, str] | None = None,
    log_format: str | None = None,
    keys: Keys | None = None,
) -> UsageLog:
    """The logs as one frame; `columns` maps fields to their columns: "key=x-tenant".

    `log_format` is nginx's, for a text log. InputError if a file cannot be read or has no readable
    row; it lists the file's columns.
    """
    given = given_columns(columns, FIELDS)
    written = keys or Keys()
    read = [_read_file(Path(path), given, log_format, written) for path in paths]
    if not read:
        raise InputError("Give at least one usage file.")
    return UsageLog(pl.concat([frame for frame, _ in read]), tuple(file for _, file in read))


def _read_file(
    path: Path, given: Mapping[str, str], log_format: str | None, keys: Keys
) -> tuple[pl.DataFrame, LogFile]:
    rows = _Rows(path, sources(FIELDS, given), keys)
    for line, row in raw_rows(path, log_format):
        rows.add(line, row)
    return rows.frame(), rows.file()


class _Rows:
    """The rows of a file as columns, and a count of each kind left out."""

    def __init__(self, path: Path, paths: Sources, keys: Keys) -> None:
        self._path, self._sources, self._keys = path, paths, keys
        self._columns: dict[str, list[Any]] = {name: [] for name in USAGE_SCHEMA}
        self._names: tuple[str, ...] = ()
        self._seen = self._malformed = self._without = self._from_cache = 0
        self._lacking: set[str] = set()
        self._examples: list[str] = []

    def add(self, line: int, row: Mapping[str, Any] | str) -> None:
        """Add a row, or the reason why its line is unreadable."""
        self._seen += 1
        try:
            if isinstance(row, str):
                raise ValueError(row)
            self._names = self._names or tuple(map(str, row))
            self._add(row)
        except ValueError as error:
            self._malformed += 1
            if len(self._examples) < _EXAMPLES:
                self._examples.append(f"line {line}: {error}")

    def _add(self, row: Mapping[str, Any]) -> None:
        value = {name: found(row, paths) for name, paths in self._sources.items()}
        if value["prompt"] is None and value["output"] is None:
            self._without += 1
            return
        if str(row.get(_ANSWERED_BY_GATEWAY, "")).lower() == "true":
            self._from_cache += 1
            return
        prompt, output = (
            _tokens(value["prompt"], "prompt") or 0.0,
            _tokens(value["output"], "output"),
        )
        cached = _tokens(value["cached"], "cached")
        if cached is not None and cached > prompt:
            raise ValueError(f"{cached:g} cached tokens of a prompt of {prompt:g}")
        requests = _tokens(value["requests"], "requests")
        if requests == 0:
            raise ValueError("a row that stands for 0 requests")
        start, end = _times(value)
        if value["key"] is None:
            raise ValueError("it has no key")
        added = (
            self._keys.written(str(value["key"])),
            None if value["model"] is None else str(value["model"]),
            start,
            end,
            prompt,
            cached,
            output or 0.0,
            1.0 if requests is None else requests,
        )
        for column, each in zip(self._columns.values(), added, strict=True):
            column.append(each)

    def frame(self) -> pl.DataFrame:
        """The rows; InputError, with the file's columns, if none could be read."""
        frame = pl.DataFrame(self._columns, schema=USAGE_SCHEMA)
        if frame.is_empty() and self._seen and not self._from_cache:
            raise InputError(self._nothing())
        return frame

    def _nothing(self) -> str:
        has = f"It has: {', '.join(self._names[:40])}." if self._names else "It has no fields."
        if self._malformed:
            return f"No row of {self._path} can be read; {self._examples[0]}. {has}"
        return (
            f"{self._path} has no token counts. {has} Say which columns they are with "
            "--usage-columns prompt=NAME,output=NAME. Without token counts, cost cannot be "
            "allocated. nginx logs them only if its log format names them."
        )

    def file(self) -> LogFile:
        """The counts of rows in the file."""
        return LogFile(
            self._path.name,
            len(self._columns["key"]),
            self._malformed,
            tuple(self._examples),
            self._without,
            self._from_cache,
        )


def _tokens(value: Any, what: str) -> float | None:  # noqa: ANN401  what JSON has
    if value is None:
        return None
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise ValueError(f"{what} {value!r} is not a count") from None
    if isinstance(value, bool) or not 0 <= number <= _MAX_TOKENS:
        raise ValueError(f"{what} {value!r} is not a count")
    return number


def _times(value: Mapping[str, Any]) -> tuple[datetime, datetime]:
    """When the request began and ended; the same time if only one is known."""
    start = None if value["start"] is None else instant(value["start"])
    end = None if value["end"] is None else instant(value["end"])
    length = _tokens(value["seconds"], "seconds")
    if length is None and (milli := _tokens(value["milliseconds"], "milliseconds")) is not None:
        length = milli / 1e3
    took = timedelta(seconds=min(length or 0.0, 86_400.0))
    if end is None:
        if start is None:
            raise ValueError("it has no time")
        return start, start + took
    if start is None:
        return end - took, end
    if end < start:
        raise ValueError(f"it ends at {value['end']} before it begins at {value['start']}")
    return start, end
