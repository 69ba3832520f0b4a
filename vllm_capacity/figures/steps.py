"""The window cut into steps of 10–60 s, per engine: the data points for judging saturation.

Rates are spread over gaps (and the affected steps are marked); totals never come from here.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
import polars as pl
from msgspec import Struct
from numpy.typing import NDArray
from polars.datatypes import DataTypeClass

from vllm_capacity.assumptions import TARGETS
from vllm_capacity.facts.metrics import (
    GENERATION_TOKENS,
    ITL,
    KV_CACHE,
    PREEMPTIONS,
    PROMPT_TOKENS,
    REQUESTS,
    RUNNING,
    WAITING,
)
from vllm_capacity.figures import gauges, latency, scrapes, traffic
from vllm_capacity.figures.attempts import Attempts, rows_in
from vllm_capacity.figures.histogram import bucket_quantiles
from vllm_capacity.telemetry.window import Window
from vllm_capacity.timerange import TimeRange

_ENGINE = ["instance", "engine"]
_STEP = [*_ENGINE, "step"]
_MINUTE_SECONDS = 59.5  # scrapes come a little late or early
MINUTE_SECONDS = 60.0
_MAX_EMPTY_STEPS = 120  # in a row; a longer run becomes one step
_QUEUED = ("queued_scrapes", "queued_near_max", "queued_at_max")
"""Scrapes with waiting requests: all of them, those with the step's maximum of running requests or
one less, and those with the maximum."""

Floats = NDArray[np.float64]
Indices = NDArray[np.int64]
Schema = dict[str, DataTypeClass | pl.DataType]

STEP_SCHEMA: Schema = {
    "instance": pl.String,
    "engine": pl.String,
    "start": pl.Datetime("us", "UTC"),
    "end": pl.Datetime("us", "UTC"),
    "scrapes": pl.Int64,
    "running_mean": pl.Float64,
    "running_max": pl.Float64,
    "waiting_mean": pl.Float64,
    "waiting_max": pl.Float64,
    "waiting_share": pl.Float64,
    "at_ceiling_share": pl.Float64,
    "kv_cache_ratio_mean": pl.Float64,
    "kv_cache_ratio_max": pl.Float64,
    "output_tokens_per_second": pl.Float64,
    "best_minute_tokens_per_second": pl.Float64,
    "requests_per_second": pl.Float64,
    "prompt_tokens_per_second": pl.Float64,
    "preemptions": pl.Float64,
    **dict.fromkeys(TARGETS, pl.Float64),
    "itl_mean_seconds": pl.Float64,
    "is_gap": pl.Boolean,
    "is_restart": pl.Boolean,
}
"""One row per step of 10–60 s and engine; null where not observed.

