"""All rows behind a page's charts and tables as CSV files in one ZIP file.

A page shows at most 200 rows of a table, and charts of long windows merge steps. These files have
the steps of the analysis, the stretches, the hours, and every row of the tables.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from io import BytesIO
from zipfile import ZIP_DEFLATED, ZipFile, ZipInfo

import polars as pl

from vllm_capacity.analysis import Analysis
from vllm_capacity.render.sections.cost import bill_table, first_changes
from vllm_capacity.render.sections.fleet import engine_table, model_table
from vllm_capacity.render.sections.quality import quality_table
from vllm_capacity.render.tables import Table, csv_of

_UNDATED = (1980, 1, 1, 0, 0, 0)  # the same rows give the same bytes

_FRAMES: Mapping[str, Callable[[Analysis], pl.DataFrame]] = {
    "steps": lambda analysis: analysis.steps,
    "series": lambda analysis: analysis.series,
    "regimes": lambda analysis: pl.DataFrame(
        [each.as_dict() for each in analysis.saturation.regimes],
        schema=["start", "end", "engine", "regime", "evidence"],
    ),
    "hours": lambda analysis: analysis.hours,
}
_TABLES: Mapping[str, Callable[[Analysis], Table | None]] = {
    "bill": bill_table,
    "engines": engine_table,
    "models": model_table,
    "advice": first_changes,
    "quality": quality_table,
}


def to_zip(analysis: Analysis) -> bytes:
    """A ZIP file with a CSV file per frame and table; numbers at full precision, times in UTC.

    steps: a row per engine and step; series: the time range as charts draw it; regimes: every
    stretch with its evidence; hours: a row per whole hour; bill, engines, models, advice, quality:
    the tables of the page. A file is left out if the window has no such data (several engines,
    whole hours).
    """
    buffer = BytesIO()
    with ZipFile(buffer, "w", ZIP_DEFLATED) as archive:
        for name, frame_of in _FRAMES.items():
            frame = frame_of(analysis)
            if frame.height:
                archive.writestr(_named(name), csv_of(frame))
        for name, table_of in _TABLES.items():
            table = table_of(analysis)
            if table is not None and table.rows:
                archive.writestr(_named(name), table.to_csv())
    return buffer.getvalue()


def _named(name: str) -> ZipInfo:
    info = ZipInfo(f"{name}.csv", date_time=_UNDATED)
    info.compress_type = ZIP_DEFLATED
    info.external_attr = 0o644 << 16
    return info
