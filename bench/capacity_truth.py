"""Capacity, headroom, utilization, idle dollars and replicas, against servers whose truth is known.

    python -m bench.capacity_truth [--quick] [--kinds constant,varied] [--cases N] [--seed S]
                                   [--keep FOLDER] [--csv FILE] [--names constant-003,…]

Windows are made by `tests/truth_server` (its laws are not the package's), read by the package, and
the answers held against the truth. `--keep` keeps the windows, so that the next run only reads.
A two-sided answer is right where its interval holds the truth; "at least" and "at most" where the
truth is on that side.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import statistics
import tempfile
import time
import traceback
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import polars as pl

from tests.truth_server.cases import KINDS, Case, case
from tests.truth_server.windows import Served
from vllm_capacity import open_window
from vllm_capacity.answers import answer
from vllm_capacity.bills import Terms
from vllm_capacity.estimate import Estimate
from vllm_capacity.planning import Ask, plan

USD_PER_HOUR = 2.0
QUICK_CASES, USUAL_CASES = 10, 40
FIGURES = ("capacity", "headroom", "utilization", "idle_usd", "replicas")
_ROUNDING = 1e-9
Row = dict[str, Any]


def main() -> None:
    """Make or read the windows, judge them, tell."""
    parser = argparse.ArgumentParser(prog="python -m bench.capacity_truth")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_CASES} cases a kind")
    parser.add_argument("--cases", type=int, help=f"cases a kind ({USUAL_CASES})")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", default=",".join(KINDS), help=f"of {', '.join(KINDS)}")
    parser.add_argument("--names", help="only these cases, as the CSV names them")
    parser.add_argument("--keep", type=Path, help="a folder that keeps the windows")
    parser.add_argument("--csv", type=Path, help="a row a case")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--no-plan", action="store_true", help="leave out the replicas (quicker)")
    asked = parser.parse_args()
    names = _names(asked)
    os.nice(10)
    with tempfile.TemporaryDirectory(prefix="capacity-truth-") as scratch:
        folder = asked.keep or Path(scratch)
        jobs = [
            (name, asked.seed, folder / f"seed-{asked.seed}", not asked.no_plan) for name in names
        ]
        with ProcessPoolExecutor(min(2, asked.processes)) as pool:
            rows = list(pool.map(_judged_case, jobs))
    if asked.csv:
        pl.DataFrame(rows, infer_schema_length=None).write_csv(asked.csv)
    print(table(rows))


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
        found = estimates(path, with_plan=with_plan)
        failure = ""
    except Exception:
        found, failure = {}, traceback.format_exc(limit=-3)
    return {
        **row(made, served, found),
        "seconds_asked": time.perf_counter() - began,
        "failure": failure,
    }


def written(made: Case, folder: Path) -> tuple[Path, Served]:
    """The window of a case, made on first use, and what its servers served."""
    path, note = folder / made.name, folder / f"{made.name}.json"
    if path.exists() and note.exists():
        return path, Served(**json.loads(note.read_text()))
    shutil.rmtree(path, ignore_errors=True)
    served = made.write(path)
    note.write_text(json.dumps(asdict(served)))
    return path, served


def estimates(path: Path, *, with_plan: bool = True) -> dict[str, Row]:
    """The package's answers about one window, as estimates in dictionaries."""
    window = open_window(path)
    terms = Terms(usd_per_gpu_hour=Estimate.exact(USD_PER_HOUR, "given"))
    told = answer(window, terms=terms)
    found = {
        "capacity": told["saturation"]["capacity_output_tokens_per_second"],
        "headroom": told["saturation"]["headroom_ratio"],
        "utilization": told["cost"]["utilisation"],
        "idle_usd": told["cost"]["idle_usd"],
        "allocation_usd": told["cost"]["allocation_usd"],
    }
    if with_plan:
        planned = plan(window, Ask(), terms=terms, told=told)
        found["replicas"] = planned["replicas"]
        found["demand"] = planned["demand_output_tokens_per_second"]
    return found


