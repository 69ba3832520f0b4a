"""Prometheus' text exposition, as vLLM writes it, into canonical rows.

One scrape is good or failed as a whole, as in Prometheus itself: text that does not parse or was
cut short, and an answer other than 200, leave `up` 0 and nothing else. Classic text counts buckets
cumulatively (`le`); behind this border they are per bucket.
"""

from __future__ import annotations

import json
import math
from codecs import getincrementaldecoder
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

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
DAMAGED: Final = "saved scrapes"  # what a finding on damage in their file is about
_OPEN_METRICS: Final = "application/openmetrics-text"
_LAYOUTS_KEPT: Final = 2  # of a target; a child that comes and goes needs two
_BUFFERED_ROWS: Final = 100_000  # about an hour of an engine
_READ_BYTES: Final = 1024 * 1024
_LONGEST_LINE_BYTES: Final = 512 * 1024 * 1024  # a saved scrape of over a million series


@dataclass(frozen=True)
class Scrape:
    """One attempt to read a target's `/metrics`.

    `labels` are those of the target, as whoever scrapes it gave them. Where it failed, `text` is
    empty and `error`, if it is known, says why. `t_unix_seconds` is what the clock of the scraper
    said, which may be set in between. Where it keeps a steady clock, too, `at_seconds` are counted
    by that since its run began, when the first said `run_unix_seconds`.
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
    """The text of an answer's body; ParseError where it is no text, or was cut short."""
    try:
        text = content.decode()
    except UnicodeDecodeError:
        raise ParseError("Not Prometheus text: it is not UTF-8.") from None
    if "\0" in text:
        raise ParseError("Not Prometheus text: it holds zero bytes.")
    _require_end(text, content_type)
    return text


def _require_end(text: str, content_type: str = "") -> None:
    """ParseError unless the text ends as its format says: "1150" may have been going to be 1150000.

    Classic text ends with a line feed, OpenMetrics with `# EOF`.
    """
    is_ended = text.rstrip("\n").endswith("\n# EOF")
    if content_type.lower().startswith(_OPEN_METRICS) and not is_ended:
        raise ParseError("Not whole Prometheus text: it was cut short, its # EOF is missing.")
    if text and not text.endswith("\n") and not is_ended:
        raise ParseError("Not whole Prometheus text: it was cut short in its last line.")


def parse_families(text: str) -> list[Family]:
    """The metric families of one exposition; ParseError where any line is not of the format.

    ParseError, too, where it ends in the middle of a line, or holds no metric.
    """
    _require_end(text)
    try:
        families = list(text_string_to_metric_families(text))
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, ArithmeticError) as error:
        # The library signals a broken line by any of these, depending on where it is broken.
        raise ParseError(f"Not Prometheus text: {error}") from error
    if not families:
        raise ParseError("Not Prometheus text: there is no metric in it.")
    return families


@dataclass
class ScrapeReader:
    """Feeds scrapes, in any order, into a `RowBuffer`.

    Of every target the latest layouts are known: few texts have to be parsed. Whenever the buffer
    is full, its rows go to `spool`.
    """

    buffer: RowBuffer = field(default_factory=RowBuffer)
    spool: Held | Spool = field(default_factory=Held)
    good: int = 0
    failed: int = 0
    last_attempt_us: dict[str, int] = field(default_factory=dict)
    _steady: list[SteadyTime] = field(default_factory=list)
    _known: dict[str, deque[TargetRows]] = field(default_factory=dict)

    def rows(self) -> RowsInParts:
        """The canonical rows of the scrapes, at the times that a steady clock tells, if any."""
        self.spool.add(*self.buffer.take())
        rows = self.buffer.rows()
        return by_steady_clock(
            RowsInParts(rows.series, self.spool.parts, rows.ingest_notes), self._steady
        )

    def add(self, scrape: Scrape) -> None:
        """One scrape: its samples where it is good, `up` in any case."""
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
        """The values of a good scrape, and what makes rows of them; None, noted, for a failed one.

        Only a text of a layout that its target did not have lately needs to be parsed.
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
        """Takes in that a stretch of the saved file cannot be read."""
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

    One object a line: `t` Unix seconds, `target`, `status`, `text`, and, if known, `dur` (seconds),
    `run` and `at` (a steady clock), `ctype` (the content type), `err` (why it failed) and `labels`
    (of the target, an object of texts); other keys are ignored. What is damaged or cut is left out,
    and `lost` is told of it.
    """
    for number, line in enumerate(_lines(path, lost), start=1):
        if line.strip():
            yield scrape_of(line, path, number)


