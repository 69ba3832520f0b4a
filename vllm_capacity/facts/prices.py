"""Dated prices: each is a row with provider, tier, form factor, region, source and date.

The price of a GPU comes from these rules, or from the user:

1. Rows that are not offers (a model's constant, the cost of owning, a market average) are ignored.
2. For each provider, tier, form factor, region and minimum, only the newest row counts.
3. Rows more than `FRESH_DAYS` older than the newest row of that GPU are ignored.
4. The price is the median of the remaining rows; low and high are the minimum and maximum.
5. If the user has own rows for that GPU, only those count, and rules 1–3 do not apply to them.

Why the median offer and not the cheapest: list prices vary more (4.6× for one H100) than any error
of the models here, and a reader should see that. Users who know their rate give it as a row's key
or in USD per hour.
"""

from __future__ import annotations

import re
import statistics
from collections.abc import Sequence
from datetime import date, timedelta
from typing import Annotated

import msgspec
from msgspec import Struct

from vllm_capacity.errors import InputError
from vllm_capacity.estimate import Estimate, Kind
from vllm_capacity.facts.gpus import ANY_FORM, find_gpu
from vllm_capacity.facts.tables import OWN, Count, Day, Text, is_own, suggest, table_rows

_MAX_USD = 1e6
_DECIMAL_COMMA = re.compile(r"\$?\d*,\d+")
_INTERVAL = re.compile(r"(?P<low>[^\s,]+) to (?P<high>[^\s,]+?)(?:, likely (?P<mid>\S+))?")

NO_PRICE = "no price given: give usd_per_hour, or a row of gpu_prices.csv as price"
FRESH_DAYS = 183
NO_OFFERS = ("model constant", "TCO model", "marketplace", "spot", "owned")
"""Words in a row's provider or tier that mark it as not an on-demand offer."""
_NO_HOSTS = ("model constant", "TCO model", "marketplace")


class Price(Struct, frozen=True, kw_only=True):
    """One row of `data/gpu_prices.csv`, in USD per GPU-hour."""

    gpu: Text
    form_factor: Text
    provider: Text
    tier: Text
    usd_per_gpu_hour: Annotated[float, msgspec.Meta(ge=0, le=_MAX_USD)]
    min_gpus: Count = 1
    region: str = ""
    source: Text
    date: Day
    note: str = ""

    @property
    def key(self) -> str:
        """The row's name, as `--price` accepts it: GPU, `offer` and date."""
        return f"{self.gpu}-{self.form_factor} {self.offer} {self.date}"

    @property
    def offer(self) -> str:
        """The offer in words: provider, tier, minimum number of GPUs if above 1, region."""
        bulk = f" x{self.min_gpus}" if self.min_gpus > 1 else ""
        place = f" {self.region}" if self.region else ""
        return f"{self.provider} {self.tier}{bulk}{place}"

    @property
    def is_own(self) -> bool:
        """Whether it is one of the user's own rows."""
        return is_own(self.source)

    @property
    def is_offer(self) -> bool:
        """Whether it is an on-demand offer, not a constant, an average or a cost of ownership."""
        text = f"{self.provider} {self.tier}"
        return not any(word in text for word in NO_OFFERS)

    @property
    def host(self) -> str | None:
        """Who rents the GPU out; None where the provider is a model or a market of many hosts."""
        text = f"{self.provider} {self.tier}"
        return None if any(word in text for word in _NO_HOSTS) else self.provider

    @property
    def usd(self) -> Estimate:
        """The row's rate as an exact estimate, whose basis names the row and its source."""
        basis = f"${self.usd_per_gpu_hour:g}/GPU-hour ({self.key}; {_short(self.source)})"
        return Estimate.exact(self.usd_per_gpu_hour, basis, kind=Kind.GIVEN)


def prices() -> tuple[Price, ...]:
    """Every row of `data/gpu_prices.csv` in file order, after the user's own."""
    return table_rows(Price, "gpu_prices.csv", _key)


def _key(row: Price) -> str:
    return row.key.lower()


def price_text(price: Estimate) -> str:
    """A known price per GPU-hour as text for `price_of`: a number or `1.2 to 1.9, likely 1.5`."""
    if price.low == price.high:
        return f"{price.mid!r}"
    return f"{price.low!r} to {price.high!r}, likely {price.mid!r}"


def price_of(text: str) -> Estimate | None:
    """The user's own rate per GPU-hour, from a number or an interval (`1.2 to 1.9`) as text.

    The likely price is the middle of the interval unless given: `1.2 to 1.9, likely 1.5`.
    None for other text; raises InputError for numbers that are out of range or out of order.
    """
    found = _INTERVAL.fullmatch(text.strip().removeprefix("$"))
    words = [text] if found is None else [each for each in found.groupdict().values() if each]
    try:
        numbers = [float(each.removeprefix("$")) for each in words]
    except ValueError:
        return None
    if found is None:
        return given_price(numbers[0])
    low, high = numbers[:2]
    mid = numbers[2] if len(numbers) > 2 else (low + high) / 2
    for each in (low, high):
        given_price(each)
    if not low <= mid <= high:
        raise InputError(f"A price range must go from low to high; found {text!r}.")
    return Estimate.known(
        low, mid, high, f"${low:g} to ${high:g}/GPU-hour (given)", kind=Kind.GIVEN, confidence=None
    )


