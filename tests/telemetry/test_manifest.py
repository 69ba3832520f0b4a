"""A window that is not as it was written is refused in one line; nothing waits for a pipe."""

import json
import os
import shutil

import polars as pl
import pytest

from tests.telemetry.windows import downsampled, hours, noted, of_format_1, scraped_minutes, written
from vllm_capacity.errors import WindowError
from vllm_capacity.telemetry.manifest import read_manifest
from vllm_capacity.telemetry.window import open_window


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    return written(tmp_path_factory.mktemp("good") / "w")


@pytest.fixture(scope="module")
def good_minutes(tmp_path_factory):
    return downsampled(tmp_path_factory.mktemp("good") / "thinned")


@pytest.fixture
def window(good, tmp_path):
    return shutil.copytree(good, tmp_path / "w")


def cut(path):
    path.write_bytes(path.read_bytes()[:-1])


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 255
    path.write_bytes(content)


def swap(one, other):
    content = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(content)


def retyped(path, column, dtype):
    """The file with a column of another type."""
    pl.read_parquet(path).with_columns(pl.col(column).cast(dtype)).write_parquet(path)


def put(path, make):
    """Something else in the place of a file."""
    path.unlink()
    make(path)


def noting(**changes):
    return lambda w: (w / "window.json").write_text(json.dumps(noted(w) | changes))


def listing(**changes):
    """The last file of the list, described differently."""

    def do(window):
        note = noted(window)
        note["files"][-1] |= changes
        (window / "window.json").write_text(json.dumps(note))

    return do


DAMAGES = [
    pytest.param(lambda w: hours(w, "samples")[0].unlink(), "is missing", id="an hour is lost"),
    pytest.param(lambda w: shutil.rmtree(w / "histograms"), "is missing", id="a table is lost"),
    pytest.param(lambda w: (w / "intake.parquet").unlink(), "is missing", id="intake is lost"),
    pytest.param(
        lambda w: shutil.copy(hours(w, "samples")[0], w / "samples" / "2026-11-24T09.parquet"),
        "is not one of its files",
        id="an hour is gained",
    ),
    pytest.param(
        lambda w: shutil.copy(hours(w, "samples")[0], w / "minutes.parquet"),
        "is not one of its files",
        id="minutes are gained",
    ),
    pytest.param(
        lambda w: cut(hours(w, "histograms")[1]), "but was written with", id="an hour is cut"
    ),
    pytest.param(lambda w: flip(hours(w, "samples")[1]), "was changed", id="a byte of an hour"),
    pytest.param(lambda w: flip(w / "series.parquet"), "is damaged", id="a byte of the series"),
    pytest.param(lambda w: swap(*hours(w, "samples")), "is damaged", id="hours are swapped"),
    pytest.param(
        lambda w: put(hours(w, "samples")[0], os.mkfifo), "not a regular file", id="a pipe"
    ),
    pytest.param(
        lambda w: put(hours(w, "samples")[0], lambda p: p.symlink_to(p.name)),
        "Too many levels",
        id="a link to itself",
    ),
    pytest.param(
        lambda w: put(w / "series.parquet", lambda p: p.symlink_to("/dev/zero")),
        "not a regular file",
        id="a device",
    ),
    pytest.param(
        lambda w: put(w / "window.json", os.mkfifo), "no readable", id="window.json is a pipe"
    ),
    pytest.param(
        lambda w: (w / "window.json").write_text("[" * 100_000), "no readable", id="deep brackets"
    ),
    pytest.param(lambda w: (w / "window.json").write_text("[]"), "names no format", id="a list"),
    pytest.param(noting(format=True), "names no format", id="a format that is no number"),
    pytest.param(noting(format=3), "has format 3; this version reads", id="a later format"),
    pytest.param(noting(counts=[]), "has no row counts", id="no counts"),
    pytest.param(noting(grain={}), "has the grain", id="no grain"),
    pytest.param(noting(grain="minute"), "no files of the table minutes", id="another grain"),
    pytest.param(noting(files="x"), "does not list", id="no list"),
    pytest.param(noting(files=[]), "no files of the table series", id="an empty list"),
    pytest.param(listing(name="../x.parquet"), "does not list", id="a file outside"),
    pytest.param(listing(rows=-1), "does not list", id="fewer rows than none"),
    pytest.param(listing(more=1), "does not list", id="an unknown key"),
]


