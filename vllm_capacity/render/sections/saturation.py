"""The load at which a server saturates, and its bottleneck: tables next to the curves."""

from __future__ import annotations

from vllm_capacity.analysis import Analysis
from vllm_capacity.render.numbers import number, percent, reason, seconds, sure, value, why
from vllm_capacity.render.prose import verdict as prose
from vllm_capacity.render.tables import (
    Cell,
    Column,
    Figure,
    Table,
    Text,
    Value,
    figures_table,
    interval,
    table,
    text,
)
from vllm_capacity.verdicts.saturation.fit import SaturationFit

_OVERSATURATION = {
    True: "The server was falling behind: queue and TTFT both grew over time",
    False: "The server was not falling behind: queue and TTFT did not both grow over time",
    None: "It is not known whether the server was falling behind",
}


def regime_table(analysis: Analysis) -> Table:
    """Each engine's time under each bottleneck, longest first, with the evidence of the longest.

    One row per engine and regime.
    """
    columns = (
        Column("engine", "engine"),
        Column("bottleneck", "regime"),
        Column("time", "time_seconds", seconds, is_numeric=True),
        Column("share", "share_ratio", percent, is_numeric=True),
        Column("evidence, from the longest stretch", "evidence", is_note=True),
    )
    rows = [
        (
            each.engine,
            Cell(prose.REGIMES[each.regime], each.regime),
            each.seconds,
            each.share_ratio,
            each.evidence,
        )
        for each in analysis.saturation.regime_times
    ]
    return table(columns, rows, empty="No step of this window could be judged.")


def capacity_table(analysis: Analysis) -> Table:
    """Capacity, the load at which it is reached, headroom, and throughput within the targets."""
    found, slo_throughput = analysis.saturation, analysis.slo.throughput
    calculated = analysis.by_arithmetic.capacity
    within = analysis.by_arithmetic.slo_throughput_output_tokens_per_second
    by_arithmetic = Figure("capacity, by arithmetic", calculated, number, "output tokens/s")
    also = Figure("throughput within targets, by arithmetic", within, number, "output tokens/s")
    return figures_table(
        (
            Figure("capacity", found.capacity, number, "output tokens/s"),
            *([] if calculated.is_unknown else [by_arithmetic]),
            Figure("reached at", found.capacity_running_requests, number, "running requests"),
            Figure("headroom, over the window", found.headroom_ratio, percent),
            Figure("throughput within targets", slo_throughput, number, "output tokens/s"),
            *([] if within.is_unknown else [also]),
        )
    )


def extrapolation_table(analysis: Analysis) -> Table:
    """The capacity extrapolated from the lighter half of the loads, next to that of all loads.

    Two rows per engine: if the window has a plateau, they check the extrapolation.
    """
    columns = (
        Column("engine", "engine"),
        Column("from", "from"),
        Column("heaviest load", "heaviest_running", number, is_numeric=True),
        Column("capacity", "capacity", number, is_numeric=True),
        Column("interval"),
        Column("basis", "basis", is_note=True),
    )
    rows = []
    for fit in analysis.fits:
        light = analysis.light_fits.get(fit.engine)
        if light is not None:
            rows.append((fit.engine, "the lighter half", *_fitted(light)))
        rows.append((fit.engine, "all loads", *_fitted(fit)))
    return table(
        columns,
        rows,
        caption="Loads are running requests, capacities output tokens/s.",
        empty="No step of this window could be judged.",
    )


def oversaturation(analysis: Analysis) -> Text:
    """Whether the server fell behind over the window, by the two-slope test, in words."""
    found = analysis.oversaturation
    return text(f"{_OVERSATURATION[found.is_oversaturating]}. {found.evidence}")


def saturation_verdict(analysis: Analysis) -> Text:
    """The load at which the server saturates, and its bottleneck, in one sentence."""
    saturation, slo_throughput = analysis.saturation, analysis.slo.throughput
    capacity, running = saturation.capacity, saturation.capacity_running_requests
    if capacity.mid is None:
        sentence = f"the load at which it saturates is not known: {reason(capacity)}"
        if capacity.is_bound:
            sentence = f"capacity is {value(capacity, number)} output tokens/s; {sentence}"
    else:
        is_expected = prose.is_extrapolated(saturation)
        verb = "is expected to saturate" if is_expected else "saturates"
        at = "" if running.mid is None else f" at {sure(running, number)} running requests"
        sentence = f"the server {verb}{at}, with {sure(capacity, number)} output tokens/s"
    if saturation.bottleneck in prose.LIMITS:
        sentence += f"; its bottleneck is {prose.LIMITS[saturation.bottleneck]}"
    else:
        sentence += "; it had no bottleneck in this window"
    if not slo_throughput.is_unknown:
        sentence += (
            f"; within the targets it can serve {sure(slo_throughput, number)} output tokens/s"
        )
    return text(f"{sentence}.")


def _fitted(fit: SaturationFit) -> tuple[Value, ...]:
    found = fit.capacity
    return fit.heaviest_running, found, interval(found, number), why(found)
