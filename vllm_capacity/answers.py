"""All of it for one window, once: the object that every face reads.

The JSON of `vllm-capacity figures`, the page, the terminal, the index and the alerts show what is
here; none of them computes. `answers.schema.json` beside this file is its shape.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from importlib.resources import files
from typing import Any

import polars as pl

from vllm_capacity.bills import Terms, engine_parts, grouped, presence
from vllm_capacity.estimate import Estimate
from vllm_capacity.figures import evidence, gauges, latency, losses, scrapes, steps, traffic
from vllm_capacity.figures.failures import failures
from vllm_capacity.figures.histogram import attainment
from vllm_capacity.telemetry.window import Window
from vllm_capacity.timerange import TimeRange, iso
from vllm_capacity.verdicts.advice import advice
from vllm_capacity.verdicts.cost import Part, bill
from vllm_capacity.verdicts.finding import Finding
from vllm_capacity.verdicts.quality import ledger
from vllm_capacity.verdicts.saturation import SaturationFit, engine_fits, saturation
from vllm_capacity.verdicts.slo import slo_capacity

_COUNTERS = (
    traffic.REQUESTS,
    traffic.GENERATION_TOKENS,
    traffic.PROMPT_TOKENS,
    traffic.PROMPT_TOKENS_BY_SOURCE,
    traffic.PROMPT_TOKENS_CACHED,
    traffic.PREEMPTIONS,
    traffic.PREFIX_QUERIES,
    traffic.PREFIX_HITS,
    traffic.OLD_PREFIX_QUERIES,
    traffic.OLD_PREFIX_HITS,
)


@dataclass(frozen=True)
class _Case:
    """One part of a window, and the frames that several of its figures start from."""

    window: Window
    part: TimeRange
    terms: Terms
    tries: pl.DataFrame
    fleet: pl.DataFrame  # engines with their billed hours
    points: pl.DataFrame  # engine steps
    fits: Sequence[SaturationFit]

    @property
    def presence(self) -> dict[str, float]:
        """The share of the part in which each engine was there, by name."""
        return presence(self.fleet)

    def bill_parts(self) -> dict[str, Part]:
        """The part of the bill of each engine, by name."""
        return engine_parts(
            self.window,
            self.fleet,
            part=self.part,
            terms=self.terms,
            capacities={fit.engine: fit.capacity for fit in self.fits},
        )


def _case(
    window: Window, start: datetime | None, end: datetime | None, terms: Terms | None
) -> _Case:
    part = window.clamp(start, end)
    tries = scrapes.attempts(window, end=part.end)
    fleet = scrapes.billed_hours(scrapes.engines(window, part=part, tries=tries), tries, part=part)
    points = steps.engine_steps(window, part=part, tries=tries)
    return _Case(window, part, terms or Terms(), tries, fleet, points, engine_fits(points))


def answer(
    window: Window,
    *,
    start: datetime | None = None,
    end: datetime | None = None,
    terms: Terms | None = None,
) -> dict[str, Any]:
    """The figures and verdicts of the window, or of its part [start, end): the machine interface.

    Every key is always there; plain figures are null and estimates carry a reason where unknown.
    InputError where nothing of the window lies in the part.
    """
    case = _case(window, start, end, terms)
    part = case.part
    increases = traffic.counter_increases(window, _COUNTERS, part=part)
    output_rate = traffic.rate_per_second(increases, traffic.GENERATION_TOKENS)
    restarts = scrapes.restarts(window, part=part)
    outages = scrapes.outages(window, part=part, tries=case.tries)
    lost = losses.losses(window, part=part, tries=case.tries, restarts=restarts, outages=outages)
    body: dict[str, Any] = {
        "window": {
            "start": iso(part.start),
            "end": iso(part.end),
            "hours": part.hours,
            "engines": case.fleet.height,
            "mean_engines": sum(case.presence.values()),
        },
        **_traffic(increases, lost),
        "latency": latency.latency(window, part=part),
        "slo": _slo(case),
        **_gauges(case),
        "failures": _told(failures(window, part=part)),
        "saturation": saturation(
            case.points,
            output_tokens_per_second=output_rate,
            fits=case.fits,
            presence=case.presence,
        ),
        "cost": _told(bill(case.bill_parts()).whole),
        "advice": _advice(case.fits, traffic.prefix_cache_hit_ratio(increases)),
    }
    findings = _quality(case, body, restarts, outages, lost)
    body["quality"] = [finding.as_dict() for finding in findings]
    return _in_schema_order(body)


def _quality(
    case: _Case,
    body: dict[str, Any],
    restarts: list[scrapes.Restart],
    outages: list[scrapes.Outage],
    lost: losses.Losses,
) -> list[Finding]:
    facts = evidence.gather(
        case.window,
        part=case.part,
        tries=case.tries,
        restarts=restarts,
        outages=outages,
        losses=lost,
        points=case.points,
        fleet=case.fleet,
    )
    return ledger(facts, body, fits=case.fits)


def _traffic(increases: pl.DataFrame, lost: losses.Losses) -> dict[str, Any]:
    by_reason = traffic.total_by_label(increases, traffic.REQUESTS, "finished_reason")
    has_requests = bool(by_reason)
    return {
        "requests": {
            "finished": _count(sum(by_reason.values())) if has_requests else None,
            "successful": _count(traffic.successful(by_reason)),
            "by_reason": {reason: _count(n) for reason, n in by_reason.items()},
            "lost": lost.requests.as_dict(),
        },
        "tokens": {
            "prompt": _count(traffic.total(increases, traffic.PROMPT_TOKENS)),
            "prompt_computed": _count(traffic.prompt_tokens_computed(increases)),
            "generation": _count(traffic.total(increases, traffic.GENERATION_TOKENS)),
            "lost": lost.tokens.as_dict(),
        },
        "throughput": {
            "output_tokens_per_second": traffic.rate_per_second(
                increases, traffic.GENERATION_TOKENS
            ),
            "requests_per_second": traffic.rate_per_second(increases, traffic.REQUESTS),
        },
        "preemptions": _count(traffic.total(increases, traffic.PREEMPTIONS)),
        "prefix_cache_hit_ratio": traffic.prefix_cache_hit_ratio(increases),
    }


def _count(value: float | None) -> float | None:
    """A count as an integer where it is one, as it should be."""
    return int(value) if value is not None and value.is_integer() else value


def _gauges(case: _Case) -> dict[str, Any]:
    spreads = gauges.spreads(case.window, case.tries, part=case.part)
    return {name: {"mean": s.mean, "max": s.max} for name, s in spreads.items()}


def _slo(case: _Case) -> dict[str, Any]:
    terms = case.terms
    shares = {
        "ttft_attainment": (latency.TTFT, terms.ttft_slo_seconds, "ttft_slo_seconds (--slo-ttft)"),
        "itl_attainment": (latency.ITL, terms.itl_slo_seconds, "itl_slo_seconds (--slo-itl)"),
    }
    answer: dict[str, Any] = {
        name: _attained(case, metric, target, option).as_dict()
        for name, (metric, target, option) in shares.items()
    }
    capacity = slo_capacity(
        case.points,
        ttft_slo_seconds=terms.ttft_slo_seconds,
        itl_slo_seconds=terms.itl_slo_seconds,
        fits=case.fits,
        presence=case.presence,
    )
    return {**answer, "capacity_output_tokens_per_second": capacity.as_dict()}


def _attained(case: _Case, metric: str, target: float | None, option: str) -> Estimate:
    if target is None:
        return Estimate.unknown(f"no target given: give {option}")
    observed = latency.merged(latency.histogram_increases(case.window, [metric], part=case.part))
    if observed is None:
        return Estimate.unknown(f"{metric} observed nothing in this part")
    low, high = attainment(observed.edges, observed.counts, target)
    assert low is not None  # something was observed
    assert high is not None
    is_exact = low == high
    basis = f"{observed.count:,.0f} observations of {metric}, target {target:g} s" + (
        "" if is_exact else ", which lies between two bucket edges"
    )
    return Estimate.known(low, (low + high) / 2, high, basis)


def _told(figures: Mapping[str, Estimate]) -> dict[str, Any]:
    return {name: figure.as_dict() for name, figure in figures.items()}


def cost_by(
    window: Window,
    *,
    by: str,
    start: datetime | None = None,
    end: datetime | None = None,
    terms: Terms | None = None,
) -> dict[str, Any]:
    """The bill by `engine`, `instance`, `model` or any label: `whole`, and `parts` by its value.

    Each holds every cost figure as an estimate; allocation and idle dollars of the parts add up to
    the whole's. InputError where no counter has the label.
    """
    case = _case(window, start, end, terms)
    told = bill(grouped(window, case.bill_parts(), by=by, part=case.part))
    parts = {key: _told(figures) for key, figures in told.parts.items()}
    return {"by": by, "whole": _told(told.whole), "parts": parts}


def _advice(fits: Sequence[SaturationFit], hit_ratio: float | None) -> list[dict[str, Any]]:
    return [
        {
            "setting": one.setting,
            "engine": one.engine,
            "evidence": one.evidence,
            "effect": one.effect.as_dict(),
        }
        for one in advice(fits, prefix_cache_hit_ratio=hit_ratio)
    ]


def schema() -> dict[str, Any]:
    """The JSON Schema of the answer."""
    text = files("vllm_capacity").joinpath("answers.schema.json").read_text()
    loaded: dict[str, Any] = json.loads(text)
    return loaded


def _in_schema_order(body: dict[str, Any]) -> dict[str, Any]:
    return {name: body[name] for name in schema()["required"]}
