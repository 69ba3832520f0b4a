"""`rollup` of a Prometheus or a store: the same window, whoever reads it and whoever is killed."""

import multiprocessing
import os
import random
import shutil
import signal
import tempfile
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from click.testing import CliRunner

from tests.figures.small_windows import small_window
from tests.figures.test_by_hour import a_server
from tests.figures.test_rolled_up import entries
from tests.integration.real_prometheus import backfill, real_prometheus
from tests.s3_server import s3_server
from tests.sources.test_slices import BEGIN, points_of, store_of
from tests.standin.prometheus import as_openmetrics
from tests.telemetry.test_on_ray import needs_ray, run_on_ray
from vllm_capacity.cli import cli
from vllm_capacity.errors import InputError, WindowError
from vllm_capacity.live.pull import PullOrder, pull_window
from vllm_capacity.live.pulled import pulled_window
from vllm_capacity.telemetry.manifest import digest
from vllm_capacity.telemetry.window import open_window
from vllm_capacity.telemetry.workers import processes
from vllm_capacity.timerange import TimeRange, iso

NOW = datetime(2026, 11, 26, tzinfo=UTC)  # long after everything has arrived
URL = "s3://capacity/fleet/w"


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """An order for a store of five hours."""
    points = points_of(random.Random(1))
    root = store_of(tmp_path_factory.mktemp("store"), points, by_hour=True)
    return PullOrder(root, "s", None)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """An order for nine hours of a real Prometheus."""
    folder = tmp_path_factory.mktemp("prometheus")
    rng = random.Random(7)
    lines = [line for name in "ab" for line in a_server(rng, name, every=120)]
    made = small_window(folder / "made", *lines)
    backfill(folder, as_openmetrics(made))
    with real_prometheus(folder, []) as url:
        yield PullOrder(url, None, TimeRange(made.extent.start, made.extent.end))


@pytest.fixture(params=["store", "server"])
def order(request):
    return request.getfixturevalue(request.param)


def pulled(order, target, **how):
    return pulled_window(order, str(target), environment=os.environ, now=NOW, **how)


def hashes(path):
    return {str(f.relative_to(path)): digest(f) for f in sorted(Path(path).rglob("*.parquet"))}


def alone(order, path):
    """The hashes of the window's files as this process pulls it."""
    return hashes(pull_window(order, path, environment=os.environ, now=NOW))


def test_a_worker_that_is_killed_changes_nothing(order, tmp_path):
    killed = []

    def kill(step):
        if step.done >= 2 and not killed:
            killed.append(multiprocessing.active_children()[0].pid)
            os.kill(killed[0], signal.SIGKILL)

    with processes(2, {}) as workers:
        window = pulled(order, tmp_path / "w", workers=workers, progress=kill)
    assert killed
    assert hashes(window.path) == alone(order, tmp_path / "alone")


class KilledError(Exception):
    pass


def kill_after(slices):
    def progress(step):
        if step.done == slices:
            raise KilledError

    return progress


def test_a_run_that_was_killed_goes_on_with_the_next_slice(order, tmp_path):
    steps = []
    with pytest.raises(KilledError):
        pulled(order, tmp_path / "w", progress=kill_after(2))
    assert not (tmp_path / "w").exists()
    window = pulled(order, tmp_path / "w", progress=steps.append)
    assert [step.done for step in steps] == list(range(3, steps[-1].total + 1))
    assert hashes(window.path) == alone(order, tmp_path / "alone")


def test_a_finished_pull_is_not_repeated_but_another_is_refused(store, tmp_path):
    first = pulled(store, tmp_path / "w")
    again = pulled(store, tmp_path / "w", progress=kill_after(1))
    assert again.manifest == first.manifest
    hour = TimeRange(BEGIN, BEGIN + timedelta(hours=1))
    other = PullOrder(store.origin, "s", hour)
    with pytest.raises(WindowError, match=r"with other telemetry: origin .*stream s"):
        pulled(other, tmp_path / "w")


@pytest.fixture
def bucket(monkeypatch, tmp_path):
    """An S3 server with an empty bucket, and a machine without copies."""
    s3fs = pytest.importorskip("s3fs")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "machine"))
    (tmp_path / "machine").mkdir()
    with s3_server() as environment:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        files = s3fs.S3FileSystem(skip_instance_cache=True, use_listings_cache=False)
        files.mkdir("capacity")
        yield files


def test_into_s3_a_run_goes_on_from_another_machine(server, bucket, tmp_path, monkeypatch):
    with pytest.raises(KilledError):
        pulled(server, URL, progress=kill_after(3))
    assert len(bucket.ls("capacity/fleet/w/.answers")) >= 2
    shutil.rmtree(tmp_path / "machine")
    (tmp_path / "machine").mkdir()
    steps = []
    window = pulled(server, URL, progress=steps.append)
    assert steps[0].done > 2
    assert hashes(window.path).items() <= alone(server, tmp_path / "alone").items()
    assert not bucket.exists("capacity/fleet/w/.answers")
    left = [each.name for each in (tmp_path / "machine").iterdir()]
    assert [name for name in left if not name.startswith("vllm-capacity-mirror")] == []


def test_the_command_writes_a_window_with_its_summaries(server, bucket, tmp_path):
    def ran(target):
        span = [iso(at) for at in (server.time_range.start, server.time_range.end)]
        asked = ["--start", span[0], "--end", span[1], "--full", "--workers", "2", "--to", target]
        said = CliRunner().invoke(cli, ["rollup", server.origin, *asked], catch_exceptions=False)
        return said.output

    path = tmp_path / "w"
    assert ran(str(path)) == "w: 9 hours in 2 pieces, 2 of them new.\n"
    assert ran(str(path)) == "w: 9 hours in 2 pieces, 0 of them new.\n"
    assert ran(URL) == "w: 9 hours in 2 pieces, 2 of them new.\n"
    names = [each.rpartition("/")[2] for each in bucket.ls("capacity/fleet/w/.rollup")]
    assert names == [f"{name}.tar" for name in entries(path)]
    assert open_window(URL).extent == open_window(path).extent


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        pytest.param(["http://127.0.0.1:9", "--last", "3h"], "Give --to", id="no target"),
        pytest.param(["w", "--start", "2026-11-24"], "--start is for a server", id="of a window"),
        pytest.param(["STORE", "--stream", "x", "--to", "w"], "No stream 'x'", id="no stream"),
    ],
)
def test_what_cannot_be_done_is_said(store, arguments, says, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    own = [store.origin if each == "STORE" else each for each in arguments]
    with pytest.raises(InputError, match=says):
        CliRunner().invoke(cli, ["rollup", *own], catch_exceptions=False)


def test_a_bucket_that_does_not_exist_is_said_before_anything_is_read(store, bucket):
    with pytest.raises(InputError, match="no bucket for s3://nowhere/w"):
        pulled(store, "s3://nowhere/w", progress=kill_after(1))


@needs_ray
def test_workers_on_ray_read_a_prometheus_and_one_may_be_killed(server, tmp_path):
    span = [iso(at) for at in (server.time_range.start, server.time_range.end)]
    with tempfile.TemporaryDirectory(prefix="ray", ignore_cleanup_errors=True) as short:
        script = Path(__file__).with_name("ray_pull_run.py")
        done = run_on_ray(server.origin, tmp_path / "w", *span, script=script, RAY_TMPDIR=short)
    assert done.stdout.splitlines()[-1:] == ["1 killed"], done.stderr
    assert hashes(tmp_path / "w") == alone(server, tmp_path / "alone")
