"""What holds a server's throughput in each step: its clients, its scheduler, its KV cache, prefill.

How a step of one engine is judged, the first that fits:

1. No scrape told how many requests ran: unknown.
2. Nothing ran, waited or came out: idle.
3. The KV cache is full (mean ratio ≥ 0.9) while requests wait or are preempted: kv-bound. A mean of
   0.75 is enough where its peak reached 0.9 and requests were preempted, or waited below the
   ceiling: what holds them back is room for the next one, and it flickers. Where they wait
   below the ceiling and are preempted, a peak of 0.75 is enough: the cache filled within the step.
4. Requests wait in at least half of the scrapes, and running stands at its own ceiling (within
   one of the window's maximum in ≥ 80 % of those scrapes, or at 95 % of it on average):
   scheduler-bound. `max_num_seqs` is not exported; its effect is. Where prompts outweigh the output
   ten times and running is few or not steadily up there, the ceiling is chance, and it is prefill.
   A step of fewer than five scrapes is judged with the two steps before and after it.
5. Requests wait, the cache is not full, running is below its ceiling: prefill-bound.
6. Requests ran but no token came out: unknown (a frozen gauge or a hung engine).
7. The queue is empty, and output has not grown although running has, by 1.4 ×, and tokens came
   more slowly: unknown, with decode-compute-bound in the evidence: no vLLM metric tells that apart
   from a change of workload. Where tokens came as fast as ever, more ran by chance: so many arrive.
8. Otherwise the client decides how much runs: client-bound.

A lone step that has a queue, between two steps of one limit, is counted with them. Why not KV usage
alone: queues are known to grow without bound at 32 % KV. Why not the queue alone: a queue has three
causes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import polars as pl
from polars.datatypes import DataTypeClass

IDLE = "idle"
CLIENT = "client-bound"
SCHEDULER = "scheduler-bound"
KV = "kv-bound"
PREFILL = "prefill-bound"
UNKNOWN = "unknown"
LIMITS = (KV, PREFILL, SCHEDULER)
"""The regimes in which the server, not its clients, sets the throughput."""

REGIME_SCHEMA: dict[str, DataTypeClass | pl.DataType] = {
    "start": pl.Datetime("us", "UTC"),
    "end": pl.Datetime("us", "UTC"),
    "engine": pl.String,
    "regime": pl.String,
    "evidence": pl.String,
}

KV_FULL_RATIO = 0.9
"""From here on the KV cache counts as full, where requests wait or are preempted."""

_SEVERITY = (IDLE, CLIENT, UNKNOWN, SCHEDULER, PREFILL, KV)
_KV_TIGHT_RATIO = 0.75
_QUEUE_SHARE = 0.5
_CEILING_SHARE = 0.8
_NEAR_CEILING_RATIO, _HARD_CEILING = 0.95, 0.9
_SMALL_CEILING = 3
_ENOUGH_SCRAPES, _NEAR_STEPS = 5, 2
_PROMPT_HEAVY = 10.0
_FLAT_GROWTH = 1.05
_SLOWER = 1.15
_LIGHTER = 1.4
_BAND = 1.2
_MIN_BAND_STEPS = 3
_LEAST_LIMITED_SHARE = 0.1
_LEAST_FLAT_BAND = round(math.log(2.0) / math.log(_BAND))
MAX_RUNNING_NOISE = 0.15
"""Above this `running_noise_ratio`, a step's load is too poorly known to be a point of a curve."""

Row = dict[str, Any]


@dataclass(frozen=True)
class Judged:
    """One step of one engine with its regime, and the reason within the regime (`cause`).

    `running` is the mean number of running requests, by Little's law where it can be had
    (`running_loads`), else the mean of the gauge; None where neither was observed.
    """

    step: Row
    regime: str
    cause: str
    running: float | None = None
    is_running_exact: bool = False

    @property
    def seconds(self) -> float:
        """Length of the step."""
        return float((self.step["end"] - self.step["start"]).total_seconds())


def engine_rows(steps: pl.DataFrame) -> dict[str, list[Row]]:
    """The steps of each engine, in time order, under its name `instance/engine`."""
    ordered = steps.sort("instance", "engine", "start")
    groups: dict[str, list[Row]] = {}
    for row in ordered.iter_rows(named=True):
        groups.setdefault(f"{row['instance']}/{row['engine']}", []).append(row)
    return groups


def judged_steps(rows: Sequence[Row]) -> list[Judged]:
    """Each step of one engine with its regime; rows in time order."""
    ceiling = max((row["running_max"] or 0.0 for row in rows), default=0.0)
    flat = _flat_bands(rows)
    judged = []
    shares, loads = _ceiling_shares(rows), running_loads(rows)
    for row, share, load in zip(rows, shares, loads, strict=True):
        regime, cause = _regime({**row, "at_ceiling_share": share}, ceiling)
        if regime == CLIENT and not row["waiting_share"] and _band(row["running_mean"]) in flat:
            regime, cause = UNKNOWN, "decode"
        running = row["running_mean"] if load is None else load
        judged.append(Judged(row, regime, cause, running, load is not None))
    return _joined_flickers(judged)


