"""The plan of a window: how many replicas, which GPU instead, for what money, how long.

Everything rests on the answer of the window (its capacity, under the targets where they are given)
and on verdicts that say what they rest on; what cannot be known is a row with a reason.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any

import polars as pl

from vllm_capacity.answers import answer
from vllm_capacity.bills import Terms
from vllm_capacity.errors import InputError
from vllm_capacity.estimate import Estimate
from vllm_capacity.facts.fleet import engine_rate
from vllm_capacity.facts.gpus import GpuSpan, find_gpu, gpu_names
from vllm_capacity.facts.llms import find_llm
from vllm_capacity.facts.prices import NO_PRICE, choose_price, usual_forms
from vllm_capacity.facts.throughput import measurements
from vllm_capacity.figures import latency, traffic
from vllm_capacity.figures.steps import engine_steps
from vllm_capacity.telemetry.window import Window
from vllm_capacity.timerange import TimeRange
from vllm_capacity.verdicts.forecast import forecast_demand
from vllm_capacity.verdicts.options import Candidate, whatif_table
from vllm_capacity.verdicts.question import Load, Question
from vllm_capacity.verdicts.regimes import KV
from vllm_capacity.verdicts.sizing import (
    Change,
    Policy,
    demand_seen,
    month_usd,
    queue_check,
    replicas,
    sensitivity,
    usual_cases,
)
from vllm_capacity.verdicts.slo import running_within
from vllm_capacity.verdicts.whatif import Busy

_FLOPS = "vllm:estimated_flops_per_gpu_total"
_BYTES = ("vllm:estimated_read_bytes_per_gpu_total", "vllm:estimated_write_bytes_per_gpu_total")
_DEMAND_QUANTILE = 0.95
_WAIT_LIMIT_SECONDS = 1.0
_LONG_GAP = timedelta(weeks=4)


@dataclass(frozen=True)
class Ask:
    """What a plan is asked for.

    `demand_requests_per_second` None: the 95th percentile of what finished in the window.
    `from_gpu` is what it ran on, which vLLM does not export; without it other GPUs cannot be
    compared. `model` names the model where the served name is none we know. `to_gpus` empty: every
    GPU known.
    """

    demand_requests_per_second: float | None = None
    from_gpu: str | None = None
    to_gpus: tuple[str, ...] = ()
    model: str | None = None
    policy: Policy = field(default_factory=Policy)

    def __post_init__(self) -> None:
        asked = self.demand_requests_per_second
        if asked is not None and not 0 < asked < float("inf"):
            raise InputError(f"The demand must be above 0 requests a second, not {asked:g}.")


def plan(
    window: Window,
    ask: Ask,
    *,
    start: datetime | None = None,
    end: datetime | None = None,
    terms: Terms | None = None,
    told: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """The plan of a window or its part: one object, every key always there.

    `demand_*`, `capacity_output_tokens_per_second` (one engine of the window, under the targets
    where given), `replicas`, `gpus` and `usd_per_month` are estimates; `queue_check` and each entry
    of `sensitivity` belong to them; `options` are other GPUs, rejected ones with their reason;
    `forecast` is of requests an hour, or why there is none. `told` saves asking for the window's
    answer again where the same part and terms have it.
    """
    terms = terms or Terms()
    told = told or answer(window, start=start, end=end, terms=terms)
    part = window.clamp(start, end)
    case = _case(window, ask, part, _in_force(terms, window, part), told)
    needed = replicas(case.demand, case.capacity, ask.policy)
    gpus = needed.scaled(case.terms.gpus_per_engine)
    price = case.terms.usd_per_gpu_hour or Estimate.unknown(NO_PRICE)
    return {
        "window": case.told["window"],
        "policy": asdict(ask.policy),
        "demand_requests_per_second": case.requests.as_dict(),
        "demand_output_tokens_per_second": case.demand.as_dict(),
        "capacity_output_tokens_per_second": case.capacity.as_dict(),
        "replicas": needed.as_dict(),
        "gpus": gpus.as_dict(),
        "usd_per_month": month_usd(gpus, price).as_dict(),
        "queue_check": _queue(case, needed),
        "sensitivity": _sensitivity(case),
        **_options(case),
        "forecast": _forecast(window, case.part),
    }


@dataclass(frozen=True)
class _Case:
    """One window under one ask: its answer, and what every part of the plan starts from."""

    window: Window
    part: TimeRange
    points: pl.DataFrame  # engine steps
    told: dict[str, Any]
    ask: Ask
    terms: Terms
    prompt_tokens: Estimate
    output_tokens: Estimate
    requests: Estimate  # a second
    demand: Estimate  # output tokens a second, of all
    capacity: Estimate  # output tokens a second, of one engine


def _in_force(terms: Terms, window: Window, part: TimeRange) -> Terms:
    """The terms with the GPUs and the price that a mapping file has at the end of the part.

    More replicas are bought at one price: where the file has several for the window's instances,
    the price is unknown, and GPUs are their mean.
    """
    if not terms.fleet:
        return terms
    moment = TimeRange(part.end - timedelta(microseconds=1), part.end)
    names = window.sql("select distinct instance from series order by instance").to_series()
    rates = [engine_rate(terms.fleet, name, moment) for name in names.to_list()]
    prices = {rate.usd_per_gpu_hour for rate in rates}
    price = Estimate.unknown(
        f"the mapping file has {len(prices)} prices in force at the end of the window; a plan is "
        "of one: give usd_per_hour, or as price a row of gpu_prices.csv"
    )
    return replace(
        terms,
        fleet=(),
        usd_per_gpu_hour=prices.pop() if len(prices) == 1 else price,
        gpus_per_engine=sum(rate.gpus_per_engine for rate in rates) / max(1, len(rates)),
    )


def _case(window: Window, ask: Ask, part: TimeRange, terms: Terms, told: dict[str, Any]) -> _Case:
    points = engine_steps(window, part=part)
    requests = _demand(ask, points)
    output = _mean_tokens(told, "generation")
    return _Case(
        window=window,
        part=part,
        points=points,
        told=told,
        ask=ask,
        terms=terms,
        prompt_tokens=_mean_tokens(told, "prompt"),
        output_tokens=output,
        requests=requests,
        demand=requests.times(
            output,
            f"requests/s × output tokens a request ({requests.basis}; {output.basis})",
        ),
        capacity=_capacity(told, terms),
    )


def _mean_tokens(told: dict[str, Any], kind: str) -> Estimate:
    """Tokens of a kind for each finished request; unknown where none finished."""
    finished, tokens = told["requests"]["finished"], told["tokens"][kind]
    if not finished or tokens is None:
        return Estimate.unknown("no request finished in this window")
    basis = f"{tokens:,.0f} {kind} tokens ÷ {finished:,.0f} finished requests"
    return Estimate.exact(tokens / finished, basis)


def _demand(ask: Ask, points: pl.DataFrame) -> Estimate:
    if ask.demand_requests_per_second is not None:
        given = ask.demand_requests_per_second
        return Estimate.exact(given, f"{given:g} requests/s, as asked")
    return demand_seen(points, _DEMAND_QUANTILE)


def _capacity(told: dict[str, Any], terms: Terms) -> Estimate:
    """Output tokens a second of one engine: under the targets where given, else at the knee.

    Its basis names the targets, or says that none was applied.
    """
    where = told["slo"] if _has_targets(terms) else told["saturation"]
    whole = Estimate(**where["capacity_output_tokens_per_second"])
    if not whole.is_unknown and not _has_targets(terms):
        whole = whole.scaled(1.0, f"{whole.basis}; no latency target applied")
    engines = told["window"]["mean_engines"] or 1.0
    return whole if engines == 1 else whole.scaled(1 / engines, f"{whole.basis}, ÷ {engines:.3g}")


def _has_targets(terms: Terms) -> bool:
    return terms.ttft_slo_seconds is not None or terms.itl_slo_seconds is not None


def _running(case: _Case) -> float | None:
    """Running requests of one engine at the capacity that the plan is made with; None: not known.

    Within targets fewer run than at the knee. Engines may differ: their mean, as the capacity's.
    """
    terms, engines = case.terms, case.told["window"]["mean_engines"] or 1.0
    running: float | None = case.told["saturation"]["capacity_running_requests"]["mid"]
    if _has_targets(terms):
        running = running_within(case.points, terms.ttft_slo_seconds, terms.itl_slo_seconds)
    return None if running is None else running / engines


def _queue(case: _Case, needed: Estimate) -> dict[str, Any] | None:
    """An M/G/c queue's view of the replicas without their spares; None where it cannot be asked."""
    running = _running(case)
    known = [case.requests.mid, case.capacity.mid, case.output_tokens.mid, needed.mid, running]
    figures = [figure for figure in known if figure is not None]
    if len(figures) < len(known):
        return None
    requests, capacity, output, replicas_needed, places = figures
    check = queue_check(
        requests_per_second=requests,
        capacity_requests_per_second=capacity / output,
        running_at_capacity=max(1.0, places),
        replicas=max(1, round(replicas_needed) - case.ask.policy.spare_replicas),
        wait_limit_seconds=_WAIT_LIMIT_SECONDS,
    )
    return {**asdict(check), "wait_limit_seconds": _WAIT_LIMIT_SECONDS}


