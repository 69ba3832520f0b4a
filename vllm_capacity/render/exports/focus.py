"""The bill in FOCUS, the FinOps Open Cost and Usage Specification, so that tokens join cloud costs.

Columns and values: https://focus.finops.org/focus-specification/v1-4/ (ratified June 2026) and
https://focus.finops.org/focus-specification/v1-2/, which many tools still read. Self-hosted tokens
have no vendor and no invoice: the provider is this fleet; list, contracted, billed and effective
cost are the same; and values without a FOCUS column are in columns that begin with `x_`. The host
provider is the provider of the price row; if no row names one, it is null, which FOCUS allows for a
host that cannot be determined.

Each engine has a row for its input tokens and one for its output tokens, which split its bill like
the answer's `_split` figures. If tokens cannot carry it (there were none, or they were not
counted), the engine has one row of GPU-hours. The rows add up to the bill.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from itertools import pairwise

from msgspec import Struct

from vllm_capacity.analysis import Analysis
from vllm_capacity.billed import Billed
from vllm_capacity.errors import InputError
from vllm_capacity.estimate import Estimate
from vllm_capacity.render.exports.currency import Currency
from vllm_capacity.render.tables import Column, table
from vllm_capacity.telemetry.window import open_window
from vllm_capacity.timerange import TimeRange
from vllm_capacity.verdicts.cost.bill import CostShare, allocation_usd, split_usd

_PROVIDER = "Self-hosted vLLM"
_HOST = "HostProviderName"
_PROVIDERS: Mapping[str, tuple[str, str]] = {
    "1.4": ("ServiceProviderName", _HOST),
    "1.2": ("ProviderName", "PublisherName"),
}
_FORMAT = "%Y-%m-%dT%H:%M:%SZ"
_SECOND = timedelta(seconds=1)

_Row = dict[str, str | float | None]


class _Charge(Struct, frozen=True):
    """The charge of one row: an amount of a meter, and its share of the bill in USD."""

    meter: str
    unit: str
    token_type: str | None
    quantity: float
    usd: Estimate


class Billing(Struct, frozen=True):
    """A bill within one month (UTC): its parts by engine, its engines, and its time.

    `note` explains on each row how it was made.
    """

    parts: Mapping[str, CostShare]
    engines: Mapping[str, Billed]
    time_range: TimeRange
    note: str = ""


def to_focus(analysis: Analysis, currency: Currency, *, version: str = "1.4") -> str:
    """The bill as a Cost and Usage dataset of FOCUS 1.4 (or 1.2), CSV.

    A charge lies within one month (UTC): a longer window has rows for each month. InputError if any
    part of the bill is unknown: FOCUS cannot express "at least".
    """
    billings = [
        Billing(month.bill_parts, month.billed_use.engines, month.time_range)
        for month in _months(analysis)
    ]
    return focus_csv(billings, currency, version=version, of=analysis.window.name)


def focus_csv(billings: Iterable[Billing], currency: Currency, *, version: str, of: str) -> str:
    """Bills as one Cost and Usage dataset; InputError, naming `of`, if no engine was billed."""
    providers = _PROVIDERS[version]
    rows = [row for each in billings for row in _rows(each, currency, providers)]
    if not rows:
        raise InputError(f"No engine was billed in {of}: there are no charges.")
    columns = [Column(name, name) for name in rows[0]]
    return table(columns, [list(row.values()) for row in rows]).to_csv()


def months(time_range: TimeRange) -> list[TimeRange]:
    """The time range split at ends of months (UTC)."""
    cuts = [time_range.start]
    while (end := _next_month(cuts[-1])) < time_range.end:
        cuts.append(end)
    return [TimeRange(*ends) for ends in pairwise([*cuts, time_range.end])]


def _months(analysis: Analysis) -> Iterator[Analysis]:
    """The analysis split at ends of months (UTC)."""
    cut = months(analysis.time_range)
    if len(cut) == 1:
        yield analysis
        return
    window = open_window(analysis.window.address)
    for each in cut:
        yield Analysis.of(window, each.start, each.end, analysis.assumptions)


def _next_month(at: datetime) -> datetime:
    first = at.astimezone(UTC).replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    return (first + timedelta(days=32)).replace(day=1)


def _rows(billing: Billing, currency: Currency, providers: tuple[str, str]) -> Iterator[_Row]:
    shared = _shared(billing, currency, providers)
    for engine, part in billing.parts.items():
        own = billing.engines[engine]
        host = {_HOST: own.host} if _HOST in providers else {}
        for charge in _charges(engine, part):
            row = shared | host | _charged(charge, engine, own.model, currency)
            noted = "; ".join(filter(None, (str(row["x_Basis"] or ""), billing.note)))
            yield row | {"x_Basis": noted}


def _charges(engine: str, part: CostShare) -> list[_Charge]:
    """The rows of an engine: input and output tokens, or its GPU-hours; none for 0 hours."""
    usage = part.usage
    whole = allocation_usd(usage, part.usd_per_gpu_hour)
    if whole.mid is None:
        raise InputError(
            f"The cost of {engine} is not known, and FOCUS cannot express that: {whole.reason}."
        )
    if not usage.gpu_hours:
        return []
    if not (usage.prompt_tokens and usage.generation_tokens):
        return [_Charge("GPU-hours", "Hours", None, usage.gpu_hours, whole)]
    inputs, outputs = split_usd(usage, whole)
    return [
        _Charge("Input tokens", "Tokens", "Input", usage.prompt_tokens, inputs),
        _Charge("Output tokens", "Tokens", "Output", usage.generation_tokens, outputs),
    ]


def _shared(billing: Billing, currency: Currency, providers: tuple[str, str]) -> _Row:
    """The values common to all rows of a month, in the order of the columns."""
    span = billing.time_range
    month_end = _next_month(span.start)
    month_start = (month_end - _SECOND).replace(day=1, hour=0, minute=0, second=0)
    end = min(_upwards(span.end), month_end)
    names = dict.fromkeys(_COLUMNS)
    return {
        **names,
        "BillingAccountId": "self-hosted-vllm",
        "BillingAccountName": _PROVIDER,
        "BillingCurrency": currency.code,
        "BillingPeriodStart": month_start.strftime(_FORMAT),
        "BillingPeriodEnd": month_end.strftime(_FORMAT),
        "ChargeCategory": "Usage",
        "ChargeFrequency": "Usage-Based",
        "ChargePeriodStart": span.start.astimezone(UTC).strftime(_FORMAT),
        "ChargePeriodEnd": end.strftime(_FORMAT),
        "InvoiceIssuerName": _PROVIDER,
        "PricingCategory": "Standard",
        "PricingCurrency": "USD",
        "ResourceType": "vLLM engine",
        "ServiceCategory": "AI and Machine Learning",
        "ServiceName": "vLLM",
        "ServiceSubcategory": "Generative AI",
        **dict.fromkeys(providers, _PROVIDER),
    }


def _charged(charge: _Charge, engine: str, model: str | None, currency: Currency) -> _Row:
    """The values of a row's own charge."""
    cost, usd = currency.of(charge.usd), charge.usd.mid
    price = None if cost.mid is None else cost.mid / charge.quantity
    usd_price = None if usd is None else usd / charge.quantity
    sku = f"{model or 'unnamed model'}/{charge.meter}"
    return {
        **dict.fromkeys(("BilledCost", "ContractedCost", "EffectiveCost", "ListCost"), cost.mid),
        **dict.fromkeys(("ContractedUnitPrice", "ListUnitPrice"), price),
        "PricingCurrencyEffectiveCost": usd,
        **dict.fromkeys(
            ("PricingCurrencyContractedUnitPrice", "PricingCurrencyListUnitPrice"), usd_price
        ),
        **dict.fromkeys(("ConsumedQuantity", "PricingQuantity"), charge.quantity),
        **dict.fromkeys(("ConsumedUnit", "PricingUnit"), charge.unit),
        **dict.fromkeys(("ResourceId", "ResourceName"), engine),
        **dict.fromkeys(("SkuId", "SkuPriceId"), sku),
        "SkuMeter": charge.meter,
        "ChargeDescription": f"{charge.meter} of {model or 'an unnamed model'} on {engine}",
        "x_ModelId": model,
        "x_TokenType": charge.token_type,
        "x_EffectiveCostLow": cost.low,
        "x_EffectiveCostHigh": cost.high,
        "x_Basis": cost.sources,
    }


