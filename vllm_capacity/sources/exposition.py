"""Converts Prometheus' text exposition, as vLLM writes it, to canonical rows.

As in Prometheus itself, a scrape succeeds or fails as a whole: if the text does not parse or was
cut short, or the status is not 200, the only row is `up` = 0. Buckets are cumulative (`le`) in
classic text; after ingestion they are per bucket.
"""

from __future__ import annotations

import json
import math
from codecs import getincrementaldecoder
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Final

from msgspec import Struct, field
from prometheus_client import Metric as Family
from prometheus_client.parser import text_string_to_metric_families

from vllm_capacity.errors import InputError, NoTelemetryError, ParseError, plain
from vllm_capacity.sources.exposition_layout import Floats, Layout, values_of
from vllm_capacity.sources.exposition_rows import TargetRows, is_time
from vllm_capacity.sources.gzip_members import Damage, is_gzip, pieces
from vllm_capacity.telemetry.parts import Held, RowsInParts, Spool
from vllm_capacity.telemetry.processes import TARGET_INFO
from vllm_capacity.telemetry.rows import RowBuffer, Rows, SeriesKey
from vllm_capacity.telemetry.steady import SteadyTime, by_steady_clock

# Classic text first: some client libraries write wrong TYPE lines when OpenMetrics is negotiated.
ACCEPT: Final = {"Accept": "text/plain;version=0.0.4;q=1,*/*;q=0.1"}
DAMAGED: Final = "saved scrapes"  # subject of findings about a damaged file
_OPEN_METRICS: Final = "application/openmetrics-text"
_LAYOUTS_KEPT: Final = 2  # per target; two, because optional series come and go
_BUFFERED_ROWS: Final = 100_000  # about an hour of one engine
_READ_BYTES: Final = 1024 * 1024
_LONGEST_LINE_BYTES: Final = 512 * 1024 * 1024  # a saved scrape of over a million series


class Scrape(Struct, frozen=True):
    """One attempt to scrape a target's `/metrics`.

    `labels` are the target's, as given to the scraper. After a failure, `text` is empty and
    `error`, if known, says why. `t_unix_seconds` is the scraper's system clock, which may be
    changed during a run. If the scraper also has a monotonic clock, `at_seconds` is its time since
    the run began, and `run_unix_seconds` the system clock at that moment.
    """

    t_unix_seconds: float
    target: str
    status: int
    text: str
    seconds: float | None = None
    run_unix_seconds: float | None = None
    at_seconds: float | None = None
    error: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)

    @property
    def ts_us(self) -> int:
        """The sample time in microseconds since the epoch."""
        return round(self.t_unix_seconds * 1_000_000)


def whole_text(content: bytes, content_type: str = "") -> str:
    """The text of an answer's body; ParseError if it is not text or was cut short."""
    try:
        text = content.decode()
    except UnicodeDecodeError:
        raise ParseError("Not Prometheus text: it is not UTF-8.") from None
    if "\0" in text:
        raise ParseError("Not Prometheus text: it contains NUL bytes.")
    _require_end(text, content_type)
    return text


def _require_end(text: str, content_type: str = "") -> None:
    """ParseError unless the text ends as its format requires: a cut "1150" may have been 1150000.

    Classic text ends with a line feed, OpenMetrics with `# EOF`.
    """
    is_ended = text.rstrip("\n").endswith("\n# EOF")
    if content_type.lower().startswith(_OPEN_METRICS) and not is_ended:
        raise ParseError("Incomplete Prometheus text: it was cut short, its # EOF is missing.")
    if text and not text.endswith("\n") and not is_ended:
        raise ParseError("Incomplete Prometheus text: it was cut short in its last line.")


def parse_families(text: str) -> list[Family]:
    """The metric families of one exposition.

    ParseError if a line is invalid, if the text ends in the middle of a line, or if it has no
    metric.
    """
    _require_end(text)
    try:
        families = list(text_string_to_metric_families(text))
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, ArithmeticError) as error:
        # The library raises any of these for a broken line, depending on where it is broken.
        raise ParseError(f"Not Prometheus text: {error}") from error
    if not families:
        raise ParseError("Not Prometheus text: it contains no metric.")
    return families


