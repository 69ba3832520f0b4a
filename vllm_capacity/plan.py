"""The plan of a window: number of replicas, alternative GPUs, cost, and how long it suffices.

Everything is based on the answer of the window (its capacity, within the targets if given) and on
verdicts that state their basis; an unknown is a row with a reason.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from functools import cached_property

import polars as pl
from msgspec import Struct, field
from msgspec.structs import replace

from vllm_capacity.analysis import Analysis
from vllm_capacity.answer import Answer, WindowExtent
from vllm_capacity.assumptions import Hardware, Pricing, Slo
from vllm_capacity.bills import engine_name
from vllm_capacity.errors import InputError
from vllm_capacity.estimate import Estimate, Figures, Kind, listed, total
from vllm_capacity.facts.fleet import rate_in_force
from vllm_capacity.facts.gpus import GpuSpan, find_gpu, gpu_names
from vllm_capacity.facts.llms import kv_type_reason, shape_or_reason
from vllm_capacity.facts.metrics import DECODE, FLOPS, PREFILL, READ_BYTES, WRITE_BYTES
from vllm_capacity.facts.prices import NO_PRICE
from vllm_capacity.figures import latency, traffic
from vllm_capacity.record import SCHEMA_VERSION
from vllm_capacity.timerange import TimeRange
from vllm_capacity.verdicts.demand.forecast import DemandAhead
from vllm_capacity.verdicts.hardware.choice import Choice, choices
from vllm_capacity.verdicts.hardware.compare import Option
from vllm_capacity.verdicts.hardware.interactivity import (
    MAX_P95,
    MEAN,
    P95,
    Interactivity,
    ItlLoad,
)
from vllm_capacity.verdicts.hardware.other_gpus import (
    compared_gpus,
    interactivity_of,
    measured_question,
)
from vllm_capacity.verdicts.hardware.question import Load, Question
from vllm_capacity.verdicts.hardware.unloaded import Calculated, Heaviest
from vllm_capacity.verdicts.hardware.what_if import GpuUtilization
from vllm_capacity.verdicts.replay import Replay, replays
from vllm_capacity.verdicts.saturation.capacity import fleet_sum
from vllm_capacity.verdicts.saturation.regimes import KV
from vllm_capacity.verdicts.saturation.slo import SloLoad, running_within, slo_loads
from vllm_capacity.verdicts.sizing import (
    MAX_REPLICAS,
    Change,
    Policy,
    Pool,
    QueueCheck,
    Runway,
    Surplus,
    at_least_enough,
    demand_seen,
    month_usd,
    queue_check,
    replicas,
    runways,
    sensitivity,
    usual_cases,
)

_BYTES = (READ_BYTES, WRITE_BYTES)
_DEMAND_QUANTILE = 0.95
_WAIT_LIMIT_SECONDS = 1.0
_MORE_REPLICAS = 2
_NARROW = 2.5


class PlanRequest(Struct, frozen=True):
    """The inputs of a plan.

    `demand_requests_per_second` None: the p95 of the window's finished requests per second.
    `from_gpu` is the GPU it ran on, which vLLM does not export; None: by the analysis' assumptions
    or by labels; if unknown, other GPUs cannot be compared. `model` names the model if the served
    name is not a known one. `to_gpus` empty: all known GPUs.
    """

    demand_requests_per_second: float | None = None
    from_gpu: str | None = None
    to_gpus: tuple[str, ...] = ()
    model: str | None = None
    policy: Policy = field(default_factory=Policy)

    def __post_init__(self) -> None:
        """InputError for an invalid demand, and for a GPU that is in no table."""
        for name in filter(None, (self.from_gpu, *self.to_gpus)):
            find_gpu(name)
        demand = self.demand_requests_per_second
        if demand is not None and not 0 < demand < float("inf"):
            raise InputError(f"The demand must be above 0 requests per second, not {demand:g}.")


class ModelPlan(Figures, frozen=True):
    """The replicas of one model, which those of other models cannot replace, and checks of them.

    Demand is in output tokens/s; capacity is of one replica, within the targets if given.
    `queue_check` is None if it lacks inputs. `replays` simulate the busiest arrivals of the window,
    scaled to the requested demand, on that many replicas; empty if the window has too little
    information (verdicts/replay.py).
    """

    demand_output_tokens_per_second: Estimate
    capacity_output_tokens_per_second: Estimate
    replicas: Estimate
    queue_check: QueueCheck | None
    replays: tuple[Replay, ...]


class Plan(Figures, frozen=True):
    """Number of replicas, alternative GPUs, cost, how long it suffices; all fields always exist.

    Demand is for all replicas, capacity of one engine (within the targets if given). For several
    models, the replicas are the sum over the models, each by its own demand and capacity
    (`by_model`). `gpu` is the GPU of the window, as options name it; empty if unknown.
    `queue_check` and `replays` are those of a single model (`ModelPlan`): None and empty for
    several, whose requests wait in separate queues. `options` are GPUs by tokens per dollar, best
    first, rejected ones last with their reason; `options_reason` says why there are none, and
    `options_basis` where their throughput is from if the window did not show it. `choices` say what
    would change their order, `interactivity` what tokens cost at the same ITL. `surplus` is the
    number of the window's replicas that its own busiest time did not need.
    `capacity_by_arithmetic_…` is one engine's capacity extrapolated from the light load that it
    had. It is additional to the measured capacity; of all other fields, only options are based on
    it.
    """

    window: WindowExtent
    policy: Policy
    demand_requests_per_second: Estimate
    demand_output_tokens_per_second: Estimate
    capacity_output_tokens_per_second: Estimate
    replicas: Estimate
    gpus: Estimate
    usd_per_month: Estimate
    queue_check: QueueCheck | None
    replays: tuple[Replay, ...]
    by_model: Mapping[str, ModelPlan]
    sensitivity: Mapping[str, Estimate]
    gpu: str
    model: str | None
    options: tuple[Option, ...]
    options_reason: str
    options_basis: str
    choices: tuple[Choice, ...]
    interactivity: Interactivity
    forecast: DemandAhead
    surplus: Surplus
    capacity_by_arithmetic_output_tokens_per_second: Estimate
    schema_version: int = SCHEMA_VERSION

    @property
    def working_replicas(self) -> int | None:
        """The replicas without their spares, at least one; None if unknown."""
        return working(self.replicas, self.policy)

    @property
    def comparable(self) -> tuple[Option, ...]:
        """The options with known tokens per dollar, best first."""
        return tuple(option for option in self.options if option.is_comparable)

    def option(self, gpu: str) -> Option | None:
        """The option of that GPU, by its label; None if there is none."""
        return next((option for option in self.options if option.gpu == gpu), None)

    def runways(self, growth_ratio_per_month: float) -> tuple[Runway, ...]:
        """The load that replicas carry, and for how long: for up to two more than needed.

        Empty if the needed number is unknown. InputError for a growth below 0.
        """
        if self.replicas.mid is None:
            return ()
        most = round(self.replicas.mid) + _MORE_REPLICAS
        return runways(
            self.demand_output_tokens_per_second,
            self.capacity_output_tokens_per_second,
            policy=self.policy,
            counts=range(self.policy.spare_replicas + 1, most + 1),
            growth_ratio_per_month=growth_ratio_per_month,
        )


def working(replicas: Estimate, policy: Policy) -> int | None:
    """The replicas without their spares, at least one; None if unknown."""
    return None if replicas.mid is None else max(1, round(replicas.mid) - policy.spare_replicas)


def plan(analysis: Analysis, request: PlanRequest | None = None) -> Plan:
    """The plan of a window under its assumptions: the replicas needed and their cost."""
    return _Planning(analysis, request or PlanRequest()).plan


class _Load(Struct, frozen=True):
    """The demand for one model in output tokens/s and requests/s, and the capacity of one replica.

    A request generates `output_tokens`; `running` is the number of running requests of a replica at
    capacity; None if unknown. `pool`: its replicas in the window; None if no model is named.
    """

    demand: Estimate
    capacity: Estimate
    requests: float | None
    output_tokens: float | None
    running: float | None
    pool: Pool | None


class _Planning(Struct, frozen=True, dict=True):
    """One analysis and one request, and the common inputs of all parts of the plan."""

    analysis: Analysis
    request: PlanRequest

    @cached_property
    def plan(self) -> Plan:
        """The whole plan."""
        parts = self.by_model
        needed = _added({name: part.replicas for name, part in parts.items()})
        only = next(iter(parts.values())) if len(parts) == 1 else None
        gpus = needed.scaled(self.pricing.gpus_per_engine)
        price = self.pricing.usd_per_gpu_hour or Estimate.unknown(NO_PRICE)
        compared = _options(self)
        return Plan(
            window=self.answer.window,
            policy=self.request.policy,
            demand_requests_per_second=self.requests,
            demand_output_tokens_per_second=self.demand,
            capacity_output_tokens_per_second=self.capacity,
            replicas=needed,
            gpus=gpus,
            usd_per_month=month_usd(gpus, price),
            queue_check=None if only is None else only.queue_check,
            replays=() if only is None else only.replays,
            by_model=parts,
            sensitivity=_sensitivity(self),
            gpu="" if self.here is None else self.here.label,
            model=compared.model,
            options=compared.options,
            options_reason=compared.reason,
            options_basis=compared.basis,
            choices=choices(compared.options, here="" if self.here is None else self.here.label),
            interactivity=compared.interactivity,
            forecast=self.analysis.demand_ahead,
            surplus=self.analysis.surplus(self.request.policy),
            capacity_by_arithmetic_output_tokens_per_second=_by_arithmetic(self),
        )

    @cached_property
    def by_model(self) -> dict[str, ModelPlan]:
        """The plan of each model, by name."""
        return {name: _of_model(self, load) for name, load in self.loads.items()}

    @cached_property
    def loads(self) -> Mapping[str, _Load]:
        """The demand for each model, and the capacity of one of its replicas.

        A requested demand is split between models like the observed one.
        """
        pools = self.analysis.pools
        if len(pools) < 2:
            name = next(iter(pools), "")
            each = self.requests.mid, self.output_tokens.mid, self.running
            return {name: _Load(self.demand, self.capacity, *each, pools.get(name))}
        return {name: self._load(pool) for name, pool in pools.items()}

    def _load(self, pool: Pool) -> _Load:
        """The load of one model among several."""
        if pool.served is None:
            unknown = Estimate.unknown("no step of its engines was observed")
            return _Load(unknown, pool.capacity, None, None, None, pool)
        steps, running, scale = pool.served.steps, pool.served.running, self.scale or 1.0
        if self.is_within_targets:
            names = steps.select("instance", "engine").unique()
            engines = {engine_name(row) for row in names.iter_rows(named=True)}
            fits = [fit for fit in self.analysis.fits if fit.engine in engines]
            running = running_within(fits, self.analysis.assumptions.slo)
            running = None if running is None else running / len(fits)
        requests = demand_seen(steps, _DEMAND_QUANTILE).scaled(scale)
        tokens = _tokens_per_request(steps)
        basis = f"{tokens:,.4g} output tokens per request of the model"
        demand = requests.scaled(tokens, basis)
        return _Load(demand, pool.capacity, requests.mid, tokens or None, running, pool)

    @cached_property
    def scale(self) -> float | None:
        """The planned demand as a multiple of the observed one; None if there was none."""
        seen = demand_seen(self.analysis.steps, _DEMAND_QUANTILE).mid
        return (self.requests.mid or 0.0) / seen if seen else None

    @property
    def answer(self) -> Answer:
        """The answer of the window."""
        return self.analysis.answer

    @cached_property
    def pricing(self) -> Pricing:
        """The GPUs and the price in force at the end of the window."""
        return _in_force(self.analysis)

    @cached_property
    def hardware(self) -> Hardware:
        """The GPU and model as requested, else as assumed by the analysis."""
        assumed = self.analysis.assumptions.hardware
        return Hardware(self.request.from_gpu or assumed.gpu, self.request.model or assumed.model)

    @cached_property
    def here(self) -> GpuSpan | None:
        """The one GPU that it ran on; None if unknown, or if there are several."""
        found = self.analysis.gpus_on(self.hardware)
        return found[0] if len(found) == 1 else None

    @cached_property
    def calculated(self) -> Calculated:
        """The results of arithmetic for each engine."""
        if self.hardware == self.analysis.assumptions.hardware:
            return self.analysis.calculated
        return self.analysis.calculated_on(self.hardware)

    @property
    def is_within_targets(self) -> bool:
        """Whether latency targets were given."""
        return bool(self.analysis.assumptions.slo.targets)

    @cached_property
    def prompt_tokens(self) -> Estimate:
        """Prompt tokens per request."""
        return self.answer.prompt_tokens_per_request

    @cached_property
    def output_tokens(self) -> Estimate:
        """Output tokens per request."""
        return self.answer.output_tokens_per_request

    @cached_property
    def requests(self) -> Estimate:
        """Requests per second to plan for."""
        given = self.request.demand_requests_per_second
        if given is not None:
            return Estimate.exact(given, f"{given:g} requests/s, as asked", kind=Kind.GIVEN)
        return demand_seen(self.analysis.steps, _DEMAND_QUANTILE)

    @cached_property
    def demand(self) -> Estimate:
        """Output tokens per second to plan for, of all replicas."""
        return self.requests.times(self.output_tokens)

    @cached_property
    def capacity(self) -> Estimate:
        """Output tokens per second of one engine: within the targets if given, else at the knee.

        Its basis names the targets, or says that none was applied.
        """
        whole = self.answer.saturation.capacity
        if self.is_within_targets:
            whole = self.answer.slo.throughput
        elif not whole.is_unknown:
            whole = whole.scaled(1.0, "no latency target applied")
        engines = self.answer.window.mean_engines or 1.0
        return whole if engines == 1 else whole.scaled(1 / engines, f"÷ {engines:.3g} engines")

    @cached_property
    def running(self) -> float | None:
        """Running requests of one engine at that capacity; None if unknown.

        Within targets, fewer run than at the knee. If engines differ, it is their mean, as for the
        capacity.
        """
        running = self.answer.saturation.capacity_running_requests.mid
        if self.is_within_targets:
            running = running_within(self.analysis.fits, self.analysis.assumptions.slo)
        return None if running is None else running / (self.answer.window.mean_engines or 1.0)


def _of_model(case: _Planning, load: _Load) -> ModelPlan:
    """The replicas of one model by demand and capacity, at least as many as passed the replay."""
    policy = case.request.policy
    by_arithmetic = replicas(load.demand, load.capacity, policy)
    tried = _replayed(case, load, by_arithmetic)
    needed = at_least_enough(by_arithmetic, tried, is_sure=False)
    return ModelPlan(
        demand_output_tokens_per_second=load.demand,
        capacity_output_tokens_per_second=load.capacity,
        replicas=needed,
        queue_check=_queue(load, needed, policy),
        replays=tried,
    )


def _replayed(case: _Planning, load: _Load, needed: Estimate) -> tuple[Replay, ...]:
    """The replay of the model's busiest arrivals on that many replicas."""
    pool = load.pool
    if not needed.mid or not case.scale or pool is None or pool.served is None:
        return ()
    return replays(
        pool.served,
        replicas=round(needed.mid),
        most=MAX_REPLICAS,
        busiest=pool.busiest.peak_start,
        scale=case.scale,
        is_sure=False,
    )


