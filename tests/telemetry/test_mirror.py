"""Windows in S3: the answers of the window in a folder, and only what they are made of is moved."""

import json
import os
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import s3fs
from click.testing import CliRunner

from tests.figures.small_windows import gauge, small_rows, small_window, up
from tests.figures.test_rolled_up import OneAfterAnother, a_window, entries, rolled_up
from tests.long_window import MONDAY, long_window
from tests.s3_server import s3_server
from vllm_capacity.analysis import Analysis
from vllm_capacity.assumptions import Assumptions, pricing
from vllm_capacity.cli import cli
from vllm_capacity.errors import InputError, SourceError, WindowError
from vllm_capacity.facts.metrics import RUNNING
from vllm_capacity.figures.rolled_up import RolledUp, entries_of, roll_up
from vllm_capacity.figures.short_parts import as_read
from vllm_capacity.render.exports import export
from vllm_capacity.render.report.write import _analysis_of, _parameters_of
from vllm_capacity.telemetry.copies import publish
from vllm_capacity.telemetry.late import extend_window
from vllm_capacity.telemetry.window import open_window
from vllm_capacity.telemetry.workers import processes

URL = "s3://capacity/fleet/w"
SERVER = ("AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION")
HALF = 2_000  # rows; a window's nine hours have about twice that


@pytest.fixture(scope="module")
def server():
    with s3_server() as environment:
        yield environment


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    """A window of nine hours in a folder."""
    return a_window(tmp_path_factory.mktemp("s3"), 100)


@pytest.fixture(scope="module")
def short(tmp_path_factory):
    """A window of two scrapes in a folder, for what rests on no figures."""
    return small_window(tmp_path_factory.mktemp("short"), up({0: True, 60: True})).path


@pytest.fixture(scope="module")
def files(server):
    """The files of the server, whatever a test says in its environment."""
    endpoint, key, secret = (server[name] for name in SERVER[:3])
    how = {"endpoint_url": endpoint, "key": key, "secret": secret}
    return s3fs.S3FileSystem(**how, skip_instance_cache=True, use_listings_cache=False)


@pytest.fixture
def bucket(server, files, monkeypatch, tmp_path):
    """An empty bucket, and a machine that has read nothing yet."""
    for name, value in server.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "machine"))
    (tmp_path / "machine").mkdir()
    if files.exists("capacity"):
        files.rm("capacity", recursive=True)
    files.mkdir("capacity")
    return files


def put(local, *, with_entries=True):
    window = open_window(local)
    publish(window.manifest, entries_of(window) if with_entries else [], URL)


def forget(tmp_path):
    """As a machine that has read nothing yet."""
    shutil.rmtree(tmp_path / "machine")
    (tmp_path / "machine").mkdir()


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


def test_of_a_short_part_come_the_rows_of_its_own_hours(bucket, tmp_path):
    """Of a server without a restart, no answer takes the rows in between."""
    own, rows = long_window(tmp_path / "w", days=0.6), {"rows_per_piece": 1300}  # three hours
    rolled_up(own.path, None, **rows)
    publish(own.manifest, (own.path / ".rollup").glob("2*"), URL)
    window = open_window(URL)
    part = window.clamp(MONDAY + timedelta(hours=6.5), MONDAY + timedelta(hours=7.5))
    found = Analysis(as_read(window, part, **rows), part).answer
    hours = [int(Path(name).stem[-2:]) for name in copied(tmp_path)[0]]
    assert hours == [0, 6, 7, 8, 14]  # first and last, for the window's extent
    assert found == Analysis(own.remembering(), part).answer