Rates are means over the step, `at_ceiling_share` is the share of the scrapes with waiting requests;
`best_minute_tokens_per_second` is the highest mean output over a minute that ends in the step.
"""


class Grid(Struct, frozen=True, dict=True):
    """Even steps of a time range; step k is [start + k·seconds, start + (k+1)·seconds).

    `holes` are runs of even steps that are merged into one long step, as (first, last), in order:
    the number of steps thus depends on the scrapes, not on the length of the time range.
    """

    time_range: TimeRange
    seconds: float
    holes: tuple[tuple[int, int], ...] = ()

    @classmethod
    def of_scrapes(
        cls, time_range: TimeRange, seconds: float, attempts: pl.DataFrame | Attempts
    ) -> Grid:
        """A grid in which long times without an attempt of any target are one step each."""
        even = cls(time_range, seconds)
        inside = rows_in(attempts, time_range)
        seen = inside.select(step=even.of("ts")).get_column("step").unique().sort().to_list()
        pairs = pairwise([-1, *seen, even.count])
        holes = [(a + 1, b - 1) for a, b in pairs if b - a - 1 > _MAX_EMPTY_STEPS]
        return cls(time_range, seconds, tuple(holes))

    @cached_property
    def _evenly(self) -> pl.Series:
        """The even step at which each step begins; the last entry is the end of the last step."""
        begins = [0, *(last + 1 for _, last in self.holes)]
        ends = [*(first + 1 for first, _ in self.holes), self.time_range.steps(self.seconds) + 1]
        parts = [np.arange(a, b) for a, b in zip(begins, ends, strict=True)]
        return pl.Series(np.concatenate(parts), dtype=pl.Int64)

    @property
    def count(self) -> int:
        """The number of steps; the last one includes the rest of the time range."""
        return self._evenly.len() - 1 if self.holes else self.time_range.steps(self.seconds)

    @property
    def us(self) -> int:
        """Length of an even step in microseconds."""
        return round(self.seconds * 1e6)

    def of(self, column: str) -> pl.Expr:
        """The step of each instant; -1 before the time range."""
        since = pl.col(column) - pl.lit(self.time_range.start).dt.convert_time_zone("UTC")
        return self.placed(since.dt.total_microseconds().floordiv(self.us).cast(pl.Int64))

    def placed(self, even: pl.Expr) -> pl.Expr:
        """The step that contains an even step; -1 before the time range."""
        if self.holes:
            step = pl.lit(self._evenly).search_sorted(even, side="right").cast(pl.Int64) - 1
        else:
            step = even
        return step.clip(lower_bound=-1, upper_bound=self.count - 1)

    def starts(self, frame: pl.DataFrame) -> pl.DataFrame:
        """The frame with the `start` and `end` of each row's `step`, which is 0 or more."""
        start, end = (self._instant(pl.col("step") + ahead) for ahead in (0, 1))
        is_last = pl.col("step") == self.count - 1
        last = pl.lit(self.time_range.end).dt.cast_time_unit("us").dt.convert_time_zone("UTC")
        return frame.with_columns(start=start, end=pl.when(is_last).then(last).otherwise(end))

    def _instant(self, step: pl.Expr) -> pl.Expr:
        even = pl.lit(self._evenly).gather(step) if self.holes else step
        start = pl.lit(self.time_range.start).dt.cast_time_unit("us").dt.convert_time_zone("UTC")
        return start + pl.duration(microseconds=even * self.us)


def natural_step_seconds(attempts: pl.DataFrame | Attempts) -> float:
    """Five scrapes per step, but at least 10 s and at most 60 s."""
    if isinstance(attempts, Attempts):
        usual = attempts.median_step_seconds()
    else:
        step = pl.col("ts").diff().over("instance").dt.total_microseconds() / 1e6
        usual = attempts.select(step.median()).item()
    return min(60.0, max(10.0, 5.0 * (usual or 2.0)))


def bin_increases(increases: pl.DataFrame, grid: Grid, gaps: Sequence[scrapes.Gap]) -> pl.DataFrame:
    """Increases and the seconds they took, by step.

    Columns: instance, engine, metric, labels, step, amount, seconds.

    An increase counts in the step of its later scrape; one that spans a gap is spread evenly over
    the steps of the gap.
    """
    known = increases.drop_nulls(["ts_before", "increase"]).with_columns(
        seconds=(pl.col("ts") - pl.col("ts_before")).dt.total_microseconds() / 1e6
    )
    keyed = _gap_keys(gaps)
    plain = known.join(keyed, on=["instance", "ts"], how="anti").select(
        *_ENGINE, "metric", "labels", step=grid.of("ts"), amount="increase", seconds="seconds"
    )
    spread = _spread(known.join(keyed, on=["instance", "ts"], how="semi"), grid)
    return (
        pl.concat([plain, spread])
        .filter((pl.col("step") >= 0) & (pl.col("step") < grid.count))
        .group_by(*_ENGINE, "metric", "labels", "step", maintain_order=True)
        .agg(pl.col("amount").sum(), pl.col("seconds").sum())
        .sort(*_ENGINE, "metric", "labels", "step")
    )