def _tokens_per_request(steps: pl.DataFrame) -> float:
    """Output tokens per finished request; 0 if there is none."""
    seconds = (pl.col("end") - pl.col("start")).dt.total_seconds(fractional=True)
    tokens, requests = (
        steps.drop_nulls(["output_tokens_per_second", "requests_per_second"])
        .select(
            tokens=(pl.col("output_tokens_per_second") * seconds).sum(),
            requests=(pl.col("requests_per_second") * seconds).sum(),
        )
        .row(0)
    )
    return float(tokens / requests) if requests else 0.0


def _added(parts: Mapping[str, Estimate]) -> Estimate:
    """The replicas of all models added, because none can serve another's requests."""
    if len(parts) == 1:
        return next(iter(parts.values()))
    return total(parts, f"sum over {len(parts)} models, each by its own load and capacity")


def _in_force(analysis: Analysis) -> Pricing:
    """The pricing with the GPUs and price of a mapping file at the end of the window.

    New replicas are bought at one price: if the file has several for the window's instances, the
    price is unknown, and GPUs are their mean.
    """
    pricing, end = analysis.assumptions.pricing, analysis.time_range.end
    if not pricing.rules:
        return pricing
    moment = TimeRange(end - timedelta(microseconds=1), end)
    rates = [rate_in_force(pricing.rules, name, moment) for name in analysis.instances]
    prices = {rate.usd_per_gpu_hour for rate in rates}
    price = Estimate.unknown(
        f"the mapping file has {len(prices)} prices in force at the end of the window; a plan has "
        "one: give usd_per_hour, or as price a row of gpu_prices.csv"
    )
    return replace(
        pricing,
        rules=(),
        usd_per_gpu_hour=prices.pop() if len(prices) == 1 else price,
        gpus_per_engine=sum(rate.gpus_per_engine for rate in rates) / max(1, len(rates)),
    )


