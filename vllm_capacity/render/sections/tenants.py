"""The bill by tenant, the part that no log explains, and how engine time was spent."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

from msgspec.structs import replace

from vllm_capacity.analysis import Analysis
from vllm_capacity.errors import NoTelemetryError
from vllm_capacity.estimate import Estimate, Kind, listed
from vllm_capacity.render.numbers import (
    count,
    minute_of,
    percent,
    plural,
    usd,
)
from vllm_capacity.render.sections.header import window_line
from vllm_capacity.render.tables import (
    Cell,
    Column,
    Table,
    Text,
    Value,
    interval,
    table,
    text,
    wrapped,
)
from vllm_capacity.sources.records import pairs
from vllm_capacity.sources.usage import LogFile, UsageLog
from vllm_capacity.tenants import ModelUse, Tenant, Tenants, idle_rule, tenants

UNMATCHED, IDLE, WHOLE, OTHERS = "(in no log)", "(idle)", "total", "others"
ADAPTERS = (
    "LoRA adapters ran here, but vLLM names them without counting their requests or tokens: give a "
    "log whose model column has their names."
)
_MAX = 30
_MIN_RATIO = 0.0005
_TIME = {
    "prefill": "prefill",
    "decode": "decode, per token",
    "steps": "fixed part of each step",
    "memory": "KV cache",
}


def tenant_table(found: Tenants) -> Table:
    """The bill by tenant, the largest part first, and the total as the last row."""
    return _table(found)


def tenants_by_log(
    analysis: Analysis, usage: UsageLog, *, models: str = "", idle: str = "shared"
) -> Table | Text:
    """The bill by tenant for a page, small ones added up, with notes in its caption.

    `models` maps names in the log to served models ("fast=Qwen/Qwen3-8B"). A sentence if the log
    has nothing for the analysis's time.
    """
    try:
        found = tenants(analysis, usage, idle=idle_rule(idle), aliases=pairs(models))
    except NoTelemetryError as error:
        return text(str(error))
    return replace(_table(found, most=_MAX), caption="Cost by tenant. " + " ".join(notes(found)))


def tenants_text(analysis: Analysis, found: Tenants, *, width: int) -> str:
    """Terminal output: the window, the bill by tenant, and its notes."""
    title = wrapped(analysis.window.name, width) + wrapped(window_line(analysis), width)
    below = "".join(wrapped(each, width) for each in notes(found))
    more = ""
    if analysis.adapters.height:
        more = "\nLoRA adapters\n" + adapter_table(analysis).to_text(width)
    return f"{title}\n{_table(found).to_text(width)}\n{below}{more}"


def adapter_table(analysis: Analysis) -> Table:
    """The LoRA adapters reported by each server: when, and in what share of scrapes."""
    columns = (
        Column("server", "instance"),
        Column("adapter", "adapter"),
        Column("first seen", "first", minute_of),
        Column("last seen", "last", minute_of),
        Column("ran in scrapes", "running_ratio", percent, is_numeric=True),
        Column("waited in scrapes", "waiting_ratio", percent, is_numeric=True),
    )
    return table(columns, analysis.adapters.iter_rows(), caption=ADAPTERS)


def _table(found: Tenants, *, most: int | None = None) -> Table:
    columns = (
        Column("tenant", "tenant"),
        Column("requests", "requests", count, is_numeric=True),
        Column("prompt tokens", "prompt_tokens", count, is_numeric=True),
        Column("cached", "cached_tokens", count, is_numeric=True),
        Column("output tokens", "output_tokens", count, is_numeric=True),
        Column("share of use", "share_ratio", percent, is_numeric=True),
        Column("cost", "cost_usd", usd, is_numeric=True),
        Column("interval", is_numeric=True),
    )
    named = list(found.tenants.items())
    rows = [_row(name, each) for name, each in named[:most]]
    if most is not None and len(named) > most:
        rows.append(_others([each for _, each in named[most:]]))
    if (found.unmatched.share_ratio.mid or 0) >= _MIN_RATIO:
        rows.append(_row(UNMATCHED, found.unmatched, is_counted=False))
    if found.idle == "apart":
        rows.append(_money_row(IDLE, found.idle_usd))
    rows.append(_money_row(WHOLE, found.whole_usd))
    return table(columns, rows)


def _row(name: str, each: Tenant, *, is_counted: bool = True) -> tuple[Value | Cell, ...]:
    is_priced = not each.cost_usd.is_unknown
    return (
        name,
        each.requests if is_counted else Cell(""),
        each.prompt_tokens,
        Cell("") if each.cached_tokens is None else each.cached_tokens,
        each.output_tokens,
        each.share_ratio,
        each.cost_usd if is_priced else Cell(""),
        Cell(interval(each.cost_usd, usd) if is_priced else interval(each.share_ratio, percent)),
    )


def _others(rest: list[Tenant]) -> tuple[Value | Cell, ...]:
    """Tenants with small parts as one row: the sums of their middle values, no interval."""

    def added(name: str) -> float:
        return math.fsum(getattr(each, name) for each in rest)

    share = sum(each.share_ratio.mid or 0.0 for each in rest)
    costs = [each.cost_usd.mid for each in rest]
    known = [cost for cost in costs if cost is not None]
    cost = Cell(usd(sum(known)), sum(known)) if len(known) == len(costs) else Cell("")
    return (
        f"{len(rest)} {OTHERS}",
        *(added(name) for name in ("requests", "prompt_tokens")),
        Cell(""),
        added("output_tokens"),
        Cell(percent(share), share),
        cost,
        Cell(""),
    )


def _money_row(name: str, cost: Estimate) -> tuple[Value | Cell, ...]:
    shown = Cell("") if cost.is_unknown else cost
    ends = Cell("" if cost.is_unknown else interval(cost, usd))
    return (name, *(Cell("") for _ in range(5)), shown, ends)


def notes(found: Tenants) -> Iterator[str]:
    """What readers must know about the shares, a sentence each."""
    any_share = next(iter(found.tenants.values())).share_ratio
    if any_share.kind is Kind.ASSUMED:
        yield f"Shares: {any_share.sources}."
    else:
        yield f"Shares: {any_share.sources}; 90 % intervals."
    if found.idle == "shared":
        yield "Idle cost is shared in proportion to use."
    elif found.idle_usd.is_unknown:
        yield f"How much of the bill was idle is not known: {found.idle_usd.reason}."
    for model, use in found.models.items():
        yield from _time_went(model, use, len(found.models) > 1)
    unmatched = found.unmatched
    if (unmatched.share_ratio.mid or 0) >= _MIN_RATIO:
        yield (
            f"The logs do not account for {count(unmatched.prompt_tokens)} prompt and "
            f"{count(unmatched.output_tokens)} output tokens that the servers counted."
        )
    yield from (f"{each[:1].upper()}{each[1:]}." for each in found.notes)
    yield from _left_out(found)
    for file in found.files:
        yield from _file(file)


def _time_went(model: str, use: ModelUse, is_named: bool) -> Iterator[str]:
    parts: Mapping[str, Estimate] = {
        words: getattr(use, f"{name}_time_ratio") for name, words in _TIME.items()
    }
    if all(part.mid is not None for part in parts.values()):
        of = f" of {model}" if is_named else ""
        shares = "; ".join(f"{words} {percent(p.mid or 0)}" for words, p in parts.items())
        yield f"Where engine time{of} went: {shares}."


def _left_out(found: Tenants) -> Iterator[str]:
    left = found.left_out
    if left.before or left.after:
        yield (
            f"{plural(left.before, 'row')} of the logs are from before this time range, "
            f"{count(left.after)} after it."
        )
    if left.other_models:
        others = [
            f"{name or 'no model named'}: {count(n)}" for name, n in left.other_models.items()
        ]
        yield f"Rows of models that are not served here: {listed(others)}."


def _file(file: LogFile) -> Iterator[str]:
    if file.malformed:
        yield (
            f"{file.name}: {plural(file.malformed, 'row')} could not be read "
            f"({'; '.join(file.examples)})."
        )
    if file.without_tokens:
        yield f"{file.name}: {plural(file.without_tokens, 'row')} without tokens left out."
    if file.from_gateway_cache:
        yield (
            f"{file.name}: {plural(file.from_gateway_cache, 'row')} answered from the gateway's "
            "own cache left out."
        )
