"""Steps: where instants fall, how increases are booked, and a small window cut into them."""

import polars as pl
import pytest

from tests.figures.small_windows import (
    at,
    attempts,
    counter,
    gauge,
    histogram,
    seconds_of,
    small_window,
    time_range,
)
from vllm_capacity.facts.metrics import (
    GENERATION_TOKENS,
    ITL,
    KV_CACHE,
    PREEMPTIONS,
    REQUESTS,
    RUNNING,
    TTFT,
    WAITING,
)
from vllm_capacity.figures.scrapes import Gap, Restart
from vllm_capacity.figures.steps import (
    Grid,
    bin_increases,
    engine_frames,
    engine_steps,
    marks,
    natural_step_seconds,
)


def steps_of(grid, *seconds):
    frame = pl.DataFrame({"ts": [at(s) for s in seconds]}, schema={"ts": pl.Datetime("us", "UTC")})
    return frame.select(step=grid.of("ts")).get_column("step").to_list()


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        pytest.param(-0.001, -1, id="before the part"),
        pytest.param(0, 0, id="its start is inside"),
        pytest.param(9.999999, 0, id="just before a border"),
        pytest.param(10, 1, id="a border belongs to the step it begins"),
        pytest.param(34, 3, id="a rest over half a step is a step"),
        pytest.param(99, 3, id="what comes later is in the last"),
    ],
)
def test_step_of_an_instant(seconds, expected):
    assert steps_of(Grid(time_range(0, 36), 10), seconds) == [expected]


def borders(grid):
    frame = grid.starts(pl.DataFrame({"step": range(grid.count)}, schema={"step": pl.Int64}))
    return [(seconds_of(a), seconds_of(b)) for a, b in frame.select("start", "end").iter_rows()]


@pytest.mark.parametrize(
    ("end", "expected"),
    [
        pytest.param(30, [(0, 10), (10, 20), (20, 30)], id="even"),
        pytest.param(34, [(0, 10), (10, 20), (20, 34)], id="a rest under half a step is added"),
        pytest.param(36, [(0, 10), (10, 20), (20, 30), (30, 36)], id="a longer one is its own"),
        pytest.param(3, [(0, 3)], id="a part shorter than a step"),
    ],
)
def test_borders_of_steps(end, expected):
    assert borders(Grid(time_range(0, end), 10)) == expected


def test_a_long_time_without_an_attempt_is_one_step():
    grid = Grid.of_scrapes(time_range(0, 2000), 10, attempts(a=[5, 15, 1995]))
    assert borders(grid) == [(0, 10), (10, 20), (20, 1990), (1990, 2000)]
    assert steps_of(grid, 5, 19, 20, 1000, 1989, 1990) == [0, 1, 2, 2, 2, 3]


def test_a_shorter_one_keeps_its_steps():
    grid = Grid.of_scrapes(time_range(0, 1220), 10, attempts(a=[5, 1215]))
    assert (grid.count, grid.holes) == (122, ())


@pytest.mark.parametrize(
    ("interval", "expected"),
    [
        pytest.param(1, 10, id="10 s at least"),
        pytest.param(5, 25, id="five scrapes"),
        pytest.param(30, 60, id="60 s at most"),
    ],
)
def test_length_of_a_step(interval, expected):
    assert natural_step_seconds(attempts(a=range(0, 10 * interval, interval))) == expected


def test_one_scrape_gives_no_duration():
    assert natural_step_seconds(attempts(a=[0])) == 10


def increases(*rows):
    """Increases of one engine's tokens: (from, to, amount)."""
    result = [("a", "0", GENERATION_TOKENS, "{}", at(b), at(t), float(n)) for b, t, n in rows]
    texts = dict.fromkeys(("instance", "engine", "metric", "labels"), pl.String)
    instants = dict.fromkeys(("ts_before", "ts"), pl.Datetime("us", "UTC"))
    schema = {**texts, **instants, "increase": pl.Float64}
    return pl.DataFrame(result, schema=schema, orient="row")