def _queue(load: _Load, needed: Estimate, policy: Policy) -> QueueCheck | None:
    """The result of an M/G/c queue for one model's replicas without spares; None if unknown."""
    known = [load.requests, load.capacity.mid, load.output_tokens, needed.mid, load.running]
    figures = [figure for figure in known if figure is not None]
    if len(figures) < len(known):
        return None
    requests, capacity, output, replicas_needed, places = figures
    return queue_check(
        requests_per_second=requests,
        capacity_requests_per_second=capacity / output,
        running_at_capacity=max(1.0, places),
        replicas=max(1, round(replicas_needed) - policy.spare_replicas),
        wait_limit_seconds=_WAIT_LIMIT_SECONDS,
    )


def _sensitivity(case: _Planning) -> dict[str, Estimate]:
    phases = case.analysis.histograms
    prefill, decode = (
        latency.sound_total([p for p in phases if p.metric == metric], case.analysis.time_range)
        for metric in (PREFILL, DECODE)
    )
    cases = {"demand doubles": Change(demand=2.0)}
    if prefill is not None and decode is not None and prefill + decode > 0:
        cases = usual_cases(
            prefill_share=prefill / (prefill + decode),
            prefix_hit_ratio=case.answer.prefix_cache_hit_ratio,
            prompt_tokens=case.prompt_tokens.mid,
            output_tokens=case.output_tokens.mid,
            is_kv_limited=case.answer.saturation.bottleneck == KV,
        )
    found = {
        model: sensitivity(load.demand, load.capacity, policy=case.request.policy, cases=cases)
        for model, load in case.loads.items()
    }
    names = next(iter(found.values()))
    return {name: _added({model: each[name] for model, each in found.items()}) for name in names}


