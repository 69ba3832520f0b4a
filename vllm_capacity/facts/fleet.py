"""The mapping file: how many GPUs each instance has, their price, and from when to when.

A CSV or YAML list of rules. Each has `instance` (a pattern such as `gpu-a*:8000`) or `match` (label
matchers of the target, such as `{namespace="team-a"}`), or both; `gpus_per_engine`; and `price` (a
row's name) or `usd_per_hour` (per GPU). It may have `from` and `until`. The first rule that matches
both instance and time applies. If no rule covers some hours, the price is unknown, and the reason
names those hours.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from datetime import datetime
from fnmatch import fnmatchcase
from io import StringIO
from itertools import pairwise
from pathlib import Path
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from vllm_capacity.errors import InputError
from vllm_capacity.estimate import Estimate, Kind
from vllm_capacity.facts.prices import find_price, given_price
from vllm_capacity.selector import Selector, selector
from vllm_capacity.timerange import TimeRange, iso, parse_instant

_MAX_GPUS = 100_000
_COLUMNS = {"instance", "match", "gpus_per_engine", "price", "usd_per_hour", "from", "until"}


class Rule(Struct, frozen=True):
    """One rule of a mapping file; times are aware UTC, None if open.

    `only` are the labels that targets must have. `instances` are the targets that have them, set
    by `of_targets` once labels are known; until then such a rule covers none. `host` rents out the
    GPUs: None unless the price is that of a row with a host.
    """

    pattern: str
    gpus_per_engine: float
    usd_per_gpu_hour: Estimate
    start: datetime | None
    end: datetime | None
    only: Selector | None = None
    instances: frozenset[str] = frozenset()
    host: str | None = None

    def covers(self, instance: str, at: datetime) -> bool:
        """Whether the rule applies to that instance at that time."""
        return (
            fnmatchcase(instance, self.pattern)
            and (self.only is None or instance in self.instances)
            and (self.start is None or self.start <= at)
            and (self.end is None or at < self.end)
        )


class Rate(Struct, frozen=True):
    """GPUs of an engine (the mean over its hours) and USD per GPU-hour, over a time range.

    GPUs × price × hours equals the sum over the periods of the rules exactly. `host` is who rents
    the GPUs out; None if unknown, or if it changed.
    """

    gpus_per_engine: float
    usd_per_gpu_hour: Estimate
    host: str | None = None


def load_fleet(path: Path) -> tuple[Rule, ...]:
    """The rules of a mapping file (`.csv`, `.yaml`, `.yml`), in file order."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"Cannot read the mapping file {path}: {error}.") from None
    rows = _csv_rows(text, path) if path.suffix == ".csv" else _yaml_rows(text, path)
    if not rows:
        raise InputError(f"The mapping file {path} has no rules.")
    return tuple(_rule(row, f"{path}, rule {place}") for place, row in enumerate(rows, 1))


def of_targets(rules: Sequence[Rule], labels: Mapping[str, Mapping[str, str]]) -> tuple[Rule, ...]:
    """The rules with `instances` set, given the labels of each target by instance."""
    return tuple(
        rule
        if rule.only is None
        else replace(
            rule,
            instances=frozenset(name for name, own in labels.items() if rule.only.matches(own)),
        )
        for rule in rules
    )


def rate_in_force(rules: Sequence[Rule], instance: str, billed: TimeRange) -> Rate:
    """The GPUs and the price of an instance over its billed time.

    If they change within it, the price is the mean over GPU-hours; its basis names every period.
    """
    cuts = {billed.start, billed.end}
    for rule in rules:
        cuts |= {cut for cut in (rule.start, rule.end) if cut and billed.start < cut < billed.end}
    edges = sorted(cuts)
    stretches: list[tuple[float, Rule]] = []
    for start, end in pairwise(edges):
        found = [rule for rule in rules if rule.covers(instance, start)]
        if not found:
            return Rate(
                1.0,
                Estimate.unknown(
                    f"the mapping file has no rule for {instance} from {iso(start)} to {iso(end)}"
                ),
            )
        stretches.append(((end - start).total_seconds() / 3600, found[0]))
    return _mean_rate(stretches)


