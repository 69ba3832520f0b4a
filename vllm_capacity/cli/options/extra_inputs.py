"""A page's inputs besides telemetry: gateways' usage logs, and the cloud's invoice.

Logs are given as patterns: `logs/spend-*.csv`, or `logs/spend-{day}.csv` for one per day. Both may
arrive or grow after a day's page was made. So each day is stored with a digest of its rows and
charges: if they change, that page is remade, and no other.
"""

from __future__ import annotations

import glob
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
from msgspec import Struct

from vllm_capacity.cli.options.settings import InvoiceSettings, UsageSettings
from vllm_capacity.errors import InputError
from vllm_capacity.timerange import TimeRange

if TYPE_CHECKING:
    import polars as pl  # slow to import, and most pages have neither

_DAY = "{day}"


class Inputs(Struct, frozen=True):
    """The inputs of one page: the notebook's parameters, what is missing, a digest of the rest.

    `missing` has a line for each log or invoice that does not exist or cannot be read. `digest` is
    empty if there is nothing for that time.
    """

    parameters: dict[str, object] = msgspec.field(default_factory=dict)
    missing: tuple[str, ...] = ()
    digest: str = ""


@dataclass(frozen=True)
class ExtraInputs:
    """The usage logs and the invoice of the settings; each file is read once."""

    usage: UsageSettings = field(default_factory=UsageSettings)
    invoice: InvoiceSettings = field(default_factory=InvoiceSettings)
    _frames: dict[Path, pl.DataFrame] = field(default_factory=dict, repr=False, compare=False)

    @property
    def sample(self) -> dict[str, object]:
        """Parameters that a page may get, to check a notebook with; no files are looked for."""
        logs = {"usage": ";".join(map(str, self.usage.files)), **self._how_to_read_logs}
        return {
            **(logs if self.usage.files else {}),
            **(self._of_invoice if self.invoice.invoice else {}),
        }

    def of_window(self, day: date | None) -> Inputs:
        """The inputs of a window's page; `day` is the day it is named by. Files are not read."""
        logs, missing = self.logs(day)
        parameters: dict[str, object] = {}
        if logs:
            parameters |= {"usage": ";".join(map(str, logs)), **self._how_to_read_logs}
        if self.invoice.invoice is not None:
            if self.invoice.invoice.is_file():
                parameters |= self._of_invoice
            else:
                missing.append(_not_there("invoice", self.invoice.invoice))
        return Inputs(parameters, tuple(missing))

    def of_day(self, day: date, time_range: TimeRange) -> Inputs:
        """The inputs of a day's page; an unreadable file counts as missing, with the reason."""
        found = self.of_window(day)
        logs = [Path(each) for each in str(found.parameters.get("usage", "")).split(";") if each]
        invoices = [self.invoice.invoice] if "invoice" in found.parameters else []
        missing, sound, rows = list(found.missing), [], []
        for path in (*logs, *filter(None, invoices)):
            try:
                frame = self._read(path)
            except InputError as error:
                missing.append(str(error).rstrip("."))
            else:
                sound.append(path)
                rows.append(_inside(frame, time_range))
        parameters: dict[str, object] = {}
        if used := [log for log in logs if log in sound]:
            parameters |= {"usage": ";".join(map(str, used)), **self._how_to_read_logs}
        if any(invoice in sound for invoice in invoices):
            parameters |= self._of_invoice
        return Inputs(parameters, tuple(missing), _digest(rows))

    def _read(self, path: Path) -> pl.DataFrame:
        """The rows of a log, or the charges of the invoice; InputError for any other file."""
        from vllm_capacity.sources.invoices import read_invoice
        from vllm_capacity.sources.usage import read_usage

        if path not in self._frames:
            if path == self.invoice.invoice:
                frame = read_invoice(path, columns=self.invoice.invoice_columns).frame
            else:
                usage = self.usage
                frame = read_usage([path], columns=usage.columns, log_format=usage.log_format).frame
            self._frames[path] = frame
        return self._frames[path]

    def logs(self, day: date | None) -> tuple[list[Path], list[str]]:
        """The files that match the patterns, each once, and a line for each pattern without any."""
        logs: dict[Path, None] = {}
        missing = []
        for pattern in self.usage.files:
            text = str(pattern).replace(_DAY, "*" if day is None else day.isoformat())
            # An existing file is taken literally, even if its name contains * or [.
            named = [text] if Path(text).is_file() else sorted(glob.glob(text))  # noqa: PTH207
            logs |= dict.fromkeys(map(Path, named))
            if not named:
                missing.append(_not_there("log of use", text))
        return list(logs), missing

    @property
    def _how_to_read_logs(self) -> dict[str, object]:
        found = {
            "usage_columns": self.usage.columns or None,
            "usage_models": self.usage.models or None,
            "usage_log_format": self.usage.log_format,
            "idle": None if self.usage.idle == UsageSettings.idle else self.usage.idle,
        }
        return {name: value for name, value in found.items() if value is not None}

    @property
    def _of_invoice(self) -> dict[str, object]:
        columns = self.invoice.invoice_columns
        found = {"invoice_columns": columns} if columns else {}
        return {"invoice": str(self.invoice.invoice), **found}


def _not_there(kind: str, name: object) -> str:
    return f"There is no {kind} {name}"


def _inside(rows: pl.DataFrame, time_range: TimeRange) -> pl.DataFrame:
    """The rows that overlap the time range; one without duration may also lie at its start."""
    import polars as pl

    start, end, first = pl.col("start"), pl.col("end"), pl.lit(time_range.start)
    is_instant = (start == end) & (start == first)
    return rows.filter(start < pl.lit(time_range.end), (end > first) | is_instant)


def has_new_rows(new: str, old: str) -> bool:
    """Whether the rows changed without becoming fewer: rotated logs have fewer."""
    return new != old and _rows_of(new) >= _rows_of(old)


def _rows_of(digest: str) -> int:
    return int(digest.partition("-")[0] or 0)


def _digest(frames: Sequence[pl.DataFrame]) -> str:
    """The number of rows and a digest of them in any order; empty if there are none."""
    found = [frame.sort(frame.columns).write_csv() for frame in frames if frame.height]
    if not found:
        return ""
    digest = hashlib.blake2b("\n".join(sorted(found)).encode(), digest_size=16)
    return f"{sum(frame.height for frame in frames)}-{digest.hexdigest()}"
