"""Keeps what a pull has fetched, so that a killed pull can resume."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from datetime import datetime, timedelta
from functools import cached_property, partial
from pathlib import Path

import polars as pl
from msgspec import Struct

from vllm_capacity.telemetry.bucket import Bucket
from vllm_capacity.timerange import TimeRange

LATE = timedelta(hours=2)
# How far before the start to look for a series' last sample, and how far clocks may differ.
LOOKBACK = timedelta(hours=1)
SKEW = timedelta(minutes=5)
_GROWING = "growing"
_KEPT = ".answers"


class Step(Struct, frozen=True):
    """The progress of a pull: answers received, answers needed, and bytes transferred."""

    done: int
    total: int
    wire_bytes: int


class AnswerCache(Struct, frozen=True, dict=True):
    """Answers kept in a folder by the hash of their query; without a folder, in memory.

    Only answers that can no longer grow are found again: all data had arrived by `now`, the start
    of the pull. The file name ends with the hash of the file's bytes. With `remote`, a folder in
    S3, they are kept there, too, for a pull that resumes on another machine.
    """

    folder: Path | None = None
    now: datetime | None = None
    remote: Bucket | None = None

    def find(self, question: str) -> Callable[[], bytes] | None:
        """What reads the answer to a query, if it is kept and undamaged; else None."""
        name = _hash(question.encode())
        if self.folder is None:
            return None
        for kept in self.folder.glob(f"{name}.*"):
            if kept.suffixes[0][1:] == _hash(kept.read_bytes()):
                return kept.read_bytes
        if self.remote is not None and name in self._there:
            content = self.remote.read(f"{_KEPT}/{self._there[name]}")
            if self._there[name].split(".")[1] == _hash(content):
                return self._written(self._there[name], content)
        return None

    def keep(self, question: str, arrivals: TimeRange, content: bytes) -> Callable[[], bytes]:
        """Keep an answer whose data arrive in that range, atomically; returns what reads it."""
        if self.folder is None:
            return partial(bytes, content)
        is_final = self._is_final(arrivals)
        name = f"{_hash(question.encode())}.{_hash(content) if is_final else _GROWING}.answer"
        read = self._written(name, content)
        if is_final and self.remote is not None:
            self.remote.put({f"{_KEPT}/{name}": self.folder / name})
        return read

    def frame(
        self, question: str, arrivals: TimeRange, ask: Callable[[], pl.DataFrame]
    ) -> pl.DataFrame:
        """The answer to a query as a frame: if it is not kept, `ask` gets it."""
        found = self.find(question)
        if found is not None:
            return pl.read_ipc(found())
        frame = ask()
        if self.folder is not None and self._is_final(arrivals):
            self.keep(question, arrivals, packed(frame))
        return frame

    def forget_remote(self) -> None:
        """Remove the answers in S3."""
        if self.remote is not None:
            self.remote.remove([f"{_KEPT}/{name}" for name in self.remote.names(_KEPT)])

    def _is_final(self, arrivals: TimeRange) -> bool:
        """Whether data that arrive in that range had all arrived by `now`."""
        return self.now is not None and self.now >= arrivals.end + SKEW

    @cached_property
    def _there(self) -> dict[str, str]:
        """The names of the answers in S3, by the hash of their query."""
        assert self.remote is not None
        return {name.split(".")[0]: name for name in self.remote.names(_KEPT)}

    def _written(self, name: str, content: bytes) -> Callable[[], bytes]:
        assert self.folder is not None
        self.folder.mkdir(exist_ok=True)
        partial_file = self.folder / "answer.partial"
        partial_file.write_bytes(content)
        return partial_file.replace(self.folder / name).read_bytes


def packed(frame: pl.DataFrame) -> bytes:
    """A frame in Arrow's format, compressed; `pl.read_ipc` reads it."""
    return frame.write_ipc(None, compression="lz4").getvalue()


def _hash(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=12).hexdigest()
