import pytest

from vllm_capacity.errors import InputError
from vllm_capacity.sources.demand import read_demand


def written(tmp_path, text):
    path = tmp_path / "series.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


@pytest.mark.parametrize(
    ("text", "ts_seconds", "values"),
    [
        pytest.param("ts_seconds,n\n0,5\n600,7.5\n", [0, 600], [5, 7.5], id="plain numbers"),
        pytest.param("n,ts_seconds\n5,0.0\n", [0], [5], id="columns in another order"),
        pytest.param("ts_seconds,n\n600,7\n0,5\n", [0, 600], [5, 7], id="unsorted rows are sorted"),
        pytest.param("ts_seconds,n\n0,\n1,NaN\n2,null\n", [0, 1, 2], [None] * 3, id="empty cells"),
        pytest.param(" ts_seconds , n \n 0 , 5 \n", [0], [5], id="blanks around cells"),
        pytest.param("ts_seconds,n\n", [], [], id="a header alone"),
        pytest.param("ts_seconds,n\n0,5\n\n9,7\n\n \n", [0, 9], [5, 7], id="blank lines"),
        pytest.param("ts_seconds,n,m, m\n0,5,1,1\n", [0], [5], id="two of a column not asked for"),
        pytest.param("ts,n\n1970-01-01T01:00:00Z,5\n", [3600], [5], id="ISO 8601"),
        pytest.param("ts,n\n1970-01-01T01:00:00+01:00,5\n", [0], [5], id="ISO 8601 with an offset"),
        pytest.param("ts,n\n1790000000,5\n", [1.79e9], [5], id="epoch seconds"),
        pytest.param("ts,n\n1790000000000,5\n", [1.79e9], [5], id="epoch milliseconds"),
        pytest.param("ts,ts_seconds,n\nx,9,5\n", [9], [5], id="ts_seconds goes before ts"),
    ],
)
def test_a_series_is_read(tmp_path, text, ts_seconds, values):
    frame = read_demand(written(tmp_path, text), "n").frame
    assert (frame["ts_seconds"].to_list(), frame["value"].to_list()) == (ts_seconds, values)


@pytest.mark.parametrize(
    ("text", "output"),
    [
        pytest.param("", "is empty", id="an empty file"),
        pytest.param("time,n\n0,5\n", "neither a column ts_seconds nor ts", id="no time column"),
        pytest.param(
            "ts_seconds,m\n0,5\n", "no column 'n' of counts; found: m", id="no such column"
        ),
        pytest.param("ts_seconds\n0\n", "found: none", id="times and nothing else"),
        pytest.param("ts_seconds,n\n0,5\n600,-1\n", "line 3: -1 .* negative", id="negative"),
        pytest.param("ts_seconds,n\n0,five\n", "line 2: 'five' .* not a number", id="a word"),
        pytest.param("ts_seconds,n\n0,inf\n", "line 2: 'inf' .* not a number", id="endless"),
        pytest.param("ts_seconds,n\n0,1e13\n", "line 2: 1e13 .* too large", id="huge"),
        pytest.param("ts_seconds,n\n0,1_000\n", "'1_000' .* not a number", id="digits in groups"),
        pytest.param("ts_seconds,n\n0,5\n,7\n", "line 3: '' is not a time", id="an empty time"),
        pytest.param("ts_seconds,n\n\n0,5\n,7\n", "line 4: '' is", id="lines count blank ones"),
        pytest.param("ts_seconds,n, n\n0,5,6\n", "2 columns 'n'", id="names alike but for a blank"),
        pytest.param("ts_seconds,n,n\n0,5,6\n", "2 columns 'n'", id="a name given twice"),
        pytest.param("ts,ts,n\n0,5,6\n", "2 columns 'ts'", id="two times"),
        pytest.param("ts_seconds,n\n0,5\n9,7\n0,5\n", "line 4: .* line 2", id="a time given twice"),
        pytest.param("ts,n\n2026-11-24T00:00Z,5\nnoon,7\n", "line 3: .*'noon'", id="no ISO time"),
        pytest.param(
            "ts_seconds,n\n0,5,9,9\n", "not readable as CSV", id="more cells than columns"
        ),
        pytest.param(b"ts_seconds,n\n0,\xff\xfe\n", "not readable as CSV", id="not text"),
    ],
)
def test_what_cannot_be_read_is_an_input_error(tmp_path, text, output):
    with pytest.raises(InputError, match=output):
        read_demand(written(tmp_path, text), "n")


@pytest.mark.parametrize("name", ["absent.csv", "."])
def test_a_nonexistent_file_is_an_input_error(tmp_path, name):
    with pytest.raises(InputError, match="Cannot read"):
        read_demand(tmp_path / name, "n")


@pytest.mark.parametrize(
    ("column", "cell"),
    [
        pytest.param("ts_seconds", 600, id="whole seconds stay whole"),
        pytest.param("ts_seconds", 600.5, id="fractions stay"),
        pytest.param("ts", 1790000000, id="epoch seconds"),
        pytest.param("ts", 1790000000123, id="epoch milliseconds"),
        pytest.param("ts", "2026-11-24T08:00:00Z", id="Z"),
        pytest.param("ts", "2026-11-24T08:00:00+00:00", id="an offset of nothing"),
        pytest.param("ts", "2026-11-24T08:00:00-0530", id="an offset without a colon"),
        pytest.param("ts", "2026-11-24 08:00:00", id="a blank and no zone"),
        pytest.param("ts", "2026-11-24 08:00:00+02", id="an offset of hours alone, as PostgreSQL"),
        pytest.param("ts", "2026-11-24 08:00:00-03", id="a negative one"),
        pytest.param("ts", "2026-11-24", id="dates"),
        pytest.param("ts", "2026-11-24T08:00:00.250000+02:00", id="fractions and an offset"),
    ],
)
def test_times_are_written_as_they_were_read(tmp_path, column, cell):
    series = read_demand(written(tmp_path, f"{column},n\n{cell},5\n"), "n")
    assert series.clock.written(series.frame["ts_seconds"][0]) == cell


@pytest.mark.parametrize(
    "stamps",
    [
        pytest.param(["2026-10-25T00:00+02:00", "2026-10-26T00:00+01:00"], id="past the change"),
        pytest.param(["2026-10-26T00:00+01:00", "2026-10-25T00:00+02:00"], id="unsorted"),
    ],
)
def test_times_are_written_in_the_offset_of_the_latest_row(tmp_path, stamps):
    series = read_demand(written(tmp_path, "ts,n\n" + "".join(f"{at},5\n" for at in stamps)), "n")
    after = series.clock.written(series.frame["ts_seconds"][-1] + 86_400)
    assert after == "2026-10-27T00:00:00+01:00"


def test_a_file_of_dates_gets_hours_only_where_there_are_any(tmp_path):
    clock = read_demand(written(tmp_path, "ts,n\n2026-11-24,5\n"), "n").clock
    assert [clock.written(at) for at in (0, 3600)] == ["1970-01-01", "1970-01-01T01:00:00"]


def test_a_name_with_a_star_is_a_name(tmp_path):
    (tmp_path / "a1.csv").write_text("ts_seconds,n\n0,1\n")
    (tmp_path / "a*.csv").write_text("ts_seconds,n\n0,5\n")
    assert read_demand(tmp_path / "a*.csv", "n").frame["value"].to_list() == [5]
