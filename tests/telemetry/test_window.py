from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from threading import Event

import polars as pl
import pytest

from vllm_capacity.errors import InputError, WindowError
from vllm_capacity.telemetry.window import open_window


def test_a_window_is_opened_by_name_from_anywhere_below_the_repository(examples, monkeypatch):
    monkeypatch.chdir(examples.parent.parent / "notebooks")
    assert open_window("vllm-sweep").name == "vllm-sweep"


def test_an_unknown_name_lists_the_existing_ones():
    with pytest.raises(WindowError, match="vllm-sweep"):
        open_window("no-such-window")


def test_a_folder_that_is_not_a_window_is_refused(tmp_path):
    with pytest.raises(WindowError, match=r"no readable window\.json"):
        open_window(tmp_path)


def test_sql_binds_values(sweep):
    answer = sweep.sql("select count(*) as n from series where metric = $m", m="up")
    assert answer.item() == 1


def test_an_invalid_query_is_reported(sweep):
    with pytest.raises(InputError, match="cannot answer that query"):
        sweep.sql("select nothing from nowhere")


def test_a_part_is_clamped_to_the_capture(sweep):
    part = sweep.clamp(datetime(2020, 1, 1, tzinfo=UTC), None)
    assert part == sweep.extent


def test_a_part_outside_the_capture_is_an_error(sweep):
    with pytest.raises(InputError, match="does not overlap"):
        sweep.clamp(None, datetime(2020, 1, 1, tzinfo=UTC))


@pytest.mark.parametrize(
    ("is_remembering", "times"),
    [
        pytest.param(True, 1, id="once by a window that remembers"),
        pytest.param(False, 2, id="each time by another"),
    ],
)
def test_a_derived_frame_is_made(sweep, is_remembering, times):
    made = []

    def make():
        made.append(pl.DataFrame({"place": [len(made)]}))
        return made[-1]

    window = sweep.remembering() if is_remembering else sweep
    found = [window.derived("tests", "places", make) for _ in range(2)]
    assert (len(made), found[-1] is made[-1]) == (times, True)


def test_two_threads_that_ask_for_a_frame_share_it(sweep):
    made, never = [], Event()

    def make():
        made.append(pl.DataFrame({"place": [len(made)]}))
        never.wait(0.2)  # for the other thread to ask meanwhile
        return made[-1]

    window = sweep.remembering()
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda _: window.derived("tests", "places", make), range(2)))
    assert len(made) == 1
    assert found[0] is found[1]