@pytest.mark.parametrize(
    ("rows", "gaps", "expected"),
    [
        pytest.param(
            [(0, 5, 10), (5, 12, 7)],
            [],
            [(0, 10, 5), (1, 7, 7)],
            id="whole in the step of the later scrape",
        ),
        pytest.param(
            [(5, 35, 60)],
            [Gap("a", at(5), at(35), 5)],
            [(0, 10, 5), (1, 20, 10), (2, 20, 10), (3, 10, 5)],
            id="across a gap spread evenly over its time",
        ),
        pytest.param(
            [(-20, 10, 60)],
            [Gap("a", at(-20), at(10), 5)],
            [(0, 20, 10), (1, 0, 0)],
            id="of a gap that began before the part only what lies in it",
        ),
        pytest.param(
            [(5, 35, 60)],
            [Gap("b", at(5), at(35), 5)],
            [(3, 60, 30)],
            id="another target's gap spreads nothing",
        ),
    ],
)
def test_booking(rows, gaps, expected):
    found = bin_increases(increases(*rows), Grid(time_range(0, 40), 10), gaps)
    assert found.select("step", "amount", "seconds").rows() == expected


def test_steps_that_a_gap_or_a_restart_touches():
    found = marks(
        Grid(time_range(0, 40), 10),
        [Gap("a", at(5), at(15), 2)],
        [Restart("a", at(12), at(14), None), Restart("b", at(38), at(39), None)],
    )
    assert found.rows() == [
        ("a", 0, True, False),
        ("a", 1, True, True),
        ("b", 3, False, True),
    ]


@pytest.fixture(scope="module")
def steps(tmp_path_factory):
    """Two steps of 10 s of one engine, scraped at 0, 5, 10 and 15 s."""
    itl = {0: ([0, 0], 0.0), 5: ([4, 0], 2.0), 15: ([4, 4], 8.0)}
    window = small_window(
        tmp_path_factory.mktemp("steps"),
        gauge(RUNNING, {0: 1, 5: 3, 10: 4, 15: 4}),
        gauge(WAITING, {0: 0, 5: 0, 10: 2, 15: 0}),
        gauge(KV_CACHE, {0: 0.2, 5: 0.4, 10: 0.9, 15: 0.7}),
        counter(GENERATION_TOKENS, {0: 100, 5: 200, 10: 240, 15: 300}),
        counter(REQUESTS, {0: 1, 5: 2, 10: 2, 15: 5}, finished_reason="stop"),
        counter(PREEMPTIONS, {0: 0, 5: 0, 10: 1, 15: 1}),
        histogram(ITL, (1.0, 2.0), {s: ([*c, 0], t) for s, (c, t) in itl.items()}),
        histogram(TTFT, (1.0,), {0: ([0, 0], 0.0), 15: ([0, 3], 9.0)}),
    )
    return engine_steps(window, time_range=time_range(0, 20), step_seconds=10)


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        ("scrapes", [2, 2]),
        ("running_mean", [2, 4]),
        ("running_max", [3, 4]),
        ("waiting_mean", [0, 1]),
        ("waiting_share", [0, 0.5]),
        ("at_ceiling_share", [None, 1]),
        ("kv_cache_ratio_mean", [pytest.approx(0.3), pytest.approx(0.8)]),
        ("kv_cache_ratio_max", [0.4, 0.9]),
        ("output_tokens_per_second", [100 / 5, (40 + 60) / 10]),
        ("requests_per_second", [1 / 5, 3 / 10]),
        ("prompt_tokens_per_second", [None, None]),
        ("preemptions", [0, 1]),
        ("itl_mean_seconds", [2 / 4, 6 / 4]),
        ("itl_p95_seconds", [pytest.approx(0.95), pytest.approx(1.95)]),
        ("ttft_p95_seconds", [None, None]),
        ("best_minute_tokens_per_second", [None, None]),
        ("is_gap", [False, False]),
        ("is_restart", [False, False]),
    ],
)
def test_the_fields_of_a_step(steps, column, expected):
    assert steps.get_column(column).to_list() == expected


