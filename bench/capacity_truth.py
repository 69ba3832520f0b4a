"""Capacity, headroom, money and replicas, against servers whose truth is known.

    python -m bench.capacity_truth [--quick] [--kinds constant,varied] [--cases N] [--seed S]
                                   [--keep FOLDER] [--csv FILE] [--names constant-003,…]

Windows are made by `tests/truth_server` (its laws are not the package's), read by the package, and
the answers held against the truth. `--keep` keeps the windows, so that the next run only reads.
A two-sided answer is right where its interval holds the truth; "at least" and "at most" where the
truth is on that side.
"""

from __future__ import annotations

import argparse
import math
import statistics
import tempfile
import time
import traceback
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import polars as pl

from tests.truth_server.cases import KINDS, case
from tests.truth_server.judging import FIGURES, Row, answers, row, written

QUICK_CASES, USUAL_CASES = 10, 40


def main() -> None:
    """Make or read the windows, judge them, print the results."""
    parser = argparse.ArgumentParser(prog="python -m bench.capacity_truth")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_CASES} cases per kind")
    parser.add_argument("--cases", type=int, help=f"cases per kind ({USUAL_CASES})")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", default=",".join(KINDS), help=f"of {', '.join(KINDS)}")
    parser.add_argument("--names", help="only these cases, named as in the CSV")
    parser.add_argument("--keep", type=Path, help="a folder to keep the windows in")
    parser.add_argument("--csv", type=Path, help="one row per case")
    parser.add_argument("--by", default="kind", help="a column of the CSV to group by (kind)")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--no-plan", action="store_true", help="leave out the replicas (quicker)")
    asked = parser.parse_args()
    names = _names(asked)
    with tempfile.TemporaryDirectory(prefix="capacity-truth-") as scratch:
        folder = asked.keep or Path(scratch)
        jobs = [
            (name, asked.seed, folder / f"seed-{asked.seed}", not asked.no_plan) for name in names
        ]
        with ProcessPoolExecutor(min(2, asked.processes)) as pool:
            rows = list(pool.map(_judged_case, jobs))
    if asked.csv:
        pl.DataFrame(rows, infer_schema_length=None).write_csv(asked.csv)
    print(table(rows, by=asked.by))


def _names(asked: argparse.Namespace) -> list[str]:
    if asked.names:
        return list(asked.names.split(","))
    count = asked.cases or (QUICK_CASES if asked.quick else USUAL_CASES)
    kinds = asked.kinds.split(",")
    unknown = sorted(set(kinds) - set(KINDS))
    if unknown:
        raise SystemExit(f"No kind {', '.join(unknown)}; there are {', '.join(KINDS)}.")
    return [f"{kind}-{number:03d}" for kind in kinds for number in range(count)]


def _judged_case(job: tuple[str, int, Path, bool]) -> Row:
    name, seed, folder, with_plan = job
    kind, number = name.rsplit("-", 1)
    made = case(kind, int(number), seed)
    path, served = written(made, folder)
    began = time.perf_counter()
    try:
        found, failure = answers(path, made.targets, with_plan=with_plan), ""
    except Exception:
        found, failure = None, traceback.format_exc(limit=-3)
    return {
        **row(made, served, found),
        "seconds_asked": time.perf_counter() - began,
        "failure": failure,
    }


def table(rows: Sequence[Row], *, by: str = "kind") -> str:
    """By group: how often there is a capacity, and how good it is; then the other figures."""
    keys = dict.fromkeys(row[by] for row in rows)
    groups = [(str(key), [row for row in rows if row[by] == key]) for key in keys]
    heads = (
        *("capacity", "cases", "two-sided", "inside", "high/low", "mid/truth", "mean log", "±3 %"),
        *(
            "at least",
            "true",
            "÷ held",
            "weak",
            "at most",
            "true",
            "unknown",
            "denied",
            "miscounted",
            "failed",
        ),
    )
    lines = [heads, *(_capacity_cells(kind, own) for kind, own in [*groups, ("all", rows)])]
    others = [
        ("others", *(f"{name} {what}" for name in FIGURES[1:] for what in ("said", "right"))),
        *((kind, *_other_cells(own)) for kind, own in [*groups, ("all", rows)]),
    ]
    return f"{_aligned(lines)}\n\n{_aligned(others)}\n\n{_NOTES}"


_NOTES = (
    "inside, mid/truth (median), mean log(mid/truth), ±3 % (share of mids that close) and high/low "
    "(median): for two-sided answers.\n"
    "÷ held: median of the bound divided by the best minute that was held; weak: bounds below 0.9 "
    "of it; denied: a minute held, or throughput within targets, is above capacity.\n"
    "miscounted: requests neither counted nor within the bound for lost ones.\n"
    "In the other rows, said includes one-sided answers."
)


def _capacity_cells(kind: str, rows: Sequence[Row]) -> tuple[str, ...]:
    by_form = {
        form: [row for row in rows if row["capacity_form"] == form]
        for form in ("two-sided", "at least", "at most", "unknown")
    }
    both, least, most = by_form["two-sided"], by_form["at least"], by_form["at most"]
    ratios = [_ratio(row) for row in both if row["capacity_mid"]]
    widths = [row["capacity_high"] / row["capacity_low"] for row in both if row["capacity_low"]]
    held = [row["capacity_low"] / row["held"] for row in least if row["held"]]
    return (
        kind,
        str(len(rows)),
        _share(len(both), len(rows)),
        _right(both, "capacity"),
        _median(widths),
        _median(ratios),
        f"{statistics.fmean(map(math.log, ratios)):+.3f}" if ratios else "–",
        _share(sum(abs(ratio - 1) <= 0.03 for ratio in ratios), len(ratios)),
        _share(len(least), len(rows)),
        _right(least, "capacity"),
        _median(held),
        str(sum(one < 0.9 for one in held)),
        _share(len(most), len(rows)),
        _right(most, "capacity"),
        _share(len(by_form["unknown"]), len(rows)),
        str(sum(bool(row["contradicted"]) for row in rows)),
        str(sum(bool(row["miscounted"]) for row in rows)),
        str(sum(bool(row["failure"]) for row in rows)),
    )


def _ratio(row: Row) -> float:
    """The middle over the truth; over the nearer one if throughput falls past a peak."""
    mid, most, least = (row[f"capacity_{name}"] for name in ("mid", "truth", "least"))
    return float(mid / min(most, max(least, mid)))


def _other_cells(rows: Sequence[Row]) -> Iterable[str]:
    for name in FIGURES[1:]:
        said = [row for row in rows if row[f"{name}_right"] is not None]
        yield _share(len(said), len(rows))
        yield _right(said, name)


def _right(rows: Sequence[Row], name: str) -> str:
    return _share(sum(bool(row[f"{name}_right"]) for row in rows), len(rows))


def _share(count: int, whole: int) -> str:
    return f"{count} ({count / whole:.0%})" if whole else "–"


def _median(values: Sequence[float]) -> str:
    return f"{statistics.median(values):.3g}" if values else "–"


def _aligned(lines: Sequence[Sequence[str]]) -> str:
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return "\n".join(
        "  ".join(cell.rjust(width) if i else cell.ljust(width)
                  for i, (cell, width) in enumerate(zip(line, widths, strict=True)))
        for line in lines
    )  # fmt: skip


if __name__ == "__main__":
    main()
