"""Windows in S3: the answers of the window in a folder, and only what they are made of is moved."""

import json
import shutil
from pathlib import Path

import pytest
import s3fs
from click.testing import CliRunner

from tests.figures.small_windows import gauge, small_rows, small_window, up
from tests.figures.test_rolled_up import OneAfterAnother, a_window, entries, rolled_up
from tests.s3_server import s3_server
from vllm_capacity.analysis import Analysis
from vllm_capacity.cli import cli
from vllm_capacity.errors import InputError, SourceError, WindowError
from vllm_capacity.facts.metrics import RUNNING
from vllm_capacity.figures.rolled_up import RolledUp, entries_of, roll_up
from vllm_capacity.telemetry.late import extend_window
from vllm_capacity.telemetry.mirror import publish
from vllm_capacity.telemetry.window import open_window
from vllm_capacity.telemetry.workers import processes

URL = "s3://capacity/fleet/w"
HALF = 2_000  # rows; a window's nine hours have about twice that


@pytest.fixture(scope="module")
def server():
    with s3_server() as environment:
        yield environment


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    """A window of nine hours in a folder."""
    return a_window(tmp_path_factory.mktemp("s3"), 100)


@pytest.fixture
def bucket(server, monkeypatch, tmp_path):
    """An empty bucket, and a machine that has read nothing yet."""
    for name, value in server.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "machine"))
    (tmp_path / "machine").mkdir()
    files = s3fs.S3FileSystem(skip_instance_cache=True, use_listings_cache=False)
    if files.exists("capacity"):
        files.rm("capacity", recursive=True)
    files.mkdir("capacity")
    return files


def put(local, *, with_entries=True):
    window = open_window(local)
    publish(window.manifest, entries_of(window) if with_entries else [], URL)


def copied(tmp_path):
    """The hour files and entries that came to this machine."""
    found = (tmp_path / "machine").rglob("*")
    names = [str(path.relative_to(tmp_path)) for path in found if not path.is_dir()]
    return (
        sorted(name.rpartition("w/")[2] for name in names if "/samples/" in name),
        sorted({Path(name).parent.name for name in names if "/.rollup/" in name}),
    )


def test_figures_are_those_of_the_folder_and_move_no_rows_but_of_the_ends(bucket, local, tmp_path):
    put(local)
    assert Analysis.of(open_window(URL)).answer == Analysis.of(open_window(local)).answer
    ends = ["samples/2026-11-24T08.parquet", "samples/2026-11-24T16.parquet"]
    assert copied(tmp_path) == (ends, entries(local))


def test_rows_come_when_they_are_asked_for(bucket, local):
    put(local, with_entries=False)
    asked = "select series_id, count(*) as n from Samples group by all order by all"
    assert open_window(URL).sql(asked).equals(open_window(local).sql(asked))
    exact = Analysis.of(open_window(URL), exact=True).answer
    assert exact == Analysis.of(open_window(local), exact=True).answer


@pytest.mark.parametrize("count", [1, 2])
def test_workers_leave_in_s3_what_they_leave_in_a_folder(bucket, local, tmp_path, count):
    alone = shutil.copytree(local, tmp_path / "alone" / "w")
    shutil.rmtree(alone / ".rollup", ignore_errors=True)
    rows = {"rows_per_piece": HALF}
    whole = rolled_up(alone, None, **rows)
    assert whole.pieces > 1
    put(local, with_entries=False)
    assert rolled_up(URL, None if count == 1 else OneAfterAnother(count), **rows) == whole
    found = bucket.ls("capacity/fleet/w/.rollup", detail=False)
    assert sorted(name.rpartition("/")[2] for name in found) == [
        f"{name}.tar" for name in entries(alone)
    ]
    shutil.rmtree(tmp_path / "machine")
    (tmp_path / "machine").mkdir()
    assert rolled_up(URL, OneAfterAnother(2), **rows) == RolledUp(whole.pieces, 0)


