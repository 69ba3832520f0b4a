"""How many replicas can go, utilization and idle dollars, against fleets whose truth is known.

    python -m bench.fleet_truth [--fleets N] [--first N] [--seed S] [--longest-hours H]
                                [--csv FILE] [--processes N]

Fleets of 1, 4, 8 and 16 replicas, ten minutes to seven days, are made by `tests/truth_server` (its
laws are not the package's) behind a load balancer, some replicas idle, slow or replaced. Each
recommendation is carried out: the same requests are served again by the slowest of the replicas
that stay. It is kept where no quarter-hour's requests wait for seconds and the latency target, if
one was given, is met, unless all replicas failed in that, too.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import traceback
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import polars as pl

from tests.truth_server.fleet_judging import FIGURES, Row, judged
from tests.truth_server.fleets import fleet


def main() -> None:
    """Make the fleets, judge them, tell."""
    parser = argparse.ArgumentParser(prog="python -m bench.fleet_truth")
    parser.add_argument("--fleets", type=int, default=60, help="how many (60)")
    parser.add_argument("--first", type=int, default=0, help="the number of the first (0)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--longest-hours", type=float, default=168.0, help="of windows (168)")
    parser.add_argument("--csv", type=Path, help="a row a fleet")
    parser.add_argument("--processes", type=int, default=1)
    asked = parser.parse_args()
    jobs = [(n + asked.first, asked.seed, asked.longest_hours) for n in range(asked.fleets)]
    with ProcessPoolExecutor(asked.processes) as pool:
        rows = list(pool.map(_judged, jobs))
    if asked.csv:
        pl.DataFrame(rows, infer_schema_length=None).write_csv(asked.csv)
    print(table(rows))


def _judged(job: tuple[int, int, float]) -> Row:
    number, seed, hours = job
    try:
        with tempfile.TemporaryDirectory(prefix="fleet-truth-") as folder:
            row, replays = judged(fleet(number, seed, longest=3600 * hours), Path(folder) / "fleet")
    except Exception:
        return {"name": f"fleet-{number:03d}", "failure": traceback.format_exc(limit=-3)}
    return {
        **row,
        "failure": "",
        "replays": len(replays),
        "kept": sum(one.is_right for one in replays),
        "removed": sum(one.removed for one in replays),
        "wait_before": max((one.before.longest_wait_seconds for one in replays), default=None),
        "wait_after": max((one.after.longest_wait_seconds for one in replays), default=None),
    }


def table(rows: Sequence[Row]) -> str:
    """A line per figure: how often it is said in which form, how often that is right, how wide."""
    good = [row for row in rows if not row["failure"]]
    lines = [
        f"{'figure':<12} {'two-sided':>12} {'right':>10} {'width':>7} "
        f"{'one-sided':>12} {'right':>10}"
    ]
    for name in FIGURES:
        both = [row for row in good if row[f"{name}_form"] == "two-sided"]
        one = [row for row in good if row[f"{name}_form"] in ("at least", "at most")]
        widths = [row["needed_width" if name == "removable" else f"{name}_width"] for row in both]
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