def _gap_keys(gaps: Sequence[scrapes.Gap]) -> pl.DataFrame:
    return pl.DataFrame(
        {"instance": [g.instance for g in gaps], "ts": [g.end for g in gaps]},
        schema={"instance": pl.String, "ts": pl.Datetime("us", "UTC")},
    )


def _spread(long: pl.DataFrame, grid: Grid) -> pl.DataFrame:
    """Each increase divided at step boundaries, in proportion to time."""
    cut = (
        long.with_columns(
            step=pl.int_ranges(grid.of("ts_before"), grid.of("ts") + 1, dtype=pl.Int64)
        )
        .explode("step", empty_as_null=False)
        .filter(pl.col("step") >= 0)
        .pipe(grid.starts)
        .with_columns(
            share_seconds=(
                pl.min_horizontal("ts", "end") - pl.max_horizontal("ts_before", "start")
            ).dt.total_microseconds()
            / 1e6
        )
    )
    return cut.select(
        *_ENGINE,
        "metric",
        "labels",
        "step",
        amount=pl.col("increase") * pl.col("share_seconds") / pl.col("seconds"),
        seconds="share_seconds",
    )


def marks(
    grid: Grid, gaps: Sequence[scrapes.Gap], restarts: Sequence[scrapes.Restart]
) -> pl.DataFrame:
    """The steps that a gap or a restart touches: instance, step, is_gap, is_restart."""
    rows = [(g.instance, g.start, g.end, True, False) for g in gaps]
    rows += [(r.instance, r.before, r.after, False, True) for r in restarts]
    frame = pl.DataFrame(
        rows,
        schema={
            "instance": pl.String,
            "from": pl.Datetime("us", "UTC"),
            "to": pl.Datetime("us", "UTC"),
            "is_gap": pl.Boolean,
            "is_restart": pl.Boolean,
        },
        orient="row",
    )
    return (
        frame.with_columns(step=pl.int_ranges(grid.of("from"), grid.of("to") + 1, dtype=pl.Int64))
        .explode("step", empty_as_null=False)
        .group_by("instance", "step")
        .agg(pl.col("is_gap").any(), pl.col("is_restart").any())
        .sort("instance", "step")
    )


def engine_steps(
    window: Window,
    *,
    time_range: TimeRange,
    step_seconds: float | None = None,
    only: str | None = None,
) -> pl.DataFrame:
    """The data points for saturation, one row per (engine, step), in order.

    For all engines, or for the one named `only`. More than 120 consecutive steps without an attempt
    are one step.

    Columns: `STEP_SCHEMA`; null where a step has no sample. Empty without an engine.
    """
    kept = _of_minutes(window, step_seconds, only)
    if kept is not None:
        return kept
    attempts = scrapes.known_attempts(window, end=time_range.end)
    if window.counters == "minute":
        step_seconds = max(60.0, step_seconds or 60.0)  # the window has no finer resolution
    grid = Grid.of_scrapes(time_range, step_seconds or natural_step_seconds(attempts), attempts)
    return _by_engine([_of_engine(_wide_steps(window, time_range, grid, attempts), only)])


def _of_engine(steps: pl.DataFrame, name: str | None) -> pl.DataFrame:
    """The steps of one engine, by its name `instance/engine`; all steps without a name."""
    if name is None:
        return steps
    instance, _, engine = name.rpartition("/")
    is_own = pl.col("engine").fill_null("None") == engine  # so engine names spell a missing label
    return steps.filter((pl.col("instance") == instance) & is_own)


def minute_steps(window: Window, *, time_range: TimeRange, attempts: pl.DataFrame) -> pl.DataFrame:
    """The engine steps of a piece of the window, one minute each (figures/pieces.py).

    Like `engine_steps`, except that the ceiling cannot be known from one piece: instead of
    `at_ceiling_share` there are the counts that it is computed from (`_QUEUED`).
    """
    return _wide_steps(window, time_range, Grid(time_range, MINUTE_SECONDS), attempts)