def _sensitivity(case: _Case) -> dict[str, Any]:
    metrics = (latency.PREFILL, latency.DECODE)
    phases = latency.histogram_increases(case.window, metrics, part=case.part)
    prefill, decode = (
        latency.sound_total([p for p in phases if p.metric == metric], case.part)
        for metric in metrics
    )
    cases = {"demand doubles": Change(demand=2.0)}
    if prefill is not None and decode is not None and prefill + decode > 0:
        cases = usual_cases(
            prefill_share=prefill / (prefill + decode),
            prefix_hit_ratio=case.told["prefix_cache_hit_ratio"],
            prompt_tokens=case.prompt_tokens.mid,
            output_tokens=case.output_tokens.mid,
            is_kv_limited=case.told["saturation"]["first_limit"] == KV,
        )
    found = sensitivity(case.demand, case.capacity, policy=case.ask.policy, cases=cases)
    return {name: estimate.as_dict() for name, estimate in found.items()}


def _options(case: _Case) -> dict[str, Any]:
    """`model`, `options` and `options_reason`: why there are none, empty where there are."""
    name = case.ask.model or _served_model(case.window)
    reason = _no_comparison(case, name)
    if name is None or case.ask.from_gpu is None or reason:
        return {"model": name, "options": [], "options_reason": reason}
    llm, here = find_llm(name), find_gpu(case.ask.from_gpu)
    measured = Question(
        llm=llm,
        dtype=llm.weights_dtype,
        to_dtype=llm.weights_dtype,
        from_gpu=here,
        to_gpu=here,
        gpus=max(1, round(case.terms.gpus_per_engine)),
        output_tokens_per_second=case.capacity.mid or 0.0,
        input_tokens=case.prompt_tokens.mid or 0.0,
        output_tokens=case.output_tokens.mid or 0.0,
        load=Load(is_capacity=True),
    )
    wanted = (case.ask.from_gpu, *(case.ask.to_gpus or gpu_names()))
    spans = list({span.name: span for span in map(find_gpu, wanted)}.values())
    table = whatif_table(
        measured,
        [
            _candidate(
                span, llm.weights_dtype, case.terms.usd_per_gpu_hour if span == here else None
            )
            for span in spans
        ],
        slo_capacity=case.capacity,
        demand=case.demand,
        policy=case.ask.policy,
        published=measurements(),
        prefer={span.rows[0].gpu: usual_forms(span.rows[0].gpu) for span in spans},
        busy=_busy(case, here),
    )
    return {"model": llm.model, "options": [one.as_dict() for one in table], "options_reason": ""}


