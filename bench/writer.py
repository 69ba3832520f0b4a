"""A window written, its restarts settled ÷ the same rows put into Parquet as they are."""

from pathlib import Path

from bench.engine_day import repeated_rows
from bench.measure import Ratio, by_turns, cpu_seconds
from vllm_capacity.telemetry.store import write_window

HOURS = 3


def measure(folder: Path, *, runs: int) -> list[Ratio]:
    rows = repeated_rows(HOURS * 3600)
    tables = {"samples": rows.samples, "histograms": rows.histograms}
    written = iter(range(1000))

    def as_they_are() -> None:
        for name, frame in tables.items():
            target = folder / f"{name}.parquet"
            frame.write_parquet(target, compression="zstd", compression_level=9)

    ours, bare = by_turns(
        lambda: cpu_seconds(lambda: write_window(folder / f"window-{next(written)}", rows, {})),
        lambda: cpu_seconds(as_they_are),
        runs=runs,
    )
    height = sum(frame.height for frame in tables.values())
    return [
        Ratio(
            f"{HOURS} hours of an engine into a window ({height:,} rows)",
            "polars writing the same rows",
            "CPU s",
            tuple(ours),
            tuple(bare),
        )
    ]