def given_price(usd_per_hour: float) -> Estimate:
    """The user's own rate per GPU-hour, exact; raises InputError if it is out of range."""
    if not 0 <= usd_per_hour <= _MAX_USD:
        raise InputError(
            f"The price per GPU-hour must be 0 or more and at most {_MAX_USD:,.0f} USD; found "
            f"{usd_per_hour}."
        )
    return Estimate.exact(usd_per_hour, f"${usd_per_hour:g}/GPU-hour (given)", kind=Kind.GIVEN)


def find_price(name: str) -> Price:
    """The row that a user named by its key, or by words that all occur in the row's key.

    If several rows of one offer match, the newest; the user's own rows take precedence. If rows of
    several offers match, raises InputError with a list of them; if none does, with near names.
    """
    keyed = {row.key.lower(): row for row in prices()}
    wanted = " ".join(name.lower().split())
    if wanted in keyed:
        return keyed[wanted]
    words = wanted.split()
    found = [row for key, row in keyed.items() if words and all(word in key for word in words)]
    found = [row for row in found if row.is_own] or found
    offers = {_offer(row) for row in found}
    if len(offers) == 1:
        return max(found, key=lambda row: row.date)
    if found:
        listed = "; ".join(sorted(row.key for row in found)[:6])
        raise InputError(
            f"Price {name!r} matches {len(found)} rows: {listed}. Add words until one row is left."
        )
    if _DECIMAL_COMMA.fullmatch(words[-1] if words else ""):
        raise InputError(
            f"Cannot read the price {name!r}: write decimals with a point, as in 1.64."
        )
    near = suggest(wanted, (row.key for row in prices()))
    raise InputError(f"No price row {name!r} in gpu_prices.csv{near}.")


def offers(gpu: str) -> tuple[Price, ...]:
    """The offers for a GPU under rules 1–3, or the user's own rows; cheapest first, maybe none.

    `gpu` is a name that `find_gpu` accepts; a row without a form factor counts for all of them.
    """
    span = find_gpu(gpu)
    forms = {row.form_factor for row in span.rows}
    rows = [
        row
        for row in prices()
        if row.gpu == span.rows[0].gpu
        and (row.is_offer or row.is_own)
        and (row.form_factor in forms or row.form_factor in ANY_FORM)
    ]
    if mine := [row for row in rows if row.is_own]:
        return tuple(sorted(mine, key=lambda row: (row.usd_per_gpu_hour, row.key)))
    newest: dict[tuple[str, ...], Price] = {}
    for row in sorted(rows, key=lambda row: _day(row.date)):
        newest[_offer(row)] = row
    if not newest:
        return ()
    since = max(_day(row.date) for row in newest.values()) - timedelta(days=FRESH_DAYS)
    fresh = (row for row in newest.values() if _day(row.date) >= since)
    return tuple(sorted(fresh, key=lambda row: (row.usd_per_gpu_hour, row.key)))


def usual_forms(gpu: str) -> tuple[str, ...]:
    """The form factors of a GPU, ordered by their number of on-demand offers, most first.

    The first is the most likely one if the user does not say; it gives the middle of an interval.
    """
    forms = [row.form_factor for row in find_gpu(gpu).rows]
    bare = find_gpu(gpu).rows[0].gpu
    counts = {form: len(offers(f"{bare}-{form}")) for form in forms}
    return tuple(sorted(forms, key=lambda form: (-counts[form], form)))


def choose_price(
    *, gpu: str | None = None, row: str | None = None, usd_per_hour: float | None = None
) -> Estimate:
    """USD per GPU-hour: the given rate, else the named row, else the range of a GPU's offers.

    Unknown, with a hint at what to pass, if none of the three is given or the GPU has no offer.
    """
    if usd_per_hour is not None:
        return given_price(usd_per_hour)
    if row is not None:
        return find_price(row).usd
    if gpu is None:
        return Estimate.unknown(NO_PRICE)
    return spread(offers(gpu), gpu)


def spread(rows: Sequence[Price], gpu: str) -> Estimate:
    """The median of the rows, with their minimum and maximum as ends; unknown without rows."""
    if not rows:
        return Estimate.unknown(f"no on-demand price of {gpu} in gpu_prices.csv; add a row to it")
    rates = [row.usd_per_gpu_hour for row in rows]
    dates = sorted(row.date for row in rows)
    cheapest, dearest = _named(min(rows, key=_rate)), _named(max(rows, key=_rate))
    if len(rows) == 1:
        basis = f"the only on-demand offer of {gpu}: {cheapest} ({dates[0]})"
    else:
        dated = " … ".join(dict.fromkeys((dates[0], dates[-1])))
        basis = (
            f"median of {len(rows)} on-demand offers of {gpu} ({dated}), from {cheapest} to "
            f"{dearest}"
        )
    low, mid, high = min(rates), statistics.median(rates), max(rates)
    return Estimate.known(low, mid, high, basis, kind=Kind.ASSUMED, confidence=None)


def _rate(row: Price) -> float:
    return row.usd_per_gpu_hour


def _named(row: Price) -> str:
    return f"${row.usd_per_gpu_hour:g} {row.offer}{f' ({OWN})' if row.is_own else ''}"


def _offer(row: Price) -> tuple[str, ...]:
    return (row.gpu, row.form_factor, row.provider, row.tier, row.region, str(row.min_gpus))


def _day(text: str) -> date:
    """The day of `YYYY`, `YYYY-MM` or `YYYY-MM-DD`; a year alone counts as its first day."""
    year, month, day = (*map(int, text.split("-")), 1, 1)[:3]
    return date(year, month, day)


def _short(source: str) -> str:
    return source if len(source) <= 80 else f"{source[:77]}…"