def _by_engine(parts: Iterable[pl.DataFrame]) -> pl.DataFrame:
    """The steps of each engine in order of time, from parts in that order (`minute_steps`).

    For a month this is the largest frame of all: the parts of an engine are freed once joined.
    """
    engines: dict[tuple[Any, ...], list[pl.DataFrame]] = {}
    for part in parts:
        for engine, own in part.partition_by(_ENGINE, as_dict=True).items():
            engines.setdefault(engine, []).append(own)
    names = sorted(engines, key=lambda name: (name[0], name[1] or ""))
    found = [_with_ceiling(pl.concat(engines.pop(name), rechunk=True)) for name in names]
    return pl.concat(found) if found else pl.DataFrame(schema=STEP_SCHEMA)


def _with_ceiling(steps: pl.DataFrame) -> pl.DataFrame:
    """The steps of one engine with the columns of `STEP_SCHEMA`; computes `at_ceiling_share`.

    Scrapes within one request of the engine's maximum are at the ceiling. As requests are whole
    numbers, a step has such scrapes only if its own maximum equals the engine's (then those within
    one of it) or is one less (then those at it).
    """
    own, most = pl.col("running_max"), pl.col("running_max").max()
    at_ceiling = (
        pl.when(own >= most)
        .then("queued_near_max")
        .when(own >= most - 1)
        .then("queued_at_max")
        .otherwise(0)
    )
    share = (at_ceiling / pl.col("queued_scrapes")).fill_nan(None)
    return steps.with_columns(at_ceiling_share=share).select(list(STEP_SCHEMA))


def _of_minutes(
    window: Window, step_seconds: float | None, only: str | None
) -> pl.DataFrame | None:
    """The steps of a long range: its minutes, or minutes combined into longer steps.

    Longer steps are aligned to the clock. Unobserved time between two minutes of an engine is a
    step with a gap. None if rows are read.
    """
    parts = window.hourly_parts("steps")
    if parts is None:
        return None
    steps = _by_engine(_of_engine(part, only) for part in parts)
    if step_seconds is not None and step_seconds > MINUTE_SECONDS:
        steps = _folded(steps, step_seconds)
    unobserved = _unobserved(steps)
    if unobserved.is_empty():
        return steps
    return pl.concat([steps, unobserved], how="diagonal").sort(*_ENGINE, "start")


def _unobserved(steps: pl.DataFrame) -> pl.DataFrame:
    """A step with a gap for each time between two steps of an engine, from steps in order."""
    is_apart = steps.select(pl.col("start").shift(-1) > pl.col("end")).to_series()
    before = is_apart.fill_null(False).arg_true()
    here, after = (steps.select(*_ENGINE, "start", "end")[at] for at in (before, before + 1))
    is_same = pl.all_horizontal(pl.col(name).eq_missing(after[name]) for name in _ENGINE)
    return here.select(
        *_ENGINE,
        start="end",
        end=after["start"],
        scrapes=pl.lit(0, pl.Int64),
        is_gap=pl.lit(True),
        is_restart=pl.lit(False),
    ).filter(is_same)


def _engine_runs(steps: pl.DataFrame) -> Indices:
    """The index of the first step of each run of consecutive steps of one engine."""
    is_other = pl.any_horizontal(pl.col(name).ne_missing(pl.col(name).shift()) for name in _ENGINE)
    is_first = steps.select(is_other | (pl.int_range(pl.len()) == 0)).to_series()
    return np.flatnonzero(is_first.to_numpy())


