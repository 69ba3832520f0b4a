"""What the stand-in keeps and how it answers SQL: Arrow tables, and DataFusion over them."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import pyarrow as pa
import pyarrow.compute as pc
from datafusion import SessionContext, SQLOptions

_TIME = pa.timestamp("ms")
_LISTS = {"data_point_bucket_counts": pa.int64(), "data_point_explicit_bounds": pa.float64()}


class RefusedError(Exception):
    """An answer other than 200: its status, and its text."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status
        self.text = text


@dataclass
class Stream:
    """One stream: its batches in order of arrival, each with the columns its rows had."""

    log_source: str
    batches: list[pa.Table] = field(default_factory=list)
    _whole: tuple[int, pa.Table] | None = None

    def schema(self) -> pa.Schema:
        """All columns that ever came in; none before anything did."""
        return pa.unify_schemas([pa.schema([]), *(batch.schema for batch in self.batches)])

    def table(self, start: datetime | None = None, end: datetime | None = None) -> pa.Table:
        """The rows that arrived in [start, end)."""
        united = self._united()
        arrived = united.column("p_timestamp")
        if start is not None:
            united = united.filter(pc.greater_equal(arrived, pa.scalar(start, _TIME)))
            arrived = united.column("p_timestamp")
        return united if end is None else united.filter(pc.less(arrived, pa.scalar(end, _TIME)))

    def _united(self) -> pa.Table:
        """All rows under all columns; made anew when more came in."""
        if self._whole is None or self._whole[0] != len(self.batches):
            schema = self.schema()
            rows = pa.concat_tables(self.batches, promote_options="default")
            whole = rows.select(schema.names).cast(schema).combine_chunks()
            self._whole = len(self.batches), whole
        return self._whole[1]