def test_of_finished_days_one_entry_each_is_copied(bucket, tmp_path):
    own, rows = long_window(tmp_path / "w", days=2.4), {"rows_per_piece": 1300}  # three hours
    rolled_up(own.path, None, **rows)
    publish(own.manifest, (own.path / ".rollup").glob("2*"), URL)
    window = open_window(URL)
    found = Analysis(as_read(window, window.extent, **rows), window.extent).answer
    pieces = [name.partition(".")[0] for name in copied(tmp_path)[1]]
    days = [f"{MONDAY + timedelta(days=n):%Y-%m-%d}" for n in range(3)]
    last = [f"{days[2]}T{hour:02}" for hour in (0, 3, 6, 9)]
    assert pieces == [days[0], days[1], *last]
    by_path = open_window(own.path)
    assert found == Analysis(as_read(by_path, window.extent, **rows), window.extent).answer
    forget(tmp_path)
    start = MONDAY + timedelta(days=1, hours=6.5)
    part = window.clamp(start, start + timedelta(hours=1))
    short = Analysis(as_read(open_window(URL), part, **rows), part).answer
    assert short == Analysis(own.remembering(), part).answer
    pieces = [name.partition(".")[0] for name in copied(tmp_path)[1]]
    assert pieces == [days[0], *(f"{days[1]}T{hour:02}" for hour in range(0, 24, 3)), *last]


def test_of_a_short_part_all_rows_come_where_not_everything_was_made_ahead(bucket, local):
    put(local, with_entries=False)
    start, end = (datetime(2026, 11, 24, hour, tzinfo=UTC) for hour in (10, 11))
    by_url, by_path = (Analysis.of(open_window(place), start, end) for place in (URL, local))
    assert by_url.answer == by_path.answer


def test_charges_of_two_months_and_the_rows_behind_a_page_are_those_of_the_folder(bucket, tmp_path):
    begin = datetime(2026, 11, 30, 18, tzinfo=UTC)
    own = long_window(tmp_path / "w", days=0.5, start=begin)
    put(own.path)
    priced = Assumptions(pricing(2.0))
    by_url, by_path = (
        Analysis.of(open_window(place), assumptions=priced) for place in (URL, own.path)
    )
    assert export(by_url, "focus") == export(by_path, "focus")
    order = _parameters_of(by_url)
    assert order["window"] == URL
    assert _analysis_of(order).answer == by_path.answer


def test_rows_come_when_they_are_asked_for(bucket, local):
    put(local, with_entries=False)
    asked = "select series_id, count(*) as n from Samples group by all order by all"
    assert open_window(URL).sql(asked).equals(open_window(local).sql(asked))
    exact = Analysis.of(open_window(URL), exact=True).answer
    assert exact == Analysis.of(open_window(local), exact=True).answer


@pytest.fixture(scope="module")
def alone(local, tmp_path_factory):
    """What a worker makes of that window in a folder: the names of its entries."""
    own = shutil.copytree(local, tmp_path_factory.mktemp("alone") / "w")
    shutil.rmtree(own / ".rollup", ignore_errors=True)
    whole = rolled_up(own, None, rows_per_piece=HALF)
    assert whole.pieces > 1
    return whole, entries(own)


@pytest.mark.parametrize("count", [1, 2])
def test_workers_leave_in_s3_what_they_leave_in_a_folder(bucket, local, alone, tmp_path, count):
    whole, names = alone
    rows = {"rows_per_piece": HALF}
    put(local, with_entries=False)
    assert rolled_up(URL, None if count == 1 else OneAfterAnother(count), **rows) == whole
    found = bucket.ls("capacity/fleet/w/.rollup", detail=False)
    assert sorted(name.rpartition("/")[2] for name in found) == [f"{name}.tar" for name in names]
    forget(tmp_path)
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


def test_the_command_copies_a_window_and_figures_read_it_there(bucket, local):
    said = CliRunner().invoke(cli, ["rollup", str(local), "--workers", "1", "--to", URL])
    assert said.output.endswith(f" of them new. Copied to {URL}.\n")
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
        pytest.param(None, f"{URL}2", WindowError, "there is no window.json", id="no window"),
        pytest.param(None, "s3://other/w", WindowError, "there is no such bucket", id="no bucket"),
        pytest.param(None, "s3://capacity//w", InputError, "s3://bucket/folder", id="no address"),
        pytest.param(None, "s3://me:pw@capacity/w", InputError, "leave them out", id="secret"),
        pytest.param(
            other_bytes, URL, WindowError, "differs from what was written", id="other bytes"
        ),
        pytest.param(no_hour, URL, SourceError, "incomplete", id="an hour is gone"),
    ],
)
def test_a_path_that_is_not_a_window_is_reported(bucket, short, spoil, url, error, says):
    put(short)
    if spoil is not None:
        spoil(bucket)
    with pytest.raises(error, match=says):
        open_window(url).extent  # noqa: B018


