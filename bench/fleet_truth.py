"""Removable replicas, utilization and idle dollars, against fleets whose truth is known.

    python -m bench.fleet_truth [--wide] [--replays] [--fleets N] [--first N] [--seed S]
                                [--longest-hours H] [--csv FILE] [--processes N]
    python -m bench.fleet_truth --pool FILE...

Fleets of 1, 4, 8 and 16 replicas, ten minutes to seven days (`--wide`: 1, 8, 40 and 100, up to a
month), are made by `tests/truth_server` (its laws are not the package's) behind a load balancer,
some replicas idle, slow or replaced. Each
recommendation is carried out: the same requests are served again by the slowest of the replicas
that stay. It is kept where no quarter-hour's requests wait for seconds and the latency target, if
one was given, is met, unless all replicas failed in that, too.

`--replays` asks the package's own replay (verdicts/replay.py) instead, of fleets that began as one
replica in an overload: of each model, one replica fewer than its busiest time takes and as many,
under the load of the window and twice that. Where it says something, it is carried out.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
import traceback
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import polars as pl

from tests.truth_server.fleet_judging import FIGURES, Row, judged, trials
from tests.truth_server.fleets import LENGTHS, WIDE_LENGTHS, Fleet, fleet, growing_fleet, wide_fleet


def main() -> None:
    """Make the fleets, judge them, print the results."""
    parser = argparse.ArgumentParser(prog="python -m bench.fleet_truth")
    parser.add_argument("--wide", action="store_true", help="1 to 100 replicas, up to a month")
    parser.add_argument(
        "--replays", action="store_true", help="only replays, on too few and on enough replicas"
    )
    parser.add_argument(
        "--pool", type=Path, nargs="+", help="one table from the rows of these CSVs"
    )
    parser.add_argument("--fleets", type=int, default=60, help="number of fleets (60)")
    parser.add_argument("--first", type=int, default=0, help="number of the first fleet (0)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--longest-hours", type=float, default=720.0, help="longest window, hours (720)"
    )
    parser.add_argument("--csv", type=Path, help="one row per fleet")
    parser.add_argument("--processes", type=int, default=1)
    asked = parser.parse_args()
    if asked.pool:
        rows = [row for path in asked.pool for row in _read(path)]
    else:
        numbers = range(asked.first, asked.first + asked.fleets)
        jobs = [
            _Job(n, asked.seed, asked.longest_hours, asked.wide, asked.replays) for n in numbers
        ]
        with ProcessPoolExecutor(asked.processes) as pool:
            rows = [row for found in pool.map(_judged, jobs) for row in found]
    if asked.csv:
        pl.DataFrame(rows, infer_schema_length=None).write_csv(asked.csv)
    print(replay_table(rows) if asked.replays else table(rows))


def _read(path: Path) -> list[Row]:
    """The rows that `--csv` kept."""
    frame = pl.read_csv(path, infer_schema_length=None)
    return [
        {"failure": "", **{k: v for k, v in row.items() if v is not None}}
        for row in frame.to_dicts()
    ]


@dataclass(frozen=True)
class _Job:
    number: int
    seed: int
    longest_hours: float
    is_wide: bool
    is_replay: bool

    @property
    def fleet(self) -> Fleet:
        if self.is_replay:
            return growing_fleet(self.number, self.seed)
        made = wide_fleet if self.is_wide else fleet
        most = WIDE_LENGTHS[-1] if self.is_wide else LENGTHS[-1]
        return made(self.number, self.seed, longest=min(most, 3600 * self.longest_hours))


def _judged(job: _Job) -> list[Row]:
    """One row per fleet; of replays, one per trial."""
    began = time.process_time()
    try:
        with tempfile.TemporaryDirectory(prefix="fleet-truth-") as folder:
            path = Path(folder) / "fleet"
            if job.is_replay:
                return [asdict(one) for one in trials(job.fleet, path)]
            row, replays = judged(job.fleet, path)
    except Exception:
        return [{"name": f"fleet-{job.number:03d}", "failure": traceback.format_exc(limit=-3)}]
    return [
        {
            **row,
            "failure": "",
            "replays": len(replays),
            "kept": sum(one.is_right for one in replays),
            "removed": sum(one.removed for one in replays),
            "wait_before": max((one.before.longest_wait_seconds for one in replays), default=None),
            "wait_after": max((one.after.longest_wait_seconds for one in replays), default=None),
            "cpu_seconds": time.process_time() - began,
        }
    ]


def replay_table(rows: Sequence[Row]) -> str:
    """The package's replay of that many replicas under that load, and what happened."""
    good = [row for row in rows if not row.get("failure")]
    lines = [f"{'said':<16} {'times':>12} {'true':>12}"]
    for said, name in ((True, "kept up"), (False, "did not keep up")):
        own = [row for row in good if row["said"] is said]
        right = sum(row["kept_up"] is said for row in own)
        lines.append(f"{name:<16} {_share(len(own), len(good)):>12} {_share(right, len(own)):>12}")
    silent = sum(row["said"] is None for row in good)
    failed = len(rows) - len(good)
    return "\n".join([*lines, f"silent in {_share(silent, len(good))}; {failed} fleets failed"])


def table(rows: Sequence[Row]) -> str:
    """A line per figure: how often it has which form, how often that is right, how wide."""
    good = [row for row in rows if not row["failure"]]
    lines = [
        f"{'figure':<12} {'two-sided':>12} {'right':>10} {'width':>7} "
        f"{'one-sided':>12} {'right':>10}"
    ]
    for name in FIGURES:
        both = [row for row in good if row[f"{name}_form"] == "two-sided"]
        one = [row for row in good if row[f"{name}_form"] in ("at least", "at most")]
        kept = "needed_width" if name == "removable" else f"{name}_width"
        widths = [row.get(kept) for row in both]
        known = [width for width in widths if isinstance(width, float)]
        width = f"{statistics.median(known):.2f}" if known else "–"
        lines.append(
            f"{name:<12} {_share(len(both), len(good)):>12} {_right(both, name):>10} {width:>7} "
            f"{_share(len(one), len(good)):>12} {_right(one, name):>10}"
        )
    simulated, right = (
        sum(_whole(row[name]) for row in good) for name in ("simulated", "simulated_right")
    )
    replays = sum(_whole(row["replays"]) for row in good)
    kept = sum(_whole(row["kept"]) for row in good)
    removed = sum(_whole(row["removed"]) for row in good)
    there = sum(_whole(row["replicas"]) for row in good)
    lines.append(
        f"{replays} recommendations ({removed} of {there} replicas): {_share(kept, replays)} kept "
        f"when replayed; the package's own replay was right in {_share(right, simulated)}; "
        f"{len(rows) - len(good)} of {len(rows)} fleets failed"
    )
    return "\n".join(lines)


def _right(rows: Sequence[Row], name: str) -> str:
    return _share(sum(bool(row[f"{name}_right"]) for row in rows), len(rows))


def _share(part: int, whole: int) -> str:
    return f"{part} ({part / whole:.0%})" if whole else "–"


def _whole(value: object) -> int:
    return int(str(value))


if __name__ == "__main__":
    main()
