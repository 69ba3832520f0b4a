"""The stand-in's streams as Parseable's own files: a file a request, by minute of arrival."""

from pathlib import Path

import pyarrow.parquet as pq

from tests.standin.tables import Stream


def write_store(streams: dict[str, Stream], root: Path) -> Path:
    """The root of a store that holds these streams."""
    for name, stream in streams.items():
        (root / name / ".stream").mkdir(parents=True)
        for number, batch in enumerate(stream.batches):
            arrived = batch.column("p_timestamp")[0].as_py()
            folder = root / name / arrived.strftime("date=%Y-%m-%d/hour=%H/minute=%M")
            folder.mkdir(parents=True, exist_ok=True)
            pq.write_table(batch, folder / f"host.data.{number:04d}.parquet", compression="lz4")
    return root