def running_loads(rows: Sequence[Row]) -> list[float | None]:
    """The mean running requests of each step by Little's law; None where it cannot be had.

    Output tokens/s × mean inter-token latency is the mean number of requests that decode, exactly:
    both are sums over tokens, where the gauge is a few samples. Times how many run for each that
    decodes (by the gauges of all steps together), which counts those whose prompt is being read.
    """
    decoding = [_decoding(row) for row in rows]
    seen = [
        (row["running_mean"] * row["scrapes"], each * row["scrapes"])
        for row, each in zip(rows, decoding, strict=True)
        if each is not None and row["running_mean"] is not None and row["scrapes"]
    ]
    ran, decoded = (sum(column) for column in zip(*seen, strict=True)) if seen else (0.0, 0.0)
    if not ran or not decoded:
        return [None] * len(rows)
    return [None if each is None else each * ran / decoded for each in decoding]


def _decoding(row: Row) -> float | None:
    """Requests that decode, on average over the step: tokens/s × mean inter-token latency."""
    if row["output_tokens_per_second"] is None or row["itl_mean_seconds"] is None:
        return None
    return float(row["output_tokens_per_second"] * row["itl_mean_seconds"])


def regimes(steps: pl.DataFrame) -> pl.DataFrame:
    """The regimes of a window: start, end, engine, regime, evidence; equal steps merged to a row.

    `steps` has the columns of `STEP_SCHEMA`. Ordered by engine and time; empty for no steps.
    """
    found = [
        row
        for engine, rows in engine_rows(steps).items()
        for row in regime_rows(engine, judged_steps(rows))
    ]
    return pl.DataFrame(found, schema=REGIME_SCHEMA)


def regime_rows(engine: str, judged: Sequence[Judged]) -> list[Row]:
    """The regimes of one engine as rows of `REGIME_SCHEMA`, in time order."""
    return [
        {
            "start": stretch[0].step["start"],
            "end": stretch[-1].step["end"],
            "engine": engine,
            "regime": stretch[0].regime,
            "evidence": _evidence(stretch),
        }
        for stretch in stretches(judged)
    ]


def window_regime(judged: Sequence[Judged]) -> str:
    """The regime of most non-idle time of one engine; idle where nothing ever ran.

    Time that no scrape tells of does not count, unless there is no other.
    """
    seen = [j for j in judged if j.cause != "unobserved"]
    if judged and not seen:
        return UNKNOWN
    return _most_time([j for j in seen if j.regime != IDLE]) or IDLE


def bottleneck(judged: Sequence[Judged]) -> str | None:
    """The limit of most time in the busiest quarter of one engine's steps; None for next to none.

    Next to none is under a tenth of that quarter. Busy is running plus waiting; idle and unobserved
    steps are left out first.
    """
    seen = [j for j in judged if j.regime != IDLE and j.step["running_mean"] is not None]
    seen.sort(key=lambda j: -(j.step["running_mean"] + (j.step["waiting_mean"] or 0.0)))
    busiest = seen[: math.ceil(len(seen) / 4)]
    limited = [j for j in busiest if j.regime in LIMITS]
    seconds = sum(j.seconds for j in limited)
    is_brief = seconds < _LEAST_LIMITED_SHARE * sum(j.seconds for j in busiest)
    return None if is_brief else _most_time(limited)


def worst(names: Sequence[str]) -> str:
    """The most limiting of several engines' regimes; idle for none."""
    return max(names, key=_SEVERITY.index, default=IDLE)


def stretches(judged: Sequence[Judged]) -> list[list[Judged]]:
    """Consecutive steps of one regime and cause, that follow each other without a hole."""
    groups: list[list[Judged]] = []
    for step in judged:
        last = groups[-1][-1] if groups else None
        is_same = last is not None and (last.regime, last.cause) == (step.regime, step.cause)
        if is_same and last is not None and last.step["end"] == step.step["start"]:
            groups[-1].append(step)
        else:
            groups.append([step])
    return groups


def _regime(row: Row, ceiling: float) -> tuple[str, str]:
    if not row["scrapes"] or row["running_mean"] is None:
        return UNKNOWN, "unobserved"
    output = row["output_tokens_per_second"] or 0.0
    queue_share = row["waiting_share"] or 0.0
    if not row["running_max"] and not row["waiting_max"] and output <= 0:
        return IDLE, "idle"
    if _is_kv_bound(row):
        return KV, "kv"
    if queue_share >= _QUEUE_SHARE:
        return _queued_regime(row, ceiling)
    if row["waiting_share"] is None and row["waiting_max"]:
        return UNKNOWN, "thinned"
    if output <= 0 and row["running_mean"] >= 1 and row["output_tokens_per_second"] is not None:
        return UNKNOWN, "stalled"
    return CLIENT, "client"