def batch(rows: Iterable[dict], arrived: datetime, *, agent: str, log_source: str) -> pa.Table:
    """One request's rows as a table; all of them arrived at once."""
    received = arrived.astimezone(UTC).replace(tzinfo=None)
    received = received.replace(microsecond=received.microsecond // 1000 * 1000)
    kept = [_sibling_lists(row) for row in rows]
    found = _columns(kept)
    columns = {"p_timestamp": pa.array([received] * len(kept), _TIME)}
    if log_source == "otel-metrics":
        columns["__series_hash_u64"] = pa.array([_series_hash(row) for row in kept], pa.uint64())
    for name in sorted(found):
        columns[name] = pa.array(found[name], _type(name, found[name]))
    for name, text in (
        ("p_user_agent", agent),
        ("p_src_ip", "127.0.0.1"),
        ("p_format", log_source),
    ):
        columns[name] = pa.array([text] * len(kept), pa.string())
    return pa.table(columns)


def _columns(rows: list[dict]) -> dict[str, list]:
    """The columns that hold anything, each as long as there are rows."""
    found: dict[str, list] = {}
    for index, row in enumerate(rows):
        for name, value in row.items():
            if value is not None:
                if name not in found:
                    found[name] = [None] * len(rows)
                found[name][index] = value
    return found


def _sibling_lists(row: dict) -> dict:
    """Empty lists have no element type, so they land in a column beside the real one."""
    if all(row.get(name) != [] for name in _LISTS):
        return row
    return {(f"{k}_list" if k in _LISTS and v == [] else k): v for k, v in row.items()}


def _type(name: str, values: list) -> pa.DataType:
    if name in _LISTS:
        return pa.list_(_LISTS[name])
    first = next(value for value in values if value is not None)
    if isinstance(first, list):
        return pa.list_(pa.null())
    if isinstance(first, datetime):
        return _TIME
    if isinstance(first, bool):
        return pa.bool_()
    return pa.float64() if isinstance(first, float) else pa.string()


def _series_hash(row: dict) -> int:
    """Some number that is the same for the points of a series; the real one's hash is its own."""
    return hash(frozenset(item for item in row.items() if isinstance(item[1], str))) % 2**64


def arrow_json(data_type: pa.DataType) -> object:
    """An Arrow type as Parseable's `/schema` writes it."""
    if pa.types.is_list(data_type):
        item = {"name": "item", "data_type": arrow_json(data_type.value_type), "nullable": True}
        return {"List": {**item, "dict_id": 0, "dict_is_ordered": False, "metadata": {}}}
    if pa.types.is_timestamp(data_type):
        return {"Timestamp": ["Millisecond", None]}
    names = {"string": "Utf8", "double": "Float64", "bool": "Boolean", "uint64": "UInt64"}
    return names.get(str(data_type), str(data_type).capitalize())


def schema_json(stream: Stream) -> dict:
    """The answer of `/schema`."""
    about = {"nullable": True, "dict_id": 0, "dict_is_ordered": False, "metadata": {}}
    fields = [
        {"name": entry.name, "data_type": arrow_json(entry.type), **about}
        for entry in sorted(stream.schema(), key=lambda entry: entry.name)
    ]
    return {"fields": fields, "metadata": {}}


def answer(
    streams: dict[str, Stream], query: str, start: datetime, end: datetime
) -> tuple[list[str], list[list[dict]]]:
    """The column names and batches of rows of a query over what arrived in [start, end)."""
    context = SessionContext()
    for name, stream in streams.items():
        if stream.batches and name in query:
            table = stream.table(start, end)
            empty = pa.RecordBatch.from_pylist([], schema=table.schema)
            context.register_record_batches(name, [table.to_batches() or [empty]])
    try:
        frame = context.sql_with_options(query, _read_only())
        names = frame.schema().names
        return names, [_json_rows(found) for found in frame.collect()]
    except Exception as error:  # DataFusion raises bare exceptions
        raise _refused(str(error)) from None


def _read_only() -> SQLOptions:
    return SQLOptions().with_allow_ddl(False).with_allow_dml(False).with_allow_statements(False)


def _refused(text: str) -> RefusedError:
    """DataFusion's complaint, as Parseable words it."""
    if "not found" in text and "table" in text:
        table = text.split("'")[1] if "'" in text else "?"
        found = f"Error during planning: table '{table}' not found"
        return RefusedError(400, f"Datafusion Error: {found}")
    if "ParserError" in text:
        return RefusedError(400, f"Error: SQL error: {text.removeprefix('DataFusion error: ')}")
    return RefusedError(400, f"Datafusion Error: {text.removeprefix('DataFusion error: ')}")


def _json_rows(found: pa.RecordBatch) -> list[dict]:
    """Rows as JSON objects: nulls are left out, times are naive ISO text."""
    return [
        {k: _json_value(v) for k, v in row.items() if v is not None}
        for row in found.to_pylist()
        if row
    ]


def _json_value(value: object) -> object:
    if isinstance(value, datetime):
        whole = value.replace(microsecond=0).isoformat()
        milliseconds = value.microsecond // 1000
        return f"{whole}.{milliseconds:03d}" if milliseconds else whole
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return None
    return value


def minute_range(start: str, end: str, now: datetime) -> tuple[datetime, datetime]:
    """The naive UTC range of a query's `startTime` and `endTime`, both cut to the minute."""
    if end == "now":
        last = now
        first = now - _humantime(start)
    else:
        try:
            first, last = (datetime.fromisoformat(text) for text in (start, end))
        except ValueError:
            raise RefusedError(
                400,
                "Error while parsing provided time range: Error parsing time: "
                "premature end of input",
            ) from None
    if first > last:
        raise RefusedError(
            400,
            "Error while parsing provided time range: "
            "Start time cannot be greater than the end time",
        )
    cut = [m.astimezone(UTC).replace(tzinfo=None, second=0, microsecond=0) for m in (first, last)]
    return cut[0], cut[1]


def _humantime(text: str) -> timedelta:
    units = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}
    return timedelta(**{units[text[-1]]: int(text[:-1])})
