"""Logs of gateways as rows of usage: their columns, times, keys, and the rows that are none."""

import csv
import gzip
import hashlib
import json
from datetime import UTC, datetime

import polars as pl
import pytest

from vllm_capacity.errors import InputError
from vllm_capacity.sources.usage import Keys, read_usage

SHOWN = Keys(are_shown=True)
AT = datetime(2026, 11, 24, 4, 5, 6, tzinfo=UTC)
HASH = hashlib.sha256(b"sk-1").hexdigest()
LITELLM = {
    "request_id": "r1",
    "api_key": HASH,
    "model": "hosted_vllm/qwen",
    "startTime": "2026-11-24T04:05:01.5",
    "endTime": "2026-11-24 04:05:06",
    "prompt_tokens": 100,
    "completion_tokens": 20,
    "cache_hit": "False",
    "metadata": {"usage_object": {"prompt_tokens_details": {"cached_tokens": 64}}},
}
ENVOY = {
    "start_time": "2026-11-24T04:05:04.000Z",
    "duration": "2000",
    "x-tenant-id": "team-a",
    "gen_ai.request.model": "qwen",
    "gen_ai.usage.input_tokens": "100",
    "gen_ai.usage.output_tokens": "20",
    "response_code": "200",
}


def file_of(folder, text, name="log"):
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def lines(*rows):
    return "\n".join(json.dumps(row) for row in rows)


def read(path, **options):
    return read_usage([path], **{"keys": SHOWN, **options})


def row(log):
    return log.frame.row(0, named=True)


def csv_of(record):
    cells = (json.dumps(v) if isinstance(v, dict) else str(v) for v in record.values())
    quoted = ('"' + cell.replace('"', '""') + '"' for cell in cells)
    return ",".join(record) + "\n" + ",".join(quoted) + "\n"


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(lines(LITELLM), id="JSON lines"),
        pytest.param(json.dumps([LITELLM], indent=1), id="a JSON list"),
        pytest.param(csv_of(LITELLM), id="CSV, its metadata JSON in a cell"),
        pytest.param(gzip.compress(lines(LITELLM).encode()), id="gzip"),
    ],
)
def test_litellm_spend_logs(tmp_path, text):
    found = row(read(file_of(tmp_path, text)))
    assert found == {
        "key": HASH,
        "model": "hosted_vllm/qwen",
        "start": datetime(2026, 11, 24, 4, 5, 1, 500_000, tzinfo=UTC),
        "end": AT,
        "prompt_tokens": 100.0,
        "cached_tokens": 64.0,
        "output_tokens": 20.0,
        "requests": 1.0,
    }


def test_parquet(tmp_path):
    frame = pl.DataFrame({"key": ["a"], "time": [AT], "prompt": [7], "cached": [0], "output": [3]})
    frame.write_parquet(tmp_path / "u.parquet")
    found = row(read(tmp_path / "u.parquet"))
    assert (found["end"], found["prompt_tokens"], found["cached_tokens"]) == (AT, 7.0, 0.0)


def test_envoy_logs_start_and_duration_and_the_key_column_must_be_given(tmp_path):
    found = row(read(file_of(tmp_path, lines(ENVOY)), columns="key=x-tenant-id"))
    assert (found["key"], found["model"], found["end"]) == ("team-a", "qwen", AT)
    assert (found["prompt_tokens"], found["output_tokens"]) == (100.0, 20.0)
    assert found["cached_tokens"] is None


def test_nginx_text_by_its_log_format(tmp_path):
    form = '$remote_addr [$time_local] "$request" $request_time "$http_x_key" $up_in $up_out'
    line = '10.0.0.1 [24/Nov/2026:05:05:06 +0100] "POST /v1 HTTP/1.1" 2.000 "team a" 100 20'
    log = read(
        file_of(tmp_path, line + "\nrubbish\n"),
        log_format=form,
        columns="key=http_x_key,prompt=up_in,output=up_out",
    )
    assert (row(log)["key"], row(log)["end"], row(log)["output_tokens"]) == ("team a", AT, 20.0)
    assert (row(log)["end"] - row(log)["start"]).total_seconds() == 2.0
    assert log.files[0].examples == ("line 2: not of the log format",)


@pytest.mark.parametrize(
    ("stamp", "expected"),
    [
        pytest.param("1763957106", datetime(2025, 11, 24, 4, 5, 6, tzinfo=UTC), id="seconds"),
        pytest.param("1763957106000", datetime(2025, 11, 24, 4, 5, 6, tzinfo=UTC), id="ms"),
        pytest.param("2026-11-24T05:05:06+01:00", AT, id="an offset"),
        pytest.param("2026-11-24 04:05:06", AT, id="no offset is UTC"),
    ],
)
def test_times_are_utc(tmp_path, stamp, expected):
    log = read(file_of(tmp_path, f"key,time,prompt,output\na,{stamp},1,1\n"))
    assert row(log)["end"] == expected


