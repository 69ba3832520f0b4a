"""One window, one time range, one set of assumptions: everything computed from them, once.

Every frame, fit and figure is a cached property, so nothing is queried or computed twice, and each
can be inspected. `answer` has all results as one typed object. The JSON of `vllm-capacity figures`,
the page, the terminal, the index and the alerts show it, and compute nothing themselves.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from functools import cached_property, partial
from statistics import median
from typing import Self

import polars as pl
from msgspec import Struct, field
from msgspec.structs import force_setattr, replace

from vllm_capacity.answer import (
    Answer,
    Requests,
    SloVerdict,
    Throughput,
    Tokens,
    WindowExtent,
)
from vllm_capacity.assumptions import TARGETS, Assumptions, Hardware, Target
from vllm_capacity.billed import BilledUse, charged
from vllm_capacity.bills import (
    Groups,
    billed_use,
    engine_name,
    engine_parts,
    engine_rates,
    grouped,
    groups,
    presence,
    unlabelled,
)
from vllm_capacity.costs_by_time import costs_by_hour, costs_by_part
from vllm_capacity.errors import InputError
from vllm_capacity.estimate import Estimate, listed, total
from vllm_capacity.facts.api_prices import given_api_price
from vllm_capacity.facts.gpus import GpuSpan
from vllm_capacity.facts.llms import find_llm
from vllm_capacity.facts.metrics import (
    GENERATION_TOKENS,
    PREEMPTIONS,
    PREFILL,
    PROMPT_TOKENS,
    REQUESTS,
    TTFT,
)
from vllm_capacity.facts.prices import NO_PRICE
from vllm_capacity.facts.throughput import measurements
from vllm_capacity.figures import gauges, latency, losses, scrapes, steps, traffic
from vllm_capacity.figures.adapters import adapters
from vllm_capacity.figures.attempts import Attempts
from vllm_capacity.figures.histogram import attainment
from vllm_capacity.figures.latency import MeanLatency, Quantile
from vllm_capacity.figures.makes import Make, alike, engine_makes, of_engines, target_labels
from vllm_capacity.figures.series import per_step, readable_step_seconds
from vllm_capacity.figures.short_parts import as_read, with_every_row
from vllm_capacity.figures.traffic import Failures, failures
from vllm_capacity.load_curve import LoadCurve, load_curve
from vllm_capacity.setups import engine_gpus, engine_setups
from vllm_capacity.sources.invoices import Invoice
from vllm_capacity.telemetry.window import Window
from vllm_capacity.timerange import TimeRange
from vllm_capacity.verdicts.cost.bill import Bill, Costs, CostShare, bill
from vllm_capacity.verdicts.cost.comparisons import (
    Bound,
    BreakEven,
    FullUse,
    break_even,
    published_bound,
    usd_per_request_at,
)
from vllm_capacity.verdicts.cost.engine_time import EngineTime, Prefills, engine_time, stretches
from vllm_capacity.verdicts.cost.idle import Savings, savings
from vllm_capacity.verdicts.cost.reconcile import Reconciliation, reconciled
from vllm_capacity.verdicts.cost.shares import Counted
from vllm_capacity.verdicts.demand.forecast import DemandAhead, demand_ahead
from vllm_capacity.verdicts.demand.weeks import MIN_HOURS
from vllm_capacity.verdicts.fleet import EngineRow, ModelRow, engine_rows, model_rows
from vllm_capacity.verdicts.hardware.unloaded import (
    ByArithmetic,
    Calculated,
    calculated,
)
from vllm_capacity.verdicts.hardware.what_if import shipped_what_if
from vllm_capacity.verdicts.quality import evidence
from vllm_capacity.verdicts.quality.evidence import Evidence, Finding
from vllm_capacity.verdicts.quality.report import quality_report
from vllm_capacity.verdicts.replay import served
from vllm_capacity.verdicts.saturation.advice import advice
from vllm_capacity.verdicts.saturation.capacity import fleet_sum
from vllm_capacity.verdicts.saturation.fit import Saturation, SaturationFit, engine_fits, saturation
from vllm_capacity.verdicts.saturation.peers import completed, lenders, undisputed, unloaded
from vllm_capacity.verdicts.saturation.slo import (
    Oversaturation,
    is_oversaturating,
    slo_throughput,
    throughputs,
)
from vllm_capacity.verdicts.sizing import BusyTime, Policy, Pool, Surplus, busiest, one_of, surplus
from vllm_capacity.verdicts.utilization import headroom, utilization

_LIGHT_SHARE = 0.5
_WITHOUT_STEPS = ("losses", "histograms", "_lengths", "failures", "gauges")
_WITHOUT_FITS = ("_evidence", "engine_times", "_busiest")
_WITHOUT_REPLAYS = ("saturation", "cost", "quality")


class Analysis(Struct, frozen=True, dict=True):
    """A window (each query runs once), its time range, and the assumptions about it."""

    window: Window
    time_range: TimeRange
    assumptions: Assumptions = field(default_factory=Assumptions)

    def __post_init__(self) -> None:
        """Keep the window's query results as long as this analysis exists."""
        if self.window.answers is None:
            force_setattr(self, "window", as_read(self.window, self.time_range))

    @classmethod
    def of(
        cls,
        window: Window,
        start: datetime | None = None,
        end: datetime | None = None,
        assumptions: Assumptions | None = None,
        *,
        exact: bool = False,
    ) -> Self:
        """The analysis of the window, or of its part in [start, end).

        `exact` reads every row even of a long range. InputError if nothing of the window lies in
        the range, or if exact figures would take more memory than the limit.
        """
        time_range = window.clamp(start, end)
        read = with_every_row(window, time_range) if exact else window
        assumed = (assumptions or Assumptions()).of_targets(partial(_labels_by_target, read))
        return cls(read, time_range, assumed)

    # --- frames ---------------------------------------------------------------------------------

    @cached_property
    def attempts(self) -> pl.DataFrame:
        """Scrape attempts up to the end of the time range: instance, ts, is_good."""
        return self.attempt_stretches.rows()

    @cached_property
    def attempt_stretches(self) -> Attempts:
        """The attempts as stretches by target (figures/attempts.py): fewer rows in long ranges."""
        return scrapes.attempt_stretches(self.window, end=self.time_range.end)

    @cached_property
    def engines(self) -> pl.DataFrame:
        """The engines with their billed hours: one row per engine (figures/scrapes.py)."""
        found = scrapes.engines(
            self.window, time_range=self.time_range, attempts=self.attempt_stretches
        )
        return scrapes.billed_hours(found, self.attempt_stretches, time_range=self.time_range)

    @property
    def instances(self) -> list[str]:
        """The targets of the whole window, by name."""
        names = self.window.named_sql("figures", "instances").get_column("instance")
        return list(names.to_list())

    @property
    def models(self) -> list[str]:
        """The models that the whole window reports, by name."""
        names = self.window.named_sql("figures", "models").get_column("model_name")
        return list(names.to_list())

    @property
    def served_model(self) -> str | None:
        """The model that the whole window served; None if none or several."""
        return self.models[0] if len(self.models) == 1 else None

    @cached_property
    def presence(self) -> dict[str, float]:
        """Each engine's share of the time range, by name."""
        return presence(self.engines)

    @cached_property
    def steps(self) -> pl.DataFrame:
        """One row per engine and step of 10 to 60 s: the input of saturation verdicts."""
        return steps.engine_steps(self.window, time_range=self.time_range)

    @cached_property
    def adapters(self) -> pl.DataFrame:
        """The LoRA adapters reported by each server, and when (figures/adapters.py)."""
        return adapters(self.window, time_range=self.time_range)

    @cached_property
    def counters(self) -> pl.DataFrame:
        """The exact increase of every counter series over the time range (figures/traffic.py)."""
        return traffic.counter_increases(self.window, traffic.COUNTERS, time_range=self.time_range)

    @cached_property
    def histograms(self) -> list[latency.Increase]:
        """The exact increase of every latency histogram over the time range."""
        return latency.histogram_increases(
            self.window, latency.HISTOGRAMS, time_range=self.time_range
        )

    @cached_property
    def series(self) -> pl.DataFrame:
        """The time range at charts' resolution, over all engines: at most 150 rows, in order."""
        return per_step(
            self.window, time_range=self.time_range, step_seconds=self.readable_step_seconds
        )

    @property
    def readable_step_seconds(self) -> float:
        """The shortest round step that splits the time range into at most 150 points."""
        return readable_step_seconds(self.time_range)

    @cached_property
    def costs(self) -> pl.DataFrame:
        """The cost of each hour, or of another round length (costs_by_time.py)."""
        return costs_by_part(
            self.window,
            self.engines,
            self.attempt_stretches,
            time_range=self.time_range,
            pricing=self.assumptions.pricing,
        )

    @cached_property
    def hours(self) -> pl.DataFrame:
        """Use and cost of each whole clock hour (costs_by_time.py)."""
        each = self.saturation.capacity.scaled(1 / (sum(self.presence.values()) or 1.0))
        return costs_by_hour(
            self.window,
            self.engines,
            self.attempt_stretches,
            time_range=self.time_range,
            pricing=self.assumptions.pricing,
            capacity=each,
        )

    @property
    def is_days_long(self) -> bool:
        """Whether it has 24 whole hours, the minimum for a profile by hour of the week."""
        return self.hours.height >= MIN_HOURS

    # --- fits and verdicts ----------------------------------------------------------------------

    @cached_property
    def fits(self) -> tuple[SaturationFit, ...]:
        """The capacity of each engine, with the points it is based on."""
        return undisputed(self._own_fits, self.makes)

    @cached_property
    def _own_fits(self) -> tuple[SaturationFit, ...]:
        """The fit of each engine from its own steps alone."""
        return engine_fits(self.steps)

    @cached_property
    def makes(self) -> dict[str, Make]:
        """The make of each engine, as far as labels and prices show, by name."""
        rates = engine_rates(self.engines, self.assumptions.pricing)
        return engine_makes(self.window, self.engines, rates=rates)

    @property
    def kv_dtypes(self) -> list[str]:
        """The types of its engines' KV caches; auto (16 bits) for engines that report none."""
        return sorted({make.kv_dtype for make in self.makes.values()}) or ["auto"]

    @cached_property
    def engine_times(self) -> dict[str, EngineTime | str]:
        """How the time of each engine's steps was spent, by name, or why that is unknown.

        Engines of one make are judged together (verdicts/cost/engine_time.py).
        """
        found: dict[str, EngineTime | str] = {}
        for own in alike(list(self.makes), self.makes):
            found |= dict.fromkeys(own, self._engine_time(own))
        return found

    def _engine_time(self, engines: Sequence[str]) -> EngineTime | str:
        timed = [
            each
            for each in self.histograms
            if each.metric == PREFILL and each.engine_name in engines
        ]
        seconds = latency.sound_total(timed, self.time_range)
        if seconds is None:
            return "prefill times were not measured reliably (vllm:request_prefill_time_seconds)"
        counted = self.counted(engines)
        prompt, computed = counted.prompt_tokens, counted.computed_tokens
        ratio = 1.0 if computed is None or not prompt else min(1.0, computed / prompt)
        prefills = Prefills(sum(each.count for each in timed), seconds, prompt, ratio)
        return engine_time(stretches(self._steps_of(engines)), prefills)

    def _steps_of(self, engines: Sequence[str]) -> pl.DataFrame:
        """The steps of these engines, by name; without a copy if they are all engines."""
        is_all = self.makes.keys() <= set(engines)
        return self.steps if is_all else of_engines(self.steps, engines)

    def counted(self, engines: Sequence[str]) -> Counted:
        """The tokens counted by these engines, given by name."""
        own = of_engines(self.counters, engines)
        prompt = traffic.total(own, PROMPT_TOKENS) or 0.0
        computed = traffic.prompt_tokens_computed(own)
        if computed is None and (ratio := traffic.prefix_cache_hit_ratio(own)) is not None:
            computed = prompt * (1 - ratio)
        return Counted(prompt, computed, traffic.total(own, GENERATION_TOKENS) or 0.0)

    @cached_property
    def lenders(self) -> dict[str, tuple[str, ...]]:
        """The peers that supply what each engine's own telemetry lacks, by name (peers.py)."""
        return lenders(self.fits, self.makes)

    @cached_property
    def capacities(self) -> dict[str, Estimate]:
        """The capacity of each engine by name, output tokens/s: its own or its peers'."""
        own = {fit.engine: fit.capacity for fit in self.fits}
        return completed(own, self.lenders, idle=unloaded(self.fits))

    @property
    def capacity_by_model(self) -> dict[str, Estimate]:
        """The capacity of one engine of each model, output tokens/s: the mean over its engines.

        An engine that serves several models counts for the first of them.
        """
        engines: dict[str, dict[str, Estimate]] = {}
        for engine, models in self.models_by_engine.items():
            if engine in self.capacities:
                engines.setdefault(models[0], {})[engine] = self.capacities[engine]
        return {model: total(own).scaled(1 / len(own)) for model, own in engines.items()}

    @cached_property
    def capacity_running(self) -> dict[str, Estimate]:
        """The running requests of each engine (or of its peers) at its capacity, by name."""
        own = {fit.engine: fit.capacity_running for fit in self.fits}
        return completed(own, self.lenders, idle=unloaded(self.fits))

    @cached_property
    def calculated(self) -> Calculated:
        """Capacities by arithmetic if only bounds are known; of peers for engines without load."""
        return self.calculated_on(self.assumptions.hardware)

    def calculated_on(self, hardware: Hardware) -> Calculated:
        """`calculated` for other hardware than assumed."""
        setups = engine_setups(
            self.window,
            self.engines,
            makes=self.makes,
            parts=self.bill_parts,
            counters=self.counters,
            latencies=self.mean_latencies,
            assumptions=replace(self.assumptions, hardware=hardware),
        )
        fits = {fit.engine: fit for fit in self.fits}
        found = calculated(
            fits,
            setups,
            self.capacities,
            shipped_what_if,
            slo=self.assumptions.slo,
            within=self.throughputs_within,
        )
        return replace(
            found, capacities=self._lent(found.capacities), within=self._lent(found.within)
        )

    def _lent(self, own: Mapping[str, Estimate]) -> dict[str, Estimate]:
        """The result of arithmetic for each engine, or that of its peers if it has none."""
        words = ("that of its peers, by arithmetic",)
        lent = completed(own, self.lenders, idle=unloaded(self.fits)) if own else {}
        return {
            name: each if each == own[name] else replace(each, basis=words)
            for name, each in lent.items()
        }

    @property
    def mean_latencies(self) -> dict[str, MeanLatency]:
        """The mean TTFT and ITL of each engine, by name."""
        names = map(engine_name, self.engines.iter_rows(named=True))
        return {
            name: latency.mean_latency(self.histograms_of(name), self.time_range) for name in names
        }

    def histograms_of(self, engine: str) -> list[latency.Increase]:
        """The `histograms` of one engine, by its name."""
        return self._histograms_by_engine.get(engine, [])

    @cached_property
    def _histograms_by_engine(self) -> dict[str, list[latency.Increase]]:
        found: dict[str, list[latency.Increase]] = {}
        for each in self.histograms:
            found.setdefault(each.engine_name, []).append(each)
        return found

    def gpus_on(self, hardware: Hardware) -> list[GpuSpan]:
        """The GPUs that its engines run on, as far as given or shown by labels; by name."""
        found = engine_gpus(self.makes, replace(self.assumptions, hardware=hardware))
        return sorted(set(found.values()), key=lambda span: span.name)

    @cached_property
    def load_curve(self) -> LoadCurve | None:
        """Points and curve of the engine nearest to its limit; None without an engine."""

        def points(engine: str) -> pl.DataFrame:
            return steps.engine_steps(
                self.window,
                time_range=self.time_range,
                step_seconds=self.readable_step_seconds,
                only=engine,
            )

        return load_curve(self.fits, self.steps, points, self.counters)

    @cached_property
    def light_fits(self) -> dict[str, SaturationFit]:
        """The extrapolation from the lighter steps alone, by engine.

        Lighter steps have at most half of the maximum running requests of any step, as if the
        server had never been full in this time range.
        """
        most = pl.col("running_mean").max().over("instance", "engine")
        lighter = self.steps.filter(pl.col("running_mean") <= _LIGHT_SHARE * most)
        return {fit.engine: fit for fit in engine_fits(lighter)}

    @cached_property
    def oversaturation(self) -> Oversaturation:
        """Whether queue and TTFT both grew over the time range."""
        return is_oversaturating(self.steps)

    @cached_property
    def scrape_counts(self) -> list[scrapes.ScrapeCount]:
        """How often each target was scraped, and how often it answered."""
        return scrapes.scrape_counts(self.attempt_stretches, time_range=self.time_range)

    @property
    def all_scrapes(self) -> scrapes.ScrapeCount:
        """The scrapes of all targets together, with the shortest of their median intervals."""
        found = self.scrape_counts
        return scrapes.ScrapeCount(
            "all targets",
            sum(each.attempts for each in found),
            sum(each.good for each in found),
            sum(each.missed for each in found),
            min((each.median_seconds for each in found), default=0.0),
        )

    @cached_property
    def gaps(self) -> list[scrapes.Gap]:
        """Long times without a good scrape of a target, by target and time."""
        return scrapes.gaps(self.attempt_stretches, time_range=self.time_range)

    @cached_property
    def interruptions(self) -> list[scrapes.Interruption]:
        """Gaps and restarts, by target and time."""
        return scrapes.interruptions(self.attempt_stretches, self.gaps, self.restarts)

    @cached_property
    def restarts(self) -> list[scrapes.Restart]:
        """The times at which a process ended and another started under its address."""
        return scrapes.restarts(self.window, time_range=self.time_range)

    @cached_property
    def outages(self) -> list[scrapes.Outage]:
        """The targets that answered at first and then never again."""
        return scrapes.outages(
            self.window, time_range=self.time_range, attempts=self.attempt_stretches
        )

    @cached_property
    def losses(self) -> losses.Losses:
        """Bounds on what servers counted without a scrape reading it."""
        return losses.losses(
            self.window,
            time_range=self.time_range,
            attempts=self.attempt_stretches,
            restarts=self.restarts,
            outages=self.outages,
        )

    @cached_property
    def bill_parts(self) -> dict[str, CostShare]:
        """Each engine's part of the bill, by name."""
        return engine_parts(
            self.window,
            self.engines,
            time_range=self.time_range,
            pricing=self.assumptions.pricing,
            capacities=self.capacities,
            prefill_time_ratios={
                name: time.ratios["prefill"]
                for name, time in self.engine_times.items()
                if not isinstance(time, str)
            },
        )

    @cached_property
    def bill(self) -> Bill:
        """The bill by engine; its parts add up to the whole."""
        return self._charged(bill(self.bill_parts))

    @property
    def billed_use(self) -> BilledUse:
        """The inputs of the bill other than prices: enough to recompute it at other prices."""
        return billed_use(
            self.engines,
            self.bill_parts,
            pricing=self.assumptions.pricing,
            lost_reason=self._lost_reason,
        )

    def _charged(self, found: Bill) -> Bill:
        return charged(found, self._lost_reason)

    @property
    def _lost_reason(self) -> str:
        """Why the amount of unseen use has no bound; empty if it has one."""
        lost = self.losses.requests
        return lost.reason if lost.high is None else ""

    def bill_by(self, group: str) -> Bill:
        """The bill by `engine`, `instance`, `model` or any label of a counter or a target.

        Allocation and idle dollars of the parts add up to those of the whole. The whole is `bill`;
        if a counter lacks the label, it is the sum of the parts, about which less is known.
        InputError if nothing has the label.
        """
        parts = {name: part.whole for name, part in self._bills(group).items()}
        return replace(self._whole(group), parts=parts)

    def by(self, group: str) -> Groups:
        """The counts, use and cost of each group, as in `bill_by`; parts add up to the whole."""
        return groups(self._whole(group), self._bills(group), by=group)

    def _bills(self, group: str) -> dict[str, Bill]:
        return {name: self._charged(bill(own)) for name, own in self._shares(group).items()}

    def _whole(self, group: str) -> Bill:
        if not self.unlabelled(group):
            return self.bill
        shares = self._shares(group)
        each = {f"{name} {e}": one for name, own in shares.items() for e, one in own.items()}
        return self._charged(bill(each))

    def _shares(self, group: str) -> dict[str, dict[str, CostShare]]:
        return grouped(self.window, self.bill_parts, by=group, time_range=self.time_range)

    def unlabelled(self, group: str) -> list[str]:
        """The bill's counters that the servers have without that label."""
        return unlabelled(self.window, by=group, time_range=self.time_range)

    @cached_property
    def engine_rows(self) -> tuple[EngineRow, ...]:
        """The cost, traffic and limit of each engine, the worst first."""
        ttft_p95 = {name: self._ttft_p95([name]) for name in self.bill_parts}
        return engine_rows(self.bill, self.bill_parts, self.fits, ttft_p95)

    @cached_property
    def model_rows(self) -> tuple[ModelRow, ...]:
        """The cost and traffic of each model over its engines, the worst first."""
        return self.rows_by("model")

    def rows_by(self, group: str) -> tuple[ModelRow, ...]:
        """The cost and traffic of each group, as in `bill_by`, over its engines, the worst first.

        Its TTFT is that of its engines if they serve no other group, else unknown.
        """
        parts = self._shares(group)
        served = Counter(name for own in parts.values() for name in own)
        engines = {
            key: [row for row in self.engine_rows if row.engine in own]
            for key, own in parts.items()
        }
        ttft_p95 = {
            key: self._ttft_p95(list(own))
            for key, own in parts.items()
            if all(served[name] == 1 for name in own)
        }
        return model_rows(self.bill_by(group), parts, engines, ttft_p95)

    def _ttft_p95(self, engines: Collection[str]) -> Quantile:
        """The p95 TTFT of all requests of these engines."""
        found = [
            each for each in self.histograms if each.metric == TTFT and each.engine_name in engines
        ]
        return latency.quantiles(latency.merged(found)).p95 if found else Quantile()

    @property
    def models_by_engine(self) -> dict[str, list[str]]:
        """The models for which each engine counted tokens or requests, by its name."""
        named = self.counters.drop_nulls("model_name").unique(["instance", "engine", "model_name"])
        found: dict[str, list[str]] = {}
        for row in named.sort("instance", "engine", "model_name").iter_rows(named=True):
            found.setdefault(engine_name(row), []).append(row["model_name"])
        return found

    @property
    def rates(self) -> list[tuple[float, Estimate]]:
        """The rates paid: GPUs per engine and the price of a GPU-hour, per engine or for all.

        Rates, not a mean: if a fleet grows at its old prices, the price does not change.
        """
        pricing = self.assumptions.pricing
        if not pricing.rules:
            price = pricing.usd_per_gpu_hour or Estimate.unknown(NO_PRICE)
            return [(pricing.gpus_per_engine, price)]
        parts = self.bill_parts.values()
        return [(part.usage.gpus_per_engine, part.usd_per_gpu_hour) for part in parts]

    def bill_at(self, usd_per_gpu_hour: Estimate) -> Bill:
        """The bill of the same use at another price, for all engines."""
        parts = self.bill_parts.items()
        at_price = {name: replace(part, usd_per_gpu_hour=usd_per_gpu_hour) for name, part in parts}
        return self._charged(bill(at_price))

    def break_even(
        self, usd_per_million_input: float, usd_per_million_output: float
    ) -> BreakEven | None:
        """The break-even of own GPUs with an API at these prices; None if nothing was served.

        InputError for an invalid price.
        """
        found, pricing = self.answer, self.assumptions.pricing
        prompt = found.prompt_tokens_per_request.mid
        output = found.output_tokens_per_request.mid
        rate = found.throughput.requests_per_hour
        if prompt is None or output is None or not rate:
            return None
        return break_even(
            given_api_price(usd_per_million_input, usd_per_million_output),
            input_tokens=prompt,
            output_tokens=output,
            usd_per_gpu_hour=pricing.usd_per_gpu_hour or Estimate.unknown(NO_PRICE),
            gpus=found.window.engines * pricing.gpus_per_engine,
            capacity_output_tokens_per_second=found.saturation.capacity,
            requests_per_hour=rate,
        )

    def reconciled(self, invoice: Invoice) -> Reconciliation:
        """The bill compared with the cloud's charges, and the causes of the difference.

        InputError if no charge falls into the time range.
        """
        usage = self.bill.usage
        return reconciled(
            invoice.frame,
            self.time_range,
            billed_usd=self.bill.whole.allocation_usd,
            engine_hours=usage.billed_hours,
            gpu_hours=usage.gpu_hours,
        )

    @cached_property
    def demand_ahead(self) -> DemandAhead:
        """Requests per hour over the day after the time range, or why there is no forecast."""
        requests = self.window.hourly("requests")
        if requests is None:
            requests = traffic.scrape_increases(self.window, [REQUESTS], time_range=self.time_range)
        return demand_ahead(requests)

    @cached_property
    def published_bound(self) -> Bound | None:
        """The most similar published run as a bound on what its GPU can do; None without one.

        The GPU is known only if its price is a row of the price list.
        """
        found, row = self.answer, self.assumptions.pricing.row
        prompt = found.prompt_tokens_per_request.mid
        output = found.output_tokens_per_request.mid
        rate, model = found.throughput.requests_per_second, _listed_model(self.served_model)
        if row is None or model is None or not rate or prompt is None or output is None:
            return None
        return published_bound(
            measurements(),
            model=model,
            gpu=row.gpu,
            input_tokens=prompt,
            output_tokens=output,
            requests_per_second=rate,
        )

    @cached_property
    def full_use(self) -> FullUse | None:
        """The cost of a request on a GPU as busy as in the published run; None without one."""
        bound, price = self.published_bound, self.assumptions.pricing.usd_per_gpu_hour
        if bound is None or price is None:
            return None
        full = usd_per_request_at(bound, price)
        return FullUse(bound, full, self.bill.whole.usd_per_request.divided_by(full))

    def savings(self, policy: Policy) -> Savings:
        """What three ways to avoid idle hours would have saved, USD per month."""
        return savings(
            self.hours,
            replicas=max(1, self.answer.window.engines),
            startup_lead_seconds=policy.startup_seconds,
        )

    @cached_property
    def by_arithmetic(self) -> ByArithmetic:
        """Capacity and savings of servers never loaded, by arithmetic (verdicts/hardware/unloaded).

        Unknown if the telemetry shows the capacity, or if arithmetic has no result.
        """
        found = self.calculated
        capacity = fleet_sum(found.capacities, presence=self.presence)
        if not found.asked or capacity.is_unknown:
            return ByArithmetic.silent(found.reason or capacity.reason)
        parts = {
            name: replace(
                part,
                capacity_output_tokens_per_second=found.capacities[name].scaled(
                    self.presence[name]
                ),
            )
            for name, part in self.bill_parts.items()
        }
        whole = self._charged(bill(parts)).whole
        # No replay: it needs a measured capacity, and this one is calculated.
        can = found.within if self.assumptions.slo.targets else found.capacities
        pools = self._pools(can)
        left = surplus({m: replace(pool, served=None) for m, pool in pools.items()}, Policy())
        asked = [each.question for each in found.asked.values()]
        within = self._calculated_within(found)
        served = self.throughput.output_tokens_per_second
        return ByArithmetic(
            gpu=listed(sorted({each.from_gpu.label for each in asked})),
            model=listed(sorted({each.llm.model for each in asked})),
            running_requests=found.running_requests,
            itl_seconds=found.itl_seconds,
            capacity_running_requests=found.capacity_running_requests,
            capacity_output_tokens_per_second=capacity,
            utilization=whole.utilization,
            headroom_ratio=headroom(whole.utilization),
            idle_usd=whole.idle_usd,
            slo_throughput_output_tokens_per_second=within,
            slo_headroom_ratio=headroom(utilization(served, within)),
            removable_replicas=left.removable_replicas,
            saved_usd_per_day=left.usd_per_day,
        )

    def _calculated_within(self, found: Calculated) -> Estimate:
        """The throughput of all engines within the targets, by arithmetic; unknown without one."""
        if not self.assumptions.slo.targets:
            return Estimate.unknown("no latency target was given")
        if not found.asked_within:
            reason = found.reason_within or "the throughput within the targets was measured"
            return Estimate.unknown(reason)
        return fleet_sum(found.within, presence=self.presence)

    def surplus(self, policy: Policy | None = None) -> Surplus:
        """The replicas not needed at the busiest time under the policy, and their cost per day.

        Within the latency targets, if given.
        """
        asked = policy or Policy()
        if asked not in self._surpluses:
            self._surpluses[asked] = surplus(self.pools, asked)
        return self._surpluses[asked]

    @cached_property
    def _surpluses(self) -> dict[Policy, Surplus]:
        """A cache by policy, because the replays for each take a second."""
        return {}

    @cached_property
    def pools(self) -> dict[str, Pool]:
        """The engines of each model as interchangeable replicas, by model; "" if unknown."""
        return self._pools(self.throughputs_within or self.capacities)

    @cached_property
    def throughputs_within(self) -> dict[str, Estimate]:
        """Each engine's throughput within the latency targets, by name; empty without targets."""
        if not self.assumptions.slo.targets:
            return {}
        return throughputs(
            self.fits, self.assumptions.slo, lent_by=self.lenders, capacities=self.capacities
        )

    def _pools(self, can: Mapping[str, Estimate]) -> dict[str, Pool]:
        """The pools with these capacities of engines."""
        models = self._engines_by_model.items()
        return {model: self._pool(own, self._busiest[model], can) for model, own in models}

    @cached_property
    def _busiest(self) -> dict[str, BusyTime]:
        """The demand of each model at its busiest time."""
        is_latency_bound = bool(self.assumptions.slo.targets)
        return {
            model: busiest(self._steps_of(own), is_latency_bound=is_latency_bound)
            for model, own in self._engines_by_model.items()
        }

    @property
    def _engines_by_model(self) -> dict[str, list[str]]:
        """The engines that serve each model, by name; "" if unknown."""
        groups: dict[str, list[str]] = {}
        for engine, model in self._served_by_engine.items():
            groups.setdefault(model, []).append(engine)
        return groups

    @property
    def _served_by_engine(self) -> dict[str, str]:
        """The model that each engine serves, by its name; empty if unknown."""
        rows = self.engines.iter_rows(named=True)
        return {engine_name(row): row["model_name"] or "" for row in rows}

    def _pool(self, engines: Sequence[str], busy: BusyTime, can: Mapping[str, Estimate]) -> Pool:
        """The engines of one model as interchangeable replicas."""
        there = sum(self.presence[engine] for engine in engines)
        prices = [self.bill_parts[engine].usd_per_engine_hour for engine in engines]
        capacity = self._each(engines, self.capacities)
        shown = served(
            engines,
            steps=self._steps_of(engines),
            capacity=capacity,
            running=self._running(engines, is_known=capacity.is_known),
            histograms=[*self.histograms, *self._lengths],
            counters=self.counters,
            time_range=self.time_range,
            slo=self.assumptions.slo,
        )
        return Pool(there, busy, self._each(engines, can), one_of(prices), shown)

    def _each(self, engines: Sequence[str], can: Mapping[str, Estimate]) -> Estimate:
        """The capacity of one of these engines: the mean over those present."""
        unknown = Estimate.unknown("no step of the engine could be judged")
        there = sum(self.presence[engine] for engine in engines)
        whole = fleet_sum({e: can.get(e, unknown) for e in engines}, presence=self.presence)
        return whole.scaled(1 / there) if there else whole

    def _running(self, engines: Sequence[str], *, is_known: bool) -> float | None:
        """The running requests of one of these engines at its capacity, or at its bound."""
        own = [self.capacity_running[name] for name in engines if name in self.capacity_running]
        ends = [each.mid if is_known else each.mid or each.low for each in own]
        return median(known) if (known := [end for end in ends if end]) else None

    @cached_property
    def _lengths(self) -> list[latency.Increase]:
        """The exact increase of the histograms of prompt and output lengths."""
        return latency.histogram_increases(self.window, latency.LENGTHS, time_range=self.time_range)

    @cached_property
    def gauges(self) -> gauges.Gauges:
        """Running and waiting requests and KV-cache usage over the time range."""
        return gauges.gauges(self.window, self.attempt_stretches, time_range=self.time_range)

    @cached_property
    def phases(self) -> dict[str, latency.Phase]:
        """Mean time of a finished request by phase: queue, prefill, decode."""
        found = latency.phases(self.window, time_range=self.time_range)
        return {each.name: each for each in found}

    @property
    def first_token_phase(self) -> tuple[str, float] | None:
        """The longer of queue and prefill, and its share of both, 0..1; None if not observed."""
        means = {name: self.phases[name].mean_seconds for name in ("queue", "prefill")}
        known = {name: mean for name, mean in means.items() if mean is not None}
        whole = sum(known.values())
        if len(known) < len(means) or not whole:
            return None
        name = "queue" if known["queue"] > known["prefill"] else "prefill"
        return name, known[name] / whole

    @cached_property
    def latency(self) -> latency.Latency:
        """Quantiles of TTFT, inter-token and end-to-end latency."""
        return latency.latency(self.histograms)

    @cached_property
    def saturation(self) -> Saturation:
        """The server's limit, its capacity and its headroom."""
        return saturation(
            self.steps,
            used=self.bill.whole.utilization,
            fits=self.fits,
            presence=self.presence,
            capacities=self.capacities,
            running=self.capacity_running,
            models=self._served_by_engine,
        )

    @cached_property
    def throughput(self) -> Throughput:
        """Mean output tokens and requests per second."""
        rates = (
            traffic.rate_per_second(self.counters, metric)
            for metric in (GENERATION_TOKENS, REQUESTS)
        )
        return Throughput(*rates)

    @cached_property
    def slo(self) -> SloVerdict:
        """SLO attainment, and the throughput that meets the latency targets."""
        throughput = slo_throughput(
            self.fits,
            self.assumptions.slo,
            presence=self.presence,
            parts=self.throughputs_within,
        )
        attained = {one.attainment: self._attainment(one) for one in TARGETS.values()}
        return SloVerdict(**attained, throughput_output_tokens_per_second=throughput)

    @cached_property
    def failures(self) -> Failures:
        """The known failures of requests."""
        return failures(self.window, time_range=self.time_range)

    @property
    def cost(self) -> Costs:
        """The costs of the time range: the whole bill, and per request and token."""
        return self.bill.whole

    @cached_property
    def quality(self) -> tuple[Finding, ...]:
        """The problems of the telemetry, and their maximum effect on each figure."""
        found = quality_report(
            self._evidence, gauges=self.gauges, latency=self.latency, fits=self.fits
        )
        return tuple(found)

    @cached_property
    def _evidence(self) -> Evidence:
        """The facts that the quality report judges."""
        return evidence.gather(
            self.window,
            time_range=self.time_range,
            attempts=self.attempt_stretches,
            gaps=self.gaps,
            restarts=self.restarts,
            outages=self.outages,
            losses=self.losses,
            steps=self.steps,
            engines=self.engines,
        )

    @cached_property
    def answer(self) -> Answer:
        """Every figure and verdict, typed: the machine interface."""
        self._make_at_once()
        hit_ratio = traffic.prefix_cache_hit_ratio(self.counters)
        return Answer(
            window=WindowExtent(
                self.time_range.start,
                self.time_range.end,
                self.time_range.hours,
                self.engines.height,
                sum(self.presence.values()),
                self.window.resolution,
            ),
            requests=_requests(self.counters, self.losses),
            tokens=_tokens(self.counters, self.losses),
            throughput=self.throughput,
            latency=self.latency,
            slo=self.slo,
            running=self.gauges.running,
            waiting=self.gauges.waiting,
            kv_cache_ratio=self.gauges.kv_cache_ratio,
            preemptions=_count(traffic.total(self.counters, PREEMPTIONS)),
            prefix_cache_hit_ratio=hit_ratio,
            failures=self.failures,
            saturation=self.saturation,
            by_arithmetic=self.by_arithmetic,
            cost=self.cost,
            advice=advice(self.fits, prefix_cache_hit_ratio=hit_ratio, surplus=self.surplus()),
            quality=self.quality,
        )

    def _make_at_once(self) -> None:
        """Compute the slowest parts of an answer on two cores.

        Steps, then fits, then replays are computed in a second thread, while this one computes
        what does not need them.
        """
        with ThreadPoolExecutor(1) as beside:  # DuckDB, polars and numpy release the GIL
            steps, fits = (beside.submit(getattr, self, name) for name in ("steps", "_own_fits"))
            for name in _WITHOUT_STEPS:
                getattr(self, name)
            steps.result()
            for name in _WITHOUT_FITS:
                getattr(self, name)
            fits.result()
            replays = beside.submit(self.surplus)
            for name in _WITHOUT_REPLAYS:
                getattr(self, name)
            replays.result()

    def _attainment(self, of: Target) -> Estimate:
        """The share of observations within a target, bounded by the edges of its bucket."""
        target, metric = self.assumptions.slo.targets.get(of.name), of.metric
        if target is None:
            return Estimate.unknown(f"no target given: give {of.name} ({of.option})")
        observed = latency.merged([i for i in self.histograms if i.metric == metric])
        if observed is None:
            return Estimate.unknown(f"{metric} observed nothing in this time range")
        low, high = attainment(observed.edges, observed.counts, target)
        if low is None or high is None:
            return Estimate.unknown(f"{metric} observed nothing in this time range")
        counted = f"{observed.count:,.0f} observations of {metric}"
        if low == high:
            return Estimate.exact(low, counted, f"target {target:g} s")
        between = f"target {target:g} s, which lies between two bucket edges"
        return Estimate.between(low, (low + high) / 2, high, counted, between)


