"""What a page is compared with: a window, a day, the day so long before."""

from datetime import date
from pathlib import Path

import pytest

from vllm_capacity.cli.nights import Night
from vllm_capacity.cli.options.against import earlier_day, later_days, window_against
from vllm_capacity.cli.options.settings import DaySettings, SourceSettings
from vllm_capacity.errors import InputError
from vllm_capacity.render.report.write import ReportOrder

DAY = date(2026, 11, 27)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param("7d", date(2026, 11, 20), id="a week before"),
        pytest.param("1w", date(2026, 11, 20), id="the same"),
        pytest.param("24h", date(2026, 11, 26), id="whole days in hours"),
        pytest.param("2026-11-01", date(2026, 11, 1), id="a day"),
        pytest.param("before-upgrade", None, id="a window"),
        pytest.param("3days-test", None, id="a window whose name begins like a duration"),
    ],
)
def test_which_day_it_is(text, expected):
    assert earlier_day(text, DAY) == expected


def test_parts_of_days_are_refused():
    with pytest.raises(InputError, match="whole days"):
        earlier_day("36h", DAY)


@pytest.mark.parametrize(
    ("text", "days"),
    [
        pytest.param("1d", [28], id="the day after"),
        pytest.param("2026-11-27", [26, 28, 30], id="every other day"),
        pytest.param("before", [], id="none: another window"),
    ],
)
def test_pages_that_depend_on_a_day(text, days):
    kept = [date(2026, 11, n) for n in (26, 27, 28, 30)]
    assert [day.day for day in later_days(text, DAY, kept)] == days


@pytest.fixture
def kept(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for day in ("2026-11-20", "2026-11-27"):
        Path("windows", day).mkdir(parents=True)
    return Path("windows")


@pytest.mark.parametrize(
    ("text", "window", "found"),
    [
        pytest.param("7d", "windows/2026-11-27", "windows/2026-11-20", id="beside it"),
        pytest.param("2026-11-20", "after", "windows/2026-11-20", id="among those that are kept"),
        pytest.param("before@..2026-11-01", "after", "before@..2026-11-01", id="any window"),
    ],
)
def test_the_window_of_a_window(kept, text, window, found):
    assert window_against(text, window, kept, is_typed=True) == found


@pytest.mark.parametrize(
    ("text", "window", "says"),
    [
        pytest.param("6d", "windows/2026-11-27", "no window windows/2026-11-21", id="gone"),
        pytest.param("7d", "after", "not named by one", id="no day to count from"),
    ],
)
def test_what_is_not_there_is_an_error_only_where_it_was_typed(kept, text, window, says):
    with pytest.raises(InputError, match=says):
        window_against(text, window, kept, is_typed=True)
    assert window_against(text, window, kept, is_typed=False) is None


def test_days_are_kept_until_they_are_compared_with():
    source, page = SourceSettings(origin="http://p:9090"), ReportOrder(Path("n"), {}, Path("out"))
    with pytest.raises(InputError, match="shorter than --against"):
        Night.of(source, DaySettings(keep="5d"), page, against="7d")
