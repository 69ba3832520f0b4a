"""Saved scrapes into canonical rows ÷ the bare parser over the same text."""

import gzip
import json
from itertools import islice
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from bench.measure import Ratio, by_turns, cpu_seconds
from vllm_capacity.sources.exposition import read_scrapes
from vllm_capacity.telemetry.store import write_window

RECORDED = Path(__file__).parents[1] / "tests" / "data" / "restart_raw.jsonl.gz"
SCRAPES = 60


def measure(folder: Path, *, runs: int) -> list[Ratio]:
    saved = folder / "scrapes.jsonl.gz"
    with gzip.open(RECORDED, "rt") as lines, gzip.open(saved, "wt") as kept:
        kept.writelines(islice(lines, SCRAPES))
    written = iter(range(1000))

    def imported() -> None:
        write_window(folder / f"imported-{next(written)}", read_scrapes(saved), {})

    def parsed() -> None:
        with gzip.open(saved, "rt") as lines:
            for line in lines:
                for family in text_string_to_metric_families(json.loads(line).get("text") or ""):
                    len(family.samples)

    ours, bare = by_turns(lambda: cpu_seconds(imported), lambda: cpu_seconds(parsed), runs=runs)
    return [
        Ratio(
            f"{SCRAPES} saved scrapes into a window",
            "prometheus_client parsing their text",
            "CPU s",
            tuple(ours),
            tuple(bare),
        )
    ]
