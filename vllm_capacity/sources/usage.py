"""What gateways log of requests: whose it was, when, its tokens. A row per request, or per several.

LiteLLM's spend logs (the table LiteLLM_SpendLogs as CSV, JSON, JSON lines or Parquet), access logs
of the Envoy AI gateway (JSON lines) and of nginx (JSON, or text of a given `log_format`), and any
CSV or Parquet. What a column is called is told by `columns`, or found among the usual names.

A row that cannot be read is counted, with its line and the reason; it stops nothing. Keys are
hashed here, so that none goes any further, unless they are asked for.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import hmac
import io
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import polars as pl

from vllm_capacity.errors import InputError
from vllm_capacity.record import Record
from vllm_capacity.timerange import parse_instant

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
"""A row of a log: `cached_tokens` and `model` are null where the log does not say; `start` is `end`
where it has one time only; `requests` are how many it stands for."""

FIELDS: Mapping[str, tuple[str, ...]] = {
    "key": ("api_key", "key", "tenant", "tenant_id", "team", "team_id", "user"),
    "start": ("startTime", "start_time", "start"),
    "end": ("endTime", "end_time", "end", "time", "ts", "timestamp", "time_iso8601", "msec",
            "time_local"),
    "seconds": ("request_time", "duration_seconds"),
    "milliseconds": ("duration", "duration_ms"),
    "model": ("model", "gen_ai.response.model", "gen_ai.request.model", "model_group"),
    "prompt": ("prompt_tokens", "input_tokens", "gen_ai.usage.input_tokens", "prompt"),
    "cached": ("metadata.usage_object.prompt_tokens_details.cached_tokens", "cached_tokens",
               "gen_ai.usage.cache_read.input_tokens", "gen_ai.usage.cached_input_tokens",
               "cache_read_input_tokens", "cached"),
    "output": ("completion_tokens", "output_tokens", "gen_ai.usage.output_tokens", "output"),
    "requests": ("requests", "api_requests"),
}  # fmt: skip
"""What is read of a row, and how the usual logs call it; a dot reaches into an object."""

KEYS_SECRET = "VLLM_CAPACITY_KEYS_SECRET"
"""The variable of the environment with the secret that keys are hashed with."""
_ANSWERED_BY_GATEWAY = "cache_hit"  # LiteLLM's: the tokens are those of an earlier answer
_NOTHING = frozenset(("", "-", "null", "none", "nan"))
_EPOCH_UNITS = ((1e17, 1e9), (1e14, 1e6), (1e11, 1e3))
_MOST_TOKENS = 1e12
_EXAMPLES, _SHOWN = 5, 12
_HASHED = re.compile(r"[0-9a-f]{64}")
_NGINX_TIME = "%d/%b/%Y:%H:%M:%S %z"
_GZIP = b"\x1f\x8b"


@dataclass(frozen=True)
class Keys:
    """How keys are written: the first digits of a keyed hash, or as they are.

    Without a `secret` whoever guesses a key can check the guess. LiteLLM's are hashed already and
    keep their first digits, by which LiteLLM finds them.
    """

    secret: str = ""
    are_shown: bool = False
    _known: dict[str, str] = field(default_factory=dict, repr=False, compare=False)

    def written(self, key: str) -> str:
        """The key as it is shown."""
        if self.are_shown:
            return key
        if key not in self._known:
            self._known[key] = self._digest(key)
        return self._known[key]

    def _digest(self, key: str) -> str:
        if _HASHED.fullmatch(key) and not self.secret:
            return key[:_SHOWN]
        digest = hmac.new(self.secret.encode(), key.encode(), hashlib.sha256)
        return digest.hexdigest()[:_SHOWN]


@dataclass(frozen=True, repr=False)
class LogFile(Record):
    """What one log held: rows read, and those left out, each kind with its count.

    `malformed` rows could not be read, `examples` says why of the first. `without_tokens` are no
    answers of a model, or those of one that failed; `from_gateway_cache` never reached a server.
    """

    name: str
    rows: int
    malformed: int
    examples: tuple[str, ...]
    without_tokens: int
    from_gateway_cache: int


@dataclass(frozen=True)
class UsageLog:
    """The rows of one or several logs (`USAGE_SCHEMA`), and what was left out of each."""

    frame: pl.DataFrame
    files: tuple[LogFile, ...]


def pairs(text: str) -> dict[str, str]:
    """`a=b,c=d` as a mapping; empty for empty text. InputError for what is no such list."""
    found: dict[str, str] = {}
    for each in filter(None, (part.strip() for part in text.split(","))):
        name, equals, value = (part.strip() for part in each.partition("="))
        if not (name and equals and value) or name in found:
            raise InputError(f"Cannot read {text!r}; write NAME=VALUE,NAME=VALUE, each name once.")
        found[name] = value
    return found


def told_columns(columns: str | Mapping[str, str] | None) -> dict[str, str]:
    """What is said of a log's columns, by `FIELDS`; InputError for one that is not read."""
    told = pairs(columns) if isinstance(columns, str) else dict(columns or {})
    if unknown := told.keys() - FIELDS.keys():
        raise InputError(
            f"No column {', '.join(sorted(unknown))} is read of usage; these are: "
            f"{', '.join(FIELDS)}."
        )
    return told