def _candidate(span: GpuSpan, dtype: str, own: Estimate | None) -> Candidate:
    """A GPU as an option, at the window's own price where it is what the window ran on."""
    price = own or choose_price(gpu=span.name)
    return Candidate(span, dtype, price.basis or price.reason, price)


def _served_model(window: Window) -> str | None:
    names = window.sql("select distinct model_name from series where model_name is not null")
    return names.item() if names.height == 1 else None


def _no_comparison(case: _Case, name: str | None) -> str:
    if case.ask.from_gpu is None:
        return "vLLM does not export what it runs on: name it (gpu) to compare other GPUs with it"
    if name is None:
        return "the window serves no model, or several: name one (model)"
    try:
        find_llm(name)
    except InputError as error:
        return f"no shape is known of {name!r}: {error} Name one that is (model)."
    for estimate in (case.prompt_tokens, case.output_tokens, case.capacity):
        if not estimate.mid:
            return estimate.reason or "nothing was served"
    return ""


def _busy(case: _Case, here: GpuSpan) -> Busy | None:
    """MFU and MBU at capacity, from vLLM's counters: work a token × tokens a second ÷ the sheet.

    None where the counters stand at 0 (the option is off) or the form factor is not known.
    """
    increases = traffic.counter_increases(case.window, [_FLOPS, *_BYTES], part=case.part)
    tokens, rate = case.told["tokens"]["generation"], case.capacity.mid
    gpu = here.rows[0]
    if not tokens or rate is None or len(here.rows) > 1 or gpu.tensor_tflops is None:
        return None
    flops = traffic.total(increases, _FLOPS) or 0.0
    moved = sum(traffic.total(increases, name) or 0.0 for name in _BYTES)
    busy = Busy(
        flops / tokens * rate / (gpu.tensor_tflops * 1e12),
        moved / tokens * rate / gpu.bandwidth_bytes_per_second,
    )
    return busy if busy.is_counted else None