def _mean_rate(stretches: Sequence[tuple[float, Rule]]) -> Rate:
    hours = math.fsum(length for length, _ in stretches)
    gpu_hours = math.fsum(length * rule.gpus_per_engine for length, rule in stretches)
    if len({rule for _, rule in stretches}) == 1:
        only = stretches[0][1]
        return Rate(only.gpus_per_engine, only.usd_per_gpu_hour, only.host)
    ends = [
        [getattr(rule.usd_per_gpu_hour, end) for _, rule in stretches]
        for end in ("low", "mid", "high")
    ]
    weights = [length * rule.gpus_per_engine / gpu_hours for length, rule in stretches]
    low, mid, high = (
        math.fsum(weight * rate for weight, rate in zip(weights, rates, strict=True))
        for rates in ends
    )
    named = "; ".join(f"{length:.4g} h at {r.usd_per_gpu_hour.sources}" for length, r in stretches)
    mean = Estimate.known(
        low, mid, high, f"mean over GPU-hours of: {named}", kind=Kind.GIVEN, confidence=None
    )
    hosts = {rule.host for _, rule in stretches}
    return Rate(gpu_hours / hours, mean, hosts.pop() if len(hosts) == 1 else None)


def _csv_rows(text: str, path: Path) -> list[Mapping[str, Any]]:
    try:
        return list(csv.DictReader(StringIO(text)))
    except csv.Error as error:
        raise InputError(f"The mapping file {path} is not CSV: {error}.") from None


def _yaml_rows(text: str, path: Path) -> list[Mapping[str, Any]]:
    import yaml  # slow to import, and few commands are given such a file

    try:
        rows = yaml.safe_load(text)
    except RecursionError:
        raise InputError(
            f"The mapping file {path} is nested too deeply for a list of rules."
        ) from None
    except (yaml.YAMLError, ValueError, OverflowError) as error:  # or an invalid date or number
        raise InputError(f"The mapping file {path} is not YAML: {error}.") from None
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise InputError(f"The mapping file {path} must be a list of rules.")
    return rows


def _rule(row: Mapping[str, Any], where: str) -> Rule:
    if unknown := {str(key) for key in row} - _COLUMNS:
        raise InputError(
            f"{where}: unknown column {', '.join(sorted(unknown))}; "
            f"known are {', '.join(sorted(_COLUMNS))}."
        )
    if nested := [key for key, cell in row.items() if isinstance(cell, list | dict | set)]:
        raise InputError(f"{where}: {nested[0]} must be one value.")
    pattern, match = row.get("instance"), row.get("match")
    price, usd = row.get("price"), row.get("usd_per_hour")
    if not (pattern or match) or (price in (None, "")) == (usd in (None, "")):
        raise InputError(
            f"{where}: needs an instance or match, and either a price row or usd_per_hour."
        )
    start, end = (_instant(row.get(key)) for key in ("from", "until"))
    if start and end and end <= start:
        raise InputError(f"{where}: until must lie after from.")
    gpus = _number(row.get("gpus_per_engine") or 1, "gpus_per_engine", where)
    if not 0 < gpus <= _MAX_GPUS:
        raise InputError(f"{where}: gpus_per_engine must be above 0, {_MAX_GPUS:,} at most.")
    listed = find_price(str(price)) if price else None
    rate = _given(usd, where) if listed is None else listed.usd
    host = None if listed is None else listed.host
    return Rule(str(pattern or "*"), gpus, rate, start, end, _only(match, where), host=host)


def _only(match: object, where: str) -> Selector | None:
    try:
        return selector(str(match)) if match else None
    except InputError as error:
        raise InputError(f"{where}: {error}") from None


def _given(usd: object, where: str) -> Estimate:
    number = _number(usd, "usd_per_hour", where)
    try:
        return given_price(number)
    except InputError as error:
        raise InputError(f"{where}: {error}") from None


def _instant(cell: object) -> datetime | None:
    if cell in (None, ""):
        return None
    return parse_instant(cell.isoformat() if hasattr(cell, "isoformat") else str(cell))


def _number(cell: object, column: str, where: str) -> float:
    try:
        return float(str(cell))  # by str, so that YAML's yes and no are not numbers
    except ValueError:
        raise InputError(f"{where}: {column} must be a number, found {cell!r}.") from None