def engine_frames(steps: pl.DataFrame) -> dict[str, pl.DataFrame]:
    """The steps of each engine, in time order, by name (`instance/engine`).

    They are slices of the frame if the steps of each engine are contiguous, as in an analysis, so
    that a month of many engines is not copied.
    """
    firsts = _engine_runs(steps)
    runs = steps.select(_ENGINE)[firsts].with_columns(
        first=firsts, count=np.diff(np.append(firsts, steps.height))
    )
    if runs.select(_ENGINE).is_duplicated().any():
        return engine_frames(steps.sort(*_ENGINE, "start"))
    return {
        f"{instance}/{name}": _by_time(steps.slice(first, count))
        for instance, name, first, count in runs.sort(_ENGINE).iter_rows()
    }


def _by_time(steps: pl.DataFrame) -> pl.DataFrame:
    return steps if steps["start"].is_sorted() else steps.sort("start")


def _folded(steps: pl.DataFrame, seconds: float) -> pl.DataFrame:
    """Minutes combined into longer steps; quantiles are the median of the minutes'."""
    length = pl.col("end") - pl.col("start")
    queued = pl.col("waiting_share") * pl.col("scrapes")

    def mean(name: str, weight: pl.Expr) -> pl.Expr:
        known = weight.filter(pl.col(name).is_not_null())
        return ((pl.col(name) * weight).sum() / known.sum()).fill_nan(None).alias(name)

    gauged = ("running_mean", "waiting_mean", "waiting_share", "kv_cache_ratio_mean")
    rates = [name for name in STEP_SCHEMA if name.endswith("tokens_per_second")]
    rates = [name for name in (*rates, "requests_per_second") if not name.startswith("best")]
    most = ("running_max", "waiting_max", "kv_cache_ratio_max", "best_minute_tokens_per_second")
    middle = (*TARGETS, "itl_mean_seconds")
    every = f"{round(seconds)}s"
    return (
        steps.group_by(
            *_ENGINE, pl.col("start").dt.truncate(every).alias("step"), maintain_order=True
        )
        .agg(
            pl.col("start").min(),
            pl.col("end").max(),
            *(mean(name, pl.col("scrapes")) for name in gauged),
            mean("at_ceiling_share", queued),
            *(mean(name, length.dt.total_microseconds() / 1e6) for name in rates),
            pl.col(most).max(),
            pl.col(middle).median(),
            pl.when(pl.col("preemptions").is_not_null().any())
            .then(pl.col("preemptions").sum())
            .first(),
            pl.col("scrapes").sum(),
            pl.col("is_gap", "is_restart").any(),
        )
        .select(list(STEP_SCHEMA))
    )


def _wide_steps(
    window: Window, time_range: TimeRange, grid: Grid, attempts: pl.DataFrame | Attempts
) -> pl.DataFrame:
    gaps = scrapes.gaps(attempts, time_range=time_range)
    engines = scrapes.engines(window, time_range=time_range, attempts=attempts).select(*_ENGINE)
    skeleton = engines.join(
        pl.DataFrame({"step": range(grid.count)}, schema={"step": pl.Int64}), how="cross"
    )
    wide = (
        skeleton.join(
            _gauge_steps(window, time_range, grid), on=_STEP, how="left", nulls_equal=True
        )
        .join(_rate_steps(window, time_range, grid, gaps), on=_STEP, how="left", nulls_equal=True)
        .join(_latency_steps(window, time_range, grid), on=_STEP, how="left", nulls_equal=True)
        .join(
            marks(grid, gaps, scrapes.restarts(window, time_range=time_range)),
            on=["instance", "step"],
            how="left",
        )
        .with_columns(
            pl.col("is_gap", "is_restart").fill_null(False),
            pl.col("scrapes").fill_null(0),
        )
    )
    return grid.starts(wide).sort(*_ENGINE, "step").drop("step")