def test_without_a_server_the_message_names_the_sources_of_credentials(bucket, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    with pytest.raises(SourceError, match="AWS_ENDPOINT_URL"):
        open_window(URL)


def without_credentials(monkeypatch):
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    return "Unable to locate credentials. Credentials come from AWS_ACCESS_KEY_ID"


def without_half_of_them(monkeypatch):
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    return "Partial credentials found"


def without_the_profile(monkeypatch):
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    return "profile \\(nobody\\) could not be found"


def without_a_url(monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "nonsense")
    return "Invalid endpoint: nonsense"


@pytest.mark.parametrize(
    "without",
    [without_credentials, without_half_of_them, without_the_profile, without_a_url],
)
def test_a_missing_input_is_reported_in_a_line_with_exit_code_2(bucket, monkeypatch, without):
    says = without(monkeypatch)
    with pytest.raises(InputError, match=says) as raised:
        open_window(URL)
    assert (raised.value.exit_code, "\n" in str(raised.value)) == (2, False)


def test_a_profile_has_credentials_and_the_server(bucket, short, monkeypatch, tmp_path):
    put(short)
    own = {name: os.environ[name] for name in SERVER}
    for name in SERVER:
        monkeypatch.delenv(name)
    config, secrets = tmp_path / "config", tmp_path / "credentials"
    where = f"region = us-east-1\nendpoint_url = {own['AWS_ENDPOINT_URL']}\n"
    config.write_text(f"[profile lab]\n{where}")
    secrets.write_text("[lab]\naws_access_key_id = test\naws_secret_access_key = test\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(config))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(secrets))
    monkeypatch.setenv("AWS_PROFILE", "lab")
    assert open_window(URL).extent == open_window(short).extent


@pytest.mark.parametrize(
    ("source", "target", "says"),
    [
        pytest.param("w", "tests", "tests exists already", id="something is there"),
        pytest.param(URL, "s3://capacity/other", "is in S3 already", id="from S3 to S3"),
    ],
)
def test_another_target_is_refused(source, target, says):
    with pytest.raises(InputError, match=says):
        CliRunner().invoke(cli, ["rollup", source, "--to", target], catch_exceptions=False)


def test_a_window_is_copied_with_its_summaries_to_a_folder_and_back_from_s3(
    bucket, local, tmp_path
):
    def rolled(source, target):
        return CliRunner().invoke(cli, ["rollup", source, "--to", target], catch_exceptions=False)

    path = shutil.copytree(local, tmp_path / "own" / local.name)
    assert rolled(str(path), str(tmp_path / "copy")).output.endswith(f"to {tmp_path / 'copy'}.\n")
    rolled(str(path), URL)
    rolled(URL, str(tmp_path / "back"))
    for copy in ("copy", "back"):
        assert entries(tmp_path / copy) == entries(path) != []
        copied = open_window(tmp_path / copy, verify=True)
        assert copied.manifest.files == open_window(path).manifest.files


def test_windows_in_s3_are_not_listed():
    with pytest.raises(InputError, match="cannot be listed; use s3://BUCKET/FOLDER"):
        CliRunner().invoke(cli, ["windows", "s3://capacity/fleet"], catch_exceptions=False)


def test_a_window_of_format_1_which_lists_no_files_is_refused(bucket, short):
    note = json.loads((short / "window.json").read_text())
    del note["files"]
    bucket.pipe_file("capacity/fleet/w/window.json", json.dumps({**note, "format": 1}).encode())
    with pytest.raises(WindowError, match="no list of its files"):
        open_window(URL)