def read_usage(
    paths: Sequence[Path],
    *,
    columns: str | Mapping[str, str] | None = None,
    log_format: str | None = None,
    keys: Keys | None = None,
) -> UsageLog:
    """The logs as one frame. `columns` says how they call what: "key=x-tenant".

    `log_format` is nginx's, where a log is its text. InputError for a file that cannot be read, or
    of which no row can be: it names the columns that there are.
    """
    told = told_columns(columns)
    written = keys or Keys()
    read = [_read_file(Path(path), told, log_format, written) for path in paths]
    if not read:
        raise InputError("Give at least one file of usage.")
    return UsageLog(pl.concat([frame for frame, _ in read]), tuple(file for _, file in read))


def _read_file(
    path: Path, told: Mapping[str, str], log_format: str | None, keys: Keys
) -> tuple[pl.DataFrame, LogFile]:
    rows = _Rows(path, _sources(told), keys)
    for line, row in _raw_rows(path, log_format):
        rows.add(line, row)
    return rows.frame(), rows.file()


def _sources(told: Mapping[str, str]) -> dict[str, tuple[tuple[str, ...], ...]]:
    """For each field the paths at which it may be, each whole and cut at its dots."""
    named = {name: (told[name],) if name in told else usual for name, usual in FIELDS.items()}
    return {
        name: tuple(
            path for each in usual for path in dict.fromkeys(((each,), tuple(each.split("."))))
        )
        for name, usual in named.items()
    }


class _Rows:
    """The rows of a file as columns, and a count of each kind left out."""

    def __init__(
        self, path: Path, sources: Mapping[str, tuple[tuple[str, ...], ...]], keys: Keys
    ) -> None:
        self._path, self._sources, self._keys = path, sources, keys
        self._columns: dict[str, list[Any]] = {name: [] for name in USAGE_SCHEMA}
        self._names: tuple[str, ...] = ()
        self._seen = self._malformed = self._without = self._from_cache = 0
        self._lacking: set[str] = set()
        self._examples: list[str] = []

    def add(self, line: int, row: Mapping[str, Any] | str) -> None:
        """A row, or the reason why its line is none."""
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
        value = {name: self._found(row, name) for name in self._sources}
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

    def _found(self, row: Mapping[str, Any], name: str) -> Any:  # noqa: ANN401  what JSON has
        for path in self._sources[name]:
            found = _at(row, path)
            if found is not None:
                return found
        return None

    def frame(self) -> pl.DataFrame:
        """The rows; InputError where none could be read, which says what the file has."""
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
            "--usage-columns prompt=NAME,output=NAME. What logs none cannot be shared out: nginx "
            "has them only where it is told to log them."
        )

    def file(self) -> LogFile:
        """What the file held."""
        return LogFile(
            self._path.name,
            len(self._columns["key"]),
            self._malformed,
            tuple(self._examples),
            self._without,
            self._from_cache,
        )


def _at(row: Any, path: tuple[str, ...]) -> Any:  # noqa: ANN401  what JSON has
    """What stands at the path, None for nothing; text that holds an object is read as one."""
    for name in path:
        if isinstance(row, str) and row.startswith("{"):
            try:
                row = json.loads(row)
            except ValueError:
                return None
        if not isinstance(row, Mapping) or name not in row:
            return None
        row = row[name]
    if row is None or isinstance(row, Mapping | list):
        return None
    return None if str(row).strip().lower() in _NOTHING else row


def _tokens(value: Any, what: str) -> float | None:  # noqa: ANN401  what JSON has
    if value is None:
        return None
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise ValueError(f"{what} {value!r} is no count") from None
    if isinstance(value, bool) or not 0 <= number <= _MOST_TOKENS:
        raise ValueError(f"{what} {value!r} is no count")
    return number


def _times(value: Mapping[str, Any]) -> tuple[datetime, datetime]:
    """When the request began and ended; one instant where no more is said."""
    start = None if value["start"] is None else _instant(value["start"])
    end = None if value["end"] is None else _instant(value["end"])
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


