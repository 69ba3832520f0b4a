"""Adding to a window while others add and read: nothing lost, nothing mixed, nothing left over."""

import os
import subprocess
import sys
import time

import polars as pl
import pytest

from tests.telemetry.windows import (
    downsampled,
    hours,
    noted,
    of_format_1,
    rows_at,
    scraped_minutes,
    written,
)
from vllm_capacity.errors import WindowError
from vllm_capacity.telemetry.late import extend_window
from vllm_capacity.telemetry.window import open_window

ADD = """
import sys
from pathlib import Path
from tests.telemetry.windows import rows_at
from vllm_capacity.telemetry.late import extend_window
print("ready", flush=True)
sys.stdin.readline()
for minute in sys.argv[2:]:
    extend_window(Path(sys.argv[1]), rows_at([int(minute)]))
    print(minute, flush=True)
"""


def adding(window, *minutes):
    """A process that waits for a line, then adds these minutes one by one."""
    process = subprocess.Popen(
        [sys.executable, "-c", ADD, str(window), *map(str, minutes)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "ready\n"
    return process


def go(process):
    process.stdin.write("\n")
    process.stdin.flush()


def left_over(window):
    """What no reader needs: hidden files, and files that are not listed."""
    listed = {window / file["name"] for file in noted(window)["files"]}
    there = {*window.glob("*.parquet"), *window.glob("*/*.parquet")}
    return sorted(p.name for p in {*there - listed, *window.glob(".[!r]*")})


def test_runs_that_add_at_the_same_time_add_all_of_it(tmp_path):
    window = written(tmp_path / "w")
    runs = [adding(window, *range(first, first + 6, 3)) for first in (20, 21, 22)]
    for run in runs:
        go(run)
    while any(run.poll() is None for run in runs):
        seen = scraped_minutes(window)  # at any moment the window is complete
        assert seen[:20] == list(range(20))
    assert [run.communicate()[0].count("\n") for run in runs] == [2] * 3
    assert scraped_minutes(window) == list(range(26))


def test_a_killed_run_changes_nothing_or_all_and_the_next_cleans_up(tmp_path):
    window = written(tmp_path / "w")
    for first in (20, 30):
        run = adding(window, *range(first, first + 10))
        go(run)
        run.stdout.readline()  # wait until the first one is added
        time.sleep(0.01 * (first - 20))
        run.kill()
        result = [int(line) for line in run.communicate()[0].splitlines()]
        there = scraped_minutes(window)
        assert there == list(range(len(there)))
        assert {first, *result} <= set(there)
        extend_window(window, rows_at(range(first, first + 10)))
        assert scraped_minutes(window) == list(range(first + 10))
        assert left_over(window) == []


def test_a_window_that_is_open_goes_on_as_it_was(tmp_path):
    window = written(tmp_path / "w")
    opened = open_window(window)
    extend_window(window, rows_at([20, 21]))
    whole = "select count(*) from samples join series using (series_id) where metric = 'up'"
    assert (opened.sql(whole).item(), open_window(window).sql(whole).item()) == (20, 22)
    assert left_over(window) != []
    del opened
    extend_window(window, rows_at([22]))
    assert left_over(window) == []


def test_the_folder_stays_the_one_it_was(tmp_path):
    window = written(tmp_path / "w")
    before = window.stat().st_ino, sorted(tmp_path.iterdir())
    extend_window(window, rows_at([20]))
    assert (window.stat().st_ino, sorted(tmp_path.iterdir())) == before


def test_a_window_of_format_1_gets_its_list(tmp_path):
    window = of_format_1(written(tmp_path / "w"))
    extend_window(window, rows_at([20]))
    assert noted(window)["format"] == 2
    assert scraped_minutes(window) == list(range(21))


def test_an_hour_that_did_not_change_is_the_same_file(tmp_path):
    window = written(tmp_path / "w")
    first, _ = hours(window, "samples")
    assert extend_window(window, rows_at([20])) == ["2026-11-24T04"]
    assert hours(window, "samples")[0] == first


def test_nothing_is_added_to_a_damaged_window(tmp_path):
    window = written(tmp_path / "w")
    before = (window / "window.json").read_bytes()
    hour = hours(window, "samples")[0]
    hour.write_bytes(hour.read_bytes()[::-1])
    with pytest.raises(WindowError, match="is damaged"):
        extend_window(window, rows_at([20]))
    assert (window / "window.json").read_bytes() == before
    assert left_over(window) == []


def test_a_run_that_fails_leaves_the_window_as_it_was(tmp_path):
    window = written(tmp_path / "w")
    broken = rows_at([20])
    broken.samples.drop_in_place("value")
    with pytest.raises(pl.exceptions.PolarsError):
        extend_window(window, broken)
    assert scraped_minutes(window) == list(range(20))
    assert left_over(window) == []


def test_a_window_of_minutes_takes_no_samples(tmp_path):
    window = downsampled(tmp_path / "w")
    with pytest.raises(WindowError, match="has minutes"):
        extend_window(window, rows_at([20]))
    assert left_over(window) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting takes root")
def test_a_window_on_a_mount_point_is_added_to(tmp_path):
    window = written(tmp_path / "w")
    if subprocess.run(["mount", "--bind", window, window], check=False).returncode:
        pytest.skip("this machine does not let one mount")
    try:
        extend_window(window, rows_at([20]))
        assert scraped_minutes(window) == list(range(21))
    finally:
        subprocess.run(["umount", "-l", window], check=True)
