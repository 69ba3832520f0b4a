"""The stand-in's streams as Parseable's own files: one per minute of arrival and set of columns."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from tests.standin.tables import Stream


def write_store(streams: dict[str, Stream], root: Path) -> Path:
    """The root of a store that holds these streams: a file per minute and set of columns."""
    for name, stream in streams.items():
        (root / name / ".stream").mkdir(parents=True)
        merged: dict[tuple[str, pa.Schema], list[pa.Table]] = {}
        for batch in stream.batches:
            arrived = batch.column("p_timestamp")[0].as_py()
            minute = arrived.strftime("date=%Y-%m-%d/hour=%H/minute=%M")
            merged.setdefault((minute, batch.schema), []).append(batch)
        for number, ((minute, _), batches) in enumerate(merged.items()):
            folder = root / name / minute
            folder.mkdir(parents=True, exist_ok=True)
            path = folder / f"host.data.{number:04d}.parquet"
            pq.write_table(pa.concat_tables(batches), path, compression="lz4")
    return root