class ScrapeReader(Struct):
    """Adds scrapes, in any order, to a `RowBuffer`.

    It remembers each target's latest layouts, so that few texts have to be parsed. When the buffer
    is full, its rows move to `spool`.
    """

    buffer: RowBuffer = field(default_factory=RowBuffer)
    spool: Held | Spool = field(default_factory=Held)
    good: int = 0
    failed: int = 0
    last_attempt_us: dict[str, int] = field(default_factory=dict)
    _steady: list[SteadyTime] = field(default_factory=list)
    _known: dict[str, deque[TargetRows]] = field(default_factory=dict)

    def rows(self) -> RowsInParts:
        """The canonical rows of the scrapes, timed by the monotonic clock if there is one."""
        self.spool.add(*self.buffer.take())
        rows = self.buffer.rows()
        return by_steady_clock(
            RowsInParts(rows.series, self.spool.parts, rows.ingest_notes), self._steady
        )

    def add(self, scrape: Scrape) -> None:
        """Add one scrape: always `up`, and its samples if it succeeded."""
        self._settle_order(scrape)
        reading = self._reading(scrape)
        is_up = reading is not None
        self.buffer.scrape(scrape.target, scrape.ts_us, is_up=is_up, seconds=scrape.seconds)
        self.good, self.failed = self.good + is_up, self.failed + (not is_up)
        if scrape.run_unix_seconds is not None and scrape.at_seconds is not None:
            run_us, at_us = (
                round(each * 1e6) for each in (scrape.run_unix_seconds, scrape.at_seconds)
            )
            arrival = self.good + self.failed
            self._steady.append((scrape.target, arrival, scrape.ts_us, run_us, at_us))
        if scrape.labels:
            self._add_labels(scrape)
        if reading is not None:
            rows, values = reading
            rows.add(scrape.ts_us, values, lambda family, what: self._note(scrape, family, what))
        if self.buffer.height >= _BUFFERED_ROWS:
            self.spool.add(*self.buffer.take())

    def _add_labels(self, scrape: Scrape) -> None:
        own = tuple(sorted(scrape.labels.items()))
        key = SeriesKey(TARGET_INFO, "info", scrape.target, labels=own)
        series_id = self.buffer.series(key, exposed=TARGET_INFO)
        self.buffer.sample(series_id, scrape.ts_us, 1.0)

    def _reading(self, scrape: Scrape) -> tuple[TargetRows, Floats] | None:
        """The values of a good scrape and the object that makes rows; None, and a note, otherwise.

        Text is parsed only if its layout is not one of the target's recent ones.
        """
        if scrape.status != 200 or scrape.error:
            self._note(scrape, "failed scrape", scrape.error or _cause(scrape.status), "failed")
            return None
        lines = scrape.text.split("\n")
        known = self._known.setdefault(scrape.target, deque(maxlen=_LAYOUTS_KEPT))
        for rows in known:
            values = rows.layout.values(lines)
            if values is not None:
                return rows, values
        try:
            families = parse_families(scrape.text)
        except ParseError as error:
            self._note(scrape, "unparsable scrape", str(error))
            return None
        known.appendleft(
            TargetRows.of(scrape.target, Layout.of(scrape.text, families), self.buffer)
        )
        return known[0], values_of(families)

    def _settle_order(self, scrape: Scrape) -> None:
        newest = self.last_attempt_us.get(scrape.target, scrape.ts_us)
        if scrape.ts_us < newest:
            seconds = (newest - scrape.ts_us) / 1e6
            self.buffer.note(
                "late",
                subject=scrape.target,
                detail=f"a scrape {seconds:.3g} s older than the one before it",
                instance=scrape.target,
                ts_us=scrape.ts_us,
            )
        self.last_attempt_us[scrape.target] = max(newest, scrape.ts_us)

    def lost(self, damage: Damage) -> None:
        """Add a note that part of the saved file cannot be read."""
        self.buffer.note("coverage", subject=DAMAGED, detail=plain(damage))

    def _note(self, scrape: Scrape, subject: str, detail: str, check: str = "coverage") -> None:
        self.buffer.note(
            check,
            subject=subject,
            detail=plain(detail)[:300],
            instance=scrape.target,
            ts_us=scrape.ts_us,
        )


def _cause(status: int) -> str:
    return f"HTTP {status}" if status else "no answer"


def read_saved_scrapes(
    path: Path, *, lost: Callable[[Damage], None] = lambda damage: None
) -> Iterator[Scrape]:
    """The scrapes of a saved file: JSON lines, gzip or plain.

    One object per line: `t` (Unix seconds), `target`, `status`, `text`, and, if known, `dur`
    (seconds), `run` and `at` (a monotonic clock), `ctype` (content type), `err` (why it failed) and
    `labels` (of the target, string values); other keys are ignored. Damaged or cut parts are
    skipped and reported to `lost`.
    """
    for number, line in enumerate(_lines(path, lost), start=1):
        if line.strip():
            yield scrape_of(line, path, number)


def _lines(path: Path, lost: Callable[[Damage], None]) -> Iterator[bytes]:
    """The complete lines; `lost` is called for lines cut by damage or by the end of the file."""
    pending = bytearray()
    for piece in _pieces(path):
        if isinstance(piece, Damage):
            pending.clear()
            lost(piece)
            continue
        pending += piece
        if b"\n" in piece:
            *lines, rest = bytes(pending).split(b"\n")
            yield from lines
            pending = bytearray(rest)
        if len(pending) > _LONGEST_LINE_BYTES:
            raise InputError(f"{path} is not saved scrapes: one of its lines is too long.")
    if pending and _is_whole(pending, path):
        yield bytes(pending)
    elif pending:
        lost(Damage(path.name, "its last line is cut short; it is left out"))