def _gauge_steps(window: Window, time_range: TimeRange, grid: Grid) -> pl.DataFrame:
    names = {
        "running": RUNNING,
        "waiting": WAITING,
        "kv_cache_ratio": KV_CACHE,
    }
    if window.grain == "minute":
        return _minute_gauge_steps(window, time_range, grid, names)
    samples = gauges.gauge_samples(window, list(names.values()), time_range=time_range)
    short = {metric: name for name, metric in names.items()}
    wide = samples.with_columns(pl.col("metric").replace(short)).pivot(
        "metric", index=[*_ENGINE, "ts"], values="value", aggregate_function="max"
    )
    for name in names:
        if name not in wide.columns:
            wide = wide.with_columns(pl.lit(None, dtype=pl.Float64).alias(name))
    is_waiting = pl.col("waiting") > 0
    queued, most = pl.col("running").filter("is_waiting"), pl.col("running").max()
    return (
        wide.with_columns(step=grid.of("ts"), is_waiting=is_waiting)
        .group_by(_STEP)
        .agg(
            scrapes=pl.len().cast(pl.Int64),
            running_mean=pl.col("running").mean(),
            running_max=pl.col("running").max(),
            waiting_mean=pl.col("waiting").mean(),
            waiting_max=pl.col("waiting").max(),
            waiting_share=pl.col("is_waiting").mean(),
            queued_scrapes=queued.count(),
            queued_near_max=(queued >= most - 1).sum(),
            queued_at_max=(queued >= most).sum(),
            kv_cache_ratio_mean=pl.col("kv_cache_ratio").mean(),
            kv_cache_ratio_max=pl.col("kv_cache_ratio").max(),
        )
    )


def _minute_gauge_steps(
    window: Window, time_range: TimeRange, grid: Grid, names: dict[str, str]
) -> pl.DataFrame:
    """`_gauge_steps` from a downsampled window's minutes; most shares of scrapes are unknown."""
    minutes = gauges.gauge_minutes(window, list(names.values()), time_range=time_range)
    own = {name: pl.col("metric") == metric for name, metric in names.items()}
    means = {
        f"{name}_mean": (pl.col("value") * pl.col("n")).filter(is_own).sum()
        / pl.col("n").filter(is_own).sum()
        for name, is_own in own.items()
    }
    most = {f"{name}_max": pl.col("max").filter(is_own).max() for name, is_own in own.items()}
    return (
        minutes.with_columns(step=grid.of("ts"))
        .group_by(_STEP)
        .agg(
            scrapes=pl.col("n").filter(own["running"]).sum().cast(pl.Int64),
            waiting_share=_minute_share(own["waiting"]),
            **dict.fromkeys(_QUEUED, pl.lit(None, dtype=pl.UInt32)),
            **means,
            **most,
        )
        .with_columns(pl.col([f"{name}_mean" for name in names]).fill_nan(None))
    )


def _minute_share(is_waiting: pl.Expr) -> pl.Expr:
    """The share of scrapes with a queue: 1 if the minimum is above 0, 0 if the maximum is 0."""
    least, most = (pl.col(name).filter(is_waiting) for name in ("min", "max"))
    return pl.when(least.min() > 0).then(1.0).when(most.max() == 0).then(0.0)


def _rate_steps(
    window: Window, time_range: TimeRange, grid: Grid, gaps: Sequence[scrapes.Gap]
) -> pl.DataFrame:
    increases = traffic.scrape_increases(window, traffic.STEP_COUNTERS, time_range=time_range)
    steps = bin_increases(increases, grid, gaps)

    def rate(metric: str) -> pl.Expr:
        own = pl.col("metric") == metric
        rate = pl.col("amount").filter(own).sum() / pl.col("seconds").filter(own).max()
        return rate.fill_nan(None)  # 0/0: a gap that ends at the start of the step

    is_preemption = pl.col("metric") == PREEMPTIONS
    rates = steps.group_by(_STEP).agg(
        output_tokens_per_second=rate(GENERATION_TOKENS),
        prompt_tokens_per_second=rate(PROMPT_TOKENS),
        requests_per_second=rate(REQUESTS),
        preemptions=pl.when(is_preemption.any())
        .then(pl.col("amount").filter(is_preemption).sum())
        .otherwise(None),
    )
    minutes = _best_minutes(increases, grid)
    return rates.join(minutes, on=_STEP, how="left", nulls_equal=True)