def _upwards(at: datetime) -> datetime:
    """The time rounded up to the second, the precision of FOCUS."""
    down = at.astimezone(UTC).replace(microsecond=0)
    return down if down == at else down + _SECOND


_COLUMNS = (
    *("BilledCost", "BillingAccountId", "BillingAccountName", "BillingCurrency"),
    *("BillingPeriodEnd", "BillingPeriodStart", "ChargeCategory", "ChargeClass"),
    *("ChargeDescription", "ChargeFrequency", "ChargePeriodEnd", "ChargePeriodStart"),
    *(f"CommitmentDiscount{each}" for each in ("Category", "Id", "Name", "Quantity", "Status")),
    *("CommitmentDiscountType", "CommitmentDiscountUnit"),
    *("ConsumedQuantity", "ConsumedUnit", "ContractedCost", "ContractedUnitPrice"),
    *("EffectiveCost", "InvoiceId", "InvoiceIssuerName", "ListCost", "ListUnitPrice"),
    *("PricingCategory", "PricingCurrency", "PricingCurrencyContractedUnitPrice"),
    *("PricingCurrencyEffectiveCost", "PricingCurrencyListUnitPrice", "PricingQuantity"),
    *("PricingUnit", "ResourceId", "ResourceName"),
    *("ResourceType", "ServiceCategory", "ServiceName", "ServiceSubcategory", "SkuId"),
    *("SkuMeter", "SkuPriceDetails", "SkuPriceId"),
)
