"""The window over time, all engines together, for charts. Totals are never computed from this."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import polars as pl

from vllm_capacity.facts.metrics import (
    GENERATION_TOKENS,
    KV_CACHE,
    PREEMPTIONS,
    PROMPT_TOKENS,
    REQUESTS,
    RUNNING,
    WAITING,
)
from vllm_capacity.figures import gauges, latency, scrapes, traffic
from vllm_capacity.figures.attempts import Attempts, rows_in
from vllm_capacity.figures.histogram import bucket_quantile, quantile_bounds
from vllm_capacity.figures.steps import Grid, bin_increases, marks
from vllm_capacity.telemetry.window import Window
from vllm_capacity.timerange import TimeRange

FINISHED_REASONS = ("stop", "length", "abort", "error", "repetition")
CHART_QUANTILES = {"p50": 0.5, "p95": 0.95}


MAX_POINTS = 150  # more make a page slow to draw
_RATES = ("output_tokens_per_second", "prompt_tokens_per_second", "requests_per_second")
_ENGINE_STEP = ("instance", "engine", "step")
_KEPT_COLUMNS = (
    *("instance", "engine", "start", "end", "is_gap", "is_restart", "preemptions"),
    *_RATES,
)
_READABLE_STEPS_SECONDS = (
    *(10.0, 15.0, 20.0, 30.0, 60.0, 120.0, 300.0, 600.0, 900.0, 1800.0),
    *(3600.0, 7200.0, 10800.0, 21600.0, 43200.0, 86400.0, 604800.0),
)


def readable_step_seconds(time_range: TimeRange, *, points: int = MAX_POINTS) -> float:
    """The shortest round step that divides the time range into at most `points` points.

    A week if no round step is long enough.
    """
    length = time_range.hours * 3600
    fitting = [s for s in _READABLE_STEPS_SECONDS if length <= s * points]
    return fitting[0] if fitting else _READABLE_STEPS_SECONDS[-1]


def per_step(window: Window, *, time_range: TimeRange, step_seconds: float) -> pl.DataFrame:
    """The data behind charts over time, one row per step, in order.

    Columns: start, end, is_gap, is_restart and, null where not observed: running_mean, waiting_mean
    (summed over engines), kv_cache_ratio_mean, kv_cache_ratio_max, output_tokens_per_second,
    prompt_tokens_per_second, requests_per_second, preemptions, finished_stop … finished_repetition
    (requests in the step), and for each of `LATENCIES`: X_p50_seconds, X_p95_seconds, each also
    with _lower and _upper. Quantities that are also in the steps of single engines
    (figures/steps.py) have the same names there.
    """
    grid = Grid(time_range, step_seconds)
    minutes = window.hourly_parts("steps", columns=_KEPT_COLUMNS)
    if minutes is not None:
        return _put_together(grid, _kept_frames(window, minutes, grid))
    attempts = scrapes.known_attempts(window, end=time_range.end)
    gaps = scrapes.gaps(attempts, time_range=time_range)
    touched = (
        marks(grid, gaps, scrapes.restarts(window, time_range=time_range))
        .group_by("step")
        .agg(pl.col("is_gap").any(), pl.col("is_restart").any())
    )
    increases = latency.histogram_increases(
        window,
        [shown.metric for shown in latency.LATENCIES.values()],
        time_range=time_range,
        step_seconds=grid.seconds,
    )
    frames = (
        touched,
        _gauges(window, time_range, grid, attempts),
        _rates(window, time_range, grid, gaps),
        _latencies(increases),
    )
    return _put_together(grid, frames)


def _put_together(grid: Grid, frames: Iterable[pl.DataFrame]) -> pl.DataFrame:
    steps = pl.DataFrame({"step": range(grid.count)}, schema={"step": pl.Int64})
    for frame in frames:
        steps = steps.join(frame, on="step", how="left")
    return (
        grid.starts(steps.sort("step"))
        .with_columns(pl.col("is_gap", "is_restart").fill_null(False))
        .drop("step")
    )


def _kept_frames(
    window: Window, minutes: Iterable[pl.DataFrame], grid: Grid
) -> Iterator[pl.DataFrame]:
    """The same frames, from the hourly summaries of a long range (figures/pieces.py)."""
    parts = [_of_minutes(part, grid) for part in minutes]
    touched = pl.concat([marked for marked, _ in parts])
    yield touched.group_by("step").agg(pl.col("is_gap", "is_restart").any())
    yield from _kept_gauges(window.hourly("gauges"), grid)
    # In order, or sums over engines would differ in their last digits from run to run.
    whole = pl.concat([done for _, done in parts]).sort(*_ENGINE_STEP)
    per_engine = whole.group_by(_ENGINE_STEP, maintain_order=True).agg(
        *(pl.sum(name) / pl.sum(f"{name}_seconds") for name in _RATES),
        preemptions=_sum("preemptions"),
    )
    known = per_engine.with_columns(pl.col(_RATES).fill_nan(None))
    yield known.group_by("step").agg(_sum(name).alias(name) for name in (*_RATES, "preemptions"))
    requests = window.hourly("requests")
    if requests is not None:
        finished = requests.select("labels", amount="increase", step=grid.of("ts"))
        yield from _finished(finished)
    kept = window.hourly("latency")
    if kept is not None:
        yield _latencies(list(latency.of_minutes(kept.with_columns(step=grid.of("ts")))))


def _of_minutes(minutes: pl.DataFrame, grid: Grid) -> tuple[pl.DataFrame, pl.DataFrame]:
    """The steps with a gap or restart among these minutes, and what engines did in each step.

    Of each rate, the amount and the seconds in which it was observed.
    """
    placed = minutes.with_columns(step=grid.of("start"))
    seconds = (pl.col("end") - pl.col("start")).dt.total_microseconds() / 1e6
    touched = placed.group_by("step").agg(pl.col("is_gap", "is_restart").any())
    done = placed.group_by(_ENGINE_STEP, maintain_order=True).agg(
        *((pl.col(name) * seconds).sum() for name in _RATES),
        *(
            seconds.filter(pl.col(name).is_not_null()).sum().alias(f"{name}_seconds")
            for name in _RATES
        ),
        preemptions=_sum("preemptions"),
    )
    return touched.filter(pl.col("is_gap") | pl.col("is_restart")), done


def _sum(name: str) -> pl.Expr:
    """The sum of a column; null if it was not observed."""
    return pl.when(pl.col(name).is_not_null().any()).then(pl.col(name).sum())


def _kept_gauges(kept: pl.DataFrame | None, grid: Grid) -> Iterator[pl.DataFrame]:
    if kept is None:
        return
    of_step = kept.group_by("metric", step=grid.of("ts")).agg(
        mean=pl.col("total").sum() / pl.col("n").sum(), max=pl.col("max").max()
    )
    names = {KV_CACHE: "kv_cache_ratio", RUNNING: "running", WAITING: "waiting"}
    for metric, name in names.items():
        own = of_step.filter(pl.col("metric") == metric)
        wanted = ("mean", "max") if metric == KV_CACHE else ("mean",)
        yield own.select("step", *(pl.col(which).alias(f"{name}_{which}") for which in wanted))


def _gauges(
    window: Window, time_range: TimeRange, grid: Grid, attempts: pl.DataFrame | Attempts
) -> pl.DataFrame:
    names = [RUNNING, WAITING, KV_CACHE]
    samples = gauges.gauge_samples(window, names, time_range=time_range)
    inside = rows_in(attempts, time_range)
    frame = (
        samples.filter(pl.col("metric") == KV_CACHE)
        .group_by(step=grid.of("ts"))
        .agg(kv_cache_ratio_mean=pl.col("value").mean(), kv_cache_ratio_max=pl.col("value").max())
    )
    for name, metric in (("running_mean", RUNNING), ("waiting_mean", WAITING)):
        summed = gauges.summed(samples, inside, metric)
        mean = summed.group_by(step=grid.of("ts")).agg(pl.col("value").mean().alias(name))
        frame = frame.join(mean, on="step", how="full", coalesce=True)
    return frame


def _rates(
    window: Window, time_range: TimeRange, grid: Grid, gaps: Sequence[scrapes.Gap]
) -> pl.DataFrame:
    increases = traffic.scrape_increases(window, traffic.STEP_COUNTERS, time_range=time_range)
    steps = bin_increases(increases, grid, gaps)
    rates = {
        "output_tokens_per_second": GENERATION_TOKENS,
        "prompt_tokens_per_second": PROMPT_TOKENS,
        "requests_per_second": REQUESTS,
    }
    # Rates are computed per engine (each has its own scrape times), then added in order of engines.
    ordered = steps.sort("instance", "engine", "metric", "step", maintain_order=True)
    groups = ordered.group_by("instance", "engine", "metric", "step", maintain_order=True)
    per_engine = groups.agg(
        rate=pl.col("amount").sum() / pl.col("seconds").max(), amount=pl.col("amount").sum()
    )
    frame = steps.select("step").unique()
    for name, metric in rates.items():
        own = per_engine.filter(pl.col("metric") == metric)
        frame = _joined(frame, own.group_by("step").agg(pl.col("rate").sum().alias(name)))
    own = per_engine.filter(pl.col("metric") == PREEMPTIONS)
    frame = _joined(frame, own.group_by("step").agg(preemptions=pl.col("amount").sum()))
    for own in _finished(steps.filter(pl.col("metric") == REQUESTS)):
        frame = _joined(frame, own)
    return frame


def _finished(steps: pl.DataFrame) -> Iterator[pl.DataFrame]:
    """Finished requests per step, one frame for each reason."""
    labels = steps.select(pl.col("labels").unique())  # few, while a month has millions of rows
    reason = pl.col("labels").str.json_path_match("$.finished_reason")
    summed = (
        steps.lazy()
        .join(labels.select("labels", reason=reason).lazy(), on="labels", maintain_order="left")
        .group_by("reason", "step", maintain_order=True)
        .agg(pl.col("amount").sum())
        .collect()
    )
    for name in FINISHED_REASONS:
        own = summed.filter(pl.col("reason") == name)
        yield own.select("step", pl.col("amount").alias(f"finished_{name}"))


def _joined(frame: pl.DataFrame, other: pl.DataFrame) -> pl.DataFrame:
    return frame.join(other, on="step", how="left")


def _latencies(increases: Sequence[latency.Increase]) -> pl.DataFrame:
    by_step: dict[int, dict[str, float | None]] = {}
    for name, shown in latency.LATENCIES.items():
        own = [i for i in increases if i.metric == shown.metric]
        for step in sorted({i.step for i in own}):
            distribution = latency.merged([i for i in own if i.step == step])
            by_step.setdefault(step, {}).update(_quantiles(name, distribution))
    columns = [
        f"{name}_{q}_seconds{end}"
        for name in latency.LATENCIES
        for q in CHART_QUANTILES
        for end in ("", "_lower", "_upper")
    ]
    return pl.DataFrame(
        [{"step": step, **row} for step, row in by_step.items()],
        schema={"step": pl.Int64, **dict.fromkeys(columns, pl.Float64)},
    )


def _quantiles(name: str, distribution: latency.Distribution | None) -> dict[str, float | None]:
    if distribution is None:
        return {}
    answer: dict[str, float | None] = {}
    for label, q in CHART_QUANTILES.items():
        lower, upper = quantile_bounds(distribution.edges, distribution.counts, q)
        answer[f"{name}_{label}_seconds"] = bucket_quantile(
            distribution.edges, distribution.counts, q
        )
        answer[f"{name}_{label}_seconds_lower"] = lower
        answer[f"{name}_{label}_seconds_upper"] = upper
    return answer
