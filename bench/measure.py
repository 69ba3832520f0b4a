"""Two sides measured alternately, and their ratio, which is comparable even on a shared machine."""

import os
import resource
import statistics
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")
TIMEOUT_SECONDS = 900


@dataclass(frozen=True)
class Ratio:
    """Ours against the bare side, each measured as often; `goal` is what it should be."""

    ours_is: str
    bare_is: str
    unit: str
    ours: tuple[float, ...]
    bare: tuple[float, ...]
    goal: str = ""

    @property
    def value(self) -> float:
        return statistics.median(self.ours) / statistics.median(self.bare)

    @property
    def spread(self) -> tuple[float, float]:
        """The lowest and the highest ratio of two runs made one after the other."""
        pairs = [ours / bare for ours, bare in zip(self.ours, self.bare, strict=True)]
        return min(pairs), max(pairs)


def by_turns(ours: Callable[[], T], bare: Callable[[], T], *, runs: int) -> tuple[list[T], list[T]]:
    """The measurements of each side, `runs` times alternately, after one uncounted run of each."""
    ours(), bare()
    turns = [(ours(), bare()) for _ in range(runs)]
    return [each for each, _ in turns], [each for _, each in turns]


def cpu_seconds(action: Callable[[], object]) -> float:
    """The CPU time of all threads of this process while the action ran."""
    begun = time.process_time()
    action()
    return time.process_time() - begun


@dataclass(frozen=True)
class Cost:
    """What a command took, its child processes included."""

    seconds: float
    cpu_seconds: float


def cost_of(command: list[str], *, folder: Path) -> Cost:
    """What the command took, run in the folder; CalledProcessError where it failed."""
    before, begun = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(command, cwd=folder, check=True, capture_output=True, timeout=TIMEOUT_SECONDS)
    seconds = time.perf_counter() - begun
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    user, system = after.ru_utime - before.ru_utime, after.ru_stime - before.ru_stime
    return Cost(seconds, user + system)


def peak_megabytes() -> float:
    """The most memory this process has held.

    From /proc where there is one: `ru_maxrss` of a child counts its parent before exec, too.
    """
    status = Path("/proc/self/status")
    if status.exists():
        (line,) = [row for row in status.read_text().splitlines() if row.startswith("VmHWM")]
        return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def machine() -> str:
    """The machine: cores, memory, and how busy they were."""
    pages, size = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    load = ", ".join(f"{each:.1f}" for each in os.getloadavg())
    return f"{os.cpu_count()} cores, {pages * size / 2**30:.0f} GiB, load {load} when it began"
