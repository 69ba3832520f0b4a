"""The bill as rows of FOCUS, the FinOps Open Cost and Usage Specification: tokens beside the cloud.

Columns and values: https://focus.finops.org/focus-specification/v1-4/ (ratified June 2026) and
https://focus.finops.org/focus-specification/v1-2/, which many tools still read. Self-hosted tokens
have no vendor and no invoice: the provider is this fleet, list, contracted, billed and effective
cost are one and the same, and what FOCUS has no column for stands in columns that begin with `x_`.

Each engine has a row for its input tokens and one for its output tokens, which share its bill as
the answer's `_split` figures do. Where tokens cannot carry it (none came, or they were not counted)
it has one row of GPU-hours. The rows add up to the bill.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from vllm_capacity.analysis import Analysis
from vllm_capacity.bills import engine_name
from vllm_capacity.errors import InputError
from vllm_capacity.estimate import Estimate
from vllm_capacity.render.exports.currency import Currency
from vllm_capacity.render.tables import Column, table
from vllm_capacity.telemetry.window import open_window
from vllm_capacity.verdicts.cost.bill import CostShare, allocation_usd, split_usd

_PROVIDER = "Self-hosted vLLM"
_PROVIDERS: Mapping[str, tuple[str, str]] = {
    "1.4": ("ServiceProviderName", "HostProviderName"),
    "1.2": ("ProviderName", "PublisherName"),
}
_FORMAT = "%Y-%m-%dT%H:%M:%SZ"
_SECOND = timedelta(seconds=1)

_Row = dict[str, str | float | None]


@dataclass(frozen=True)
class _Charge:
    """What one row charges for: so much of a meter, and its share of the bill in USD."""

    meter: str
    unit: str
    token_type: str | None
    quantity: float
    usd: Estimate


def to_focus(analysis: Analysis, currency: Currency, *, version: str = "1.4") -> str:
    """The bill as a Cost and Usage dataset of FOCUS 1.4 (or 1.2), CSV.

    A charge lies within one month (UTC): a longer window has rows for each. InputError where the
    bill, or a part of it, is not known: FOCUS has no way to say "at least".
    """
    rows = [
        row for month in _months(analysis) for row in _rows(month, currency, _PROVIDERS[version])
    ]
    if not rows:
        raise InputError(f"No engine was billed in {analysis.window.name}: there are no charges.")
    columns = [Column(name, name) for name in rows[0]]
    return table(columns, [list(row.values()) for row in rows]).to_csv()


def _months(analysis: Analysis) -> Iterator[Analysis]:
    """The analysis cut where a month (UTC) ends; itself where none does."""
    whole = analysis.time_range
    cuts = [whole.start]
    while (end := _next_month(cuts[-1])) < whole.end:
        cuts.append(end)
    if len(cuts) == 1:
        yield analysis
        return
    window = open_window(analysis.window.path)
    for start, end in zip(cuts, [*cuts[1:], whole.end], strict=True):
        yield Analysis.of(window, start, end, analysis.assumptions)


def _next_month(at: datetime) -> datetime:
    first = at.astimezone(UTC).replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    return (first + timedelta(days=32)).replace(day=1)


def _rows(analysis: Analysis, currency: Currency, providers: tuple[str, str]) -> Iterator[_Row]:
    models = {engine_name(row): row["model_name"] for row in analysis.engines.iter_rows(named=True)}
    shared = _shared(analysis, currency, providers)
    for engine, part in analysis.bill_parts.items():
        for charge in _charges(engine, part):
            yield shared | _charged(charge, engine, models[engine], currency)


def _charges(engine: str, part: CostShare) -> list[_Charge]:
    """The rows of an engine: input and output tokens, or its GPU-hours; none where it cost 0 h."""
    usage = part.usage
    whole = allocation_usd(usage, part.usd_per_gpu_hour)
    if whole.mid is None:
        raise InputError(
            f"The cost of {engine} is not known, and FOCUS cannot say so: {whole.reason}."
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


def _shared(analysis: Analysis, currency: Currency, providers: tuple[str, str]) -> _Row:
    """What all rows of a month say alike, in the order of the columns."""
    span = analysis.time_range
    month_end = _next_month(span.start)
    month_start = (month_end - _SECOND).replace(day=1, hour=0, minute=0, second=0)
    row = analysis.assumptions.pricing.row
    end = min(_upwards(span.end), month_end)
    names = dict.fromkeys(_COLUMNS)
    provider, other = providers
    host = None if row is None else row.provider
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
        provider: _PROVIDER,
        other: host if other.startswith("Host") else _PROVIDER,
    }


def _charged(charge: _Charge, engine: str, model: str | None, currency: Currency) -> _Row:
    """What a row says of its own charge."""
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
    """The instant, rounded up to the second: what FOCUS writes."""
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