def _best_minutes(increases: pl.DataFrame, grid: Grid) -> pl.DataFrame:
    """The highest mean output over a minute that ends in each step: instance, engine, step, rate.

    A minute lies between two scrapes, regardless of steps: the shortest such time of a minute or
    more. Null in steps before the end of the first minute.
    """
    tokens = (
        increases.filter(pl.col("metric") == GENERATION_TOKENS)
        .drop_nulls(["ts_before", "increase"])
        .group_by(*_ENGINE, "ts")
        .agg(pl.col("increase").sum(), pl.col("ts_before").min())
        .sort(*_ENGINE, "ts")
    )
    seconds = pl.col("ts").dt.epoch("us") / 1e6
    rates = tokens.group_by(_ENGINE, maintain_order=True).agg(
        pl.col("ts"),
        rate=pl.struct(
            ts=seconds, first=pl.col("ts_before").dt.epoch("us") / 1e6, increase=pl.col("increase")
        ).map_batches(_minute_rates, return_dtype=pl.Float64),
    )
    return (
        rates.explode("ts", "rate")
        .with_columns(step=grid.of("ts"))
        .group_by(_STEP)
        .agg(best_minute_tokens_per_second=pl.col("rate").fill_nan(None).max())
    )


def _minute_rates(rows: pl.Series) -> pl.Series:
    """The mean rate over the last minute or more at each scrape of one engine; nan before that."""
    frame = rows.struct.unnest()
    times = np.concatenate([frame["first"].to_numpy()[:1], frame["ts"].to_numpy()])
    counted = np.concatenate([[0.0], np.cumsum(frame["increase"].to_numpy())])
    begins = np.searchsorted(times, times[1:] - _MINUTE_SECONDS, side="right") - 1
    known = begins >= 0
    spans = times[1:] - times[begins]
    rates = np.where(known, (counted[1:] - counted[begins]) / np.where(spans > 0, spans, 1), np.nan)
    return pl.Series(rates)


def _latency_steps(window: Window, time_range: TimeRange, grid: Grid) -> pl.DataFrame:
    metrics = list(dict.fromkeys((*(one.metric for one in TARGETS.values()), ITL)))
    found = latency.step_increases(
        window, metrics, time_range=time_range, step_seconds=grid.seconds
    )
    frame = pl.concat([_EMPTY_LATENCY, *(_step_latencies(own) for own in found)])
    placed = frame.with_columns(step=grid.placed(pl.col("step")))
    return placed.group_by(_STEP, maintain_order=True).agg(
        *(
            pl.col("p95").filter(pl.col("metric") == one.metric).max().alias(name)
            for name, one in TARGETS.items()
        ),
        itl_mean_seconds=pl.col("mean").filter(pl.col("metric") == ITL).mean(),
    )


_EMPTY_LATENCY = pl.DataFrame(
    schema={
        "instance": pl.String,
        "engine": pl.String,
        "step": pl.Int64,
        "metric": pl.String,
        "p95": pl.Float64,
        "mean": pl.Float64,
    }
)


def _step_latencies(own: latency.SeriesSteps) -> pl.DataFrame:
    return pl.DataFrame(
        {
            "instance": pl.repeat(own.instance, len(own.steps), dtype=pl.String, eager=True),
            "engine": pl.repeat(own.engine, len(own.steps), dtype=pl.String, eager=True),
            "step": own.steps,
            "metric": pl.repeat(own.metric, len(own.steps), dtype=pl.String, eager=True),
            "p95": pl.Series(bucket_quantiles(own.edges, own.counts, 0.95), nan_to_null=True),
            "mean": pl.Series(own.mean_seconds(), nan_to_null=True),
        }
    )