class _Compared(Struct, frozen=True):
    """The GPUs compared: the model, the basis, and the reason if there are none (`Plan`)."""

    model: str | None
    options: tuple[Option, ...] = ()
    reason: str = ""
    basis: str = ""
    interactivity: Interactivity = field(default_factory=Interactivity)


def _options(case: _Planning) -> _Compared:
    """The options of a plan, or why there are none."""
    name = case.hardware.model or case.analysis.served_model
    full = None if case.capacity.is_known else _heaviest(case)
    reason = _no_comparison(case, name, is_calculated=full is not None)
    if name is None or case.here is None or reason:
        return _Compared(name, reason=reason, interactivity=Interactivity((), reason))
    if full is None:
        capacity, basis, loads = case.capacity, "", _loads(case)
        measured = measured_question(
            name,
            case.here,
            gpus=max(1, round(case.pricing.gpus_per_engine)),
            output_tokens_per_second=capacity.mid or 0.0,
            input_tokens=case.prompt_tokens.mid or 0.0,
            output_tokens=case.output_tokens.mid or 0.0,
            kv_dtype=case.analysis.kv_dtypes[0],
        )
    else:
        capacity, basis = full.output_tokens_per_second, _light_words(case, full)
        loads = full.loads if _is_narrow(capacity) else ()
        is_capacity = full.is_full and not full.loads
        load = Load(is_capacity=True) if is_capacity else Load(clients=full.running)
        rate = capacity.mid or full.question.output_tokens_per_second
        measured = replace(full.question, output_tokens_per_second=rate, load=load)
    table = compared_gpus(
        replace(measured, itl_seconds=None),
        (case.here.name, *(case.request.to_gpus or gpu_names())),
        capacity=capacity,
        demand=case.demand,
        policy=case.request.policy,
        own_price=case.pricing.usd_per_gpu_hour,
        busy=_busy(case, case.here),
        loads=loads,
    )
    slo = case.analysis.assumptions.slo
    met = _itl_loads(case.analysis) if full is None else ()
    question, itl = (measured, MEAN) if full is None else _light_question(case, full)
    return _Compared(
        measured.llm.model,
        table,
        basis=basis,
        interactivity=interactivity_of(
            question, table, case.here.label, loads=met, itl=itl, target=slo.itl_p95_seconds
        ),
    )


