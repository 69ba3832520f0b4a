"""What telemetry cannot know: prices, the GPUs of an engine, the latency targets to meet."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path

from vllm_capacity.errors import InputError
from vllm_capacity.estimate import Estimate
from vllm_capacity.facts.fleet import Rule, load_fleet
from vllm_capacity.facts.prices import Price, find_price, given_price

_MOST_GPUS = 100_000


def _target(label: str, option: str) -> float | None:
    """A latency target: how a person calls it, and the option that gives it."""
    about = {"label": label, "option": option, "help": f"Target for {label}, seconds."}
    found: float | None = field(default=None, metadata=about)
    return found


@dataclass(frozen=True)
class Slo:
    """Latency targets, seconds: the 95th percentile of each is to stay at or under its target.

    A field is named as its column of the engine steps. None: no target.
    """

    ttft_p95_seconds: float | None = _target("p95 TTFT", "--slo-ttft")
    itl_p95_seconds: float | None = _target("p95 ITL", "--slo-itl")

    def __post_init__(self) -> None:
        """InputError for a target that nothing can meet."""
        for one in fields(self):
            target = getattr(self, one.name)
            if target is not None and not _is_number(target, above=0):
                raise InputError(f"{one.name} must be above 0 seconds, not {target!r}.")

    @property
    def targets(self) -> dict[str, float]:
        """The targets that were given, by name; empty where none was."""
        given = {one.name: getattr(self, one.name) for one in fields(self)}
        return {name: target for name, target in given.items() if target is not None}


SLO_LABELS: Mapping[str, str] = {one.name: one.metadata["label"] for one in fields(Slo)}
SLO_OPTIONS: Mapping[str, str] = {one.name: one.metadata["option"] for one in fields(Slo)}


@dataclass(frozen=True)
class Pricing:
    """What a GPU-hour costs, and how many GPUs per engine has.

    `rules` (of a mapping file) take the place of one price and one GPU count for all. Without a
    price and rules every money figure is unknown. `note` says whose price it is; `row` is its row
    of gpu_prices.csv, if it has one.
    """

    usd_per_gpu_hour: Estimate | None = None
    gpus_per_engine: float = 1.0
    rules: tuple[Rule, ...] = ()
    note: str = ""
    row: Price | None = None

    def __post_init__(self) -> None:
        """InputError for a GPU count or a price that there is not."""
        if not _is_number(self.gpus_per_engine, above=0, most=_MOST_GPUS):
            raise InputError(
                f"GPUs per engine must be above 0, and {_MOST_GPUS:,} at most, not "
                f"{self.gpus_per_engine!r}."
            )
        if not isinstance(self.usd_per_gpu_hour, Estimate | None):
            raise InputError(
                f"usd_per_gpu_hour is an Estimate, not {self.usd_per_gpu_hour!r}; "
                "`pricing(1.64)` takes a number."
            )


@dataclass(frozen=True)
class Assumptions:
    """Everything that is not telemetry and that figures depend on."""

    pricing: Pricing = field(default_factory=Pricing)
    slo: Slo = field(default_factory=Slo)


def pricing(
    price: float | str | None = None,
    *,
    gpus_per_engine: float = 1.0,
    price_rules: str | Path | None = None,
    note: str = "",
) -> Pricing:
    """The pricing that a person means by these.

    `price` is USD per GPU-hour (a number), or words of a row of gpu_prices.csv; `price_rules` is
    the path of a mapping file (GPUs and price of each instance, from when to when). None of them:
    money stays unknown. InputError where both are given, and for a price that there is not.
    """
    if price is not None and price != "" and price_rules:
        raise InputError(
            f"The price is given twice: {price!r}, and the mapping file {str(price_rules)!r}. "
            "Give it one way."
        )
    if price_rules:
        rules = load_fleet(Path(price_rules))
        return Pricing(gpus_per_engine=gpus_per_engine, rules=rules, note=note)
    if price is None or price == "":
        return Pricing(gpus_per_engine=gpus_per_engine, note=note)
    if isinstance(price, bool) or not isinstance(price, int | float | str):
        raise InputError(
            f"A price is USD per GPU-hour, or words of a row of gpu_prices.csv, not {price!r}."
        )
    if isinstance(price, str) and not _as_number(price):
        row = find_price(price)
        return Pricing(row.usd, gpus_per_engine, note=row.key, row=row)
    return Pricing(given_price(float(price)), gpus_per_engine, note=note)


def _as_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _is_number(value: object, *, above: float, most: float = float("inf")) -> bool:
    is_plain = isinstance(value, int | float) and not isinstance(value, bool)
    return is_plain and above < float(value) <= most  # type: ignore[arg-type]