def _listed_model(name: str | None) -> str | None:
    """The model's name in llms.csv; None if it has none there."""
    try:
        return None if name is None else find_llm(name).model
    except InputError:
        return None


def _labels_by_target(window: Window) -> dict[str, dict[str, str]]:
    """The labels of every target of the window, by instance: at least its name."""
    names = window.named_sql("figures", "instances").get_column("instance")
    labels_of = target_labels(window)
    return {name: {"instance": name, **labels_of.get(name, {})} for name in names}


def _requests(increases: pl.DataFrame, lost: losses.Losses) -> Requests:
    by_reason = traffic.total_by_label(increases, REQUESTS, "finished_reason")
    return Requests(
        finished=_count(sum(by_reason.values())) if by_reason else None,
        successful=_count(traffic.successful(by_reason)),
        by_reason={reason: _whole(n) for reason, n in by_reason.items()},
        lost=lost.requests,
    )


def _tokens(increases: pl.DataFrame, lost: losses.Losses) -> Tokens:
    return Tokens(
        prompt=_count(traffic.total(increases, PROMPT_TOKENS)),
        prompt_computed=_count(traffic.prompt_tokens_computed(increases)),
        generation=_count(traffic.total(increases, GENERATION_TOKENS)),
        lost=lost.tokens,
    )


def _count(value: float | None) -> float | None:
    """A count as an integer if it is whole, as it should be."""
    return None if value is None else _whole(value)


def _whole(value: float) -> float:
    return int(value) if value.is_integer() else value