def _instant(value: Any) -> datetime:  # noqa: ANN401  what JSON has
    """An aware UTC instant from ISO 8601, a number since 1970, or nginx's local time."""
    if isinstance(value, datetime):
        return (value if value.tzinfo else value.replace(tzinfo=UTC)).astimezone(UTC)
    try:
        number = float(value)
    except (TypeError, ValueError):
        text = str(value).strip()
        try:
            return parse_instant(text)
        except InputError as error:
            try:
                return datetime.strptime(text.strip("[]"), _NGINX_TIME).astimezone(UTC)
            except ValueError:
                raise ValueError(str(error)) from None
    units = next((units for least, units in _EPOCH_UNITS if abs(number) >= least), 1.0)
    seconds = number / units
    if not (math.isfinite(seconds) and 0 < seconds < 7e9):
        raise ValueError(f"{value!r} is no time")
    return datetime.fromtimestamp(seconds, UTC)


# --- files ---------------------------------------------------------------------------------------


def _raw_rows(path: Path, log_format: str | None) -> Iterator[tuple[int, Mapping[str, Any] | str]]:
    """Each row with its line (of Parquet, its place); text instead of a row: why it is none."""
    try:
        if path.suffix == ".parquet":
            yield from enumerate(pl.read_parquet(path).iter_rows(named=True), 1)
            return
        raw = path.read_bytes()
        text = (gzip.decompress(raw) if raw.startswith(_GZIP) else raw).decode("utf-8-sig")
    except (OSError, EOFError, UnicodeDecodeError, pl.exceptions.PolarsError) as error:
        raise InputError(f"Cannot read {path}: {str(error).splitlines()[0]}") from None
    begin = text.lstrip()[:1]
    if not begin:
        raise InputError(f"{path} is empty.")
    if log_format is not None:
        yield from _formatted(text, log_format)
    elif begin == "[":
        yield from _json_array(text, path)
    elif begin == "{":
        yield from _json_lines(text)
    else:
        yield from _csv_rows(text, path)


def _json_array(text: str, path: Path) -> Iterator[tuple[int, Mapping[str, Any] | str]]:
    try:
        found = msgspec.json.decode(text)
    except msgspec.DecodeError as error:
        raise InputError(f"{path} is not JSON: {error}") from None
    yield from ((place, _object(each)) for place, each in enumerate(found, 1))


def _json_lines(text: str) -> Iterator[tuple[int, Mapping[str, Any] | str]]:
    decode = msgspec.json.Decoder().decode
    for line, each in enumerate(text.splitlines(), 1):
        if not each.strip():
            continue
        try:
            yield line, _object(decode(each))
        except msgspec.DecodeError as error:
            yield line, f"not JSON: {error}"


def _object(value: Any) -> Mapping[str, Any] | str:  # noqa: ANN401  what JSON has
    return value if isinstance(value, Mapping) else "no object"


def _csv_rows(text: str, path: Path) -> Iterator[tuple[int, Mapping[str, Any] | str]]:
    csv.field_size_limit(1 << 27)  # LiteLLM logs whole messages, where it is told to
    reader = csv.reader(io.StringIO(text, newline=""))
    try:
        head = [name.strip() for name in next(reader)]
        for row in reader:
            if len(row) == len(head):
                yield reader.line_num, dict(zip(head, row, strict=True))
            elif row:
                yield reader.line_num, f"{len(row)} cells under {len(head)} columns"
    except csv.Error as error:
        raise InputError(f"{path}, line {reader.line_num}: not CSV: {error}.") from None


def _formatted(text: str, log_format: str) -> Iterator[tuple[int, Mapping[str, Any] | str]]:
    """The lines of a text log by nginx's `log_format`: `$name` stands for what it logs there."""
    pattern = _pattern(log_format)
    for line, each in enumerate(text.splitlines(), 1):
        if each.strip():
            found = pattern.fullmatch(each.rstrip())
            yield line, "not of the log format" if found is None else found.groupdict()


def _pattern(log_format: str) -> re.Pattern[str]:
    pieces = re.split(r"\$(\w+)|\$\{(\w+)\}", log_format.strip())
    texts, names = pieces[0::3], [a or b for a, b in zip(pieces[1::3], pieces[2::3], strict=True)]
    if not names or len(set(names)) < len(names) or not all(map(str.isidentifier, names)):
        raise InputError(
            f"The log format {log_format!r} must name what it logs, each once, as nginx does: "
            "'$remote_addr [$time_local] \"$request\" $http_x_api_key'."
        )
    groups: Iterable[str] = (f"(?P<{name}>.*?)" for name in names)
    return re.compile(
        re.escape(texts[0])
        + "".join(g + re.escape(t) for g, t in zip(groups, texts[1:], strict=True))
    )