def row(made: Case, served: Served, found: Mapping[str, Row]) -> Row:
    """One case: its truth, the answers, and whether each is right."""
    rate = served.output_tokens / served.seconds
    used = rate / made.fleet_capacity
    truth: dict[str, float | None] = {
        "capacity": made.fleet_capacity,
        "headroom": 1 - used,
        "utilization": used,
        "idle_usd": _times(found.get("allocation_usd"), 1 - used),
        "replicas": _replicas(found.get("demand"), made.truth.capacity),
    }
    told: Row = {
        "name": made.name,
        "kind": made.kind,
        "shape": made.shape,
        "server": made.server,
        "mix": made.mix,
        "hours": made.seconds / 3600,
        "scrape_seconds": made.scraping.interval,
        "missed": made.scraping.missed,
        "output_rate": rate,
        "used": used,
        "held": served.best_minute_fleet,
        "held_share": served.best_minute_fleet / made.fleet_capacity,
        "saturated_output": made.truth.saturated_output * made.engines,
        "running_mean": served.running_mean,
        "running_at_95": made.truth.running_at_95,
    }
    for name in FIGURES:
        told |= _judged(name, found.get(name), truth[name])
    one = found.get("capacity") or {}
    return {**told, "basis": one.get("basis", ""), "reason": one.get("reason", "")}


def _judged(name: str, found: Row | None, truth: float | None) -> Row:
    low, mid, high = (found[end] if found else None for end in ("low", "mid", "high"))
    return {
        f"{name}_truth": truth,
        f"{name}_low": low,
        f"{name}_mid": mid,
        f"{name}_high": high,
        f"{name}_form": form(low, mid, high),
        f"{name}_right": is_right(low, high, truth),
    }


def form(low: float | None, mid: float | None, high: float | None) -> str:
    """How much an answer says: two-sided, at least, at most, or unknown."""
    if low is not None and high is not None:
        return "two-sided"
    if low is None and high is None:
        return "unknown" if mid is None else "point"
    return "at least" if high is None else "at most"


def is_right(low: float | None, high: float | None, truth: float | None) -> bool | None:
    """Whether the truth is on the side of the ends that are given; None where nothing is said."""
    if truth is None or (low is None and high is None):
        return None
    slack = _ROUNDING * abs(truth)
    return (low is None or low <= truth + slack) and (high is None or truth <= high + slack)


def _times(found: Row | None, share: float) -> float | None:
    return None if not found or found["mid"] is None else found["mid"] * share


def _replicas(demand: Row | None, capacity: float) -> float | None:
    """Replicas for the demand the plan found, by the true capacity, under the usual policy."""
    if not demand or demand["mid"] is None:
        return None
    policy = Ask().policy
    each = capacity * (1 - policy.headroom_ratio)
    return math.ceil(demand["mid"] * policy.lead_factor / each) + policy.spare_replicas


def table(rows: Sequence[Row]) -> str:
    """By kind: how often the capacity is answered, and how well; then the other figures."""
    kinds = [kind for kind in KINDS if any(row["kind"] == kind for row in rows)]
    groups = [(kind, [row for row in rows if row["kind"] == kind]) for kind in kinds]
    heads = (
        *("capacity", "cases", "two-sided", "inside", "high/low", "mid/truth", "mean log", "±3 %"),
        *("at least", "true", "÷ held", "weak", "at most", "true", "unknown", "failed"),
    )
    lines = [heads, *(_capacity_cells(kind, own) for kind, own in [*groups, ("all", rows)])]
    others = [
        ("others", *(f"{name} {what}" for name in FIGURES[1:] for what in ("answered", "right"))),
        *((kind, *_other_cells(own)) for kind, own in [*groups, ("all", rows)]),
    ]
    return f"{_aligned(lines)}\n\n{_aligned(others)}\n\n{_NOTES}"


_NOTES = (
    "inside, mid/truth (median), mean log(mid/truth), ±3 % (mids that near) and high/low (median): "
    "of two-sided answers.\n÷ held: median of the bound by the best minute that was held; weak: "
    "bounds below 0.9 of it.\nOf the others, answered counts one-sided answers, too."
)


def _capacity_cells(kind: str, rows: Sequence[Row]) -> tuple[str, ...]:
    by_form = {
        form: [row for row in rows if row["capacity_form"] == form]
        for form in ("two-sided", "at least", "at most", "unknown")
    }
    both, least, most = by_form["two-sided"], by_form["at least"], by_form["at most"]
    ratios = [row["capacity_mid"] / row["capacity_truth"] for row in both if row["capacity_mid"]]
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
        str(sum(bool(row["failure"]) for row in rows)),
    )


def _other_cells(rows: Sequence[Row]) -> Iterable[str]:
    for name in FIGURES[1:]:
        said = [row for row in rows if row[f"{name}_right"] is not None]
        yield _share(len(said), len(rows))
        yield _right(said, name)


def _right(rows: Sequence[Row], name: str) -> str:
    return _share(sum(bool(row[f"{name}_right"]) for row in rows), len(rows))


def _share(part: int, whole: int) -> str:
    return f"{part} ({part / whole:.0%})" if whole else "–"


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