def _pieces(path: Path) -> Iterator[bytes | Damage]:
    if not path.is_file():
        raise InputError(f"No saved scrapes at {path}: there is no such file.")
    if is_gzip(path):
        yield from pieces(path)
        return
    with path.open("rb") as file:
        while piece := file.read(_READ_BYTES):
            yield piece


def _is_whole(line: bytes | bytearray, path: Path) -> bool:
    """Whether a line without a line feed is complete; InputError if it is not text at all."""
    try:
        getincrementaldecoder("utf-8")().decode(line)  # the last character may be cut
        json.loads(line)
    except UnicodeDecodeError:
        raise _no_text(path) from None
    except (ValueError, RecursionError):
        return False
    return True


def _no_text(path: Path) -> InputError:
    return InputError(
        f"{path} is not saved scrapes: it is not text. Expected JSON lines, gzip or plain."
    )


def _complaint(text: str, content_type: str) -> str:
    """Why a saved text cannot be used; empty if it can."""
    try:
        whole_text(text.encode(), content_type)
    except UnicodeEncodeError:  # half a surrogate pair, which JSON can hold
        return "Not Prometheus text: it is not UTF-8."
    except ParseError as error:
        return str(error)
    return ""


def scrape_of(line: bytes, path: Path, number: int) -> Scrape:
    """The scrape in a line of a saved file; InputError, with file and line, if it is invalid."""
    try:
        row = json.loads(line)
    except UnicodeDecodeError:
        raise _no_text(path) from None
    except (ValueError, RecursionError):
        raise InputError(
            f'{path}, line {number}, is not a JSON object. Expected one scrape per line: {{"t": '
            'Unix seconds, "target": …, "status": 200, "text": "…"}.'
        ) from None
    try:
        t, status = float(row["t"]), int(row["status"])
        target, text = str(row["target"]), str(row.get("text") or "")
        error, kind = str(row.get("err") or ""), str(row.get("ctype") or "")
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError):
        raise InputError(
            f"{path}, line {number}, is not a scrape: it needs t (Unix seconds), target and status."
        ) from None
    if not is_time(t):
        raise InputError(f"{path}, line {number}: t = {t} is not a time in Unix seconds.")
    if status == 200 and not error:
        error = _complaint(text, kind)
    steady = _steady_clock(row)
    labels = _labels(row.get("labels"))
    return Scrape(t, target, status, text, _number(row.get("dur")), *steady, error, labels)


def _labels(value: object) -> dict[str, str]:
    """The labels of a target; empty unless they are an object with string values."""
    if not isinstance(value, dict) or not all(isinstance(each, str) for each in value.values()):
        return {}
    return value


def _number(value: object) -> float | None:
    """The JSON value if it is a finite number, else None."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number and math.isfinite(value) else None  # type: ignore[arg-type]


def _steady_clock(row: Mapping[str, object]) -> tuple[float | None, float | None]:
    """When the run began, and the seconds since then by a monotonic clock; None if unknown."""
    run, at = _number(row.get("run")), _number(row.get("at"))
    is_kept = run is not None and at is not None and is_time(run) and 0 <= at < 1e11
    return (run, at) if is_kept else (None, None)


def read_scrapes(path: Path) -> Rows:
    """The canonical rows of a file of saved scrapes.

    InputError if it is not such a file, NoTelemetryError if no scrape has a vLLM series.
    """
    return scrapes_in_parts(path, Held()).whole()


def scrapes_in_parts(path: Path, spool: Held | Spool) -> RowsInParts:
    """Like `read_scrapes`, but keeps the rows in `spool` instead of all in memory."""
    reader = ScrapeReader(spool=spool)
    for scrape in read_saved_scrapes(path, lost=reader.lost):
        reader.add(scrape)
    require_serving_series(reader, str(path))
    return reader.rows()


def provenance(rows: Rows | RowsInParts, *, kind: str, origin: str) -> dict[str, object]:
    """The provenance of a window made from scrapes: source and targets."""
    up = rows.series.filter(rows.series["metric"] == "up")
    return {"source": {"kind": kind, "origin": origin}, "targets": sorted(up["instance"].to_list())}


def require_serving_series(reader: ScrapeReader, origin: str) -> None:
    """NoTelemetryError unless the scrapes have a series of a known serving framework."""
    if reader.good + reader.failed == 0:
        raise NoTelemetryError(f"{origin} has no scrapes.")
    if not reader.buffer.has_serving_series():
        raise NoTelemetryError(
            f"{origin} has no vLLM series ({reader.good} good and {reader.failed} failed "
            "scrapes). "
            "Check that the target is vLLM's /metrics and that --disable-log-stats is off."
        )