def _is_kv_bound(row: Row) -> bool:
    mean, peak = row["kv_cache_ratio_mean"], row["kv_cache_ratio_max"]
    if mean is None or peak < _KV_TIGHT_RATIO:
        return False
    is_preempting = bool(row["preemptions"])
    if mean >= KV_FULL_RATIO:
        return is_preempting or bool(row["waiting_max"])
    is_below_ceiling = (row["at_ceiling_share"] or 0.0) < _CEILING_SHARE
    is_held_back = (row["waiting_share"] or 0.0) >= _QUEUE_SHARE and is_below_ceiling
    if mean >= _KV_TIGHT_RATIO and peak >= KV_FULL_RATIO:
        return is_preempting or is_held_back
    return is_preempting and is_held_back


def _queued_regime(row: Row, ceiling: float) -> tuple[str, str]:
    if row["kv_cache_ratio_mean"] is None:
        return UNKNOWN, "kv-unobserved"
    return (SCHEDULER, "scheduler") if _is_at_ceiling(row, ceiling) else (PREFILL, "prefill")


def _is_at_ceiling(row: Row, ceiling: float) -> bool:
    """Whether running stands at a ceiling of the scheduler.

    Such a ceiling is hard: with a queue behind it, running stands on it, save for those who
    finished in the last engine step (many, where many run and answers are short).
    "Within one" says little where the maximum is two or three: long prompts keep running that low.
    """
    output, prompt = row["output_tokens_per_second"], row["prompt_tokens_per_second"]
    is_near = (row["at_ceiling_share"] or 0.0) >= _CEILING_SHARE
    if output is None or prompt is None or prompt < _PROMPT_HEAVY * output:
        return is_near or row["running_mean"] >= _NEAR_CEILING_RATIO * ceiling
    return is_near and ceiling > _SMALL_CEILING and row["running_mean"] >= _HARD_CEILING * ceiling


def _ceiling_shares(rows: Sequence[Row]) -> list[float | None]:
    """`at_ceiling_share` of each step; of a thinly scraped one, with the queued steps around it."""
    shares = []
    for i, row in enumerate(rows):
        near = [row]
        if row["at_ceiling_share"] is not None and row["scrapes"] < _ENOUGH_SCRAPES:
            around = rows[max(0, i - _NEAR_STEPS) : i + _NEAR_STEPS + 1]
            near = [other for other in around if other["at_ceiling_share"] is not None]
        queued = [(other["waiting_share"] or 0.0) * other["scrapes"] for other in near]
        if sum(queued) <= 0:
            shares.append(row["at_ceiling_share"])
            continue
        pairs = zip(near, queued, strict=True)
        shares.append(sum((r["at_ceiling_share"] or 0.0) * q for r, q in pairs) / sum(queued))
    return shares


def _joined_flickers(judged: list[Judged]) -> list[Judged]:
    """The steps, a lone one with a queue or a full cache joined to the limit on both its sides."""
    joined = list(judged)
    for i in range(1, len(judged) - 1):
        before, this, after = joined[i - 1], judged[i], judged[i + 1]
        if before.regime != after.regime or before.regime not in LIMITS:
            continue
        is_limited = bool(this.step["waiting_share"]) or (
            before.regime == KV and (this.step["kv_cache_ratio_max"] or 0.0) >= KV_FULL_RATIO
        )
        if this.regime in (CLIENT, *LIMITS) and is_limited:
            joined[i] = replace(this, regime=before.regime, cause=before.cause)
    return joined


def running_noise_ratio(row: Row) -> float:
    """How far a step's mean of running may be off, by its few scrapes, as a share of it.

    (Maximum − mean) ÷ √scrapes stands for the standard error: next to nothing where clients keep
    the load constant, most of the mean where a few requests come and go.
    """
    if not row["running_mean"] or row["running_max"] is None or not row["scrapes"]:
        return math.inf
    spread = (row["running_max"] - row["running_mean"]) / math.sqrt(row["scrapes"])
    return float(spread / row["running_mean"])


def _band(running: float | None) -> int | None:
    return None if not running or running <= 0 else round(math.log(running) / math.log(_BAND))


