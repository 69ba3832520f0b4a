"""The live screen: a row per engine, the worst first, and the total."""

from __future__ import annotations

from vllm_capacity.engines_now import EngineNow, FleetNow
from vllm_capacity.figures.latency import Quantile
from vllm_capacity.render.numbers import hours, moment, number, percent, seconds, usd, value
from vllm_capacity.render.prose.verdict import REGIMES
from vllm_capacity.render.tables import DASH, Cell, Column, Table, Value, table, wrapped

_COLUMNS = (
    Column("engine", "engine"),
    Column("state", "regime"),
    *(
        Column(title, name, is_numeric=True)
        for title, name in (
            ("tok/s", "output_tokens_per_second"),
            ("run", "running"),
            ("wait", "waiting"),
            ("KV", "kv_cache_ratio"),
            ("TTFT p95", "ttft_p95"),
            ("ITL p95", "itl_p95"),
            ("$/h", "usd_per_hour"),
            ("$/M out", "usd_per_million_output_tokens"),
            ("headroom", "headroom_ratio"),
        )
    ),
)


def watch_text(found: FleetNow, *, width: int) -> str:
    """The screen: its time, a row per engine, the total, and the servers that do not respond."""
    title = f"{moment(found.at)} · latency and cost over {hours(found.seconds / 3600)}"
    lines = [wrapped(f"{row.engine}: {row.trouble}", width) for row in found.engines if row.trouble]
    return "\n".join(
        part for part in (wrapped(title, width), watch_table(found).to_text(width), *lines) if part
    )


def watch_table(found: FleetNow) -> Table:
    """One row per engine in the given order, and a last row for the total."""
    rows = [*found.engines, *([found.whole] if len(found.engines) > 1 else [])]
    return table(_COLUMNS, [_row(row) for row in rows])


def _row(row: EngineNow) -> tuple[Value | Cell, ...]:
    state = "NO ANSWER" if row.trouble else REGIMES.get(row.regime, row.regime)
    return (
        row.engine,
        Cell(state, row.regime),
        *(_gauge(each) for each in (row.output_tokens_per_second, row.running, row.waiting)),
        Cell(DASH) if row.kv_cache_ratio is None else Cell(percent(row.kv_cache_ratio)),
        *(_quantile(each) for each in (row.ttft_p95, row.itl_p95)),
        Cell(_short(value(row.usd_per_hour, usd)), row.usd_per_hour),
        Cell(
            _short(value(row.usd_per_million_output_tokens, usd)),
            row.usd_per_million_output_tokens,
        ),
        Cell(_short(value(row.headroom_ratio, percent)), row.headroom_ratio),
    )


def _gauge(found: float | None) -> Cell:
    return Cell(DASH) if found is None else Cell(number(found), found)


def _quantile(found: Quantile) -> Cell:
    if found.lower is None:
        return Cell(DASH)
    if found.estimate is None:
        return Cell(f"> {seconds(found.lower)}")
    return Cell(seconds(found.estimate), found.estimate)


def _short(text: str) -> str:
    """A bound as a sign, an unknown value as a dash: a screen has little room."""
    if text.startswith("not known"):
        return DASH
    return text.replace("at least ", "≥ ").replace("at most ", "≤ ")
