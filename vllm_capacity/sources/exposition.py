"""Prometheus' text exposition, as vLLM writes it, into canonical rows.

One scrape is good or failed as a whole, as in Prometheus itself: text that does not parse or was
cut short, and an answer other than 200, leave `up` 0 and nothing else. Classic text counts buckets
cumulatively (`le`); behind this border they are per bucket.
"""

from __future__ import annotations

import json
import math
from codecs import getincrementaldecoder
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Final

from prometheus_client import Metric as Family
from prometheus_client.parser import text_string_to_metric_families

from vllm_capacity.errors import InputError, NoTelemetryError, ParseError, plain
from vllm_capacity.facts.metrics import keeps
from vllm_capacity.sources.gzip_members import Damage, is_gzip, pieces
from vllm_capacity.sources.otlp import Wire
from vllm_capacity.telemetry.rows import RowBuffer, Rows, SeriesKey
from vllm_capacity.telemetry.steady import SteadyTime, by_steady_clock

Labels = tuple[tuple[str, str], ...]

# Classic text first: some client libraries write wrong TYPE lines when OpenMetrics is negotiated.
ACCEPT: Final = {"Accept": "text/plain;version=0.0.4;q=1,*/*;q=0.1"}
DAMAGED: Final = "saved scrapes"  # what a finding on damage in their file is about
_PROCESS_START: Final = "process_start_time_seconds"
_OPEN_METRICS: Final = "application/openmetrics-text"
_READ_BYTES: Final = 1024 * 1024
_LONGEST_LINE_BYTES: Final = 512 * 1024 * 1024  # a saved scrape of over a million series


@dataclass(frozen=True)
class Scrape:
    """One attempt to read a target's `/metrics`.

    Where it failed, `text` is empty and `error`, if it is known, says why. `t_unix_seconds` is what
    the clock of the scraper said, which may be set in between. Where it keeps a steady clock, too,
    `at_seconds` are counted by that since its run began, when the first said `run_unix_seconds`.
    """

    t_unix_seconds: float
    target: str
    status: int
    text: str
    seconds: float | None = None
    run_unix_seconds: float | None = None
    at_seconds: float | None = None
    error: str = ""

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
    except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        # The library signals a broken line by any of these, depending on where it is broken.
        raise ParseError(f"Not Prometheus text: {error}") from error
    if not families:
        raise ParseError("Not Prometheus text: there is no metric in it.")
    return families


@dataclass
class ScrapeReader:
    """Feeds scrapes, in any order, into a `RowBuffer`."""

    buffer: RowBuffer = field(default_factory=RowBuffer)
    good: int = 0
    failed: int = 0
    last_attempt_us: dict[str, int] = field(default_factory=dict)
    _steady: list[SteadyTime] = field(default_factory=list)

    def rows(self) -> Rows:
        """The canonical rows of the scrapes, at the times that a steady clock tells, if any."""
        return by_steady_clock(self.buffer.rows(), self._steady)

    def add(self, scrape: Scrape) -> None:
        """One scrape: its samples where it is good, `up` in any case."""
        self._settle_order(scrape)
        families: list[Family] = []
        is_up = scrape.status == 200 and not scrape.error
        if is_up:
            try:
                families = parse_families(scrape.text)
            except ParseError as error:
                is_up = False
                self._note(scrape, "unparsable scrape", str(error))
        else:
            self._note(scrape, "failed scrape", scrape.error or _cause(scrape.status), "failed")
        self.buffer.scrape(scrape.target, scrape.ts_us, is_up=is_up, seconds=scrape.seconds)
        self.good, self.failed = self.good + is_up, self.failed + (not is_up)
        if scrape.run_unix_seconds is not None and scrape.at_seconds is not None:
            run_us, at_us = (
                round(each * 1e6) for each in (scrape.run_unix_seconds, scrape.at_seconds)
            )
            arrival = self.good + self.failed
            self._steady.append((scrape.target, arrival, scrape.ts_us, run_us, at_us))
        created = _created_times(families)
        for family in families:
            self._add_family(scrape, family, created)

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

    def _add_family(
        self, scrape: Scrape, family: Family, created: Mapping[tuple[str, Labels], float]
    ) -> None:
        wire = _wire(family)
        if not keeps(wire.exposed):
            return
        if family.type == "histogram":
            self._add_histograms(scrape, family, wire, created)
        elif family.type in ("counter", "gauge", "unknown", "info"):
            for sample in family.samples:
                if not sample.name.endswith("_created"):
                    born = created.get((wire.exposed, _frozen(sample.labels)))
                    key = wire.key(scrape.target, sample.labels)
                    series_id = self._register(key, wire, scrape, born)
                    value = float(sample.value) * wire.scale
                    if wire.exposed == _PROCESS_START and not _is_time(value):
                        self._note(scrape, wire.exposed, f"{value:g} is no time a process started")
                        continue
                    self.buffer.sample(series_id, scrape.ts_us, value, wire.rank)

    def _add_histograms(
        self,
        scrape: Scrape,
        family: Family,
        wire: Wire,
        created: Mapping[tuple[str, Labels], float],
    ) -> None:
        for labels, state in _histogram_states(family).items():
            if state is None:
                self._note(scrape, wire.exposed, "histogram without a usable +Inf bucket or count")
                continue
            key = wire.key(scrape.target, dict(labels), state.bounds)
            self.buffer.histogram(
                self._register(key, wire, scrape, created.get((wire.exposed, labels))),
                scrape.ts_us,
                count=sum(state.counts),
                total=state.total,
                counts=state.counts,
                rank=wire.rank,
            )

    def _register(
        self, key: SeriesKey, wire: Wire, scrape: Scrape, created_seconds: float | None
    ) -> int:
        series_id = self.buffer.series(key, exposed=wire.exposed, rank=wire.rank)
        if created_seconds is not None and math.isfinite(created_seconds):
            self.buffer.created(series_id, scrape.ts_us, round(created_seconds * 1e6))
        return series_id