def _heaviest(case: _Planning) -> Heaviest | None:
    """The engine with the heaviest load by arithmetic, if all serve one model; else None.

    Engines are similar, so one represents all, like the mean of their capacities.
    """
    found = (case.calculated.asked_within or case.calculated.asked).values()
    if len({each.question.llm.model for each in found}) != 1:
        return None
    return max(found, key=lambda each: each.running)


def _is_narrow(found: Estimate) -> bool:
    """Whether a throughput within targets is known well enough to move its curve.

    If a target is met only narrowly, the gain on another GPU is unpredictable; other GPUs are then
    compared at the same number of running requests.
    """
    return bool(found.low and found.high and found.high <= _NARROW * found.low)


def _light_words(case: _Planning, full: Heaviest) -> str:
    words = (
        f"by arithmetic at {full.running:.3g} running requests, corrected by your ITL at "
        f"{full.question.load.clients or 1.0:.3g} running"
    )
    if not case.is_within_targets:
        return words
    applied = "within the latency targets" if full.loads else "no latency target applied"
    return f"{words}, {applied}"


def _light_question(case: _Planning, full: Heaviest) -> tuple[Question, str]:
    """The light load that other GPUs are computed from, with its p95 ITL, or its upper bound."""
    p95 = case.answer.latency.itl.p95
    if p95.lower == 0 and p95.upper:
        return replace(full.question, itl_seconds=p95.upper), MAX_P95
    if p95.estimate:
        return replace(full.question, itl_seconds=p95.estimate), P95
    return full.question, MEAN