@pytest.mark.parametrize(("damage", "says"), DAMAGES)
def test_damage_is_reported_in_one_line(window, damage, says):
    damage(window)
    with pytest.raises(WindowError, match=says) as caught:
        open_window(window)
    assert "\n" not in str(caught.value)


OF_FORMAT_1 = [
    pytest.param(lambda w: hours(w, "samples")[0].unlink(), "samples has", id="an hour is lost"),
    pytest.param(lambda w: (w / "intake.parquet").unlink(), "table intake", id="intake is lost"),
    pytest.param(
        lambda w: shutil.copy(hours(w, "samples")[0], w / "samples" / "2026-11-24T09.parquet"),
        "samples has",
        id="an hour is gained",
    ),
    pytest.param(
        lambda w: shutil.copy(hours(w, "samples")[0], w / "minutes.parquet"),
        "no table 'minutes'",
        id="minutes are gained",
    ),
    pytest.param(
        lambda w: put(hours(w, "samples")[0], os.mkfifo), "not a regular file", id="a pipe"
    ),
    pytest.param(lambda w: cut(hours(w, "histograms")[1]), "is damaged", id="an hour is cut"),
    pytest.param(
        lambda w: retyped(hours(w, "samples")[-1], "series_id", pl.String),
        "series_id of samples/.* is String, not Int64",
        id="a column of another type",
    ),
    pytest.param(
        lambda w: [retyped(hour, "ts", pl.Int64) for hour in hours(w, "histograms")],
        "ts of histograms/.* is Int64, not Datetime",
        id="times that are numbers",
    ),
]


@pytest.mark.parametrize(("damage", "says"), OF_FORMAT_1)
def test_a_window_of_format_1_is_checked_by_its_counts(window, damage, says):
    damage(of_format_1(window))
    with pytest.raises(WindowError, match=says):
        open_window(window)


def test_a_window_of_format_1_is_read_as_before(window, good):
    assert scraped_minutes(of_format_1(window)) == scraped_minutes(good)


@pytest.mark.parametrize(
    ("verify", "hashed_at_once_bytes", "is_found"),
    [
        pytest.param(False, 0, False, id="too big to be hashed at every opening"),
        pytest.param(True, 0, True, id="verified, however big"),
        pytest.param(False, 10**6, True, id="small enough"),
    ],
)
def test_hashes_of_big_windows_are_checked_when_asked_for(
    window, verify, hashed_at_once_bytes, is_found
):
    flip(hours(window, "samples")[1])
    given = {"verify": verify, "hashed_at_once_bytes": hashed_at_once_bytes}
    if not is_found:
        assert len(read_manifest(window, **given).files) == 6
        return
    with pytest.raises(WindowError, match="was changed since it was written"):
        read_manifest(window, **given)


def test_the_list_says_what_is_there(window):
    for file in noted(window)["files"]:
        path = window / file["name"]
        assert (file["bytes"], file["rows"]) == (path.stat().st_size, pl.read_parquet(path).height)


@pytest.mark.parametrize("table", ["minutes", "minute_histograms"])
def test_minutes_are_files_like_others(good_minutes, tmp_path, table):
    window = shutil.copytree(good_minutes, tmp_path / "w")
    assert open_window(window).sql(f"select count(*) from {table}").item() > 0
    flip(window / f"{table}.parquet")
    with pytest.raises(WindowError, match="is damaged"):
        open_window(window)


@pytest.mark.parametrize("name", ["w*", "w?", "w[12]", "w**"])
def test_a_window_named_like_a_pattern_is_not_mixed_with_others(tmp_path, name):
    written(tmp_path / "w1", range(20, 25))
    written(tmp_path / name, range(5))
    assert scraped_minutes(tmp_path / name) == list(range(5))


def test_an_unrelated_file_is_not_damage(window):
    (window / "notes.txt").write_text("mine")
    assert len(scraped_minutes(window)) == 20