def _forecast(window: Window, part: TimeRange) -> dict[str, Any]:
    """Requests an hour over the next day, as the `forecast` command gives it."""
    increases = traffic.scrape_increases(window, [traffic.REQUESTS], part=part)
    minutes = (
        increases.drop_nulls("increase")
        .group_by(ts=pl.col("ts").dt.truncate("1m"))
        .agg(requests=pl.col("increase").sum())
        .sort("ts")
    )
    minutes = minutes.filter(pl.col("ts") >= _since_long_gap(minutes.get_column("ts")))
    if minutes.height < 2:
        return _told(None, "", None, "too short to forecast: no two minutes of requests")
    # A minute without a scrape is a row without a value: not recorded, which is not 0.
    found = forecast_demand(minutes.upsample("ts", every="1m"), column="requests")
    rows = _rows(found.frame) if found.is_known else None
    return _told(rows, found.method, found.coverage_measured, found.reason)


def _since_long_gap(ts: pl.Series) -> datetime | None:
    """When the last stretch without a gap of over four weeks begins; None for no time at all."""
    return ts.filter((ts.diff() > _LONG_GAP).fill_null(True)).last()  # type: ignore[return-value]


def _rows(frame: pl.DataFrame) -> Sequence[dict[str, Any]]:
    stamped = frame.with_columns(pl.col("ts").dt.strftime("%Y-%m-%dT%H:%M:%SZ"))
    return stamped.select("ts", "low", "mid", "high").to_dicts()


def _told(
    rows: Sequence[dict[str, Any]] | None, method: str, coverage: float | None, reason: str
) -> dict[str, Any]:
    return {"forecast": rows, "method": method, "coverage_measured": coverage, "reason": reason}