def _cause(status: int) -> str:
    return f"HTTP {status}" if status else "no answer"


def _wire(family: Family) -> Wire:
    # The parser takes `_total` off a counter's family name; at /metrics it is there.
    is_bare = family.type == "counter" and not family.name.endswith("_total")
    exposed = f"{family.name}_total" if is_bare else str(family.name)
    return Wire.of(exposed, "" if family.type == "unknown" else str(family.type))


@dataclass(frozen=True)
class _State:
    bounds: tuple[float, ...]
    counts: list[float]
    total: float


def _frozen(labels: Mapping[str, str]) -> Labels:
    return tuple(sorted((k, v) for k, v in labels.items() if k != "le"))


def _created_times(families: Iterable[Family]) -> dict[tuple[str, Labels], float]:
    """When each counter or histogram child was created, Unix seconds, by exposed name and labels.

    Classic text declares them as gauge families of their own, `X_created`.
    """
    return {
        (suffixed, _frozen(sample.labels)): float(sample.value)
        for family in families
        if family.name.endswith("_created")
        for sample in family.samples
        for bare in [family.name.removesuffix("_created")]
        for suffixed in (bare, f"{bare}_total")
    }


def _histogram_states(
    family: Family,
) -> dict[Labels, _State | None]:
    buckets: dict[Labels, dict[float, float]] = {}
    sums: dict[Labels, float] = {}
    counts: dict[Labels, float] = {}
    for sample in family.samples:
        labels = _frozen(sample.labels)
        if sample.name.endswith("_bucket"):
            edges = buckets.setdefault(labels, {})
            edge = _edge(sample.labels.get("le"))
            # The same bucket told twice with different counts is none that can be used.
            edges[edge] = (
                sample.value if edges.get(edge, sample.value) == sample.value else math.nan
            )
        elif sample.name.endswith("_sum"):
            sums[labels] = sample.value
        elif sample.name.endswith("_count"):
            counts[labels] = sample.value
    return {
        labels: _state(edges, counts.get(labels), sums.get(labels, math.nan))
        for labels, edges in buckets.items()
    }


def _edge(text: str | None) -> float:
    try:
        return float(text) if text is not None else math.nan
    except ValueError:
        return math.nan


def _state(edges: dict[float, float], count: float | None, total: float) -> _State | None:
    """The per-bucket state, or None where the buckets do not make a histogram."""
    if count is not None:
        edges = {math.inf: count, **edges}
    ordered = sorted(edges)
    cumulative = [edges[edge] for edge in ordered]
    if (
        math.inf not in edges
        or not all(map(math.isfinite, edges.keys() - {math.inf}))
        or not all(0 <= x < math.inf for x in cumulative)  # a NaN is neither
    ):
        return None
    # A bucket below its predecessor is raised to it, as Prometheus does.
    raised = list(accumulate(cumulative, max))
    per_bucket = [raised[0], *(b - a for a, b in pairwise(raised))]
    return _State(tuple(ordered[:-1]), per_bucket, total)


def read_saved_scrapes(
    path: Path, *, lost: Callable[[Damage], None] = lambda damage: None
) -> Iterator[Scrape]:
    """The scrapes of a saved file: JSON lines, gzip or plain.

    One object a line: `t` Unix seconds, `target`, `status`, `text`, and, if known, `dur` (seconds),
    `run` and `at` (a steady clock), `ctype` (the content type) and `err` (why it failed); other
    keys are ignored. What is damaged or cut is left out, and `lost` is told of it.
    """
    for number, line in enumerate(_lines(path, lost), start=1):
        if line.strip():
            yield _scrape_of(line, path, number)


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


def _scrape_of(line: bytes, path: Path, number: int) -> Scrape:
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
    if not _is_time(t):
        raise InputError(f"{path}, line {number}: t = {t} is not a time in Unix seconds.")
    if status == 200 and not error:
        error = _complaint(text, kind)
    steady = _steady_clock(row)
    return Scrape(t, target, status, text, _number(row.get("dur")), *steady, error)


def _is_time(seconds: float) -> bool:
    """Whether it can be a time in Unix seconds; milliseconds cannot, nor NaN."""
    return 0 < seconds < 1e11


def _number(value: object) -> float | None:
    """The JSON value where it is a finite number, else None."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number and math.isfinite(value) else None  # type: ignore[arg-type]


def _steady_clock(row: Mapping[str, object]) -> tuple[float | None, float | None]:
    """When its run began, and the seconds since by a steady clock; None where it keeps none."""
    run, at = _number(row.get("run")), _number(row.get("at"))
    is_kept = run is not None and at is not None and _is_time(run) and 0 <= at < 1e11
    return (run, at) if is_kept else (None, None)


def read_scrapes(path: Path) -> Rows:
    """The canonical rows of a file of saved scrapes.

    InputError where the file is no such file, or not one of its scrapes holds a vLLM series.
    """
    reader = ScrapeReader()
    for scrape in read_saved_scrapes(path, lost=reader.lost):
        reader.add(scrape)
    require_serving_series(reader, str(path))
    return reader.rows()


def provenance(rows: Rows, *, kind: str, origin: str) -> dict[str, object]:
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
