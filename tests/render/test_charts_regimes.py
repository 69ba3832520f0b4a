"""The chart of bottlenecks: a few stretches as they are, many in steps, many engines as cells."""

from datetime import timedelta

import pytest
from answer_by_hand import END, START, analysis, answer
from charts_by_hand import caption, notes_of

from vllm_capacity.render import charts
from vllm_capacity.render.report import MAX_ROWS
from vllm_capacity.render.report.vega import page_chart
from vllm_capacity.verdicts.saturation.fit import Stretch

FLIPS = 720


def flipping(engines, flips=FLIPS, limited=()):
    """Engines that flip between idle and busy, those in `limited` between idle and a limit."""
    step = (END - START) / flips
    return tuple(
        Stretch(
            START + step * i,
            START + step * (i + 1),
            f"vllm-of-a-team-{number:03}:8000/0",
            ("idle", "kv-bound" if number in limited else "client-bound")[i % 2],
            "why",
        )
        for number in range(engines)
        for i in range(flips)
    )


def drawn(stretches):
    return charts.regimes(analysis(answer=answer(saturation__regimes=stretches))).to_dict()


def rectangles(spec):
    (layer,) = (each for each in spec["layer"] if each["mark"]["type"] == "rect")
    return layer, spec["datasets"][layer["data"]["name"]]


@pytest.mark.parametrize(
    ("engines", "flips", "column"),
    [
        pytest.param(1, 100, "evidence", id="a few stretches are drawn as they are"),
        pytest.param(1, FLIPS, "bottom", id="many are shares of the time"),
        pytest.param(12, FLIPS, "bottom", id="so are those of twelve engines"),
        pytest.param(13, 2, "name", id="more engines are rows of cells"),
        pytest.param(100, 4, "name", id="a hundred engines"),
    ],
)
def test_marks_are_no_more_than_can_be_seen(engines, flips, column):
    spec = drawn(flipping(engines, flips))
    _, rows = rectangles(spec)
    is_still = "<svg" in page_chart(spec, 0).still
    assert (column in rows[0], 0 < len(rows) <= 3000, is_still) == (True, True, True)


def test_shares_of_a_step_fill_the_strip_of_its_engine():
    _, rows = rectangles(drawn(flipping(2)))
    ends = [
        (row["t"], row["top"], row["bottom"])
        for row in rows
        if row["engine"].endswith("001:8000/0")
    ]
    first = sorted(each[1:] for each in ends if each[0] == min(t for t, _, _ in ends))
    (top, middle), (same, bottom) = first
    assert (top, middle, bottom) == (pytest.approx(1.45), same, 2.0)


def test_equal_steps_that_follow_each_other_are_one_mark():
    quiet = Stretch(START, END, "gpu-9:8000/0", "idle", "why")
    _, rows = rectangles(drawn((*flipping(1), quiet)))
    (own,) = (row for row in rows if row["engine"] == "gpu-9:8000/0")
    assert own["t_end"] - own["t"] == (END - START) / timedelta(milliseconds=1)


def test_rows_of_cells_are_named_apart_the_most_limited_first():
    layer, _ = rectangles(drawn(flipping(14, limited=(7,))))
    names = layer["encoding"]["y"]["sort"]
    assert (names[0], len(set(names)), max(map(len, names))) == ("…007", 14, 4)


def test_caption_names_the_most_limited_and_the_idlest():
    idle = Stretch(START, END, "spare:8000/0", "idle", "why")
    found = caption(drawn((*flipping(13, limited=(7,)), idle)))
    assert found.endswith(
        "vllm-of-a-team-007:8000/0 was at its limit most, 50\xa0% of its time; spare:8000/0 was "
        "idle most, 100\xa0% of its time"
    )


def test_table_has_the_longest_stretches_and_says_how_many_are_left_out():
    long = Stretch(START, END, "gpu-9:8000/0", "idle", "why")
    table = notes_of(drawn((*flipping(1), long)))["table"]
    is_kept = "gpu-9:8000/0" in [row[2] for row in table["rows"]]
    assert (len(table["rows"]), table["left_out"], table["caption"], is_kept) == (
        MAX_ROWS,
        FLIPS + 1 - MAX_ROWS,
        "The longest stretches.",
        True,
    )


def test_sentences_are_made_only_for_stretches_the_table_shows():
    made = []

    def sentence(number):
        def evidence():
            made.append(number)
            return "why"

        return evidence

    step = (END - START) / FLIPS
    ends = [(START + step * i, START + step * (i + 1)) for i in range(FLIPS)]
    stretches = tuple(
        Stretch(start, end, "gpu-0:8000/0", ("idle", "client-bound")[i % 2], sentence(i))
        for i, (start, end) in enumerate(ends)
    )
    found = answer(saturation__regimes=stretches)
    made.clear()
    notes_of(charts.regimes(analysis(answer=found)).to_dict())
    assert len(made) <= MAX_ROWS
