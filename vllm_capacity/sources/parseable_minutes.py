"""Minutes as the thinning query packs them, a row a series and hour, made a row a minute again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl

from vllm_capacity.sources.parseable_queries import Group
from vllm_capacity.sources.parseable_shapes import require_even

# The columns of a minute, beside those that tell the series apart.
MINUTES: dict[str, Any] = {
    **{name: pl.Int64 for name in ("m", "r", "t0", "t1", "n", "twins")},
    **{name: pl.Float64 for name in ("lo", "hi", "total", "f", "l")},
}
MINUTE_HISTOGRAMS: dict[str, Any] = {
    **{name: pl.Int64 for name in ("m", "r", "t0", "t1", "n", "twins")},
    **{name: pl.Float64 for name in ("fs", "s")},
    **{name: pl.List(pl.Int64) for name in ("fb", "b")},
}


def unpacked(rows: Sequence[dict[str, Any]], group: Group) -> pl.DataFrame:
    """The answer of a thinning query, a row a minute and run, in the columns above; maybe none.

    Buckets are states again, where the answer has what they grew by.
    """
    schema = MINUTE_HISTOGRAMS if group.is_histogram else MINUTES
    texts = {name: pl.String for name in group.identity}
    lists = {name: pl.List(sort) for name, sort in schema.items() if name != "r"}
    for row in rows:
        require_even(row.get(name) for name in lists)
    if group.is_histogram:
        rows = [{**row, **_states(row)} for row in rows]
    packed = pl.DataFrame(rows, schema={**texts, "r": pl.Int64, "h": pl.Int64, **lists})
    size = pl.col("m").list.len()
    nothing = [
        pl.coalesce(name, pl.lit(None, sort).repeat_by(size)).alias(name)
        for name, sort in schema.items()
        if name not in ("r", "m")
    ]
    minutes = packed.with_columns(nothing).explode(list(lists), empty_as_null=False)
    return minutes.with_columns(m=pl.col("h") * 60 + pl.col("m")).select(*texts, *schema)


def _states(row: dict[str, Any]) -> dict[str, Any]:
    """The first and last buckets of each minute of a row, of what they grew by."""
    require_even([*row["fb"], *(row.get("b") or [])])
    since = np.asarray(row["fb"], np.int64)
    grown = row.get("b") or [None] * len(since)
    growth = np.asarray([np.zeros_like(since[0]) if g is None else g for g in grown], np.int64)
    last = np.cumsum(since + growth, axis=0)
    return {"fb": (last - growth).tolist(), "b": last.tolist()}
