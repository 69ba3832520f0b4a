"""`vllm-capacity forecast`: the shape of its JSON, refusals with exit 0, bad input with exit 2."""

import json
import math
import subprocess
import sys

import pytest
from click.testing import CliRunner

from vllm_capacity.cli import cli
from vllm_capacity.errors import InputError


def series(tmp_path, stamps, *, column="requests", time="ts_seconds", value=None):
    path = tmp_path / "series.csv"
    shape = value or (lambda i: round(100 + 50 * math.sin(i / 23) + 7 * (i % 3)))
    lines = [f"{time},{column}"] + [f"{stamp},{shape(i)}" for i, stamp in enumerate(stamps)]
    path.write_text("\n".join(lines) + "\n")
    return path


def ask(path, *args, column="requests"):
    command = ["forecast", str(path), "--column", column, *args]
    return CliRunner().invoke(cli, command, catch_exceptions=False)


def answer(path, *args, **kwargs):
    result = ask(path, *args, "--json", **kwargs)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


TEN_MINUTES = [600 * i for i in range(6 * 24 * 4)]


@pytest.mark.parametrize(
    ("step", "horizon", "count", "apart"),
    [
        pytest.param("10m", "24h", 144, 600, id="at the grain of the rows"),
        pytest.param("1h", "24h", 24, 3600, id="summed into hours"),
        pytest.param("6h", "3d", 12, 21600, id="quarter days, three days ahead"),
    ],
)
def test_one_row_per_step_from_the_end_of_the_series(tmp_path, step, horizon, count, apart):
    answered = answer(series(tmp_path, TEN_MINUTES), "--step", step, "--horizon", horizon)
    stamps = [row["ts"] for row in answered["forecast"]]
    assert stamps == [TEN_MINUTES[-1] + 600 + apart * i for i in range(count)]
    assert all(0 <= row["low"] <= row["mid"] <= row["high"] for row in answered["forecast"])


def test_every_key_is_there(tmp_path):
    answered = answer(series(tmp_path, TEN_MINUTES))
    assert set(answered) == {
        "forecast", "method", "coverage_measured", "width_ratio", "peak_over_mean", "reason"
    }  # fmt: skip
    assert set(answered["forecast"][0]) == {"ts", "low", "mid", "high"}
    assert 0.5 < answered["coverage_measured"] <= 1
    assert "; ".join(answered["peak_over_mean"]["basis"]).startswith("p95 of 10 min peaks")
    assert (answered["reason"], "hour-of-day profile" in answered["method"]) == ("", True)


def test_finer_rows_are_summed(tmp_path):
    fine = answer(series(tmp_path, TEN_MINUTES, value=lambda i: 10), "--step", "1h")
    assert fine["forecast"][0]["mid"] == pytest.approx(60)


@pytest.mark.parametrize(
    ("clock", "expected"),
    [
        pytest.param("T{:02d}:00:00Z", "2026-11-26T00:00:00Z", id="ISO with Z"),
        pytest.param("T{:02d}:00:00+01:00", "2026-11-26T00:00:00+01:00", id="an offset"),
        pytest.param(" {:02d}:00:00", "2026-11-26 00:00:00", id="a blank, no zone"),
    ],
)
def test_times_come_out_as_they_went_in(tmp_path, clock, expected):
    stamps = [f"2026-11-{day}" + clock.format(hour) for day in (24, 25) for hour in range(24)]
    answered = answer(series(tmp_path, stamps, time="ts"))
    assert answered["forecast"][0]["ts"] == expected


@pytest.mark.parametrize(
    ("stamps", "args", "message"),
    [
        pytest.param(TEN_MINUTES[:143], (), "24 h are needed", id="under a day"),
        pytest.param(
            TEN_MINUTES, ("--horizon", "7d"), "168 h ahead", id="further than it goes back"
        ),
        pytest.param([], (), "no row has a value", id="a header alone"),
    ],
)
def test_a_refusal_is_json_with_exit_0(tmp_path, stamps, args, message):
    answered = answer(series(tmp_path, stamps), *args)
    assert (answered["forecast"], answered["coverage_measured"]) == (None, None)
    assert message in answered["reason"]


@pytest.mark.parametrize(
    ("time", "stamps", "head", "row"),
    [
        pytest.param(
            "ts",
            [f"2026-11-{day}T{hour:02}:00:00Z" for day in (24, 25) for hour in range(24)],
            "from (UTC)",
            "26 Nov 2026 00:00",
            id="times that a person reads",
        ),
        pytest.param(
            "ts_seconds", TEN_MINUTES, "from, as the file counts", "345,600", id="seconds as given"
        ),
    ],
)
def test_the_table_shows_times(tmp_path, time, stamps, head, row):
    shown = ask(series(tmp_path, stamps, time=time), "--horizon", "2h").stdout
    assert [shown.splitlines()[1].startswith(head), shown.splitlines()[3].startswith(row)] == [
        True,
        True,
    ]
    assert max(map(len, shown.splitlines())) <= 80


def test_the_table_names_the_coverage_and_a_refusal_its_reason(tmp_path):
    shown = ask(series(tmp_path, TEN_MINUTES)).stdout
    assert "of points inside" in " ".join(shown.split())
    assert "No forecast: the data span" in ask(series(tmp_path, TEN_MINUTES[:9])).stdout


@pytest.mark.parametrize(
    ("args", "column", "message"),
    [
        pytest.param((), "tokens", "no column 'tokens'", id="no such column"),
        pytest.param(("--step", "1m"), "requests", "coarser than the step", id="rows too coarse"),
        pytest.param(("--step", "soon"), "requests", "Cannot read 'soon'", id="no duration"),
        pytest.param(("--step", "25m"), "requests", "divide a day", id="a step across midnight"),
    ],
)
def test_bad_input_says_what_to_try(tmp_path, args, column, message):
    with pytest.raises(InputError, match=message):
        ask(series(tmp_path, TEN_MINUTES), *args, "--json", column=column)


def test_bad_input_is_one_line_and_exit_2(tmp_path):
    command = [sys.executable, "-m", "vllm_capacity", "forecast", str(tmp_path / "absent.csv")]
    done = subprocess.run([*command, "--column", "n"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("vllm-capacity: Cannot read")
    assert done.stderr.count("\n") == 1


def test_no_relative_width_for_a_mean_of_0(tmp_path):
    rows = [f"{hour * 3600},{100 if hour < 24 * 11 else 0}" for hour in range(24 * 12)]
    path = tmp_path / "stopped.csv"
    path.write_text("\n".join(["ts_seconds,requests", *rows, ""]))
    asked = [str(path), "--column", "requests", "--step", "1h", "--horizon", "3h"]
    shown = CliRunner().invoke(cli, ["forecast", *asked], catch_exceptions=False).stdout
    assert "of points inside" in " ".join(shown.split())
    assert "mean width" not in shown