@pytest.mark.parametrize(
    ("cells", "says"),
    [
        pytest.param("a,2026-11-24T04:05:06Z,x,1", "prompt 'x' is not a count", id="no number"),
        pytest.param("a,2026-11-24T04:05:06Z,-5,1", "is not a count", id="below 0"),
        pytest.param("a,2026-11-24T04:05:06Z,inf,1", "is not a count", id="endless"),
        pytest.param("a,yesterday,1,1", "as a time", id="no time"),
        pytest.param("a,,1,1", "it has no time", id="no time at all"),
        pytest.param(",2026-11-24T04:05:06Z,1,1", "it has no key", id="no key"),
        pytest.param("a,b", "2 cells under 4 columns", id="too short"),
    ],
)
def test_a_malformed_row_is_counted_with_its_line(tmp_path, cells, says):
    good = "a,2026-11-24T04:05:06Z,1,1"
    log = read(file_of(tmp_path, f"key,time,prompt,output\n{good}\n{cells}\n{good}\n"))
    file = log.files[0]
    assert (file.rows, file.malformed) == (2, 1)
    assert file.examples[0].startswith("line 3: ")
    assert says in file.examples[0]


def test_what_never_reached_a_server_is_left_out_and_counted(tmp_path):
    hit = {**LITELLM, "cache_hit": "True"}
    none = {**LITELLM, "prompt_tokens": None, "completion_tokens": "-"}
    file = read(file_of(tmp_path, lines(LITELLM, hit, none))).files[0]
    assert (file.rows, file.from_gateway_cache, file.without_tokens) == (1, 1, 1)


def test_more_cached_than_prompt_is_malformed(tmp_path):
    text = "key,time,prompt,cached,output\na,2026-11-24T04:05:06Z,5,6,1\nb,2026-11-24,5,5,1\n"
    assert read(file_of(tmp_path, text)).files[0].malformed == 1


@pytest.mark.parametrize(
    ("text", "options", "says"),
    [
        pytest.param("", {}, "is empty", id="nothing"),
        pytest.param("a,b\n1,2\n", {}, "has no token counts. It has: a, b.", id="no tokens"),
        pytest.param("key,prompt\na,1\n", {}, "line 2: it has no time. It has: key", id="no time"),
        pytest.param("[1, 2", {}, "is not JSON", id="half a list"),
        pytest.param("a", {"columns": "colour=red"}, "Unknown column colour", id="no field"),
        pytest.param("a", {"columns": "key"}, "write NAME=VALUE", id="no pair"),
        pytest.param("a", {"log_format": "nothing"}, "must name what it logs", id="no format"),
    ],
)
def test_what_cannot_be_read_is_one_clear_error(tmp_path, text, options, says):
    with pytest.raises(InputError) as error:
        read(file_of(tmp_path, text), **options)
    assert says in str(error.value)


def test_a_missing_file(tmp_path):
    with pytest.raises(InputError, match="Cannot read"):
        read(tmp_path / "none.csv")


@pytest.mark.parametrize(
    ("keys", "key", "expected"),
    [
        pytest.param(Keys(), HASH, HASH[:12], id="LiteLLM's keep their first digits"),
        pytest.param(SHOWN, "ann@example.com", "ann@example.com", id="shown where asked"),
    ],
)
def test_keys(keys, key, expected):
    assert keys.written(key) == expected


def test_a_key_is_hashed_and_a_secret_changes_it():
    plain, secret = (keys.written("ann@example.com") for keys in (Keys(), Keys("s")))
    assert len(plain) == len(secret) == 12
    assert plain != secret
    assert "ann" not in plain


def test_keys_that_begin_alike_stay_two():
    keys = Keys()
    shown = [keys.written("0" * 63 + last) for last in "12"]
    assert shown == ["0" * 12, "0" * 63 + "2"]


def test_several_logs_are_one(tmp_path):
    head = "key,time,prompt,output\n"
    paths = [file_of(tmp_path, head + f"{k},2026-11-24T04:05:06Z,1,1\n", k) for k in "ab"]
    log = read_usage(paths, keys=SHOWN)
    assert log.frame["key"].to_list() == ["a", "b"]
    assert [file.name for file in log.files] == ["a", "b"]


def test_reading_leaves_the_limit_of_cells_as_it_was(tmp_path):
    path = tmp_path / "usage.csv"
    path.write_text("key,start,end,prompt_tokens,completion_tokens\na,1762000000,1762000009,1,2\n")
    before = csv.field_size_limit()
    read_usage([path], keys=SHOWN)
    assert csv.field_size_limit() == before