def _lines(path: Path, lost: Callable[[Damage], None]) -> Iterator[bytes]:
    """The lines that are whole; `lost` is told of those that damage or the end of the file cuts."""
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
            raise InputError(f"{path} is not saved scrapes: a line of it is endless.")
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
    """Whether a line without its end is all of it; InputError where it is no text at all."""
    try:
        getincrementaldecoder("utf-8")().decode(line)  # a last character may be cut, too
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
    """Why a saved text is none to rest on; nothing where it is."""
    try:
        whole_text(text.encode(), content_type)
    except UnicodeEncodeError:  # half a surrogate pair, which JSON can hold
        return "Not Prometheus text: it is not UTF-8."
    except ParseError as error:
        return str(error)
    return ""


def scrape_of(line: bytes, path: Path, number: int) -> Scrape:
    """The scrape in a line of saved ones; InputError, naming file and line, where it is none."""
    try:
        row = json.loads(line)
    except UnicodeDecodeError:
        raise _no_text(path) from None
    except (ValueError, RecursionError):
        raise InputError(
            f"{path}, line {number}, is not a JSON object. Expected one scrape a line: "
            '{"t": Unix seconds, "target": …, "status": 200, "text": "…"}.'
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
    """The labels of a target; none where they are no object of texts."""
    if not isinstance(value, dict) or not all(isinstance(each, str) for each in value.values()):
        return {}
    return value


def _number(value: object) -> float | None:
    """The JSON value where it is a finite number, else None."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number and math.isfinite(value) else None  # type: ignore[arg-type]


def _steady_clock(row: Mapping[str, object]) -> tuple[float | None, float | None]:
    """When its run began, and the seconds since by a steady clock; None where it keeps none."""
    run, at = _number(row.get("run")), _number(row.get("at"))
    is_kept = run is not None and at is not None and is_time(run) and 0 <= at < 1e11
    return (run, at) if is_kept else (None, None)


def read_scrapes(path: Path) -> Rows:
    """The canonical rows of a file of saved scrapes.

    InputError where the file is no such file, or not one of its scrapes holds a vLLM series.
    """
    return scrapes_in_parts(path, Held()).whole()


def scrapes_in_parts(path: Path, spool: Held | Spool) -> RowsInParts:
    """As `read_scrapes`, without all rows in memory at once: they wait in `spool`."""
    reader = ScrapeReader(spool=spool)
    for scrape in read_saved_scrapes(path, lost=reader.lost):
        reader.add(scrape)
    require_serving_series(reader, str(path))
    return reader.rows()


def provenance(rows: Rows | RowsInParts, *, kind: str, origin: str) -> dict[str, object]:
    """What a window made of scrapes says of where it came from."""
    up = rows.series.filter(rows.series["metric"] == "up")
    return {"source": {"kind": kind, "origin": origin}, "targets": sorted(up["instance"].to_list())}


def require_serving_series(reader: ScrapeReader, origin: str) -> None:
    """NoTelemetryError unless the scrapes hold a series of a serving framework we know."""
    if reader.good + reader.failed == 0:
        raise NoTelemetryError(f"{origin} holds no scrape at all.")
    if not reader.buffer.has_serving_series():
        raise NoTelemetryError(
            f"{origin} holds no vLLM series ({reader.good} good and {reader.failed} failed "
            "scrapes). "
            "Check that the target is vLLM's /metrics and that --disable-log-stats is off."
        )