def _itl_loads(analysis: Analysis) -> tuple[ItlLoad, ...]:
    """The loads observed on one engine, each with its p95 ITL; the engine with the most."""
    second = Slo(itl_p95_seconds=1.0)
    found = max((slo_loads(fit, second) for fit in analysis.fits), key=len, default=())
    return tuple(
        ItlLoad(load.running, load.output_tokens_per_second, load.itl_ratio)
        for load in found
        if load.itl_ratio
    )


def _loads(case: _Planning) -> tuple[SloLoad, ...]:
    """The loads observed on one engine, with latencies as ratios to the targets; empty without.

    It takes the engine with the most loads: engines are similar, and one curve is moved.
    """
    slo = case.analysis.assumptions.slo
    return max((slo_loads(fit, slo) for fit in case.analysis.fits), key=len, default=())


def _by_arithmetic(case: _Planning) -> Estimate:
    """Output tokens per second of one engine at full load, by arithmetic from its observed load.

    Within the latency targets if given. Unknown if the GPU or the model is, and if the telemetry
    shows the capacity.
    """
    if case.capacity.is_known:
        return Estimate.unknown("the capacity was found from the telemetry")
    found, engines = case.calculated, case.answer.window.mean_engines or 1.0
    asked, can, reason = found.asked, found.capacities, found.reason
    if case.is_within_targets:
        asked, can, reason = found.asked_within, found.within, found.reason_within
    if not asked:
        return Estimate.unknown(reason)
    whole = fleet_sum(can, presence=case.analysis.presence)
    return whole if engines == 1 else whole.scaled(1 / engines, f"÷ {engines:.3g} engines")


def _no_comparison(case: _Planning, name: str | None, *, is_calculated: bool) -> str:
    if case.here is None:
        several = listed([span.label for span in case.analysis.gpus_on(case.hardware)])
        if several:
            return f"its engines run on several GPUs ({several}): name one (gpu)"
        return "vLLM does not export what it runs on: name it (gpu) to compare other GPUs with it"
    if name is None:
        return "the window serves no model, or several: name one (model)"
    if isinstance(llm := shape_or_reason(name), str):
        return llm
    if is_calculated:
        return ""
    kv_dtypes = case.analysis.kv_dtypes
    if len(kv_dtypes) > 1:
        return f"the KV caches of its engines have several types ({listed(kv_dtypes)})"
    if reason := kv_type_reason(kv_dtypes[0]):
        return reason
    for estimate in (case.prompt_tokens, case.output_tokens, case.capacity):
        if not estimate.mid:
            return estimate.reason or "nothing was served"
    return ""


def _busy(case: _Planning, here: GpuSpan) -> GpuUtilization | None:
    """MFU and MBU at capacity from vLLM's counters: work per token × tokens/s ÷ the data sheet.

    None if the counters are 0 (the option is off) or the form factor is unknown.
    """
    increases = case.analysis.counters
    tokens, rate = case.answer.tokens.generation, case.capacity.mid
    gpu = here.rows[0]
    if not tokens or rate is None or len(here.rows) > 1 or gpu.tensor_tflops is None:
        return None
    flops = traffic.total(increases, FLOPS) or 0.0
    moved = sum(traffic.total(increases, name) or 0.0 for name in _BYTES)
    busy = GpuUtilization(
        flops / tokens * rate / (gpu.tensor_tflops * 1e12),
        moved / tokens * rate / gpu.bandwidth_bytes_per_second,
    )
    return busy if busy.is_counted else None