def test_the_best_minute_lies_between_two_scrapes(tmp_path):
    """30 tokens/s for a minute, then nothing for one."""
    tokens = {s: 30.0 * min(s, 60) for s in range(0, 130, 10)}
    window = small_window(tmp_path, counter(GENERATION_TOKENS, tokens))
    found = engine_steps(window, time_range=time_range(0, 130), step_seconds=60)
    assert found.get_column("best_minute_tokens_per_second").to_list() == [None, 30]


def test_a_window_without_an_engine_has_no_steps(tmp_path):
    window = small_window(tmp_path, gauge("process_start_time_seconds", {0: 1}, engine=None))
    assert engine_steps(window, time_range=time_range(0, 20)).is_empty()


@pytest.mark.parametrize(
    ("waiting", "expected"),
    [
        pytest.param([0, 0, 0, 0], [None, None], id="nothing waits"),
        pytest.param([1, 1, 1, 1], [1.0, 0.5], id="one less than the most is at the ceiling"),
        pytest.param([0, 1, 1, 0], [1.0, 1.0], id="of the scrapes with waiting requests"),
        pytest.param([0, 0, 0, 1], [None, 0.0], id="none of them"),
    ],
)
def test_share_of_scrapes_at_the_ceiling(tmp_path, waiting, expected):
    """The most that ran is 5, in the first of two steps."""
    window = small_window(
        tmp_path,
        gauge(RUNNING, {0: 4, 5: 5, 10: 4, 15: 3}),
        gauge(WAITING, {5 * k: value for k, value in enumerate(waiting)}),
    )
    found = engine_steps(window, time_range=time_range(0, 20), step_seconds=10)
    assert found.get_column("at_ceiling_share").to_list() == expected


def test_the_ceiling_is_that_of_the_engine(tmp_path):
    """A step far below the ceiling of its engine has no scrape at it, whatever another's is."""
    window = small_window(
        tmp_path,
        *(gauge(RUNNING, {0: high, 10: 2}, engine=name) for name, high in (("0", 9), ("1", 2))),
        *(gauge(WAITING, {0: 1, 10: 1}, engine=name) for name in ("0", "1")),
    )
    found = engine_steps(window, time_range=time_range(0, 20), step_seconds=10)
    assert found.select("engine", "at_ceiling_share").rows() == [
        ("0", 1.0),
        ("0", 0.0),
        ("1", 1.0),
        ("1", 1.0),
    ]


def engine_minutes(*rows):
    """Steps of a minute, each as (instance, engine, minute)."""
    return pl.DataFrame(
        [(instance, engine, at(60 * minute)) for instance, engine, minute in rows],
        schema={"instance": pl.String, "engine": pl.String, "start": pl.Datetime("us", "UTC")},
        orient="row",
    )


@pytest.mark.parametrize(
    "rows",
    [
        pytest.param([("b", "0", 0), ("b", "0", 1), ("a", None, 0), ("a", None, 1)], id="together"),
        pytest.param([("b", "0", 0), ("a", None, 0), ("b", "0", 1), ("a", None, 1)], id="by turns"),
        pytest.param(
            [("b", "0", 1), ("b", "0", 0), ("a", None, 1), ("a", None, 0)], id="backwards"
        ),
    ],
)
def test_steps_of_each_engine_by_its_name_in_order_of_time(rows):
    found = engine_frames(engine_minutes(*rows))
    assert {name: own.rows() for name, own in found.items()} == {
        "a/None": [("a", None, at(0)), ("a", None, at(60))],
        "b/0": [("b", "0", at(0)), ("b", "0", at(60))],
    }
    assert list(found) == ["a/None", "b/0"]


def test_no_steps_are_those_of_no_engine():
    assert engine_frames(engine_minutes()) == {}