def test_processes_reach_s3_by_themselves(bucket, local, tmp_path):
    put(local, with_entries=False)
    with processes(2, {"TMPDIR": str(tmp_path)}) as workers:
        done = roll_up(open_window(URL), workers, progress=lambda done, of: None)
    assert done == RolledUp(1, 1)
    assert len(bucket.ls("capacity/fleet/w/.rollup")) == 1


def test_a_window_that_was_replaced_is_read_anew(bucket, tmp_path):
    own = a_window(tmp_path, 101)
    put(own)
    before = Analysis.of(open_window(URL)).gauges.running.max
    extend_window(own, small_rows(gauge(RUNNING, {4 * 3600 + 1.5: 70}, instance="a")))
    put(own)
    assert Analysis.of(open_window(URL)).gauges.running.max == 70 != before


def test_an_entry_that_is_not_whole_is_made_anew(bucket, local):
    put(local)
    (entry,) = bucket.ls("capacity/fleet/w/.rollup", detail=False)
    bucket.pipe_file(entry, bucket.cat_file(entry)[:-20_000])
    assert Analysis.of(open_window(URL)).answer == Analysis.of(open_window(local)).answer


def test_the_verb_copies_a_window_and_figures_read_it_there(bucket, local):
    said = CliRunner().invoke(cli, ["rollup", str(local), "--workers", "1", "--to", URL])
    assert said.output.endswith(f" made now. Copied to {URL}.\n")
    by_url, by_path = (
        CliRunner().invoke(cli, ["figures", place, "--json"]).output for place in (URL, str(local))
    )
    assert by_url == by_path


def other_bytes(bucket):
    bucket.pipe_file("capacity/fleet/w/series.parquet", b"other")


def no_hour(bucket):
    bucket.rm("capacity/fleet/w/samples/2026-11-24T08.parquet")


@pytest.mark.parametrize(
    ("spoil", "url", "error", "says"),
    [
        pytest.param(None, f"{URL}2", WindowError, "No window at s3", id="no window"),
        pytest.param(None, "s3://other/w", WindowError, "No window at s3", id="no bucket"),
        pytest.param(None, "s3://capacity//w", InputError, "s3://bucket/folder", id="no address"),
        pytest.param(None, "s3://me:pw@capacity/w", InputError, "leave them out", id="secret"),
        pytest.param(other_bytes, URL, WindowError, "not as it was written", id="other bytes"),
        pytest.param(no_hour, URL, SourceError, "incomplete", id="an hour is gone"),
    ],
)
def test_what_is_not_a_window_is_said(bucket, local, spoil, url, error, says):
    put(local)
    if spoil is not None:
        spoil(bucket)
    with pytest.raises(error, match=says):
        open_window(url).extent  # noqa: B018


def test_without_a_server_it_says_where_credentials_come_from(bucket, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    with pytest.raises(SourceError, match="AWS_ENDPOINT_URL"):
        open_window(URL)


@pytest.mark.parametrize(
    ("source", "target", "says"),
    [
        pytest.param("w", "/tmp/elsewhere", "s3://bucket/folder was expected", id="a folder"),
        pytest.param(URL, "s3://capacity/other", "is in S3 already", id="from S3 to S3"),
    ],
)
def test_another_target_is_refused(source, target, says):
    with pytest.raises(InputError, match=says):
        CliRunner().invoke(cli, ["rollup", source, "--to", target], catch_exceptions=False)


def test_a_window_of_format_1_which_lists_no_files_is_refused(bucket, tmp_path):
    short = small_window(tmp_path, up({0: True, 60: True}))
    note = json.loads((short.path / "window.json").read_text())
    del note["files"]
    bucket.pipe_file("capacity/fleet/w/window.json", json.dumps({**note, "format": 1}).encode())
    with pytest.raises(WindowError, match="does not list its files"):
        open_window(URL)
