"""The fact tables in one common form, so that their rows can be listed, searched and shown."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from msgspec import Struct
from msgspec.structs import asdict

from vllm_capacity.errors import InputError
from vllm_capacity.facts.gpus import gpus
from vllm_capacity.facts.llms import llms
from vllm_capacity.facts.metrics import metrics
from vllm_capacity.facts.prices import prices
from vllm_capacity.facts.tables import is_own, own_path


class FactRow(Struct, frozen=True):
    """A row of a table: its name, its values by column, and their source.

    `source` covers every value of the row; in the user's own rows it begins with `OWN`.
    """

    name: str
    values: Mapping[str, object]
    source: str
    date: str
    note: str

    @property
    def is_own(self) -> bool:
        """Whether it is one of the user's own rows."""
        return is_own(self.source)


class Catalog(Struct, frozen=True):
    """A fact table: its file, its rows, the name of a row, and the columns that a listing shows.

    `shown` holds (column, title) pairs.
    """

    file: str
    rows: Callable[[], Sequence[Any]]
    name: Callable[[Any], str]
    shown: tuple[tuple[str, str], ...]


CATALOGS: Mapping[str, Catalog] = {
    "gpus": Catalog(
        "gpu_specs.csv",
        gpus,
        lambda row: row.name,
        (("memory_gib", "GiB"), ("mem_bw_tb_s", "TB/s"), ("arch", "architecture")),
    ),
    "models": Catalog(
        "llms.csv",
        llms,
        lambda row: row.model,
        (("params_total_b", "B"), ("params_active_b", "active"), ("max_context_tokens", "context")),
    ),
    "prices": Catalog(
        "gpu_prices.csv",
        prices,
        lambda row: row.key,
        (("usd_per_gpu_hour", "USD/h"), ("min_gpus", "GPUs")),
    ),
    "metrics": Catalog("vllm_metrics.csv", metrics, lambda row: row.name, (("kind", "kind"),)),
}


def find_rows(table: str, words: Sequence[str] = ()) -> tuple[FactRow, ...]:
    """The rows of a table whose name or values contain every word, the user's own first.

    Case is ignored. Raises InputError, with the number of rows, if none matches.
    """
    catalog = CATALOGS[table]
    rows = [_row(catalog, row) for row in catalog.rows()]
    wanted = [word.lower() for word in words]
    found = tuple(row for row in rows if all(word in _text(row) for word in wanted))
    if not found:
        raise InputError(
            f"None of the {len(rows)} {table} matches {' and '.join(map(repr, words))}; "
            f"`vllm-capacity facts {table}` lists them."
        )
    return found


def own_tables() -> Mapping[str, tuple[int, Path | None]]:
    """For each table, its number of rows and the user's own file (None without one)."""
    return {
        name: (len(catalog.rows()), own_path(catalog.file)) for name, catalog in CATALOGS.items()
    }


def _row(catalog: Catalog, row: Any) -> FactRow:  # noqa: ANN401  a row of any table
    values = asdict(row)
    return FactRow(
        name=catalog.name(row),
        values=values,
        source=row.source,
        date=str(values.get("date", "")),
        note=row.note,
    )


def _text(row: FactRow) -> str:
    return " ".join(map(str, (row.name, *row.values.values()))).lower()
