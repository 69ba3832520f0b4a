"""Inputs that telemetry does not contain: prices, GPUs of an engine, latency targets."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from vllm_capacity.errors import InputError
from vllm_capacity.estimate import Estimate
from vllm_capacity.facts.fleet import Rule, load_fleet, of_targets
from vllm_capacity.facts.gpus import find_gpu
from vllm_capacity.facts.llms import find_llm
from vllm_capacity.facts.metrics import ITL, TTFT
from vllm_capacity.facts.prices import Price, find_price, given_price, price_of

_MAX_GPUS = 100_000


_P95 = "_p95_seconds"


class Target(Struct, frozen=True):
    """A latency target: the histogram `metric` it applies to, and the names of the latency.

    `name` is its field of `Slo` and its column of the engine steps, `label` the latency's usual
    abbreviation, `observed` the events counted as within the target or not, `option` its
    command-line option.
    """

    name: str
    label: str
    observed: str
    metric: str
    option: str
    help: str

    @property
    def short(self) -> str:
        """The short name of the latency, as in columns and options: `ttft`."""
        return self.name.removesuffix(_P95)

    @property
    def attainment(self) -> str:
        """The result field that contains its SLO attainment: `ttft_attainment`."""
        return f"{self.short}_attainment"


def _target(label: str, option: str, observed: str, metric: str) -> float | None:
    about = {"label": label, "observed": observed, "metric": metric, "option": option}
    about["help"] = f"Target for p95 {label}, seconds."
    found: float | None = field(default=None, metadata=about)
    return found


@dataclass(frozen=True)
class Slo:
    """Latency targets in seconds: the p95 of each latency should be at or below its target.

    None: no target. A target's options, columns, tables and charts are derived from its field.
    """

    ttft_p95_seconds: float | None = _target("TTFT", "--slo-ttft", "first tokens (TTFT)", TTFT)
    itl_p95_seconds: float | None = _target("ITL", "--slo-itl", "later tokens (ITL)", ITL)

    def __post_init__(self) -> None:
        """InputError for a target that is not above 0."""
        for one in fields(self):
            target = getattr(self, one.name)
            if target is not None and not _is_number(target, above=0):
                raise InputError(f"{one.name} must be above 0 seconds, not {target!r}.")

    @property
    def targets(self) -> dict[str, float]:
        """The given targets by name; empty if there are none."""
        given = {one.name: getattr(self, one.name) for one in fields(self)}
        return {name: target for name, target in given.items() if target is not None}

    @property
    def text(self) -> str:
        """The targets as text that `slo_of` accepts: `ttft 2.0, itl 0.1`; empty without any."""
        given = self.targets.items()
        return ", ".join(f"{TARGETS[name].short} {seconds!r}" for name, seconds in given)


TARGETS: Mapping[str, Target] = {one.name: Target(one.name, **one.metadata) for one in fields(Slo)}
"""The latency targets that can be given, by field name."""

_BY_WORD = {word: name for name, one in TARGETS.items() for word in (name, one.short)}


def slo_of(given: Slo | str | None) -> Slo:
    """Latency targets as a user gives them: a `Slo`, or text such as `ttft 2.0, itl 0.1`.

    In text, each target is a latency, by short name or field of `Slo`, followed by seconds. None,
    or text without a target: no targets. InputError for anything else.
    """
    if isinstance(given, Slo):
        return given
    if not isinstance(given, str | None):
        raise InputError(f"slo is a vc.Slo(ttft_p95_seconds=…), or text, not {given!r}.")
    found: dict[str, float] = {}
    for part in filter(None, map(str.strip, (given or "").split(","))):
        word, _, seconds = part.replace("=", " ").partition(" ")
        name = _BY_WORD.get(word.lower())
        if name is None or not _as_number(seconds):
            known = " or ".join(one.short for one in TARGETS.values())
            raise InputError(
                f"Cannot read the latency target {part!r}; write {known} and seconds, as in "
                "'ttft 2.0, itl 0.1'."
            )
        if name in found:
            raise InputError(f"The latency target {word} is given twice: {given!r}.")
        found[name] = float(seconds)
    return Slo(**found)


class Pricing(Struct, frozen=True):
    """The price of a GPU-hour, and the number of GPUs per engine.

    `rules` (from a mapping file) replace the single price and GPU count. Without a price and rules
    every money figure is unknown. `note` names the source of the price; `row` is its row in
    gpu_prices.csv, if it has one; `rules_path` is the mapping file.
    """

    usd_per_gpu_hour: Estimate | None = None
    gpus_per_engine: float = 1.0
    rules: tuple[Rule, ...] = ()
    note: str = ""
    row: Price | None = None
    rules_path: Path | None = None

    def __post_init__(self) -> None:
        """InputError for an invalid GPU count or price."""
        if not _is_number(self.gpus_per_engine, above=0, most=_MAX_GPUS):
            raise InputError(
                f"GPUs per engine must be above 0, and {_MAX_GPUS:,} at most, not "
                f"{self.gpus_per_engine!r}."
            )
        if not isinstance(self.usd_per_gpu_hour, Estimate | None):
            raise InputError(
                f"usd_per_gpu_hour is an Estimate, not {self.usd_per_gpu_hour!r}; "
                "`pricing(1.64)` takes a number."
            )


class Hardware(Struct, frozen=True):
    """The GPU and model of every engine, if given: vLLM does not export the GPU.

    `gpu` is a name in gpu_specs.csv; `model` a name in llms.csv, for a served name that is not in
    it. None: taken from target labels, or from the price row.
    """

    gpu: str | None = None
    model: str | None = None

    def __post_init__(self) -> None:
        """InputError for a GPU or model that is not in its table."""
        if self.gpu is not None:
            find_gpu(self.gpu)
        if self.model is not None:
            find_llm(self.model)


class Assumptions(Struct, frozen=True):
    """All inputs other than telemetry."""

    pricing: Pricing = msgspec.field(default_factory=Pricing)
    slo: Slo = msgspec.field(default_factory=Slo)
    hardware: Hardware = msgspec.field(default_factory=Hardware)

    def of_targets(self, labels: Callable[[], Mapping[str, Mapping[str, str]]]) -> Assumptions:
        """The same, with rules that select by labels resolved for targets (labels by instance)."""
        rules = self.pricing.rules
        if all(rule.only is None for rule in rules):
            return self
        return replace(self, pricing=replace(self.pricing, rules=of_targets(rules, labels())))


def pricing(
    price: float | str | None = None,
    *,
    gpus_per_engine: float = 1.0,
    price_rules: str | Path | None = None,
    note: str = "",
) -> Pricing:
    """The pricing from a user's inputs.

    `price` is USD per GPU-hour (a number, or an interval: `1.2 to 1.9`), or words that match a row
    of gpu_prices.csv; `price_rules` is the path of a mapping file (GPUs and price of each instance,
    with start and end). With neither, money figures are unknown. InputError if both are given, and
    for an invalid price.
    """
    if price is not None and price != "" and price_rules:
        raise InputError(
            f"The price is given twice: {price!r}, and the mapping file {str(price_rules)!r}. "
            "Give it one way."
        )
    if price_rules:
        path = Path(price_rules)
        rules = load_fleet(path)
        return Pricing(
            gpus_per_engine=gpus_per_engine, rules=rules, note=note, rules_path=path.absolute()
        )
    if price is None or price == "":
        return Pricing(gpus_per_engine=gpus_per_engine, note=note)
    if isinstance(price, bool) or not isinstance(price, int | float | str):
        raise InputError(
            f"A price is USD per GPU-hour, or words of a row of gpu_prices.csv, not {price!r}."
        )
    given = price_of(price) if isinstance(price, str) else given_price(float(price))
    if given is None:
        row = find_price(str(price))
        return Pricing(row.usd, gpus_per_engine, note=row.key, row=row)
    return Pricing(given, gpus_per_engine, note=note)


def _as_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _is_number(value: object, *, above: float, most: float = float("inf")) -> bool:
    is_plain = isinstance(value, int | float) and not isinstance(value, bool)
    return is_plain and above < float(value) <= most  # type: ignore[arg-type]
