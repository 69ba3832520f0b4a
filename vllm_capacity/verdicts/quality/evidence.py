"""The evidence behind the quality report, and the form of its findings."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from itertools import islice
from typing import Any, ClassVar

import numpy as np
import polars as pl
from msgspec import Struct, field

from vllm_capacity.facts.metrics import GENERATION_TOKENS, REQUESTS
from vllm_capacity.figures import scrapes, traffic
from vllm_capacity.figures.attempts import Attempts
from vllm_capacity.figures.losses import Losses, scrape_paces
from vllm_capacity.figures.scrapes import Gap, Outage, Restart
from vllm_capacity.figures.steps import engine_frames
from vllm_capacity.record import Record
from vllm_capacity.telemetry.window import Window
from vllm_capacity.timerange import TimeRange, iso

_STALE_SECONDS = 60.0
_MIN_COUNTS = 5  # fewer shared values do not prove that two targets are one process
_LISTED = 20  # time ranges of a finding


class Evidence(Struct, frozen=True):
    """Facts about one part of a window.

    `attempts`: those inside the part. `losses`: what all figures may lack because of restarts and
    outages. `asked_end`: the end that was requested from the source, if the part reaches the end of
    what it returned. `doubtful`: targets for which start times do not give an order of processes,
    and why. `same`: pairs of targets that are one process. `lifetimes`: one row per series
    (lifetimes.sql). `ingest_notes`: the notes of ingestion (intake_notes.sql). `contradicted`:
    scrapes left out because a clock was changed (contradicted.sql). `relabelled`: series that
    continued under other labels, and how much higher a counter would be if they were new series
    (relabelled.sql). `stale`: instance, engine, start, end, value of a gauge that stayed above 0
    while no tokens were generated. `finished_per_scrape`: the most requests that finished between
    two scrapes of an instance. `engines`: instance, engine, hours (billed), output_tokens.
    """

    time_range: TimeRange
    attempts: Attempts
    asked_end: datetime | None
    doubtful: dict[str, str]
    same: list[tuple[str, str]]
    gaps: list[Gap]
    restarts: list[Restart]
    outages: list[Outage]
    losses: Losses
    lifetimes: pl.DataFrame
    ingest_notes: pl.DataFrame
    contradicted: pl.DataFrame
    relabelled: pl.DataFrame
    stale: pl.DataFrame
    finished_per_scrape: dict[str, float]
    engines: pl.DataFrame


def gather(
    window: Window,
    *,
    time_range: TimeRange,
    attempts: Attempts,
    gaps: list[Gap],
    restarts: list[Restart],
    outages: list[Outage],
    losses: Losses,
    steps: pl.DataFrame,
    engines: pl.DataFrame,
) -> Evidence:
    """The evidence on a part.

    `steps` are its engine steps (figures/steps.py), `engines` its engines with their billed hours
    (figures/scrapes.py).
    """
    paces = window.hourly("paces")
    if paces is None:
        paces = scrape_paces(traffic.scrape_increases(window, [REQUESTS], time_range=time_range))
    finished = paces.filter(pl.col("metric") == REQUESTS)
    most = finished.group_by("instance").agg(pl.col("burst").max()).sort("instance")
    return Evidence(
        time_range=time_range,
        attempts=attempts.since(time_range.start),
        asked_end=window.asked_end if time_range.end >= window.extent.end else None,
        doubtful=scrapes.doubtful_addresses(window),
        same=window.named_sql(
            "figures", "same_processes", metric=GENERATION_TOKENS, fewest=_MIN_COUNTS
        ).rows(),
        gaps=gaps,
        restarts=restarts,
        outages=outages,
        losses=losses,
        lifetimes=window.named_sql("figures", "lifetimes", end=time_range.end),
        ingest_notes=window.named_sql(
            "figures", "intake_notes", start=time_range.start, end=time_range.end
        ),
        contradicted=window.named_sql("figures", "contradicted"),
        relabelled=window.named_sql(
            "figures", "relabelled", start=time_range.start, end=time_range.end
        ),
        stale=stale_gauges(steps),
        finished_per_scrape={name: value or 0.0 for name, value in most.iter_rows()},
        engines=_with_output(window, engines, time_range),
    )


def _with_output(window: Window, engines: pl.DataFrame, time_range: TimeRange) -> pl.DataFrame:
    grown = traffic.counter_increases(window, [GENERATION_TOKENS], time_range=time_range)
    output = grown.group_by("instance", "engine").agg(output_tokens=pl.col("increase").sum())
    return engines.join(output, on=["instance", "engine"], how="left").sort("instance", "engine")


def stale_gauges(steps: pl.DataFrame) -> pl.DataFrame:
    """Spells of a minute or more in which requests are reported as running without any tokens.

    One row per spell: instance, engine, start, end, value (mean running in it).
    """
    is_still = (pl.col("running_mean") > 0) & (pl.col("output_tokens_per_second") == 0)
    spells: list[dict[str, Any]] = []
    for own in engine_frames(steps).values():
        still = own.select(is_still.fill_null(False)).to_series().arg_true().to_numpy()
        for spell in np.split(still, np.flatnonzero(np.diff(still) > 1) + 1) if still.size else ():
            part = own.slice(int(spell[0]), spell.size)
            (instance, engine), end = part.select("instance", "engine").row(0), part.item(-1, "end")
            start = part.item(0, "start")
            if (end - start).total_seconds() >= _STALE_SECONDS:
                value = float(part.get_column("running_mean").mean())  # type: ignore[arg-type]
                spells.append(
                    {
                        "instance": instance,
                        "engine": engine,
                        "start": start,
                        "end": end,
                        "value": value,
                    }
                )
    return pl.DataFrame(
        spells,
        schema={
            "instance": pl.String,
            "engine": pl.String,
            "start": pl.Datetime("us", "UTC"),
            "end": pl.Datetime("us", "UTC"),
            "value": pl.Float64,
        },
    )


class Finding(Record, frozen=True):
    """What a check found: its severity, count and times, and how much it can change which figures.

    `info` is worth knowing, `warning` puts a figure in doubt, and `error` means that a figure is
    not to be trusted. `max_effect` is the largest change of each figure, in its unit; empty if
    none.
    """

    renamed: ClassVar[Mapping[str, str]] = {"moves": "max_effect"}

    check: str
    severity: str
    count: int
    effect: str
    when: str | None = None
    max_effect: Mapping[str, float] = field(default_factory=dict)


def span(start: datetime, end: datetime) -> str:
    """A time range in the form that `when` uses."""
    return f"{iso(start)} … {iso(end)}"


def spans(ranges: Iterable[tuple[datetime, datetime]], count: int) -> str:
    """The first 20 of `count` time ranges, and the number of the others."""
    listed = [span(start, end) for start, end in islice(ranges, _LISTED)]
    more = count - len(listed)
    return "; ".join([*listed, *([f"and {more:,} more"] if more else [])])


def amounts(max_effect: Mapping[str, float]) -> str:
    """The figures that a finding affects, each with its largest possible error."""
    return "; ".join(f"{figure} by at most {_plain(most)}" for figure, most in max_effect.items())


def _plain(amount: float) -> str:
    """Three digits without an exponent: 0.125, 13, 35,600."""
    return f"{amount:.3g}" if amount < 999.5 else f"{float(f'{amount:.3g}'):,.0f}"
