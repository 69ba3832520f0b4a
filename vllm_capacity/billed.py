"""The bill as kept in a report: enough to recompute it, also at other prices, without telemetry."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta

from msgspec import Struct
from msgspec.structs import replace

from vllm_capacity.assumptions import Pricing
from vllm_capacity.errors import InputError
from vllm_capacity.estimate import Estimate
from vllm_capacity.facts.fleet import Rate, rate_in_force
from vllm_capacity.facts.prices import NO_PRICE
from vllm_capacity.timerange import TimeRange
from vllm_capacity.verdicts.cost.bill import Bill, CostShare, Usage, at_most, bill


class Billed(Struct, frozen=True):
    """One engine's part of a bill: its billed time, price, use and capacity.

    `model` is None if the engine reports none, `host` (the provider of its GPUs) if the price names
    none; both are None in a page of an earlier release.
    """

    instance: str
    start: datetime
    end: datetime
    usage: Usage
    usd_per_gpu_hour: Estimate
    capacity: Estimate
    model: str | None = None
    host: str | None = None

    @property
    def as_paid(self) -> CostShare:
        """The engine's part of the bill at the original price."""
        return CostShare(self.usage, self.usd_per_gpu_hour, self.capacity)


class BilledUse(Struct, frozen=True):
    """The inputs of a bill by engine: enough to recompute it, also at other prices.

    `lost_reason`: why the amount of unseen use has no bound; empty if it has one.
    """

    engines: Mapping[str, Billed]
    lost_reason: str = ""

    @property
    def as_paid(self) -> Bill:
        """The bill at the original prices."""
        return self._bill(list(self.engines))

    @property
    def by_model(self) -> dict[str | None, Bill]:
        """The bill of each model at the original prices; engines without a model are under None."""
        engines: dict[str | None, list[str]] = {}
        for name, each in self.engines.items():
            engines.setdefault(each.model, []).append(name)
        return {model: self._bill(own) for model, own in engines.items()}

    def _bill(self, engines: Sequence[str]) -> Bill:
        parts = {name: self.engines[name].as_paid for name in engines}
        return charged(bill(parts), self.lost_reason)

    def bill_at(self, pricing: Pricing, *, gpus_per_engine: float | None = None) -> Bill:
        """The bill under this pricing, the same as from the window itself.

        Without rules of a mapping file, engines keep their number of GPUs unless `gpus_per_engine`
        is given. InputError for rules that match labels of targets, which are not kept.
        """
        if any(rule.only is not None for rule in pricing.rules):
            raise InputError(
                "The mapping file matches labels, which a report does not keep. Match instances, "
                "or make the report again from its window."
            )
        parts = {}
        for name, each in self.engines.items():
            own = pricing
            if not pricing.rules:
                gpus = gpus_per_engine or each.usage.gpus_per_engine
                own = replace(pricing, gpus_per_engine=gpus)
            row = {"instance": each.instance, "billed_start": each.start, "billed_end": each.end}
            parts[name] = priced(row, each.usage, each.capacity, own)
        return charged(bill(parts), self.lost_reason)


def priced(
    row: Mapping[str, object], usage: Usage, capacity: Estimate, pricing: Pricing
) -> CostShare:
    """One engine's part of the bill, at the rate in force while it was billed."""
    rate = rate_of(row, pricing)
    usage = replace(usage, gpus_per_engine=rate.gpus_per_engine)
    return CostShare(usage, rate.usd_per_gpu_hour, capacity)


def rate_of(row: Mapping[str, object], pricing: Pricing) -> Rate:
    """The GPUs and the price of an engine, a row with instance, billed_start and billed_end."""
    if not pricing.rules:
        price = pricing.usd_per_gpu_hour or Estimate.unknown(NO_PRICE)
        host = None if pricing.row is None else pricing.row.host
        return Rate(pricing.gpus_per_engine, price, host)
    start, end = row["billed_start"], row["billed_end"]
    billed = TimeRange(start, max(end, start + timedelta(microseconds=1)))  # type: ignore[arg-type, operator, call-overload]
    return rate_in_force(pricing.rules, str(row["instance"]), billed)


def charged(found: Bill, lost_reason: str) -> Bill:
    """The bill; if the lost use has no bound, costs per request or token become upper bounds."""
    return at_most(found, lost_reason) if lost_reason else found
