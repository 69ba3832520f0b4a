"""The memory limit of an answer, and the error if it is too low."""

import gc

import duckdb
import pytest

from tests.figures.small_windows import at, gauge, small_window
from vllm_capacity.analysis import Analysis
from vllm_capacity.errors import InputError, WindowError
from vllm_capacity.facts.metrics import RUNNING
from vllm_capacity.telemetry import memory
from vllm_capacity.telemetry.window import open_window


@pytest.mark.parametrize(
    ("text", "size"),
    [
        pytest.param("2GB", 2_000_000_000, id="gigabytes"),
        pytest.param("512 MiB", 512 * 1024**2, id="powers of two"),
        pytest.param("1.5g", 1_500_000_000, id="short"),
        pytest.param("1500000000", 1_500_000_000, id="bytes"),
    ],
)
def test_sizes_as_people_write_them(text, size):
    assert memory.parse_size(text) == size


@pytest.mark.parametrize("text", ["much", "-1GB", "1 PB", "10MB", "nan"])
def test_what_is_no_size_or_too_small_is_refused(text):
    with pytest.raises(InputError, match="--memory-limit"):
        memory.parse_size(text)


def test_the_limit_given_is_that_of_duckdb(monkeypatch):
    monkeypatch.setenv(memory.MEMORY_LIMIT, "300MB")
    setting = "select current_setting('memory_limit')"
    own = memory.database()
    found = own.cursor().execute(setting).fetchone()
    assert found[0].startswith("286")  # MiB
    monkeypatch.delenv(memory.MEMORY_LIMIT)
    assert memory.limit_bytes() > 300_000_000


@pytest.mark.parametrize(
    ("own", "limits"),
    [
        pytest.param("0::/a/b\n", {"memory.max": "max", "a/memory.max": "3000000000"}, id="nested"),
        pytest.param("0::/\n", {"memory.max": "3000000000"}, id="a container's own"),
        pytest.param("0::/../b\n", {"memory.max": "3000000000"}, id="outside of its container"),
        pytest.param(
            "9:name=systemd:/\n4:cpu,memory:/a\n0::/\n",
            {
                "memory/memory.limit_in_bytes": "9223372036854771712",
                "memory/a/memory.limit_in_bytes": "3000000000",
            },
            id="version 1",
        ),
    ],
)
def test_the_default_is_half_of_what_a_control_group_may_use(own, limits, tmp_path, monkeypatch):
    monkeypatch.delenv(memory.MEMORY_LIMIT, raising=False)
    for name, text in limits.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"{text}\n")
    (tmp_path / "own").write_text(own)
    monkeypatch.setattr(memory, "_CGROUPS", tmp_path)
    monkeypatch.setattr(memory, "_OWN_CGROUPS", tmp_path / "own")
    assert memory.limit_bytes() == 1_500_000_000


def test_an_hour_that_does_not_fit_in_memory_is_refused_with_a_sufficient_size(
    tmp_path, monkeypatch
):
    values = {t: 1.0 for t in range(0, 7 * 3600, 60)}
    path = small_window(tmp_path, gauge(RUNNING, values)).path
    monkeypatch.setenv(memory.MEMORY_LIMIT, "100MB")
    Analysis.of(open_window(path))  # an hour of it fits
    monkeypatch.setattr(memory, "_SAMPLE_BYTES", 10_000_000)
    window = open_window(path)
    for kept in (path / ".rollup").iterdir():
        kept.rename(path / kept.name)
    with pytest.raises(InputError, match=r"from 2026-11-24T08:00:00Z to .* --memory-limit 4.3GB"):
        Analysis.of(window)


def test_exact_figures_that_do_not_fit_in_memory_are_refused_with_a_sufficient_size(
    tmp_path, monkeypatch
):
    window = small_window(tmp_path, gauge(RUNNING, {t: 1.0 for t in range(0, 7 * 3600, 60)}))
    monkeypatch.setenv(memory.MEMORY_LIMIT, "100MB")
    assert Analysis.of(window, exact=True).steps.height
    monkeypatch.setattr(memory, "_EXACT_BYTES", 1_000_000)
    said = r"has from 2026-11-24T08:00:00Z to .* is 420 rows, which take about 0.42 GB of memory; "
    said += (
        r"the limit is 0.1 GB. Set --memory-limit 0.5GB, or leave out --exact, or choose a short"
    )
    with pytest.raises(InputError, match=said):
        Analysis.of(window, exact=True)
    hour = Analysis.of(window, at(0), at(3500), exact=True)  # what fits is answered
    assert hour.steps.height


def rows(own, query):
    with own.cursor() as cursor:
        return cursor.sql(query).fetchall()


def filled():
    own = memory.database()
    with own.cursor() as cursor:
        cursor.execute("create table samples as select 1 as value")
    return own


def test_databases_of_a_process_do_not_see_each_other():
    one, other = filled(), memory.database()
    assert rows(one, "select value from samples") == [(1,)]
    with pytest.raises(duckdb.CatalogException):
        rows(other, "select value from samples")


def test_a_database_is_closed_with_its_last_reference():
    one, other = filled(), memory.database()
    name = one.name
    del one
    gc.collect()
    there = rows(other, "select database_name from duckdb_databases()")
    assert ((name,) in there, (other.name,) in there) == (False, True)


def test_a_database_is_made_with_its_first_cursor_and_again_if_that_failed():
    tried = []

    def prepare(cursor):
        cursor.execute("create table samples as select 1 as value")
        tried.append(len(tried))
        if len(tried) == 1:
            raise WindowError("unreadable")

    own = memory.database(prepare)
    assert tried == []
    with pytest.raises(WindowError, match="unreadable"):
        own.cursor()
    assert rows(own, "select value from samples") == rows(own, "from samples") == [(1,)]
    assert tried == [0, 1]