def _flat_bands(rows: Sequence[Row]) -> frozenset[int]:
    """The loads that, without a queue, gave no more than a lighter one.

    A load is a band of running, 1.2 × wide, of three clear steps or more; the median of its output
    is compared with the best of those at least 1.4 × lighter, from two running requests on. Where
    the time between tokens was observed at both, it has grown, too.
    """
    seen: dict[int, list[Row]] = {}
    for row in rows:
        band = _band(row["running_mean"])
        is_clear = running_noise_ratio(row) <= MAX_RUNNING_NOISE
        if band is not None and row["output_tokens_per_second"] and is_clear:
            seen.setdefault(band, []).append(row)
    loads = {
        band: (_median(own, "output_tokens_per_second"), _median(own, "itl_p95_seconds"))
        for band, own in ((band, _unqueued(own)) for band, own in seen.items())
        if len(own) >= _MIN_BAND_STEPS
    }
    return frozenset(band for band in loads if _is_flat(band, loads))


def _is_flat(band: int, loads: Mapping[int, tuple[float, float]]) -> bool:
    distance = math.log(_LIGHTER) / math.log(_BAND)
    lighter = [load for other, load in loads.items() if band - other >= distance]
    if not lighter or band < _LEAST_FLAT_BAND:
        return False
    output, itl = loads[band]
    best, best_itl = max(lighter)
    is_slower = math.isnan(itl) or math.isnan(best_itl) or itl >= _SLOWER * best_itl
    return output <= _FLAT_GROWTH * best and is_slower


def _unqueued(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if not row["waiting_share"]]


def _median(rows: Sequence[Row], column: str) -> float:
    """The upper median of what was observed; nan for nothing."""
    seen = sorted(row[column] for row in rows if row[column] is not None)
    return float(seen[len(seen) // 2]) if seen else math.nan


def _most_time(judged: Sequence[Judged]) -> str | None:
    seconds: dict[str, float] = {}
    for step in judged:
        seconds[step.regime] = seconds.get(step.regime, 0.0) + step.seconds
    return max(seconds, key=lambda name: (seconds[name], _SEVERITY.index(name)), default=None)


def _evidence(stretch: Sequence[Judged]) -> str:
    """One sentence with the numbers that made a stretch what it is."""
    running, waiting = _mean(stretch, "running_mean"), _mean(stretch, "waiting_mean")
    output = _mean(stretch, "output_tokens_per_second")
    kv, kv_peak = _mean(stretch, "kv_cache_ratio_mean"), _peak(stretch, "kv_cache_ratio_max")
    share, at_ceiling = _mean(stretch, "waiting_share"), _mean(stretch, "at_ceiling_share")
    preempted = sum(j.step["preemptions"] or 0.0 for j in stretch)
    ran = f"{_n(running)} requests ran on average (at most {_n(_peak(stretch, 'running_max'), 0)})"
    cache = "KV usage was not observed" if kv is None else f"KV was {_pct(kv)} full on average"
    queue = f"{_n(waiting)} requests waited on average, in {_pct(share)} of the scrapes"
    prompt = _mean(stretch, "prompt_tokens_per_second")
    sentences = {
        "idle": "No request ran or waited, and no token came out.",
        "unobserved": "No scrape in this time told how many requests ran.",
        "kv": f"{cache} (at most {_pct(kv_peak)}); {queue}; {_n(preempted, 0)} preemptions; {ran}.",
        "scheduler": f"{queue}; running stood within one of its maximum in {_pct(at_ceiling)} of "
        f"those; {ran}; {cache}.",
        "prefill": f"{queue}, while {cache} and running was below its ceiling in "
        f"{_pct(None if at_ceiling is None else 1 - at_ceiling)} of those; {ran}; {_n(prompt)} "
        f"prompt and {_n(output)} output tokens/s.",
        "kv-unobserved": f"{queue}, but KV usage was not observed, so what limits cannot be told; "
        f"{ran}.",
        "thinned": f"{_n(waiting)} requests waited on average, but only minutes were pulled: for "
        f"how much of them is not known; {ran}; {cache}.",
        "stalled": f"{ran}, but no token came out: a frozen gauge or a hung engine.",
        "decode": f"Decode-compute-bound by the look of it: {ran} and nothing waited, yet "
        f"{_n(output)} output tokens/s is no more than a lighter load gave.",
        "client": f"{ran}, giving {_n(output)} output tokens/s; {queue}; {cache}.",
    }
    return sentences[stretch[0].cause]


def _mean(stretch: Sequence[Judged], column: str) -> float | None:
    """Mean of a column over a stretch, weighted by time; None where never observed."""
    seen = [(j.step[column], j.seconds) for j in stretch if j.step[column] is not None]
    total = sum(seconds for _, seconds in seen)
    return sum(value * seconds for value, seconds in seen) / total if total else None


def _peak(stretch: Sequence[Judged], column: str) -> float | None:
    return max((j.step[column] for j in stretch if j.step[column] is not None), default=None)


def _n(value: float | None, digits: int = 1) -> str:
    return "an unknown number of" if value is None else f"{value:,.{digits}f}"


def _pct(ratio: float | None) -> str:
    return "an unknown share" if ratio is None else f"{100 * ratio:.0f} %"
