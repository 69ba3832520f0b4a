"""At what load a server stops keeping up, and what stops it: tables beside the curves."""

from __future__ import annotations

from collections.abc import Sequence

import polars as pl

from vllm_capacity.figures.steps import engine_steps
from vllm_capacity.render.numbers import Write, between, instant, number, percent, seconds
from vllm_capacity.render.prose import verdict as words
from vllm_capacity.render.prose.estimates import (
    is_bound,
    is_unknown,
    line,
    reason,
    sure,
    value,
    why,
)
from vllm_capacity.render.sections.elements import Piece, table
from vllm_capacity.render.study import Study
from vllm_capacity.render.text import Said, said
from vllm_capacity.verdicts.saturation import SaturationFit, engine_fits
from vllm_capacity.verdicts.slo import is_oversaturating

_LIGHT_SHARE = 0.5
_CAPACITY = "capacity_output_tokens_per_second"
_FIGURES: Sequence[tuple[str, str, str, Write, str]] = (
    ("held at most", "saturation", _CAPACITY, number, "output tokens/s"),
    ("at so many running requests", "saturation", "capacity_running_requests", number, ""),
    ("room left, over the window", "saturation", "headroom_ratio", percent, ""),
    ("held within the targets", "slo", _CAPACITY, number, "output tokens/s"),
)
_OVERLOAD = {
    True: "It was falling behind: queue and wait both grew as time went on",
    False: "It was not falling behind: queue and wait did not both grow as time went on",
    None: "Whether it was falling behind cannot be told",
}


def regime_times(asked: Study) -> Piece:
    """How long each engine was in each regime, the longest first, with the longest spell's why."""
    spells = [
        {
            "engine": str(each["engine"]),
            "regime": str(each["regime"]),
            "seconds": (instant(each["end"]) - instant(each["start"])).total_seconds(),
            "evidence": str(each["evidence"]),
        }
        for each in asked.answer["saturation"]["regimes"]
    ]
    if not spells:
        return table(["engine"], [], empty="No step of this window could be judged.")
    frame = pl.DataFrame(spells).with_columns(whole=pl.col("seconds").sum().over("engine"))
    rows = (
        frame.group_by("engine", "regime", "whole")
        .agg(pl.col("seconds").sum(), why=pl.col("evidence").sort_by("seconds").last())
        .sort("engine", -pl.col("seconds"), "regime")
    )
    return table(
        ["engine", "regime", "time", "of the window", "its longest spell"],
        [
            [
                row["engine"],
                words.REGIMES[row["regime"]],
                seconds(row["seconds"]),
                percent(row["seconds"] / row["whole"]),
                row["why"],
            ]
            for row in rows.iter_rows(named=True)
        ],
        numeric=(2, 3),
    )


def limits(asked: Study) -> Piece:
    """What the server can hold, at what load, and how much of it is left; or why not known."""
    rows = [
        line(name, asked.answer[part][figure], write, unit)
        for name, part, figure, write, unit in _FIGURES
    ]
    return table(["what", "value", "", "what it rests on"], rows, numeric=(1,))


def foreseen_from_light(asked: Study) -> Piece:
    """What the lighter steps alone foretell of each engine, beside what the whole window shows.

    Lighter are the steps with at most half of the most requests that ran in any step: a window as
    it would be before its server was ever full.
    """
    steps = engine_steps(asked.opened, part=asked.part)
    most = pl.col("running_mean").max().over("instance", "engine")
    light = steps.filter(pl.col("running_mean") <= _LIGHT_SHARE * most)
    foreseen = {fit.engine: fit for fit in engine_fits(light)}
    rows = []
    for fit in engine_fits(steps):
        for name, seen in (("the lighter half", foreseen.get(fit.engine)), ("all of it", fit)):
            if seen is not None:
                rows.append([fit.engine, name, *_fitted(seen)])
    return table(
        ["engine", "from", "heaviest load", "capacity", "", "what it rests on"],
        rows,
        numeric=(2, 3),
        caption="Loads are running requests, capacities output tokens/s.",
        empty="No step of this window could be judged.",
    )


def overload(asked: Study) -> Said:
    """Whether the server was falling behind over the window: the two-slope test, in words."""
    found = is_oversaturating(engine_steps(asked.opened, part=asked.part))
    return said(f"{_OVERLOAD[found.is_oversaturating]}. {found.evidence}")


def saturation_verdict(asked: Study) -> Said:
    """At what load it stops keeping up, and what stops it, in one sentence."""
    saturation, slo = asked.answer["saturation"], asked.answer["slo"]
    held, running = saturation[_CAPACITY], saturation["capacity_running_requests"]
    within = slo[_CAPACITY]
    first = saturation["first_limit"]
    if held["mid"] is None:
        text = f"at what load it stops keeping up is not known: {reason(held)}"
        if is_bound(held):
            text = f"it holds {value(held, number)} output tokens/s; {text}"
    else:
        stops = "would stop" if words.is_extrapolated(saturation) else "stops"
        at = "" if running["mid"] is None else f" at {sure(running, number)} running requests"
        text = f"it {stops} keeping up{at}, where it holds {sure(held, number)} output tokens/s"
    if first in words.LIMITS:
        text += f"; what stops it is {words.LIMITS[first]}"
    else:
        text += "; nothing in it was a limit in this window"
    if not is_unknown(within):
        text += f"; within the targets it holds {sure(within, number)} output tokens/s"
    return said(f"{text}.")


def _fitted(fit: SaturationFit) -> list[str]:
    heaviest = max((point.step["running_mean"] for point in fit.points), default=None)
    found = fit.capacity.as_dict()
    return [
        "–" if heaviest is None else number(heaviest),
        value(found, number),
        between(found, number),
        why(found),
    ]
